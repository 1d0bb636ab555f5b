"""Builds the stand-in libnvidia-ml.so.1 and nvidia-smi into the cache, once for each state of their sources.

Needs a C compiler and nvml.h (PyPI package nvidia-nvml-dev, in the project's .venv). Standard library only.
Run as a program it prints the directory that holds both.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY_SOURCES = ("json.c", "state.c", "device.c", "process.c", "health.c", "mig.c", "link.c", "events.c")
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wno-deprecated-declarations",
    "-fvisibility=hidden",
    "-pthread",
)


class BuildError(Exception):
    """What is missing, and how to get it."""


def cache() -> Path:
    """The cache of the project: $GPUOPS_CACHE or ~/.cache/gpuops."""
    return Path(os.environ.get("GPUOPS_CACHE") or Path.home() / ".cache/gpuops")


def header() -> Path:
    """The directory that holds nvml.h."""
    named = os.environ.get("NVML_INCLUDE_DIR")
    if named:
        return Path(named)
    roots = [Path(entry) for entry in sys.path if entry]
    roots += sorted((HERE.parents[2] / ".venv/lib").glob("python3*/site-packages"))
    for root in roots:
        for found in sorted(root.glob("nvidia/*/include/nvml.h")):
            return found.parent
    raise BuildError(
        "nvml.h not found: `make venv` installs the PyPI package nvidia-nvml-dev, or set NVML_INCLUDE_DIR"
    )


def compiler() -> str:
    """A C compiler; Debian's is installed where there is none and we may."""

    def present() -> str | None:
        return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")

    found = present()
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        print("nvml: installing gcc libc6-dev ...", file=sys.stderr, flush=True)
        apt = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "gcc", "libc6-dev"]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(apt, env=env, capture_output=True, check=False).returncode:
            subprocess.run(["apt-get", "-qq", "update"], capture_output=True, check=False)
            subprocess.run(apt, env=env, capture_output=True, check=False)
        found = present()
    if not found:
        raise BuildError("no C compiler: apt-get install gcc libc6-dev")
    return found


def stubs(include: Path) -> str:
    """C source with a weak definition, NOT_SUPPORTED, of every function that nvml.h declares.

    Real programs look symbols up one by one; a library that lacks one looks like an old driver. What our sources
    define wins over the weak ones.
    """
    declared = sorted(
        set(re.findall(r"DECLDIR\s+(nvml\w+)\s*\(", (include / "nvml.h").read_text(encoding="utf-8")))
    )
    body = "".join(f"STUB int {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in declared)
    return (
        "/* Made by build_nvml.py: what nvml.h declares, for the functions that this stand-in does not play. */\n"
        '#define STUB __attribute__((visibility("default"), weak))\n#define NOT_SUPPORTED 3\n' + body
    )


def digest(include: Path) -> str:
    """Names the build: sources, header and flags."""
    seen = hashlib.sha256(" ".join(FLAGS).encode())
    for path in [*sorted(HERE.glob("*.[ch]")), Path(__file__).resolve(), include / "nvml.h"]:
        seen.update(path.name.encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()[:16]


def build() -> Path:
    """The directory with libnvidia-ml.so.1 and nvidia-smi, built when it is not there. Raises BuildError."""
    include = header()
    target = cache() / f"nvml-standin-{digest(include)}"
    if (target / ".complete").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    with open(target / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / ".complete").exists():
            return target
        (target / "stubs.c").write_text(stubs(include), encoding="utf-8")
        sources = [str(HERE / name) for name in LIBRARY_SOURCES] + [str(target / "stubs.c")]
        _compile([*FLAGS, "-fPIC", "-shared", "-Wl,-soname,libnvidia-ml.so.1", f"-I{include}", "-o",
                  str(target / "libnvidia-ml.so.1"), *sources])  # fmt: skip
        _compile(
            [*FLAGS, f"-I{include}", "-o", str(target / "nvidia-smi"), str(HERE / "nvidia_smi.c"), "-ldl"]
        )
        (target / ".complete").touch()
    return target


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the C compiler refused:\n{done.stderr[:3000]}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"build_nvml.py: {error}")
