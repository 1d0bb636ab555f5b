#!/usr/bin/env python3
"""Puts the plugin and everything it needs into DIR/site-packages, ready for a node or an image.

    python3 files/plugin/tools/bundle.py --python 3.11 --arch x86_64 --output DIR [--offline WHEELS] [--tar FILE]
    python3 files/plugin/tools/bundle.py --python 3.11 --arch x86_64 --fetch WHEELS

Wheels are fetched by pip, held against the hashes in requirements.lock, and unpacked; nothing of them is run,
and nothing is built. With --offline they come from a folder that --fetch (or anything else) has filled: no
network then. The same sources give the same bytes. Needs Python 3.9 with pip; the target's Python and machine
may be others.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent.parent
PACKAGE = "gpu_device_plugin"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHITECTURES = ("x86_64", "aarch64")
_GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
_ALIASES = ("2014", "2010", "1")
UNNEEDED = (
    "grpc/_cython/_credentials",  # certificates: every socket here is a unix socket
    "grpc/framework",
    "grpc/beta",
    "grpc/experimental/aio",  # the package itself is imported by every channel
    "google/protobuf/compiler",
    "google/protobuf/util",
    "google/protobuf/testdata",
    "prometheus_client/aiohttp",
    "prometheus_client/bridge",
    "prometheus_client/django",
    "prometheus_client/twisted",
    "example.py",  # of nvidia-ml-py
    "bin",
)
"""What nothing here imports, below site-packages."""


class BundleError(Exception):
    """What could not be done; the text says what to do."""


def platforms(arch: str) -> list[str]:
    """pip's options for every kind of wheel that a glibc 2.28 or later runs (Debian 10, RHEL 8 on)."""
    names = [f"manylinux_{version}_{arch}" for version in _GLIBC] + [
        f"manylinux{alias}_{arch}" for alias in _ALIASES
    ]
    return [word for name in names for word in ("--platform", name)]


def fetch(python: str, arch: str, folder: Path, offline: Path | None = None) -> None:
    """The locked wheels into ``folder``. Raises :class:`BundleError` when one is missing or has another hash."""
    if importlib.util.find_spec("pip") is None:
        raise BundleError(
            f"{sys.executable} has no pip: install python3-pip, or use a virtual environment's python"
        )
    source = ["--no-index", "--find-links", str(offline)] if offline is not None else []
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--require-hashes",
        "--no-deps",
        "--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *platforms(arch), *source,
        "--dest", str(folder), "--requirement", str(HERE / "requirements.lock"),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(line for line in done.stdout.splitlines() if "is ignored" not in line)
        where = f"the folder {offline}" if offline is not None else "pip's index (PIP_INDEX_URL, pip.conf)"
        raise BundleError(f"the locked wheels could not be had from {where}:\n{tail}")


def unpack(wheels: Path, target: Path) -> None:
    """Wheels into site-packages, without what nothing imports. Only plain files below ``target`` are written."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                parts = name.split("/")
                if ".data" in parts[0] or name.endswith(("/", ".pyi")):
                    continue  # scripts and headers; type stubs
                if ".." in parts or name.startswith("/"):
                    raise BundleError(f"{wheel.name} holds {name}: refused")
                if any(name == one or name.startswith(f"{one}/") for one in UNNEEDED):
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def add_plugin(target: Path) -> None:
    """The package itself, as an installed one."""
    source = HERE / "src" / PACKAGE
    shutil.copytree(source, target / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi"))
    version = version_of_source()
    info = target / f"{PACKAGE}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gpu-device-plugin\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        f"[console_scripts]\ngpu-device-plugin = {PACKAGE}.__main__:entry\n"
    )


def version_of_source() -> str:
    """``__version__`` of the package, read and not imported."""
    for line in (HERE / "src" / PACKAGE / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise BundleError(f"no __version__ in {HERE / 'src' / PACKAGE / '__init__.py'}")


def settle(target: Path) -> None:
    """Plain modes and one time for all, so that equal sources give equal archives."""
    for folder, folders, files in os.walk(target):
        folders.sort()
        for name in [*files, "."]:
            path = Path(folder) / name
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (0, 0))


def compiled_by(python: str) -> str | None:
    """An interpreter of the target's version, None where none is at hand (the target compiles then)."""
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    return shutil.which(f"python{python}")


def compile_all(interpreter: str, target: Path) -> None:
    """Byte code beside the sources, valid whatever the files' times say. Files for other Pythons are skipped."""
    subprocess.run(
        [interpreter, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
         "-s", str(target), str(target)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def entries(target: Path) -> Iterator[Path]:
    """Everything below, in one fixed order."""
    yield from sorted(target.rglob("*"))


def pack(target: Path, file: Path, prefix: str = "") -> None:
    """A tar (compressed where the name ends in .gz) whose bytes depend on the content alone; takes its name when whole.

    ``prefix`` goes before every name in it. Two that pack the same file at the same time do no harm.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = 0
        return member

    file.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with contextlib.ExitStack() as stack:
            raw: IO[bytes] = stack.enter_context(os.fdopen(handle, "wb"))
            if file.suffix == ".gz":
                raw = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=3, fileobj=raw, mtime=0))
            archive = stack.enter_context(tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT))
            for path in entries(target):
                name = Path(prefix) / path.relative_to(target.parent)
                archive.add(path, arcname=str(name), recursive=False, filter=plain)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(file)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def bundle(python: str, arch: str, output: Path, offline: Path | None, compiled: bool) -> Path:
    """Makes ``output/site-packages`` anew; the old one stays until the new one is whole."""
    output.mkdir(parents=True, exist_ok=True)
    final = output / "site-packages"
    with tempfile.TemporaryDirectory(dir=output, prefix=".bundle-") as work:
        wheels, target = Path(work) / "wheels", Path(work) / "site-packages"
        wheels.mkdir()
        target.mkdir()
        fetch(python, arch, wheels, offline)
        unpack(wheels, target)
        add_plugin(target)
        interpreter = compiled_by(python) if compiled else None
        if interpreter is not None:
            compile_all(interpreter, target)
        settle(target)
        if final.exists():
            shutil.rmtree(final)
        target.rename(final)
    return final


def main() -> int:
    """The command line; 0, or 1 with one message."""
    with contextlib.ExitStack() as stack:
        return _main(stack)


def _main(stack: contextlib.ExitStack) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--python", default="3.11", choices=PYTHONS, help="CPython of the target")
    parser.add_argument("--arch", default="x86_64", choices=ARCHITECTURES, help="machine of the target")
    parser.add_argument("--output", type=Path, help="folder in which site-packages is made")
    parser.add_argument("--offline", type=Path, help="folder with the wheels; nothing is fetched")
    parser.add_argument("--fetch", type=Path, help="only fetch the wheels into this folder")
    parser.add_argument(
        "--tar", type=Path, help="pack site-packages into this file; alone or beside --output"
    )
    parser.add_argument("--prefix", default="", help="folder before site-packages in the tar")
    parser.add_argument("--no-compile", action="store_true", help="leave byte code to the target")
    words = parser.parse_args()
    if not words.output and not words.fetch and not words.tar:
        parser.error("say --output, --tar or --fetch")
    try:
        if words.fetch:
            words.fetch.mkdir(parents=True, exist_ok=True)
            fetch(words.python, words.arch, words.fetch)
            print(f"{len(list(words.fetch.glob('*.whl')))} wheels in {words.fetch}")
        if words.output or words.tar:
            output = words.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bundle-")))
            made = bundle(words.python, words.arch, output, words.offline, not words.no_compile)
            if words.tar:
                pack(made, words.tar, words.prefix)
            size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
            print(f"{made}: {size / 1e6:.1f} MB")
    except (BundleError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
