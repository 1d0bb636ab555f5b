"""What a rollout does to nodes while it runs, seen from both sides.

The API server's side: every change of allocatable, by a watch. The node's side, ten times a second: the plugin's
processes, and its sockets in the kubelet's directory.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import GPU, Lab

# Runs in the node's container. One line a change: time, processes of the plugin, sockets of ours.
NODE = r"""
import glob, json, os, sys, time
def plugins():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = open(f"/proc/{entry}/cmdline").read().split("\0")
                state = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if "gpu_device_plugin" in words and state not in "ZX":
                yield int(entry)
last = None
while True:
    sockets = sorted(os.path.basename(s) for s in glob.glob("/var/lib/kubelet/device-plugins/gpuops-*.sock"))
    now = [sorted(plugins()), sockets]
    if now != last:
        print(json.dumps([time.time(), *now]), flush=True)
        last = now
    time.sleep(0.1)
"""


@dataclass
class Seen:
    """Changes of one node, in order. Times are seconds since the epoch, one clock for all containers."""

    allocatable: list[tuple[float, int]] = field(default_factory=list)
    plugins: list[tuple[float, list[int]]] = field(default_factory=list)
    sockets: list[tuple[float, list[str]]] = field(default_factory=list)

    def dips(self, full: int) -> list[float]:
        """Seconds of each time in which fewer than ``full`` GPUs were allocatable."""
        return _gaps([(at, count >= full) for at, count in self.allocatable])

    def unserved(self) -> list[float]:
        """Seconds of each time in which the plugin had no socket for the kubelet."""
        return _gaps([(at, bool(names)) for at, names in self.sockets])


def _gaps(states: list[tuple[float, bool]]) -> list[float]:
    found, since = [], None
    for at, good in states:
        if not good and since is None:
            since = at
        elif good and since is not None:
            found.append(round(at - since, 2))
            since = None
    if since is not None:
        found.append(float("inf"))
    return found


class Watch:
    """A context in which every node of a lab is looked at."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen = {node: Seen() for node in lab.nodes}
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._programs: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Watch:
        for node in self.lab.nodes:
            words = ["docker", "exec", f"gpuops-{node}", "python3", "-c", NODE]
            program = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            self._programs.append(program)
            self._start(self._read, node, program)
        self._start(self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for node in self.lab.nodes:  # killing `docker exec` leaves the program inside
            self.lab.inside(node, "pkill -f '[d]evice-plugins/gpuops-' || true", check=False)
        for program in self._programs:
            program.wait(timeout=30)
        for thread in self._threads:
            thread.join(timeout=30)

    def _start(self, *call: Any) -> None:
        thread = threading.Thread(target=call[0], args=call[1:], daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, node: str, program: subprocess.Popen[str]) -> None:
        seen = self.seen[node]
        assert program.stdout is not None
        for line in program.stdout:
            at, plugins, sockets = json.loads(line)
            seen.plugins.append((at, plugins))
            seen.sockets.append((at, sockets))

    def _ask(self) -> None:
        opener, server = api_client(Path(self.lab.kubeconfig()))
        with opener.open(f"{server}/api/v1/nodes", timeout=10) as answer:
            found = json.load(answer)
        for item in found["items"]:
            self._note(item)
        version = found["metadata"]["resourceVersion"]
        address = f"{server}/api/v1/nodes?watch=1&timeoutSeconds=1200&resourceVersion={version}"
        # The kubelets tell their status several times a second, so a read that waits long means a lost stream.
        with opener.open(address, timeout=30) as stream:
            for line in stream:
                if self._ended.is_set():
                    return
                self._note(json.loads(line)["object"])

    def _note(self, node: dict[str, Any]) -> None:
        seen = self.seen.get(node["metadata"]["name"])
        if seen is not None:
            count = int(node["status"].get("allocatable", {}).get(GPU, 0))
            if not seen.allocatable or seen.allocatable[-1][1] != count:
                seen.allocatable.append((time.time(), count))


def api_client(kubeconfig: Path) -> tuple[urllib.request.OpenerDirector, str]:
    """An opener with the administrator's certificate, and the API server's address."""
    config = json.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    pair = kubeconfig.with_name("watch.pem")
    pair.touch(mode=0o600)
    parts = (user["client-certificate-data"], user["client-key-data"])
    pair.write_bytes(b"".join(base64.b64decode(part) for part in parts))
    context.load_cert_chain(pair)
    handler = urllib.request.HTTPSHandler(context=context)
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), handler), str(cluster["server"])
