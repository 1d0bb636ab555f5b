"""What a fleet costs the control host: provision.yml over container nodes with sshd and the embedded kubelet.

    fleet_bench.py [--nodes 1 4 16 64] [--forks 2 5 20] [--keep] [--output build/bench/fleet.json]

For each number of nodes, first provision of all in one batch with the first number of forks, then a rerun with each
number of forks. Wall seconds depend on what else the machine does, CPU seconds hardly; the load is printed with them.
Control host and nodes share this machine, so wall time by nodes is an upper bound: real nodes bring CPUs of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TESTBED = ROOT / "tests/testbed/testbed"
PREFIX = "fleet"
GROUPS = (
    Path("/sys/fs/cgroup/cpuacct/docker"),
    Path("/sys/fs/cgroup/cpu,cpuacct/docker"),
    Path("/sys/fs/cgroup/docker"),
)


@dataclass(frozen=True)
class Row:
    """One run of the playbook. Seconds and MiB; what is called ``cpu`` is a sum, not a node's share.

    ``main_cpu`` is that part of ``control_cpu`` which Ansible's first process uses itself: no fork takes it off it.
    """

    nodes: int
    forks: int
    run: str
    wall: float
    control_cpu: float
    main_cpu: float
    control_peak_mib: float
    control_mib: float
    node_cpu: float
    tasks_a_node: float
    changed: int
    failed: int
    load: float


class Watch(threading.Thread):
    """What a process uses, looked at once a second until it ends: its own CPU seconds, and its children's memory too.

    Of the memory the most at one time, in proportional set sizes: pages that forks share are counted once.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak_mib = 0.0
        self.cpu = 0.0

    @staticmethod
    def _family(pid: int) -> Iterator[int]:
        yield pid
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    yield from Watch._family(int(child))

    def run(self) -> None:
        while not self._done.wait(1):
            with contextlib.suppress(OSError):
                # After the name, which may hold spaces: user and system time are the 12th and the 13th.
                fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
                self.cpu = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
            total = 0
            for pid in self._family(self._pid):
                with contextlib.suppress(OSError):
                    said = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += sum(
                        map(int, re.findall(r"^Pss:\s+(\d+)", said, re.MULTILINE))
                    )  # none of a zombie
            self.peak_mib = max(self.peak_mib, total / 1024)

    def stop(self) -> None:
        """After this ``peak_mib`` and ``cpu`` stay."""
        self._done.set()
        self.join()


def cpu_of(names: list[str]) -> float:
    """CPU seconds that these containers have used, by their cgroups (version 1 or 2)."""
    total = 0.0
    for name in names:
        found = subprocess.run(
            ["docker", "inspect", "-f", "{{.Id}}", f"gpuops-{name}"],
            capture_output=True,
            text=True,
            check=True,
        )
        for group in GROUPS:
            usage = group / found.stdout.strip() / "cpuacct.usage"
            if usage.exists():
                total += int(usage.read_text()) / 1e9
                break
    return total


def start(names: list[str]) -> None:
    """Four at a time: a boot takes a core for some seconds."""
    with ThreadPoolExecutor(4) as pool:
        words = [[str(TESTBED), "up", name, "--kubelet", "embedded", "--gpus", "8"] for name in names]
        for done in pool.map(
            lambda word: subprocess.run(word, capture_output=True, text=True, check=False), words
        ):
            if done.returncode:
                sys.exit(f"fleet_bench: a node did not start:\n{done.stderr}")


def play(inventory: Path, nodes: list[str], forks: int, run: str, collections: str) -> Row:
    """One run, measured."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": collections,
        "ANSIBLE_FORKS": str(forks),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_HOST_KEY_CHECKING": "false",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
        "ANSIBLE_NOCOLOR": "1",
    }
    words = ["ansible-playbook", "gpuops.k8s.provision", "-i", str(inventory), "-e", "rollout_serial=100%"]
    before, load = cpu_of(nodes), os.getloadavg()[0]
    children, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    log = ROOT / f"build/bench/fleet-{len(nodes)}-{forks}-{run}.log"
    with log.open("w") as sink:
        process = subprocess.Popen(words, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        watch = Watch(process.pid)
        watch.start()
        code = process.wait()
        watch.stop()
    wall, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    recap = re.findall(r"ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", log.read_text())
    if code:
        sys.exit(f"fleet_bench: exit code {code}, see {log}")
    row = Row(
        nodes=len(nodes),
        forks=forks,
        run=run,
        wall=round(wall, 1),
        control_cpu=round(used.ru_utime + used.ru_stime - children.ru_utime - children.ru_stime, 1),
        main_cpu=round(watch.cpu, 1),
        control_peak_mib=round(used.ru_maxrss / 1024, 0),
        control_mib=round(watch.peak_mib, 0),
        node_cpu=round(cpu_of(nodes) - before, 1),
        tasks_a_node=round(sum(int(ok) for ok, *_ in recap) / max(len(recap), 1), 1),
        changed=sum(int(changed) for _, changed, *_ in recap),
        failed=sum(int(failed) + int(lost) for *_, lost, failed in recap),
        load=round(load, 1),
    )
    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    return row


def table(rows: list[Row]) -> str:
    """Per node where that says more."""
    heads = (
        *("nodes", "forks", "run", "wall s", "wall s a node", "control CPU s a node"),
        *(
            "of it main process",
            "node CPU s a node",
            "control MiB",
            "peak MiB a process",
            "tasks a node",
            "changed",
            "load before",
        ),
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            *(row.nodes, row.forks, row.run, row.wall, f"{row.wall / row.nodes:.1f}"),
            *(f"{cpu / row.nodes:.2f}" for cpu in (row.control_cpu, row.main_cpu, row.node_cpu)),
            *(
                f"{row.control_mib:.0f}",
                f"{row.control_peak_mib:.0f}",
                row.tasks_a_node,
                row.changed,
                row.load,
            ),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_nodes = os.environ.get("NODES", "1 4 16 64").split()
    default_forks = os.environ.get("FORKS", "2 5 20").split()
    parser.add_argument("--nodes", type=int, nargs="+", default=[int(n) for n in default_nodes])
    parser.add_argument("--forks", type=int, nargs="+", default=[int(n) for n in default_forks])
    parser.add_argument("--keep", action="store_true", help="leave the nodes running")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench/fleet.json")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # GPUOPS_COLLECTIONS: measure another copy than this checkout, for example a release.
    collections = (
        os.environ.get("GPUOPS_COLLECTIONS")
        or subprocess.run(
            [ROOT / "tests/tools/collection"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    rows: list[Row] = []
    names: list[str] = []
    try:
        for count in sorted(options.nodes):
            started = time.monotonic()
            # Fresh nodes each time: a first provision can be measured once a node.
            if names:
                subprocess.run([TESTBED, "down", *names], check=True, capture_output=True)
            names = [f"{PREFIX}{number}" for number in range(count)]
            start(names)
            print(
                f"fleet_bench: {count} nodes up after {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            inventory = options.output.with_suffix(".yml")
            listed = subprocess.run(
                [TESTBED, "inventory", *names], capture_output=True, text=True, check=True
            )
            inventory.write_text(listed.stdout)
            rows.append(play(inventory, names, options.forks[0], "first", collections))
            for forks in options.forks:
                rows.append(play(inventory, names, forks, "rerun", collections))
            options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
            print(table(rows), flush=True)
    finally:
        if names and not options.keep:
            subprocess.run([TESTBED, "down", *names], check=False, capture_output=True)


if __name__ == "__main__":
    main()
