"""What the device plugin costs and how fast it is, beside NVIDIA's plugin 0.20 and the project's aims.

    plugin_bench.py [--quick] [--only WORD ...] [--output build/bench/plugin.json]

Prints a table and writes the samples as JSON. Nothing here passes or fails: on a busy machine every number grows, so
the load is printed with them. Simulated NVML, embedded kubelet 1.36 in this process, a real kubelet where there is one.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import json
import os
import platform
import py_compile
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in ("files/plugin/src", "tests/testbed/nvml", "tests/testbed/kubelet", "tests/conformance"):
    sys.path.insert(0, str(ROOT / folder))

import grpc  # noqa: E402
import plugin_process  # noqa: E402
import real_kubelet  # noqa: E402
from embedded_kubelet.wire import CHANNEL_OPTIONS, api  # noqa: E402
from embedded_kubelet.wire import deviceplugin as dp  # noqa: E402
from fake_plugin import wait_until  # noqa: E402
from kubelet_nodes import EmbeddedNode, Node  # noqa: E402
from plugin_process import PluginProcess, remove_directory  # noqa: E402
from testbed_nvml import standin  # noqa: E402

GPU = "nvidia.com/gpu"


@dataclass
class Row:
    """One line of the table. ``samples`` are in the unit."""

    what: str
    unit: str
    samples: list[float]
    peer: str = "-"
    """As PLUGIN.md's table has it: same bench, 2 idle cores."""
    aim: str = "-"
    note: str = ""
    show: str = field(default="", compare=False)

    def text(self) -> str:
        """The figure."""
        if not self.samples:
            return self.note or "-"
        if len(self.samples) == 1:
            return f"{self.samples[0]:.4g} {self.unit}"
        ordered = sorted(self.samples)
        return (
            f"{statistics.median(ordered):.3g} / {ordered[int(len(ordered) * 0.99)]:.3g}"
            f" / {ordered[-1]:.3g} {self.unit}"
        )


class Bench:
    """Runs parts, keeps rows."""

    def __init__(self, quick: bool) -> None:
        self.rows: list[Row] = []
        self.quick = quick

    def times(self, many: int) -> int:
        """How often to repeat."""
        return max(3, many // 5) if self.quick else many

    def add(self, what: str, unit: str, samples: Sequence[float], **more: Any) -> None:
        """A row, shown at once."""
        row = Row(what, unit, list(samples), **more)
        self.rows.append(row)
        print(f"  {what}: {row.text()}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Measures the plugin as the role and the image install it: a copy with its byte code. From a checkout, whose byte
    code is old or may not be written, half a start would be the compiler's."""
    sources = plugin_process.SOURCES
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as directory:
        shutil.copytree(sources, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(directory, quiet=2, invalidation_mode=mode)
        plugin_process.SOURCES = Path(directory)
        try:
            yield
        finally:
            plugin_process.SOURCES = sources


@contextlib.contextmanager
def setup(
    gpus: int = 8, *flags: str, node: Node | None = None, config: dict[str, Any] | None = None
) -> Iterator[tuple[Node, Any, PluginProcess]]:
    """A kubelet, a machine and a plugin that is not started yet."""
    own = node or EmbeddedNode("1.36")
    own.start()
    try:
        with standin(gpus=gpus, model="H100") as machine:
            process = PluginProcess(own.plugin_dir, own.root_dir, machine, *flags, config=config)
            try:
                yield own, machine, process
            finally:
                process.close()
    finally:
        own.close()


def wait_listed(node: Node, number: int, since: float) -> float:
    """When (monotonic seconds) the first list with that many healthy devices came after ``since``."""
    assert isinstance(node, EmbeddedNode)

    def found() -> float | None:
        for event in node.kubelet.lists(GPU, since):
            detail = event.detail
            if detail["healthy"] == number:
                return event.at
        return None

    if not node.kubelet.journal.wait(lambda: found() is not None, 20):
        events = [(event.kind, event.resource) for event in list(node.kubelet.journal.events)[-5:]]
        raise TimeoutError(
            f"no list with {number} healthy devices in 20 s; the kubelet's last events: {events}"
        )
    return found() or 0.0


def cpu_seconds(process: PluginProcess) -> float:
    """Of all its threads, in nanosecond steps."""
    total = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def caller(
    socket: Path, method: str, request: Any, response: Any
) -> tuple[grpc.Channel, Callable[[Any], Any]]:
    """A channel, and a call over it."""
    channel = grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
    return channel, channel.unary_unary(
        f"/{api.DEVICE_PLUGIN}/{method}", request.SerializeToString, response.FromString
    )


def timed(call: Callable[[Any], Any], requests: Sequence[Any], times: int) -> list[float]:
    """Milliseconds of each call, after a warm-up."""
    for number in range(20):
        call(requests[number % len(requests)])
    samples = []
    for number in range(times):
        request = requests[number % len(requests)]
        start = time.perf_counter()
        call(request)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


# -- parts -------------------------------------------------------------------------------------------------------


def start(bench: Bench) -> None:
    """Process start to first list, and what an idle process costs."""
    for gpus, peer in ((8, "58 ms"), (16, "30 ms")):
        samples, spent = [], []
        with setup(gpus) as (node, _machine, process):
            for _ in range(bench.times(20)):
                began = time.monotonic()
                process.start()
                samples.append((wait_listed(node, gpus, began) - began) * 1e3)
                spent.append(cpu_seconds(process) * 1e3)
                process.stop()
        bench.add(f"process start to first list, {gpus} GPUs", "ms", samples, peer=peer, aim="< 200 ms")
        bench.add(
            f"CPU time from start to first list, {gpus} GPUs", "ms", spent, note="does not grow with the load"
        )


def answers(bench: Bench) -> None:
    """Allocate and GetPreferredAllocation, on simulated NVML."""
    for gpus, allocate, preferred in (
        (8, "0.37 / 0.89", {2: "1.15 ms", 3: "-", 4: "1.27 ms", 8: "1.17 ms"}),
        (16, "0.33 / 1.5", {2: "1800 ms", 3: "32900 ms", 4: "3600 ms", 8: "26 ms"}),
    ):
        with setup(gpus) as (node, _machine, process):
            began = time.monotonic()
            process.start()
            wait_listed(node, gpus, began)
            ids = sorted(node.healthy(GPU) or ())
            [socket] = process.sockets()
            channel, call = caller(socket, "Allocate", dp.AllocateRequest, dp.AllocateResponse)
            requests = [dp.AllocateRequest(container_requests=[{"devices_ids": [i]}]) for i in ids]
            samples = timed(call, requests, bench.times(3000))
            bench.add(
                f"Allocate, {gpus} GPUs", "ms", samples, peer=f"{allocate} ms (p50/p99)", aim="p50 <= peer",
                note="one GPU, each many times: answered before",
            )  # fmt: skip
            several = itertools.islice(itertools.permutations(ids, 3), 20, 320)
            requests = [dp.AllocateRequest(container_requests=[{"devices_ids": three}]) for three in several]
            samples = timed(call, requests, len(requests))[20:]
            channel.close()
            bench.add(
                f"Allocate, {gpus} GPUs, never asked before", "ms", samples, note="three GPUs, once each"
            )
            channel, call = caller(
                socket, "PreStartContainer", dp.PreStartContainerRequest, dp.PreStartContainerResponse
            )
            samples = timed(call, [dp.PreStartContainerRequest(devices_ids=ids[:1])], bench.times(3000))
            channel.close()
            bench.add(
                f"PreStartContainer, {gpus} GPUs", "ms", samples, note="an empty answer: gRPC's own share"
            )
            prefer(bench, socket, ids, preferred)
    for gpus in (32, 64):
        with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as directory:
            socket = Path(directory) / "s"
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/bench/many_gpus.py"), str(gpus), str(socket)],
                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(plugin_process.SOURCES)},
            )  # fmt: skip
            try:
                assert process.stdout is not None
                process.stdout.readline()
                prefer(bench, socket, [f"GPU-{i:04}" for i in range(gpus)], {})
            finally:
                process.kill()
                process.wait()


def prefer(bench: Bench, socket: Path, ids: list[str], peer: dict[int, str]) -> None:
    """GetPreferredAllocation of 2, 3, 4, 8 from all, and from all but one."""
    channel, call = caller(
        socket, "GetPreferredAllocation", dp.PreferredAllocationRequest, dp.PreferredAllocationResponse
    )
    for size in (2, 3, 4, 8):
        requests = [
            dp.PreferredAllocationRequest(
                container_requests=[{"available_deviceIDs": free, "allocation_size": size}]
            )
            for free in (ids, ids[1:], ids[:-1])
            if len(free) >= size
        ]
        samples = timed(call, requests, bench.times(200))
        bench.add(
            f"GetPreferredAllocation, {size} of {len(ids)}",
            "ms",
            samples,
            peer=peer.get(size, "-"),
            aim="< 10 ms",
        )
    channel.close()


def recovery(bench: Bench) -> None:
    """Every way back to a list, with the embedded kubelet in this process."""
    with setup() as (node, _machine, process):
        assert isinstance(node, EmbeddedNode)
        began = time.monotonic()
        process.start()
        wait_listed(node, 8, began)

        def serving(since: float) -> float:
            return node.kubelet.journal.of("serving", since=since)[-1].at

        samples = []
        for _ in range(bench.times(50)):
            node.stop()
            began = time.monotonic()
            node.start()
            samples.append((wait_listed(node, 8, began) - serving(began)) * 1e3)
        bench.add(
            "kubelet restart to first list, embedded", "ms", samples, peer="6 / - / 8 ms", aim="p50 < 10 ms",
            note="from kubelet.sock",
        )  # fmt: skip
        samples = []
        for _ in range(bench.times(30)):
            [socket] = process.sockets()
            began = time.monotonic()
            socket.unlink()
            samples.append((wait_listed(node, 8, began) - began) * 1e3)
            wait_until(lambda: len(process.sockets()) == 1)
        bench.add("own socket deleted to first list, embedded", "ms", samples, aim="< 2000 ms")
        samples = []
        for _ in range(bench.times(20)):
            node.stop()
            remove_directory(node.plugin_dir)
            began = time.monotonic()
            node.start()
            samples.append((wait_listed(node, 8, began) - serving(began)) * 1e3)
        bench.add("directory replaced to first list, embedded", "ms", samples, aim="< 2000 ms")
        samples = []
        for _ in range(bench.times(10)):
            process.kill()
            began = time.monotonic()
            process.start()
            samples.append((wait_listed(node, 8, began) - began) * 1e3)
        bench.add(
            "plugin SIGKILL to first list, embedded",
            "ms",
            samples,
            aim="< 2000 ms",
            note="from its new start",
        )


def recovery_real(bench: Bench) -> None:
    """The same with a real kubelet: from kubelet.sock's change time to the checkpoint's (4 ms steps)."""
    reason = real_kubelet.why_not()
    if reason:
        bench.add("recovery, real kubelet", "ms", [], note=f"none here: {reason}")
        return
    with setup(node=real_kubelet.RealNode()) as (node, _machine, process):
        file = node.plugin_dir / "kubelet_internal_checkpoint"

        def listed(since_ns: int) -> float:
            """Milliseconds from then (wall clock) to the checkpoint that has eight devices."""
            wait_until(
                lambda: (
                    file.exists()
                    and file.stat().st_mtime_ns >= since_ns - 4_000_000
                    and len(node.healthy(GPU) or ()) == 8
                ),
                20,
            )
            return max(0.0, (file.stat().st_mtime_ns - since_ns) / 1e6)

        process.start()
        listed(0)

        def restart(end: Callable[[], None], between: Callable[[], None] = lambda: None) -> float:
            end()
            between()
            with contextlib.suppress(FileNotFoundError):
                os.utime(file, ns=(0, 0))
            node.start()
            return listed(node.kubelet_sock.stat().st_ctime_ns)

        name = node.name
        many = bench.times(10)
        bench.add(
            f"kubelet restart to first list, {name}", "ms", [restart(node.stop) for _ in range(many)],
            peer="6 / - / 8 ms", aim="< 2000 ms", note="4 ms steps",
        )  # fmt: skip
        samples = [restart(node.kill) for _ in range(many)]
        bench.add(
            f"kubelet SIGKILL to first list, {name}",
            "ms",
            samples,
            aim="< 2000 ms",
            note="from its new kubelet.sock",
        )
        samples = [restart(node.stop, lambda: remove_directory(node.plugin_dir)) for _ in range(many)]
        bench.add(f"directory replaced to first list, {name}", "ms", samples, aim="< 2000 ms")
        samples = []
        for _ in range(many):
            [socket] = process.sockets()
            os.utime(file, ns=(0, 0))
            began = time.time_ns()
            socket.unlink()
            samples.append(listed(began))
            wait_until(lambda: len(process.sockets()) == 1)
        bench.add(f"own socket deleted to first list, {name}", "ms", samples, aim="< 2000 ms")
        samples = []
        for _ in range(bench.times(5)):
            process.kill()
            os.utime(file, ns=(0, 0))
            began = time.time_ns()
            process.start()
            samples.append(listed(began))
        bench.add(
            f"plugin SIGKILL to first list, {name}", "ms", samples, aim="< 2000 ms", note="from its new start"
        )


def xid(bench: Bench) -> None:
    """From the event's arrival in NVML to the kubelet's having the list."""
    samples = []
    for _ in range(bench.times(5)):
        with setup() as (node, machine, process):
            began = time.monotonic()
            process.start()
            wait_listed(node, 8, began)
            for index in range(8):
                began = time.monotonic()
                machine.xid(index, 79)
                samples.append((wait_listed(node, 7 - index, began) - began) * 1e3)
    bench.add("XID 79 to list, 8 GPUs", "ms", samples, aim="< 50 ms")


def idle(bench: Bench) -> None:
    """Memory, threads and CPU of a plugin that nobody asks anything."""
    for gpus, peer, aim in ((8, "24.8 MB", "< 45 MB"), (16, "25.1 MB", "-")):
        with setup(gpus) as (node, _machine, process):
            began = time.monotonic()
            process.start()
            wait_listed(node, gpus, began)
            time.sleep(2 if bench.quick else 5)  # imports and first scans are over
            memory = process.memory()
            bench.add(f"memory (RSS), {gpus} GPUs", "MB", [memory["rss"] / 1e6], peer=peer, aim=aim)
            bench.add(
                f"memory (PSS / USS), {gpus} GPUs",
                "MB",
                [memory["pss"] / 1e6],
                note=f"USS {memory['uss'] / 1e6:.1f} MB",
            )
            if gpus == 8:
                bench.add("threads", "", [process.threads()])
                bench.add("open files", "", [process.files()])
                seconds = 10 if bench.quick else 60
                before = cpu_seconds(process)
                time.sleep(seconds)
                share = (cpu_seconds(process) - before) / seconds * 100
                bench.add(
                    "idle CPU",
                    "% of a core",
                    [share],
                    peer="0.2 ticks/s (2 %)",
                    aim="< 0.2 %",
                    note=f"over {seconds} s",
                )


def lists(bench: Bench) -> None:
    """What a list costs as replicas grow: from an XID to the kubelet, and the plugin's CPU for it."""
    for replicas in (100, 1_000, 10_000):
        config = {"sharing": {"timeSlicing": {"resources": [{"name": GPU, "replicas": replicas // 8}]}}}
        number = replicas // 8 * 8
        with setup(config=config) as (node, machine, process):
            began = time.monotonic()
            process.start()
            first = wait_listed(node, number, began) - began
            samples, spent = [], []
            for index in range(8):
                before = cpu_seconds(process)
                began = time.monotonic()
                machine.xid(index, 79)
                at = wait_listed(node, number - (index + 1) * (replicas // 8), began)
                samples.append((at - began) * 1e3)
                spent.append((cpu_seconds(process) - before) * 1e3)
            assert isinstance(node, EmbeddedNode)
            size = node.kubelet.lists(GPU)[-1].detail["message"].ByteSize()
            bench.add(f"XID to list, {number} replicas", "ms", samples, note=f"{size / 1e3:.0f} kB a list")
            bench.add(
                f"plugin's CPU a list, {number} replicas",
                "ms",
                spent,
                note=f"first list {first * 1e3:.0f} ms",
            )


def image(bench: Bench) -> None:
    """Unpacked size, where an image is there."""
    shown = subprocess.run(
        ["docker", "image", "ls", "--format", "{{.ID}} {{.Tag}}", "gpuops/device-plugin"],
        capture_output=True, text=True, check=False,
    ) if shutil.which("docker") else None  # fmt: skip
    newest = shown.stdout.split("\n")[0].split() if shown and shown.returncode == 0 else []
    if not newest:
        bench.add("image, unpacked", "MB", [], aim="< 80 MB", note="no image here")
        return
    size = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Size}}", newest[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    bench.add("image, unpacked", "MB", [int(size) / 1e6], aim="< 80 MB", note=newest[1])


PARTS: dict[str, Callable[[Bench], None]] = {
    "start": start, "answers": answers, "recovery": recovery, "recovery-real": recovery_real,
    "xid": xid, "idle": idle, "lists": lists, "image": image,
}  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """For people."""
    cells = [("measured", "here (p50 / p99 / max)", "peer", "aim", "")]
    cells += [(row.what, row.text(), row.peer, row.aim, row.note if row.samples else "") for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def main() -> int:
    """All parts, or some."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench/plugin.json")
    options = parser.parse_args()
    bench = Bench(options.quick)
    load = os.getloadavg()
    with installed():
        for name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                PARTS[name](bench)
            except (TimeoutError, RuntimeError, OSError, AssertionError, grpc.RpcError) as error:
                # One part that can't be measured must not cost the others' figures.
                bench.add(name, "", [], note=f"not measured: {str(error).splitlines()[0][:80]}")
    about = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg(),
    }
    print(table(bench.rows))
    print(
        f"\nPython {about['python']}, grpcio {about['grpcio']}, {about['cores']} cores, "
        f"load {load[0]:.1f} before and {os.getloadavg()[0]:.1f} after. "
        "Peer: NVIDIA's device plugin 0.20 on 2 idle cores, same bench."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"about": about, "rows": [asdict(row) for row in bench.rows]}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
