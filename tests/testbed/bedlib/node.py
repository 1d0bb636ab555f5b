"""Nodes: containers that are machines. Start, stop, reach, list."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import models

from bedlib import image, kubelet_install
from bedlib.common import BedError, cache, docker, out, run, say, step, wait_until

PREFIX = "gpuops-"
LABEL = "gpuops.testbed"
# Capabilities by name: `--privileged` asks for all there are, and fails where one of them cannot be had.
CAPABILITY_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ"
).split()
# The newest kubelet whose gate can be off; later ones refuse to start with it.
GATE_OFF_VERSION = "1.25.0"
VOLUMES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/kubelet")


@dataclass(frozen=True)
class NodeSpec:
    """What `testbed up` was asked for."""

    name: str
    gpus: int = 8
    model: str = "H100"
    kubelet: str = "embedded"
    kubelet_version: str = ""
    engine: str = "docker"
    release: str = "bookworm"
    gate_off: bool = False
    driver: bool = True
    bare: bool = False
    numa_nodes: int = 2


def container(name: str) -> str:
    """The container's name of a node."""
    return name if name.startswith(PREFIX) else PREFIX + name


def short(name: str) -> str:
    """The node's name of a container."""
    return name[len(PREFIX) :] if name.startswith(PREFIX) else name


def key() -> Path:
    """The private key that opens all nodes; made at the first use, kept in the cache."""
    path = cache("ssh", "id_ed25519")
    if not path.exists():
        if not shutil.which("ssh-keygen"):
            raise BedError("no ssh-keygen here: apt-get install openssh-client")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gpuops-testbed", "-f", path])
    return path


def capabilities() -> list[str]:
    """--cap-add options for every capability that this machine can give."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")), 16)
    return [f"--cap-add={name}" for number, name in enumerate(CAPABILITY_NAMES) if bounding >> number & 1]


INOTIFY_INSTANCES = 1024
"""All nodes share the host's limit; its default of 128 is used up by three, and systemd then comes up degraded."""


def _raise_inotify_limit() -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(limit.read_text(encoding="ascii")) < INOTIFY_INSTANCES:
        try:
            limit.write_text(f"{INOTIFY_INSTANCES}\n", encoding="ascii")
        except OSError as error:
            say(f"{limit} can't be raised ({error.strerror}): more than two nodes may not start")


def up(spec: NodeSpec) -> dict:
    """Start a node and wait until it is ready; what `testbed up` prints."""
    _check(spec)
    _raise_inotify_limit()
    tag = image.node_image(spec.release)
    name = container(spec.name)
    if docker("ps", "-aq", "--filter", f"name=^{name}$"):
        raise BedError(f"node {spec.name} exists already: `testbed down {spec.name}` first")
    asked = spec.model.split(",")
    node = {
        **asdict(spec),
        "models": [asked[n % len(asked)] for n in range(spec.gpus)],
        "engine": "none" if spec.bare else spec.engine,
        "kubelet": "none" if spec.bare else spec.kubelet,
        "public_key": key().with_suffix(".pub").read_text(encoding="utf-8"),
        "first_boot": True,
    }
    version = spec.kubelet_version or (GATE_OFF_VERSION if spec.gate_off else "")
    started = time.monotonic()
    with step(
        f"starting node {spec.name} ({spec.gpus} x {spec.model}, kubelet {node['kubelet']}, {node['engine']})"
    ):
        _create(name, spec, tag)
        _copy(name, {"etc/testbed/node.json": json.dumps(node, indent=1).encode()})
        if node["kubelet"] != "none":
            kubelet_install.install(name, node["kubelet"], version)
        docker("start", name)
        about = info(spec.name)
        _wait(name, about, node)
    about["seconds"] = round(time.monotonic() - started, 1)
    return about


def _check(spec: NodeSpec) -> None:
    for model in spec.model.split(","):
        if model not in models.MODELS:
            raise BedError(f"unknown GPU model {model!r}: one of {', '.join(models.MODELS)}")
    if not 0 <= spec.gpus <= models.MAX_GPUS:
        raise BedError(f"{spec.gpus} GPUs asked for: this stand-in plays {models.MAX_GPUS} at most")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,50}[a-z0-9])?", spec.name):
        raise BedError(f"node name {spec.name!r}: it becomes a host name: small letters, digits, - and .")


def _create(name: str, spec: NodeSpec, tag: str) -> None:
    volumes = [word for place in VOLUMES for word in ("--volume", place)]
    docker(
        "create", "--pull", "never", "--name", name, "--hostname", spec.name, "--label", f"{LABEL}=1",
        "--cgroupns=private",
        *capabilities(),
        "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
        "--security-opt", "systempaths=unconfined",
        "--device", "/dev/kmsg", "--device-cgroup-rule", "a *:* rwm",
        "--tmpfs", "/run:exec,mode=755", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec,mode=1777",
        *volumes, "--stop-signal", "SIGRTMIN+3", "--publish", "127.0.0.1::22", tag,
    )  # fmt: skip


def _copy(name: str, files: dict[str, bytes], mode: int = 0o644) -> None:
    """Put files into a container, running or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    run(["docker", "cp", "-", f"{name}:/"], data=buffer.getvalue())


def _inside(name: str, *command: object, check: bool = False) -> subprocess.CompletedProcess[bytes]:
    return run(["docker", "exec", name, *command], check=check)


def _wait(name: str, about: dict, node: dict) -> None:
    """Until systemd is up, ssh answers, images are loaded and the kubelet is healthy."""

    def booted() -> bool:
        state = _inside(name, "systemctl", "is-system-running").stdout.decode().strip()
        if state in ("degraded", "maintenance"):
            failed = _inside(name, "systemctl", "--failed", "--plain", "--no-legend").stdout.decode()
            log = _inside(name, "journalctl", "-b", "-p", "warning", "-n", "15", "--no-pager").stdout.decode()
            raise BedError(f"{name}: systemd says {state}; failed units:\n{failed}{log}")
        if not out(["docker", "inspect", "-f", "{{.State.Running}}", name]) == "true":
            raise BedError(
                f"{name}: the container ended:\n{docker('logs', '--tail', '15', name, check=False)}"
            )
        return state == "running"

    wait_until(booted, f"{name}: systemd", 60, 0.2)
    wait_until(lambda: ssh(short(name), ["true"], capture=True).returncode == 0, f"{name}: sshd", 30, 0.2)
    if node["engine"] == "none":
        return
    _inside(name, "/opt/testbed/images.sh", node["engine"], check=True)
    if node["kubelet"] != "none":
        wait_until(
            lambda: _inside(name, "curl", "-sf", "-m", "2", "http://127.0.0.1:10248/healthz").returncode == 0,
            f"{name}: the kubelet's healthz (testbed ssh {short(name)} -- journalctl -u kubelet)", 60, 0.2,
        )  # fmt: skip


def info(name: str) -> dict:
    """How to reach a running node."""
    published = docker("port", container(name), "22/tcp", check=False)
    if not published:
        raise BedError(
            f"no running node {short(name)}: `testbed up {short(name)}` starts one, `docker ps` lists them"
        )
    return {
        "name": short(name),
        "container": container(name),
        "host": "127.0.0.1",
        "port": int(published.splitlines()[0].rsplit(":", 1)[1]),
        "user": "root",
        "key": str(key()),
    }


SSH_OPTIONS = (
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
    "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=10",
)  # fmt: skip


def ssh(name: str, command: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a node over SSH (no command: a shell)."""
    about = info(name)
    words = [
        "ssh",
        *SSH_OPTIONS,
        "-i",
        about["key"],
        "-p",
        str(about["port"]),
        f"root@{about['host']}",
        *command,
    ]
    return subprocess.run(words, capture_output=capture, check=False)


def nodes() -> list[str]:
    """Names of all nodes, running or not."""
    found = docker("ps", "-a", "--filter", f"label={LABEL}", "--format", "{{.Names}}")
    return sorted(short(name) for name in found.split())


def down(names: list[str]) -> None:
    """Remove nodes with their volumes; one that is not there is no error."""
    present = nodes()
    gone = [container(name) for name in names if short(name) in present]
    for name in names:
        if short(name) not in present:
            say(f"no node {short(name)}")
    if gone:
        with step(f"removing {', '.join(short(name) for name in gone)}"):
            docker("rm", "--force", "--volumes", *gone)
