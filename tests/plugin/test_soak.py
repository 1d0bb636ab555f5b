"""A day in an hour: kubelet restarts, plugin kills, XIDs, config edits, lost and returning GPUs in random order.

After every event the kubelet's list has to come to the truth within a second. GPUOPS_SOAK_EVENTS says how many (default
40; `make soak` 5,000), GPUOPS_SOAK_SEED where the dice start (the same seed gives the same events), GPUOPS_SOAK_SECONDS
how long the list may take (default 1). Time in which the plugin, or this process, which is the kubelet, stood ready
and got no CPU does not count against the bound, since other work on the machine makes it; the report tells it apart.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

from embedded_kubelet import AdmissionError
from fake_plugin import wait_until
from kubelet_nodes import EmbeddedNode
from plugin_process import PluginProcess, remove_directory
from testbed_nvml import Machine, standin

GPU = "nvidia.com/gpu"
EVENTS = int(os.environ.get("GPUOPS_SOAK_EVENTS", "40"))
SEED = int(os.environ.get("GPUOPS_SOAK_SEED", "20261123"))
SECONDS = float(os.environ.get("GPUOPS_SOAK_SECONDS", "1"))
GIVE_UP_SECONDS = max(15.0, SECONDS)
"""However busy the machine is."""
RESCAN_SECONDS = 0.5
UNHEARD_SECONDS = 3.0
"""An XID that shows no effect for so long was not heard."""
THREADS_MORE = 3
FILES_MORE = 6
"""Allowed above what the process had after its first list: a call under way, a socket that is being replaced."""
SETTLE_SECONDS = 5
MEMORY_MORE = 12e6
"""Bytes of RSS above the first measure of a process's life: arenas settle, and then nothing may grow."""


class World:
    """The truth, the node, and the dice."""

    def __init__(self, node: EmbeddedNode, machine: Machine, plugin: PluginProcess) -> None:
        self.node, self.machine, self.plugin = node, machine, plugin
        self.dice = random.Random(SEED)
        self.lost: set[int] = set()
        self.marked: set[int] = set()
        """With a fatal fault that only a reset ends."""
        self.counted: set[int] = set()
        """Those of them whose ECC counter shows a reset: it falls to zero."""
        self.unseen: set[int] = set()
        self.replicas = 1
        self.pods: list[str] = []
        self.took: dict[str, list[float]] = {}
        self.starved: list[float] = []
        """Of what took longer than allowed: how long it would have taken with the CPU at hand."""
        self.done: Counter[str] = Counter()
        self.again: tuple[int, int] | None = None
        self.probed: int | None = None
        """A GPU whose counter a probe has to see before anything else happens: a reset shows by its fall."""
        self.returned = False
        """Whether a GPU ever came back: NVML is then opened anew at times."""
        self.unheard = 0
        self.base: tuple[int, int, int] | None = None
        self.worst = (0, 0, 0)

    # -- what is true ---------------------------------------------------------------------------------------------

    def expected(self) -> list[Counter[str]]:
        """How many devices of each health; a GPU that was lost when the process began may be missing, not Healthy."""
        ill = self.lost | self.marked
        return [
            +Counter({"Healthy": (8 - len(ill)) * self.replicas, "Unhealthy": number * self.replicas})
            for number in {len(ill), len(ill - self.unseen)}
        ]

    def listed(self) -> bool:
        """Whether the kubelet believes it, from a live stream over a socket that is there."""
        manager = self.node.kubelet.manager
        endpoint = manager.endpoints.get(GPU) if manager else None
        if endpoint is None or endpoint.stop_time is not None or not endpoint.socket:
            return False
        return (
            endpoint.socket.exists() and Counter(self.node.kubelet.devices(GPU).values()) in self.expected()
        )

    def link(self) -> str:
        """The kubelet's side of it, in words for a failure."""
        manager = self.node.kubelet.manager
        endpoint = manager.endpoints.get(GPU) if manager else None
        if endpoint is None:
            return "no endpoint"
        there = endpoint.socket is not None and endpoint.socket.exists()
        ended = "its stream ended" if endpoint.stop_time is not None else "its stream is open"
        made = [str(path) for path in self.plugin.sockets()]
        return f"endpoint {endpoint.socket} ({'there' if there else 'gone'}), {ended}; the plugin's sockets: {made}"

    def wait_listed(self, seconds: float) -> bool:
        """Looks at each thing that the kubelet notes, and now and then (a socket's end is none of them)."""
        until = time.monotonic() + seconds
        while not self.node.kubelet.journal.wait(self.listed, min(0.05, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
        return True

    def converge(self, event: str) -> None:
        """Wait for it, and keep the time."""
        began, waited = time.monotonic(), self.run_delay()
        if self.again is not None and not self.wait_listed(UNHEARD_SECONDS):
            # NVML drops events while nobody listens; opening it anew for a lost GPU is such a moment.
            assert self.lost or self.returned, (
                f"an XID was not heard though no GPU was lost: {self.plugin.tail(30)}"
            )
            self.unheard += 1
            self.machine.xid(*self.again)
            began, waited = time.monotonic(), self.run_delay()
        self.again = None
        listed = self.wait_listed(GIVE_UP_SECONDS)
        took = time.monotonic() - began
        starved = max(0.0, self.run_delay() - waited)
        if not listed or took - starved > SECONDS:
            raise AssertionError(
                f"seed {SEED}, event {sum(self.done.values())} ({event}): {took:.2f} s, of which {starved:.2f} s "
                f"without CPU, are over {SECONDS} s; expected {self.expected()} "
                f"(lost {self.lost}, marked {self.marked}), the kubelet has "
                f"{Counter(self.node.kubelet.devices(GPU).values())}, {self.link()}; its status: "
                f"{self.plugin.status().get('resources')}; the plugin's log:\n{self.plugin.tail(40)}"
            )
        if took > SECONDS:
            self.starved.append(took - starved)
        self.took.setdefault(event, []).append(took)
        if self.probed is not None:
            self.wait_for_reason(self.probed, "double-bit ECC errors since")
            self.probed = None

    def run_delay(self) -> float:
        """Seconds that the threads of both processes were ready to run and did not: proc_pid_schedstat(5)."""
        waited = 0
        for pid in (os.getpid(), self.plugin.pid):
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    waited += int(task.read_text().split()[1])
        return waited / 1e9

    # -- what happens ---------------------------------------------------------------------------------------------

    def kubelet_restart(self) -> None:
        self.node.stop()
        self.node.start()

    def kubelet_away_for_a_while(self) -> None:
        self.node.stop()
        time.sleep(self.dice.random() * 0.3)
        self.node.start()

    def directory_replaced(self) -> None:
        self.node.stop()
        remove_directory(self.node.plugin_dir)
        self.pods_gone()
        self.node.start()

    def plugin_killed(self) -> None:
        self.watch_growth()
        self.plugin.kill()
        self.begin()

    def plugin_stopped(self) -> None:
        self.watch_growth()
        assert self.plugin.stop() == 0
        self.begin()

    def node_repaired(self) -> None:
        """As after a repair and a reboot: all GPUs answer, and what was remembered of them is gone."""
        self.watch_growth()
        assert self.plugin.stop() == 0
        for index in range(8):
            self.machine.restore(index)
        shutil.rmtree(self.plugin.base / "state", ignore_errors=True)
        for known in (self.lost, self.marked, self.counted):
            known.clear()
        self.begin()

    def begin(self) -> None:
        """A new life of the process, once the kubelet has seen the end of the old one."""
        manager = self.node.kubelet.manager
        assert manager is not None
        self.node.kubelet.journal.wait(
            lambda: GPU not in manager.endpoints or manager.endpoints[GPU].stop_time is not None,
            GIVE_UP_SECONDS,
        )
        self.plugin.start()
        self.unseen = set(self.lost)
        self.base = None

    def socket_deleted(self) -> None:
        for socket in self.plugin.sockets():
            socket.unlink(missing_ok=True)

    def stream_ended(self) -> None:
        manager = self.node.kubelet.manager
        if manager is not None and GPU in manager.endpoints:
            manager.endpoints[GPU].stop()

    def application_xid(self) -> None:
        self.machine.xid(self.dice.randrange(8), self.dice.choice([13, 31, 43, 45, 68]))

    def fatal_xid(self) -> None:
        """One of those that no reset of this world shows to be over: few, or no GPU would be left."""
        index = self.well()
        if index is not None and len(self.marked - self.counted) < 2:
            code = self.dice.choice([74, 79, 119])
            self.machine.xid(index, code)
            self.marked.add(index)
            self.again = (index, code)

    def ecc_error(self) -> None:
        """A double-bit error: an event, a counter, and XID 48."""
        index = self.well()
        if index is not None:
            self.machine.ecc(index)
            self.machine.xid(index, 48)
            self.marked.add(index)
            self.counted.add(index)
            self.wait_for_reason(
                index, "double-bit ECC errors since"
            )  # a reset shows by what a probe saw before

    def gpu_reset(self) -> None:
        """`nvidia-smi --gpu-reset`: what was fatal is over."""
        ready = sorted(self.counted - self.lost)
        if ready:
            self.come_back(self.dice.choice(ready))

    def come_back(self, index: int) -> None:
        """As after a reset: it answers, and its counters are at zero."""
        self.machine.restore(index)
        self.lost.discard(index)
        self.unseen.discard(index)
        if index in self.counted:
            self.counted.discard(index)
            self.marked.discard(index)

    def well(self) -> int | None:
        """A GPU that nothing is wrong with, None where few are left."""
        present = sorted(set(range(8)) - self.lost - self.marked)
        return self.dice.choice(present) if len(present) > 3 else None

    def wait_for_reason(self, index: int, words: str) -> None:
        def told() -> bool:
            return any(
                device["index"] == str(index) and words in (device["reason"] or "")
                for resource in self.plugin.status().get("resources", [])
                for device in resource["devices"]
            )

        try:
            wait_until(told, GIVE_UP_SECONDS)
        except TimeoutError:
            raise AssertionError(f"GPU {index} never had {words!r}: {self.plugin.tail(30)}") from None

    def gpu_lost(self) -> None:
        present = sorted(set(range(8)) - self.lost)
        if len(present) > 4:
            index = self.dice.choice(present)
            self.machine.lose(index)
            self.lost.add(index)

    def gpu_returns(self) -> None:
        if self.lost:
            self.come_back(self.dice.choice(sorted(self.lost)))
            self.returned = True

    def config_edit(self) -> None:
        self.replicas = self.dice.choice([1, 2, 5])
        self.write_config()

    def write_config(self) -> None:
        sharing = {"timeSlicing": {"resources": [{"name": GPU, "replicas": self.replicas}]}}
        self.plugin.configure({"sharing": sharing} if self.replicas > 1 else {})

    def config_edit_refused(self) -> None:
        self.plugin.configure({"flags": {"migStratgy": "single"}})
        self.wait_for_config(refused=True)
        self.write_config()
        self.wait_for_config(refused=False)

    def wait_for_config(self, *, refused: bool) -> None:
        """Until the plugin says that the newest edit is in use, or that it is not."""

        def said() -> bool:
            config = self.plugin.status().get("config")
            return config is not None and (config["problem"] is not None) == refused

        try:
            wait_until(said, GIVE_UP_SECONDS)
        except TimeoutError:
            raise AssertionError(
                f"an edit was not {'refused' if refused else 'taken'}: {self.plugin.tail(30)}"
            ) from None

    def pod_starts(self) -> None:
        name = f"pod-{sum(self.done.values())}"
        try:
            self.node.kubelet.admit(name, {GPU: self.dice.randint(1, 3)})
        except AdmissionError:
            self.node.kubelet.remove_pod(name)
            return
        assert len(self.node.kubelet.ids_of(name, GPU)) > 0
        self.pods.append(name)

    def pod_ends(self) -> None:
        if self.pods:
            self.node.kubelet.remove_pod(self.pods.pop(self.dice.randrange(len(self.pods))))

    def pods_gone(self) -> None:
        while self.pods:
            self.node.kubelet.remove_pod(self.pods.pop())

    # -- growth ---------------------------------------------------------------------------------------------------

    def watch_growth(self) -> None:
        """Threads, files and memory of this life of the process, against its beginning."""
        if not self.plugin.alive():
            return
        if self.base is None:
            self.base = self.footprint()
        allowed = (THREADS_MORE, FILES_MORE, MEMORY_MORE)
        # Servers and calls that are ending take a moment to go; what grows stays.
        with contextlib.suppress(TimeoutError):
            wait_until(
                lambda: all(more <= limit for more, limit in zip(self.more(), allowed)), SETTLE_SECONDS
            )
        more = self.more()
        self.worst = tuple(map(max, self.worst, more))  # type: ignore[assignment]
        for what, grown, limit in zip(("threads", "open files", "bytes"), more, allowed):
            assert grown <= limit, (
                f"event {sum(self.done.values())}: {grown} more {what} than at {self.base}; "
                f"threads now: {self.plugin.thread_names()}"
            )

    def footprint(self) -> tuple[int, int, int]:
        """Threads, open files, bytes of RSS."""
        return self.plugin.threads(), self.plugin.files(), self.plugin.memory()["rss"]

    def more(self) -> tuple[int, int, int]:
        """Of each, above the beginning of this life."""
        assert self.base is not None
        threads, files, memory = (now - then for now, then in zip(self.footprint(), self.base))
        return threads, files, memory

    def report(self) -> str:
        """Seconds to the truth, by event and of all."""
        lines = [
            f"{sum(self.done.values())} events, seed {SEED}, bound {SECONDS:g} s",
            f"  {'seconds to the truth':26} {'p50':>6} {'p90':>6} {'p99':>6} {'max':>6} {'times':>6}",
        ]
        for event, samples in [*sorted(self.took.items()), ("all", list(chain(*self.took.values())))]:
            ordered = sorted(samples)
            shown = [ordered[int(len(ordered) * share)] for share in (0.5, 0.9, 0.99)]
            figures = " ".join(f"{value:6.3f}" for value in (*shown, ordered[-1]))
            lines.append(f"  {event:26} {figures} {len(ordered):6}")
        if self.starved:
            lines.append(
                f"  {len(self.starved)} were over the bound while the machine had no CPU for them; without that the "
                f"longest took {max(self.starved):.3f} s"
            )
        lines.append(f"  XIDs that came while NVML was opened anew, and were sent again: {self.unheard}")
        lines.append(
            f"  most above a life's beginning: {self.worst[0]} threads, {self.worst[1]} files, "
            f"{self.worst[2] / 1e6:.1f} MB"
        )
        return "\n".join(lines)


WEIGHTS: dict[Callable[[World], None], int] = {
    World.kubelet_restart: 8,
    World.kubelet_away_for_a_while: 3,
    World.directory_replaced: 2,
    World.plugin_killed: 2,
    World.plugin_stopped: 1,
    World.node_repaired: 2,
    World.socket_deleted: 3,
    World.stream_ended: 4,
    World.application_xid: 5,
    World.fatal_xid: 2,
    World.ecc_error: 6,
    World.gpu_reset: 5,
    World.gpu_lost: 5,
    World.gpu_returns: 6,
    World.config_edit: 5,
    World.config_edit_refused: 2,
    World.pod_starts: 8,
    World.pod_ends: 6,
}
PROCESS_ENDS = {World.plugin_killed, World.plugin_stopped, World.node_repaired}


@pytest.fixture
def world() -> Iterator[World]:
    """Eight GPUs, a kubelet 1.36, the plugin with its config file."""
    node = EmbeddedNode("1.36")
    node.start()
    with standin(gpus=8, model="H100") as machine:
        flags = (f"--rescan-seconds={RESCAN_SECONDS}",)
        plugin = PluginProcess(node.plugin_dir, node.root_dir, machine, *flags, config={})
        plugin.start()
        try:
            yield World(node, machine, plugin)
        finally:
            plugin.close()
            node.close()


@pytest.mark.timeout(max(120, EVENTS * 5))
def test_the_list_always_comes_to_the_truth_and_nothing_grows(world: World) -> None:
    world.converge("start")
    for number in range(EVENTS):
        # The last half is one life of the process, so that slow growth has time to show.
        choices = [event for event in WEIGHTS if number < EVENTS // 2 or event not in PROCESS_ENDS]
        event = world.dice.choices(choices, [WEIGHTS[event] for event in choices])[0]
        event(world)
        name = event.__name__
        world.done[name] += 1
        world.converge(name)
        world.watch_growth()
        assert not world.node.kubelet.panicked.is_set(), "the kubelet panicked (K19)"
    print(world.report())
