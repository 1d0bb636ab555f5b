#!/usr/bin/env python3
"""Build the small images that nodes carry, from Debian's packages, without pulling anything.

    build.py [pause|workload|python ...]      prints one archive (docker save) a line; default: all

gpuops/pause:1     a static sleeper that reaps, from Kubernetes' source when it was built, else from twenty lines of C
gpuops/workload:1  busybox (sh, ls, sleep) and glibc, so that an injected nvidia-smi runs in it
gpuops/python:1    python3, glibc, libstdc++ and certificates, no pip, no shell: base of the plugin's image

Standard library only; needs a docker engine (`testbed engine`), apt and dpkg-deb. Archives stay in the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAUSE_C = r"""
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, stop);
  signal(SIGTERM, stop);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""
PYTHON_PACKAGES = (
    "libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libuuid1 ca-certificates "
    "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib"
).split()
# What a server with gRPC never imports; a third of the standard library's size.
PYTHON_UNUSED = (
    "ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo unittest distutils venv xmlrpc dbm "
    "sqlite3 curses config-3.11-x86_64-linux-gnu turtle.py pydoc.py doctest.py"
).split()


def cache() -> Path:
    """~/.cache/gpuops or $GPUOPS_CACHE."""
    return Path(os.environ.get("GPUOPS_CACHE") or Path.home() / ".cache/gpuops")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command that must succeed, its output kept."""
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, **options
    )


def unpack(packages: Iterable[str], root: Path) -> None:
    """Extract Debian packages (downloaded once into the cache) below `root`, without documentation."""
    store = cache() / "debs"
    store.mkdir(parents=True, exist_ok=True)
    missing = [name for name in packages if not list(store.glob(f"{name}_*.deb"))]
    if missing:
        run("apt-get", "download", "-o", "APT::Sandbox::User=root", *missing, cwd=store)
    for name in packages:
        newest = max(store.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
        run("dpkg-deb", "-x", newest, root)
    for useless in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/lintian",
        "usr/share/bug",
        "usr/share/locale",
    ):
        shutil.rmtree(root / useless, ignore_errors=True)


def skeleton(root: Path) -> None:
    """Directories and accounts that programs expect."""
    for name in ("dev", "proc", "sys", "run", "tmp", "etc", "var", "root", "usr/bin", "usr/lib"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for link, target in (
        ("var/run", "../run"),
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("sbin", "usr/sbin"),
    ):
        path = root / link
        if path.is_dir() and not path.is_symlink():
            # Debian 12's packages still ship some files below /lib: merge them as usrmerge does.
            destination = root / target
            shutil.copytree(path, destination, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(path)
        if not path.is_symlink():
            path.symlink_to(target)
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def trim(root: Path) -> None:
    """Drop what an image that only runs programs never reads."""
    for pattern in (
        "usr/lib/x86_64-linux-gnu/gconv",
        "usr/share/zoneinfo",
        "usr/share/lintian",
        "usr/lib/x86_64-linux-gnu/audit",
    ):
        shutil.rmtree(root / pattern, ignore_errors=True)


def pause(root: Path) -> list[str]:
    """A static program that sleeps."""
    (root / "pause.c").write_text(PAUSE_C)
    run("cc", "-static", "-Os", "-s", "-o", root / "pause", root / "pause.c")
    (root / "pause.c").unlink()
    return ['ENTRYPOINT ["/pause"]']


def workload(root: Path) -> list[str]:
    """busybox with every applet linked, and glibc."""
    unpack(["libc6", "libgcc-s1", "busybox-static"], root)
    skeleton(root)
    trim(root)
    busybox = root / "usr/bin/busybox"
    applets = run(busybox, "--list").stdout.split()
    for applet in applets:
        link = root / "usr/bin" / applet
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")
    return ['CMD ["sh"]', "ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin"]


def python(root: Path) -> list[str]:
    """python3 and what grpcio links against."""
    unpack(PYTHON_PACKAGES, root)
    skeleton(root)
    trim(root)
    library = root / "usr/lib/python3.11"
    for name in PYTHON_UNUSED:
        path = library / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for extension in library.glob("lib-dynload/*"):
        if any(
            word in extension.name
            for word in ("_test", "_sqlite", "_curses", "_tkinter", "_dbm", "_gdbm", "readline", "nis")
        ):
            extension.unlink()
    for link in ("python3", "python"):
        (root / "usr/bin" / link).symlink_to("python3.11")
    # The bundle that OpenSSL looks for; dpkg's trigger would have made it.
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle.write_text("".join(path.read_text() for path in certificates))
    shutil.rmtree(root / "usr/share/ca-certificates")
    (root / "etc/ld.so.conf").write_text("/usr/lib/x86_64-linux-gnu\n")
    run("ldconfig", "-r", root)
    return ['CMD ["python3"]', "ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin", "ENV LANG=C.UTF-8"]


IMAGES = {"pause": pause, "workload": workload, "python": python}


def ensure(name: str) -> Path:
    """The archive of gpuops/NAME:1, built when the cache has none from these sources."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    archive = cache() / f"images/{name}-{digest}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(archive.with_suffix(".lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            return archive
        print(f"images: building gpuops/{name}:1", file=sys.stderr, flush=True)
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"gpuops-{name}-")))
        root.chmod(0o755)
        changes = IMAGES[name](root)
        tag = f"gpuops/{name}:1"
        pack = subprocess.Popen(
            ["tar", "-C", root, "--owner=0", "--group=0", "--numeric-owner", "-cf", "-", "."],
            stdout=subprocess.PIPE,
        )
        words = [word for change in changes for word in ("--change", change)]
        run("docker", "import", *words, "-", tag, stdin=pack.stdout)
        if pack.wait() != 0:
            raise subprocess.CalledProcessError(pack.returncode, "tar")
        fresh = archive.with_suffix(".new")
        run("docker", "save", "-o", fresh, tag)
        fresh.rename(archive)
    return archive


if __name__ == "__main__":
    try:
        for wanted in sys.argv[1:] or list(IMAGES):
            print(ensure(wanted))
    except KeyError as error:
        sys.exit(f"images: no image {error}: one of {', '.join(IMAGES)}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"images: {error.cmd} failed:\n{error.stderr}")
