# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's kubelet: its version, and the systemd service that runs it, restarted once and waited for."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from typing import Any, Optional, Tuple

from . import _gate_places as gate_places
from . import _gate_table as gate_table


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


def healthz_problem(url: str) -> Optional[str]:
    """None when the address answers 200, else why not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return None if answer.status == 200 else "status {0}".format(answer.status)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def kubelet_version(module: Any, distribution: str) -> Tuple[int, int]:
    """The kubelet's version by its own word; fails the module when nothing answers."""
    for program, *arguments in gate_places.version_commands(distribution):
        path = program if os.path.isabs(program) else module.get_bin_path(program)
        if path is None or not os.path.exists(path):
            continue
        rc, out, _unused = module.run_command([path, *arguments])
        if rc == 0:
            return gate_table.parse_version(out)
    module.fail_json(
        msg="no kubelet of {0} found on PATH; install it first, or give kubelet_version".format(distribution)
    )
    raise SystemExit(1)  # not reached: fail_json ends the module
