"""A docker engine that answers, on a machine that may have none: `testbed engine`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bedlib.common import BedError, cache, run, say, step, wait_until

NEEDED_GIB = 6
# iproute2 and iptables: dockerd's bridge. cgroupfs-mount: where nothing mounted /sys/fs/cgroup.
PACKAGES = ("docker.io", "containerd", "runc", "iptables", "iproute2", "ca-certificates")


def answers() -> bool:
    """Does a docker engine answer?"""
    if not shutil.which("docker"):
        return False
    return (
        subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, check=False
        ).returncode
        == 0
    )


def ensure() -> None:
    """Install and start what is missing. Raises BedError that says what, and how to get it."""
    _disk()
    if answers():
        return
    if os.geteuid() != 0:
        raise BedError(
            "no docker engine answers, and only root can install or start one: run this as root, or start docker and "
            "add yourself to the group `docker`"
        )
    if not shutil.which("dockerd") or not shutil.which("docker"):
        install(*PACKAGES)
    _cgroups()
    start()


def install(*packages: str) -> None:
    """apt-get install, with the package lists renewed when the first try fails."""
    if not shutil.which("apt-get"):
        raise BedError(
            f"{', '.join(packages)}: missing, and there is no apt-get here to install them: install them with this "
            "system's package manager and run again"
        )
    if os.geteuid() != 0:
        raise BedError(f"missing packages: run as root `apt-get install {' '.join(packages)}`")
    log = cache("apt.log")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "Dpkg::Options::=--force-unsafe-io",
        *packages,
    ]
    with step(f"installing {' '.join(packages)} (log: {log})"):
        if run(command, check=False, log=log, env=env).returncode:
            run(["apt-get", "update"], log=log, env=env)
            run(command, log=log, env=env)


def _disk() -> None:
    for place in (cache("x").parent, Path("/var/lib")):
        free = shutil.disk_usage(place).free / 2**30
        if free < NEEDED_GIB:
            raise BedError(
                f"{place}: {free:.1f} GiB free, the test bed needs {NEEDED_GIB}: free some space there"
            )


def _cgroups() -> None:
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    if " cgroup" in mounts:
        return
    if not shutil.which("cgroupfs-mount"):
        install("cgroupfs-mount")
    run(["cgroupfs-mount"])


def start() -> None:
    """Start dockerd: by systemd where it runs, else by hand, its log in the cache."""
    if Path("/run/systemd/system").is_dir():
        with step("starting docker"):
            run(["systemctl", "start", "docker"])
            wait_until(answers, "docker.service does not answer (journalctl -u docker)", 60)
        return
    log = cache("dockerd.log")
    for stale in (Path("/var/run/docker.pid"),):
        if stale.exists() and not Path("/proc", stale.read_text(encoding="utf-8").strip()).exists():
            stale.unlink()
    with step(f"starting dockerd, without systemd (log: {log})"):
        with log.open("ab") as sink:
            daemon = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )

        def ready() -> bool:
            if daemon.poll() is not None:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
                raise BedError(
                    f"dockerd ended with exit code {daemon.returncode}; its last words in {log}:\n{tail}"
                )
            return answers()

        wait_until(ready, f"dockerd does not answer; see {log}", 60)
    say(f"dockerd runs as process {daemon.pid}")
