"""The images: a Debian root with systemd (from mmdebstrap), the node on top of it, and what runs inside nodes.

Nothing is pulled. Packages come from the machine's own apt settings, read at run time; each result is cached
under a digest of what made it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import build_nvml

from bedlib import engine, kubelet_install, packages
from bedlib.common import TESTBED, BedError, cache, digest_of, docker, locked, run, say, step

RELEASES = ("bookworm", "trixie")
KEPT_IMAGES = 4
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

NODE_PACKAGES = (
    "systemd systemd-sysv dbus udev kmod procps iproute2 iptables ethtool openssh-server sudo less curl "
    "ca-certificates gnupg gpgv python3 python3-venv python3-apt python3-debian docker.io containerd runc "
    "conntrack socat ebtables pciutils"
).split()
# Debian 13 splits docker's client off, and its client builds with BuildKit's plugin alone.
NODE_PACKAGES_TRIXIE = ["docker-cli", "docker-buildx"]


def node_image(release: str = "bookworm") -> str:
    """The tag of the node image for this Debian release, built when it is missing."""
    if release not in RELEASES:
        raise BedError(f"no release {release!r}: one of {', '.join(RELEASES)}")
    engine.ensure()
    tools()
    with locked("image"):
        return _node_image(release)


# Program -> Debian package: what making images takes.
TOOLS = {
    "cc": "gcc libc6-dev", "gpg": "gnupg", "dpkg-deb": "dpkg", "mmdebstrap": "mmdebstrap debian-archive-keyring",
    "ssh": "openssh-client", "ssh-keygen": "openssh-client",
}  # fmt: skip


def tools() -> None:
    """Install the programs that are missing, all at once."""
    missing = {
        package for program, names in TOOLS.items() if not shutil.which(program) for package in names.split()
    }
    if missing:
        engine.install(*sorted(missing))


def _node_image(release: str) -> str:
    base = base_image(release)
    overlay, digest = node_overlay(release)
    tag = f"gpuops/node:{release}-{digest}"
    if _exists(tag):
        return tag
    with step(f"node image {tag}"):
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            _text(
                tar,
                "Dockerfile",
                f'FROM {base}\nADD overlay.tar /\nENTRYPOINT ["/opt/testbed/init"]\n',
                0o644,
            )
            _bytes(tar, "overlay.tar", overlay(), 0o644)
        run(
            ["docker", "build", "-q", "-t", tag, "-"],
            data=context.getvalue(),
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )
    _forget(release)
    return tag


def base_image(release: str) -> str:
    """The Debian root with all packages a node needs, as an image."""
    wanted = NODE_PACKAGES + (NODE_PACKAGES_TRIXIE if release == "trixie" else [])
    digest = digest_of(release, wanted, _trim(), 4)
    tag = f"gpuops/node-base:{release}-{digest}"
    if _exists(tag):
        return tag
    root = cache("rootfs", f"node-{release}-{digest}.tar")
    if not root.exists():
        debootstrap(root, release, wanted, "minbase", "a node's root: systemd, sshd, docker, containerd")
    with step(f"importing {root.name} into docker"):
        run(["docker", "import", root, tag])
    return tag


def node_overlay(release: str):
    """What lies on top of Debian on a node: a function that makes the tar, and the digest that names it."""
    nvml = build_nvml.build()
    repository = packages.build()
    inner = inner_archives()
    python = kubelet_install.python_packages(release)
    rootfs = TESTBED / "rootfs"
    digest = digest_of(
        release, rootfs, nvml.name, repository.name, [p.name for p in inner], python.name, TESTBED / "nvml",
        Path(__file__),
        base_image(release),
    )  # fmt: skip

    def make() -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(rootfs.rglob("*")):
                if "__pycache__" not in path.parts:
                    _add(tar, path, str(path.relative_to(rootfs)))
            for name in ("world.py", "models.py", "mig_layout.py", "gpu_verbs.py"):
                _add(tar, TESTBED / "nvml" / name, f"opt/testbed/nvml/{name}")
            for name in ("libnvidia-ml.so.1", "nvidia-smi"):
                _add(tar, nvml / name, f"opt/testbed/nvml/{name}")
            for path in sorted(repository.rglob("*")):
                _add(tar, path, f"srv/nvidia-repo/{path.relative_to(repository)}")
            for path in sorted(python.rglob("*")):
                _add(tar, path, f"opt/testbed/python/{path.relative_to(python)}")
            for archive in inner:
                _add(tar, archive, f"opt/testbed/images/{archive.name}")
        return buffer.getvalue()

    return make, digest


# -- images for inside the nodes --------------------------------------------------------------------------------


def inner_archives() -> list[Path]:
    """gpuops/pause:1, workload:1 and python:1 as archives (images/build.py makes them)."""
    command = [sys.executable, TESTBED / "images/build.py"]
    done = run(command, check=False)
    if done.returncode:
        # apt-get download needs package lists, and a fresh machine has none.
        say("renewing the package lists")
        run(["apt-get", "update"])
        done = run(command)
    return [Path(line) for line in done.stdout.decode().split()]


# -- Debian ----------------------------------------------------------------------------------------------------------


def sources(release: str) -> list[str]:
    """One-line apt sources of `release`, on the mirrors that this machine uses itself."""
    text = ""
    for place in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        if place.is_file() and place.suffix in (".list", ".sources"):
            text += place.read_text(encoding="utf-8") + "\n\n"
    codename = re.search(
        r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.M
    )
    return sources_from(text, codename.group(1) if codename else "", release)


def sources_from(text: str, own: str, release: str) -> list[str]:
    """The same, from the text of apt's settings on a machine of release `own`. Raises BedError when there are none."""
    found: list[tuple[str, str]] = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(URIs|Suites):\s*(.+)$", stanza, re.M))
        found += [
            (uri, suite)
            for uri in fields.get("URIs", "").split()
            for suite in fields.get("Suites", "").split()
        ]
    found += re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.M)
    codename = re.search(
        r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.M
    )
    own = codename.group(1) if codename else ""
    wanted = {own: release, f"{own}-updates": f"{release}-updates", f"{own}-security": f"{release}-security"}
    lines = [
        f"deb [signed-by={KEYRING}] {uri} {wanted[suite]} main" for uri, suite in found if suite in wanted
    ]
    if not own or not any(f" {release} main" in line for line in lines):
        raise BedError(
            "no Debian mirror in this machine's apt settings (/etc/apt/sources.list, sources.list.d/): the test "
            "bed makes its images from the mirror that the machine itself uses, and that must be Debian's"
        )
    return sorted(set(lines))


def _trim() -> list[str]:
    """Documentation that no test reads."""
    return [
        "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
        "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
    ]  # fmt: skip


def debootstrap(target: Path, release: str, wanted: list[str], variant: str, what: str) -> None:
    """A tar of a Debian root with `wanted`; downloaded packages are kept in the cache."""
    if os.geteuid() != 0:
        raise BedError("only root can make a Debian root: run this as root")
    debs = cache("debs", release, "x").parent
    log = cache("mmdebstrap.log")
    log.write_bytes(b"")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.tar")
    command = [
        "mmdebstrap", f"--variant={variant}", "--components=main", f"--include={','.join(wanted)}",
        '--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        *[f"--dpkgopt={option}" for option in _trim()],
        "--skip=essential/unlink", "--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"",
        f"--setup-hook=sync-in {debs} /var/cache/apt/archives/",
        f"--customize-hook=sync-out /var/cache/apt/archives {debs}",
        release, part, *sources(release),
    ]  # fmt: skip
    if variant != "extract":
        # Nodes have no network: an empty list lets `apt-get update` succeed.
        command[-len(sources(release)) - 2 : -len(sources(release)) - 2] = [
            '--customize-hook=rm -rf "$1"/etc/apt/sources.list.d/* "$1"/var/lib/apt/lists/*; '
            ': >"$1/etc/apt/sources.list"; '
            'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname; : >"$1/etc/machine-id"',
        ]
    with step(f"{what} (Debian {release}; log: {log})"):
        run(command, log=log, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        part.rename(target)


# -- tar and docker ---------------------------------------------------------------------------------------------------


def _forget(release: str) -> None:
    """Drop node images of older sources but the newest few; docker keeps those that a node still runs."""
    listed = docker("images", "--format", "{{.Repository}}:{{.Tag}}", "gpuops/node").split()
    for tag in [tag for tag in listed if tag.startswith(f"gpuops/node:{release}-")][KEPT_IMAGES:]:
        run(["docker", "rmi", tag], check=False)


def _exists(tag: str) -> bool:
    return (
        subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode == 0
    )


def _owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mtime = 1704067200  # the same bytes each time
    return info


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    tar.add(path, name, recursive=False, filter=_owned)


def _bytes(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(_owned(info), io.BytesIO(data))


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int) -> None:
    _bytes(tar, name, text.encode(), mode)


def build(kind: str, release: str) -> str:
    """`testbed image KIND`: what was built, as a tag or a path."""
    if kind == "base":
        engine.ensure()
        with locked("image"):
            return base_image(release)
    if kind == "workload":
        engine.ensure()
        for archive in inner_archives():
            say(docker("load", "-q", "-i", archive))
        return "gpuops/pause:1 gpuops/workload:1 gpuops/python:1"
    return node_image(release)
