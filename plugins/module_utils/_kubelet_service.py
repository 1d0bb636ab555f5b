# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's kubelet: its version, and the systemd service that runs it, restarted once and waited for."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from typing import Any, Iterable, List, Optional, Tuple

from . import _gate_places as gate_places
from . import _gate_table as gate_table
from . import _gate_text as gate_text
from ._daemon_flags import start_ticks


class Service:
    """The systemd service that runs the kubelet."""

    def __init__(self, module: Any, unit: str, healthz_url: str, timeout: float) -> None:
        self.module = module
        self.unit = unit
        self.healthz_url = healthz_url
        self.timeout = timeout
        self.systemctl = module.get_bin_path("systemctl", required=True)

    def active_state(self) -> str:
        """ActiveState of the unit, as systemd says it."""
        command = [self.systemctl, "show", self.unit, "--property=ActiveState", "--value"]
        return str(self.module.run_command(command)[1]).strip()

    def main_pid(self) -> Optional[int]:
        """Pid of the process that runs; None when there is none."""
        command = [self.systemctl, "show", self.unit, "--property=MainPID", "--value"]
        pid = str(self.module.run_command(command)[1]).strip()
        return int(pid) if pid.isdigit() and pid != "0" else None

    def restart(self, reload_units: bool) -> Optional[str]:
        """Restarts; None when healthz answered in time, else what is wrong."""
        if reload_units:
            self.module.run_command([self.systemctl, "daemon-reload"])
        self.module.run_command([self.systemctl, "reset-failed", self.unit])
        rc, _unused, err = self.module.run_command([self.systemctl, "restart", self.unit])
        if rc != 0:
            return "systemctl restart {0}: {1}".format(self.unit, err.strip())
        return self.wait()

    def wait(self) -> Optional[str]:
        """None when the kubelet answers ``ok``, else why not. Monotonic clock."""
        deadline = time.monotonic() + self.timeout
        problem: Optional[str] = "no answer"
        while time.monotonic() < deadline:
            problem = healthz_problem(self.healthz_url)
            if problem is None and self.active_state() == "active":
                return None
            if self.active_state() == "failed":
                return "{0} failed".format(self.unit)
            time.sleep(0.2)
        return "{0} is not well after {1} s: {2}: {3}".format(
            self.unit, self.timeout, self.healthz_url, problem
        )

    def log_tail(self) -> str:
        """The last lines the service wrote."""
        journal = self.module.get_bin_path("journalctl")
        if journal is None:
            return ""
        command = [journal, "-u", self.unit, "-n", "12", "--no-pager", "-o", "cat"]
        return str(self.module.run_command(command)[1]).strip()


def healthz_problem(url: str, timeout: float = 2) -> Optional[str]:
    """None when the address answers 200 within ``timeout`` seconds, else why not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return None if answer.status == 200 else "status {0}".format(answer.status)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def gate_of_process(pid: int, gate: str, proc: str = "/proc") -> Optional[bool]:
    """What the flags of a running kubelet say of a gate; None when they don't name it, or it is gone."""
    try:
        with open(os.path.join(proc, str(pid), "cmdline"), encoding="utf-8", errors="replace") as stream:
            words = stream.read().split("\0")
    except OSError:
        return None
    text = "\n".join(words).replace("--feature-gates\n", "--feature-gates=")
    found = gate_text.find(text, gate, gate_text.ARGS)
    return found[-1].value if found else None


def newer_than_process(pid: int, paths: Iterable[str], proc: str = "/proc") -> List[str]:
    """Those of the files that changed over a second after the process started (wall clock): it has not read them."""
    ticks = start_ticks(pid, proc)
    try:
        with open(os.path.join(proc, "stat"), encoding="ascii") as stream:
            boot = next(int(line.split()[1]) for line in stream if line.startswith("btime "))
    except (OSError, StopIteration):
        return []
    if ticks is None:
        return []
    started = boot + ticks / os.sysconf("SC_CLK_TCK")
    return [path for path in paths if os.path.exists(path) and os.stat(path).st_mtime > started + 1]


def printed_version(module: Any, distribution: str) -> str:
    """What the kubelet prints for ``--version``; empty when no program of it is there and answers."""
    for program, *arguments in gate_places.version_commands(distribution):
        path = program if os.path.isabs(program) else module.get_bin_path(program)
        if path is None or not os.path.exists(path):
            continue
        rc, out, _unused = module.run_command([path, *arguments])
        if rc == 0:
            return str(out)
    return ""


def kubelet_version(module: Any, distribution: str) -> Tuple[int, int]:
    """The kubelet's version by its own word; fails the module when nothing answers."""
    printed = printed_version(module, distribution)
    if not printed:
        module.fail_json(
            msg="no kubelet of {0} found on PATH; install it first, or give kubelet_version".format(
                distribution
            )
        )
    return gate_table.parse_version(printed)
