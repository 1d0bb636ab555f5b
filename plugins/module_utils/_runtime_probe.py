# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the engines on this machine: what is running, which version, and would it take this configuration?

Reads and runs programs; changes nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from typing import Any, Optional

from ._daemon_flags import start_ticks
from ._runtime import version_tuple
from ._runtime_docker import VALIDATE_SINCE, Live

TIMEOUT = 10.0  # seconds an engine may take to answer
_VERSION = re.compile(r"\bv?([0-9]+\.[0-9]+(?:\.[0-9]+)?[0-9A-Za-z.~+-]*)")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def docker_info(path: str) -> Optional[dict[str, Any]]:
    """The answer to GET /info on docker's socket, or None when nothing answers."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/info")
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return answer if response.status == 200 and isinstance(answer, dict) else None


def docker_live(path: str, running: bool) -> Live:
    """What the running dockerd says; a socket that only systemd listens on is not woken."""
    answer = docker_info(path) if running else None
    if answer is None:
        return Live(version=program_version("dockerd"))
    cdi = answer.get("CDISpecDirs")
    return Live(
        version=str(answer.get("ServerVersion", "")),
        default=str(answer.get("DefaultRuntime", "")),
        runtimes={
            name: str((entry or {}).get("path", "")) for name, entry in (answer.get("Runtimes") or {}).items()
        },
        cdi=None if cdi is None else bool(cdi),
        restart_stops=0 if answer.get("LiveRestoreEnabled") else int(answer.get("ContainersRunning") or 0),
    )


def find_program(name: str) -> Optional[str]:
    """Where a program is, with the directories of root that a login by SSH may lack."""
    return shutil.which(
        name,
        path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )


def run(command: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a program; 127 when it is missing, 124 when it hangs."""
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function  # needs a time limit
            command, capture_output=True, check=False, timeout=TIMEOUT * 3, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return 127, "", f"{command[0]}: not found"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 124, "", str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def program_version(name: str) -> str:
    """The version a program prints of itself, "" when there is none."""
    program = find_program(name)
    if program is None:
        return ""
    _code, out, _err = run([program, "--version"])
    match = _VERSION.search(out)
    return match.group(1) if match else ""


def validate_docker(version: str, file: str) -> Optional[str]:
    """dockerd's own opinion of a daemon.json: None when it takes it, or can't say (before Docker 23)."""
    program = find_program("dockerd")
    if program is None or version_tuple(version) < VALIDATE_SINCE:
        return None
    code, out, err = run([program, "--validate", "--config-file", file])
    return None if code == 0 else _last_line(err or out)


def dump_containerd(file: str) -> tuple[Optional[str], str]:
    """containerd's merged configuration of this file, or None and its complaint."""
    program = find_program("containerd")
    if program is None:
        return None, "containerd: program not found"
    code, out, err = run([program, "-c", file, "config", "dump"])
    return (out, "") if code == 0 else (None, _last_line(err))


def dump_crio(file: str, directory: str) -> tuple[Optional[str], str]:
    """cri-o's merged configuration, or None and its complaint."""
    program = find_program("crio")
    if program is None:
        return None, "crio: program not found"
    code, out, err = run([program, "-c", file, "-d", directory, "config"])
    return (out, "") if code == 0 else (None, _last_line(err))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def boot_id() -> str:
    """The kernel's id of this boot; "" where it can't be read."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def uptime_ticks() -> int:
    """Now, in clock ticks since boot: the clock that process start times use."""
    with open("/proc/uptime", encoding="ascii") as stream:
        return int(float(stream.read().split()[0]) * os.sysconf("SC_CLK_TCK"))


def started_before(pid: Optional[int], written: Optional[dict[str, Any]]) -> bool:
    """True when no process has read what was written: it runs since before it ({"boot", "ticks"}), or not at all."""
    if not written or written.get("boot") != boot_id():
        return False
    if pid is None:
        return True
    started = start_ticks(pid)
    return started is not None and started <= int(written.get("ticks", 0))
