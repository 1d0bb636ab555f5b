# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a short container with an engine, and look into its /dev from outside.

Looking through /proc/PID/root needs no shell, no nvidia-smi and no CUDA in the image, so the pause image that every
kubelet node has will do. Nothing opens a device: no GPU is taken.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import time
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_read
from ansible_collections.gpuops.k8s.plugins.module_utils._links import Link

NAME = "gpuops-visibility"
_GPU_NODE = re.compile(r"nvidia\d+$")
# Images that stay alive by themselves, best first.
_SLEEPERS = re.compile(r"(^|[/-])(pause|workload)[:@]|/pause-(amd64|arm64)[:@]")


RUNTIME_CONFIG = "/etc/nvidia-container-runtime/config.toml"
"""Read by NVIDIA's runtime at the start of every container."""
MOUNTED = "/var/run/nvidia-container-devices"
"""Where NVIDIA's runtime looks for the names of GPUs in a container's mounts."""
VARIABLE, MOUNTS = "envvar", "volume-mounts"
"""Ways to ask, by their names in the device plugin's ``deviceListStrategy``."""


@dataclass(frozen=True)
class Request:
    """How a container asks for GPUs. Empty: it asks for none."""

    env: Tuple[Tuple[str, str], ...] = ()
    mounts: Tuple[Tuple[str, str], ...] = ()
    """(path on the host, path in the container)."""


NOTHING = Request()


def ask(way: str, gpus: Sequence[str]) -> Request:
    """The request for these ids (UUIDs, indices or ``all``) as the device plugin would hand them out that way."""
    if way == VARIABLE:
        return Request(env=(("NVIDIA_VISIBLE_DEVICES", ",".join(gpus)),))
    return Request(
        env=(("NVIDIA_VISIBLE_DEVICES", MOUNTED),),
        mounts=tuple(("/dev/null", f"{MOUNTED}/{gpu}") for gpu in gpus),
    )


def accepted(config: str) -> List[str]:
    """The ways in which an unprivileged container may ask, by the text of NVIDIA's config.toml; the runtime tries
    mounts before the variable. Raises ValueError (with line and column) where the text is no TOML."""
    keys = _toml_read.parse(config).value
    ways = [MOUNTS] if keys.get("accept-nvidia-visible-devices-as-volume-mounts") is True else []
    if keys.get("accept-nvidia-visible-devices-envvar-when-unprivileged") is not False:
        ways.append(VARIABLE)
    return ways


def read_accepted(path: str) -> List[str]:
    """:func:`accepted` of a file; without one NVIDIA's defaults hold. Raises EngineError."""
    try:
        with open(path, encoding="utf-8") as source:
            text = source.read()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            "runtime", f"{path}: {error}", "mend the file; the runtime can not read it"
        ) from error
    try:
        return accepted(text)
    except ValueError as error:
        step = "mend the file; the runtime starts no container with it"
        raise EngineError("runtime", f"{path}:{error}", step) from error


def way_of_the_plugin(strategies: Sequence[str]) -> Optional[str]:
    """The way in which a device plugin with this ``deviceListStrategy`` asks the runtime for a pod's GPUs. None where
    it is not known, or where the pod gets its devices by CDI or by the plugin itself."""
    if not strategies or set(strategies) - {VARIABLE, MOUNTS}:
        return None
    return MOUNTS if MOUNTS in strategies else VARIABLE


class EngineError(Exception):
    """The engine did not do it; ``link`` says which link that breaks."""

    def __init__(self, link: str, text: str, next_step: str) -> None:
        super().__init__(text)
        self.link = link
        self.next_step = next_step


class EndedError(EngineError):
    """The container did not live long enough to be looked at."""

    def __init__(self, image: str, why: str = "") -> None:
        text = f"the container of {image} ended at once" + (f": {why}" if why else "")
        super().__init__("request", text, "give an image and a command that stay alive for a second")


def _run(command: Sequence[str], timeout: float) -> Tuple[int, str, str]:
    try:
        done = subprocess.run(list(command), capture_output=True, timeout=timeout, check=False)  # pylint: disable=ansible-bad-function
    except FileNotFoundError:
        return 127, "", f"{command[0]}: not found"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} gave no answer within {timeout:g} s"
    return (
        done.returncode,
        done.stdout.decode("utf-8", "replace").strip(),
        done.stderr.decode("utf-8", "replace").strip(),
    )


CRIO = "unix:///var/run/crio/crio.sock"
"""CRI-O's endpoint, where nothing names another."""


def no_answer(endpoint: str, timeout: float) -> Optional[str]:
    """Why nothing takes connections at a ``unix://`` endpoint; None when something does, or for another kind of one."""
    path = endpoint[len("unix://") :] if endpoint.startswith("unix://") else endpoint
    if not path.startswith("/"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout)
        try:
            link.connect(path)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return None


def unseen(engine: str, endpoint: str, reason: str, timeout: float) -> Iterator[Link]:
    """The links of an engine in which no container is started: whether it answers, where that can be asked."""
    name = "cri-o" if engine == "crio" else reason or engine
    path = endpoint or (CRIO if engine == "crio" else "")
    fault = no_answer(path, timeout) if path else None
    if fault:
        step = "look at `systemctl status crio` and `journalctl -u crio -n 50`" if engine == "crio" else ""
        yield Link("engine", False, f"{name}: {fault}", step or f"look at what serves {path}")
        return
    yield Link("engine", True if path else None, f"{path} answers" if path else name)
    for link in ("runtime", "isolation", "request"):
        yield Link(link, None, f"can't be looked at ({name}); look with a pod, see docs/verify.md")


def gpu_nodes(pid: int) -> List[str]:
    """GPU device nodes in a process's /dev, in numeric order. Raises EndedError when it is gone."""
    folder = f"/proc/{pid}/root/dev"
    found = []
    try:
        for name in os.listdir(folder):
            if _GPU_NODE.match(name) and stat.S_ISCHR(os.lstat(os.path.join(folder, name)).st_mode):
                found.append(name)
    except OSError as error:
        raise EndedError(NAME, str(error)) from error
    return [f"/dev/{name}" for name in sorted(found, key=lambda name: int(name[6:]))]


def full_name(image: str) -> str:
    """The name with its registry, which containerd wants and docker leaves out: gpuops/a:1 -> docker.io/gpuops/a:1."""
    first, slash, _rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def pick_image(images: Sequence[str]) -> Optional[str]:
    """The first image that stays alive without a command, by its name."""
    return next((image for image in sorted(images) if _SLEEPERS.search(image)), None)


class Docker:
    """Docker by its command line."""

    def __init__(self, timeout: float, runtime: Optional[str]) -> None:
        self.timeout = timeout
        self.runtime = runtime

    def default_runtime(self) -> Tuple[str, List[str]]:
        """(default runtime, all runtimes)."""
        rc, out, err = _run(
            ["docker", "info", "--format", "{{.DefaultRuntime}} {{json .Runtimes}}"], self.timeout
        )
        if rc != 0 or not out:
            why = _run(["docker", "version"], self.timeout)[
                2
            ]  # `docker info` says it in terms of its template
            text = f"docker does not answer: {why or err or out}"
            raise EngineError(
                "engine", text, "look at `systemctl status docker` and `journalctl -u docker -n 50`"
            )
        name, _unused, rest = out.partition(" ")
        return name, sorted(json.loads(rest or "{}"))

    def images(self) -> List[str]:
        """Names of the images at hand."""
        return _run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], self.timeout)[
            1
        ].split()

    def start(self, image: str, request: Request, command: Sequence[str]) -> int:
        """Starts one; the process id of its first process on the host."""
        self.stop()
        line = ["docker", "run", "--detach", "--name", NAME, "--network", "none", "--pull", "never"]
        line += ["--runtime", self.runtime] if self.runtime else []
        for key, value in request.env:
            line += ["--env", f"{key}={value}"]
        for source, target in request.mounts:
            line += ["--volume", f"{source}:{target}"]
        rc, _unused, err = _run([*line, image, *command], self.timeout)
        if rc != 0 and "unknown flag: --pull" in err:  # before 20.10
            rc, _unused, err = _run(
                [*(word for word in line if word not in ("--pull", "never")), image, *command], self.timeout
            )
        if rc != 0:
            raise EngineError(
                "request", f"docker can not start {image}: {err}", "run `docker run --rm` with it by hand"
            )
        rc, out, err = _run(["docker", "inspect", "--format", "{{.State.Pid}}", NAME], self.timeout)
        if rc != 0 or not out.isdigit() or out == "0":
            tail = _run(["docker", "logs", "--tail", "3", NAME], self.timeout)
            raise EndedError(image, tail[1] or tail[2] or err)
        return int(out)

    def stop(self) -> None:
        """Removes it, if it is there."""
        _run(["docker", "rm", "--force", NAME], self.timeout)


class Containerd:
    """containerd by ctr, with the runtime that the CRI plugin would take."""

    def __init__(self, timeout: float, runtime: Optional[str]) -> None:
        self.timeout = timeout
        self.runtime = runtime
        self._binary: Optional[str] = None

    def default_runtime(self) -> Tuple[str, List[str]]:
        """(default runtime of the CRI plugin, all of its runtimes)."""
        rc, _unused, err = _run(["ctr", "version"], self.timeout)
        if rc != 0:
            text = f"containerd does not answer: {err}"
            raise EngineError(
                "engine", text, "look at `systemctl status containerd` and `journalctl -u containerd -n 50`"
            )
        rc, out, err = _run(["containerd", "config", "dump"], self.timeout)
        if rc != 0:
            raise EngineError("engine", f"containerd config dump: {err}", "mend containerd's configuration")
        default, binaries = parse_cri(out)
        self._binary = binaries.get(self.runtime or default)
        return default, sorted(binaries)

    def images(self) -> List[str]:
        """Names of the images at hand in the kubelet's namespace."""
        return _run(["ctr", "-n", "k8s.io", "images", "ls", "-q"], self.timeout)[1].split()

    def start(self, image: str, request: Request, command: Sequence[str]) -> int:
        """Starts one; the process id of its first process on the host."""
        self.stop()
        line = ["ctr", "-n", "k8s.io", "run", "--detach", "--null-io"]
        line += ["--runc-binary", self._binary] if self._binary else []
        for key, value in request.env:
            line += ["--env", f"{key}={value}"]
        for source, target in request.mounts:
            line += ["--mount", f"type=bind,src={source},dst={target},options=rbind:ro"]
        rc, _unused, err = _run([*line, full_name(image), NAME, *command], self.timeout)
        if rc != 0:
            raise EngineError(
                "request", f"containerd can not start {image}: {err}", "run `ctr run` with it by hand"
            )
        for row in _run(["ctr", "-n", "k8s.io", "tasks", "ls"], self.timeout)[1].splitlines():
            words = row.split()
            if words and words[0] == NAME and len(words) > 2 and words[2] == "RUNNING":
                return int(words[1])
        raise EndedError(image)

    def stop(self) -> None:
        """Removes it, if it is there."""
        _run(["ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", NAME], self.timeout)
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            rc = _run(["ctr", "-n", "k8s.io", "tasks", "rm", "--force", NAME], self.timeout)[0]
            if (
                rc == 0
                or NAME not in _run(["ctr", "-n", "k8s.io", "tasks", "ls", "-q"], self.timeout)[1].split()
            ):
                break
            time.sleep(0.1)
        _run(["ctr", "-n", "k8s.io", "containers", "rm", NAME], self.timeout)


def parse_cri(dump: str) -> Tuple[str, Dict[str, str]]:
    """(default runtime, runtime -> BinaryName) out of ``containerd config dump``, any configuration version."""
    default = re.search(r"(?m)^\s*default_runtime_name\s*=\s*[\"']([^\"']*)[\"']", dump)
    binaries: Dict[str, str] = {}
    current = None
    for line in dump.splitlines():
        table = re.match(r"\s*\[.*\.runtimes\.[\"']?([\w-]+)[\"']?(?:\.options)?\]\s*$", line)
        if table:
            current = table.group(1)
            binaries.setdefault(current, "")
        elif line.lstrip().startswith("["):
            current = None
        binary = re.match(r"\s*BinaryName\s*=\s*[\"']([^\"']*)[\"']", line)
        if current and binary:
            binaries[current] = binary.group(1)
    return default.group(1) if default else "", binaries
