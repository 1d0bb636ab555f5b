# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What report.yml wants to know of a node beyond the modules' answers: versions and the plugin's own status.

Runs on the node with any Python 3.9; prints one JSON document; changes nothing and never fails.
"""

import json
import re
import socket
import subprocess

PROGRAMS = {
    "kubelet": ["kubelet", "--version"],
    "docker": ["docker", "version", "--format", "{{.Server.Version}}"],
    "containerd": ["containerd", "--version"],
    "crio": ["crio", "--version"],
    "container toolkit": ["nvidia-ctk", "--version"],
}


def said(command):
    """What a program prints, or None when it isn't there or fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def version(text):
    """The first thing in ``text`` that looks like a version."""
    found = re.search(r"\d+\.\d+(\.\d+)?[^\s,]*", text or "")
    return found.group() if found else None


def plugin_status(path="/run/gpu-device-plugin/status.sock"):
    """The plugin's report, or None when none answers."""
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(path)
            while True:
                chunk = connection.recv(65536)
                if not chunk:
                    return json.loads(data)
                data += chunk
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    versions = {name: version(said(command)) for name, command in PROGRAMS.items()}
    print(
        json.dumps(
            {
                "versions": {name: found for name, found in versions.items() if found},
                "default_runtime": said(["docker", "info", "--format", "{{.DefaultRuntime}}"]),
                "status": plugin_status(),
            }
        )
    )
