"""Puts a kubelet into a node: a real one's binary, or the embedded one with what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bedlib.common import PROJECT, TESTBED, BedError, cache, digest_of, run, step

EMBEDDED = TESTBED / "kubelet"
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
    run(["docker", "cp", f"{_packages()}/.", f"{container}:/opt/testbed/python"])
    run(["docker", "cp", EMBEDDED / "embedded_kubelet", f"{container}:/opt/testbed/python/embedded_kubelet"])
    if version:
        run(["docker", "cp", "-", f"{container}:/"], data=_tar("etc/testbed/kubelet-version", f"{version}\n"))


def _tar(path: str, text: str) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(text.encode()), 0o644
        tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _packages() -> Path:
    """grpcio, protobuf and their kin, for the node's Python, as a directory."""
    return cache("x").parent
