"""Puts a kubelet into a node: a real one's binary, or the embedded one with what it needs."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from bedlib.common import PROJECT, TESTBED, BedError, cache, digest_of, run, step

EMBEDDED = TESTBED / "kubelet"
PLUGIN_SOURCE = PROJECT / "files/plugin/src"
NODE_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
LAUNCHER = """#!/bin/sh
# The embedded kubelet (tests/testbed/kubelet/).
PYTHONPATH=/opt/testbed/python exec python3 -m embedded_kubelet {verb} "$@"
"""
REAL = ("kubelet",)
OPTIONAL = ("kubectl",)


def install(container: str, kind: str, version: str) -> None:
    """Copy the kubelet of this kind into a created (not yet started) container."""
    if kind == "real":
        _real(container)
    elif kind == "embedded":
        _embedded(container, version)
    else:
        raise BedError(f"no kubelet {kind!r}: embedded, real or none")


def binaries() -> Path:
    """Where the real kubelet lies: $KUBERNETES_BIN_DIR, the cache, or built from Debian's source."""
    named = os.environ.get("KUBERNETES_BIN_DIR")
    if named:
        if not (Path(named) / "kubelet").exists():
            raise BedError(f"KUBERNETES_BIN_DIR={named} holds no kubelet")
        return Path(named)
    built = cache("kubernetes-1.20.2", "bin")
    if not (built / "kubelet").exists():
        with step("building kubelet 1.20.2 from Debian's source package (6 minutes on 2 cores)"):
            if subprocess.run(
                [TESTBED / "kubernetes/build.sh", "kubelet"], stdout=sys.stderr, check=False
            ).returncode:
                raise BedError("the kubelet was not built: see the lines above; or set KUBERNETES_BIN_DIR")
    return built


def _real(container: str) -> None:
    found = binaries()
    for name in (*REAL, *OPTIONAL):
        if (found / name).exists():
            run(["docker", "cp", found / name, f"{container}:/usr/bin/{name}"])


def _embedded(container: str, version: str) -> None:
    if not (EMBEDDED / "embedded_kubelet/__main__.py").exists():
        raise BedError(f"{EMBEDDED}: no embedded kubelet there")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for package in (EMBEDDED / "embedded_kubelet", PLUGIN_SOURCE / "gpu_device_plugin"):
            tar.add(package, f"opt/testbed/python/{package.name}", filter=_clean)
        for name, verb in (("kubelet", "kubelet"), ("kubelet-pod", "pod")):
            _text(tar, f"usr/bin/{name}", LAUNCHER.format(verb=verb), 0o755)
        if version:
            _text(tar, "etc/embedded-kubelet/version", f"{version}\n", 0o644)
    run(["docker", "cp", "-", f"{container}:/"], data=buffer.getvalue())


def _clean(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if "__pycache__" in entry.name else entry


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    tar.addfile(entry, io.BytesIO(text.encode()))


def python_packages(release: str) -> Path:
    """A directory with what the embedded kubelet imports, for the Python of nodes of this release.

    Versions are those of requirements/dev.txt; wheels come from where pip gets the project's own.
    """
    pins = (PROJECT / "requirements/dev.txt").read_text(encoding="utf-8")
    wanted = re.findall(
        r"^((?:grpcio|protobuf|PyYAML|typing_extensions|typing-extensions)==\S+)", pins, re.M | re.I
    )
    python = NODE_PYTHON[release]
    target = cache("python", f"{release}-{digest_of(wanted, python)}")
    if target.exists():
        return target
    pip = PROJECT / ".venv/bin/pip"
    if not pip.exists():
        raise BedError(f"{pip} is not there: `make venv` makes it")
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with step(f"grpcio, protobuf and PyYAML for Python {python} (pip)"):
        run([
            pip, "install", "--quiet", "--disable-pip-version-check", "--target", part, "--no-deps", "--no-compile",
            "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
            "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64", *wanted,
        ])  # fmt: skip
        part.rename(target)
    return target
