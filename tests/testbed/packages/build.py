#!/usr/bin/env python3
"""Build the stand-in NVIDIA package repository. See README.md beside this file. Standard library only.

Needs dpkg-deb (on every Debian) and gpg. Prints the directory of the finished repository.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLKIT_VERSIONS = ("1.17.8-1", "1.18.0-1")
ARCHITECTURE = "amd64"
LIBRARY = "/usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Package:
    """One .deb: control fields and files (absolute path -> (content, mode))."""

    name: str
    version: str
    depends: str
    files: dict[str, tuple[str, int]]
    conffiles: tuple[str, ...] = ()
    postinst: str = ""
    description: str = "stand-in for tests"


def packages() -> list[Package]:
    """Everything the repository holds."""
    runtime = (HERE / "nvidia_container_runtime.py").read_text()
    ctk = (HERE / "nvidia_ctk.py").read_text()
    hook = "#!/bin/sh\n# The stand-in runtime does the hook's work itself.\nexit 0\n"
    found = []
    for version in TOOLKIT_VERSIONS:
        found += [
            Package(
                "libnvidia-container1", version, "libc6",
                {f"{LIBRARY}/libnvidia-container.so.1": (f"stand-in {version}\n", 0o644)},
            ),
            Package(
                "libnvidia-container-tools", version, f"libnvidia-container1 (= {version})",
                {"/usr/bin/nvidia-container-cli": (f"#!/bin/sh\necho 'cli-version: {version}'\n", 0o755)},
            ),
            Package(
                "nvidia-container-toolkit-base", version, "",
                {
                    "/usr/bin/nvidia-container-runtime": (runtime, 0o755),
                    "/usr/bin/nvidia-ctk": (ctk.replace("@VERSION@", version), 0o755),
                    "/usr/bin/nvidia-cdi-hook": (hook, 0o755),
                },
                postinst='#!/bin/sh\nset -e\n[ "$1" != configure ] || /usr/bin/nvidia-ctk --quiet config --in-place\n',
            ),
            Package(
                "nvidia-container-toolkit", version,
                f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (= {version})",
                {"/usr/bin/nvidia-container-runtime-hook": (hook, 0o755)},
            ),
        ]  # fmt: skip
    found += [
        Package(
            "nvidia-container-runtime", "3.14.0-1", "nvidia-container-toolkit (>= 1.14.0-1)",
            {"/usr/share/doc/nvidia-container-runtime/README": ("A shell around the toolkit.\n", 0o644)},
        ),
        Package(
            "nvidia-docker2", "2.14.0-1", "nvidia-container-toolkit (>= 1.14.0-1)",
            {
                "/usr/bin/nvidia-docker": ("#!/bin/sh\nexec docker \"$@\"\n", 0o755),
                "/etc/docker/daemon.json": (
                    '{\n    "runtimes": {\n        "nvidia": {\n            "path": "nvidia-container-runtime",\n'
                    '            "runtimeArgs": []\n        }\n    }\n}\n', 0o644),
            },
            conffiles=("/etc/docker/daemon.json",),
        ),
    ]  # fmt: skip
    return found


def build_package(package: Package, target: Path) -> Path:
    """One .deb below `target`."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        for path, (content, mode) in package.files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(mode)
        control = root / "DEBIAN"
        control.mkdir(parents=True)
        lines = [
            f"Package: {package.name}",
            f"Version: {package.version}",
            f"Architecture: {ARCHITECTURE}",
            "Maintainer: gpuops test bed <testbed@example.invalid>",
            "Section: utils",
            "Priority: optional",
            *([f"Depends: {package.depends}"] if package.depends else []),
            f"Description: {package.name}, {package.description}",
        ]
        (control / "control").write_text("\n".join(lines) + "\n")
        if package.conffiles:
            (control / "conffiles").write_text("\n".join(package.conffiles) + "\n")
        if package.postinst:
            (control / "postinst").write_text(package.postinst)
            (control / "postinst").chmod(0o755)
        for directory in [root, *[path for path in root.rglob("*") if path.is_dir()]]:
            directory.chmod(0o755)
        target.mkdir(parents=True, exist_ok=True)
        deb = target / f"{package.name}_{package.version}_{ARCHITECTURE}.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
    return deb


def packages_index(directory: Path) -> str:
    """The text of Packages: each control file with size and digest."""
    stanzas = []
    for deb in sorted(directory.glob("*.deb")):
        done = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True, text=True)
        content = deb.read_bytes()
        stanzas.append(
            f"{done.stdout.rstrip()}\nFilename: ./{deb.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    return "\n".join(stanzas)


def make_key(home: Path, name: str) -> str:
    """A fresh signing key without passphrase; its fingerprint."""
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    gpg(
        home,
        "--passphrase",
        "",
        "--quick-generate-key",
        f"{name} <testbed@example.invalid>",
        "rsa2048",
        "sign",
        "never",
    )
    listing = gpg(home, "--with-colons", "--list-keys").stdout
    return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))


def gpg(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """gpg with its own home, never the user's."""
    command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def sign_index(directory: Path, home: Path) -> None:
    """Packages, Packages.gz, Release, Release.gpg and InRelease of a flat repository."""
    index = packages_index(directory).encode()
    (directory / "Packages").write_bytes(index)
    (directory / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    digests = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
        for name, data in (("Packages", index), ("Packages.gz", (directory / "Packages.gz").read_bytes()))
    )
    release = (
        "Origin: gpuops test bed\nLabel: nvidia stand-ins\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"Architectures: {ARCHITECTURE}\nSHA256:\n{digests}"
    )
    (directory / "Release").write_text(release)
    gpg(
        home,
        "--armor",
        "--detach-sign",
        "--output",
        str(directory / "Release.gpg"),
        str(directory / "Release"),
    )
    gpg(home, "--clearsign", "--output", str(directory / "InRelease"), str(directory / "Release"))


def build(target: Path) -> None:
    """The whole repository below `target`, which must not exist."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    directory = fresh / "deb" / ARCHITECTURE
    for package in packages():
        build_package(package, directory)
    # gpg's socket names must be short: its homes lie in /tmp.
    with tempfile.TemporaryDirectory(prefix="gpg") as temporary:
        home, other = Path(temporary) / "a", Path(temporary) / "b"
        (fresh / "fingerprint").write_text(make_key(home, "gpuops test bed") + "\n")
        make_key(other, "somebody else")
        (fresh / "gpgkey").write_text(gpg(home, "--armor", "--export").stdout)
        (fresh / "wrong-key").write_text(gpg(other, "--armor", "--export").stdout)
        sign_index(directory, home)
        for one in (home, other):
            subprocess.run(
                ["gpgconf", "--homedir", str(one), "--kill", "all"], check=False, capture_output=True
            )
    fresh.rename(target)


def ensure() -> Path:
    """The repository in the cache, built when it is missing."""
    cache = Path(os.environ.get("GPUOPS_CACHE") or Path.home() / ".cache/gpuops")
    digest = hashlib.sha256()
    for source in sorted(HERE.glob("*.py")):
        digest.update(source.read_bytes())
    target = cache / f"nvidia-repo-{digest.hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "nvidia-repo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            build(target)
    return target


if __name__ == "__main__":
    try:
        print(ensure())
    except FileNotFoundError as error:
        sys.exit(f"packages: {error.filename} is missing: apt-get install gnupg dpkg")
    except subprocess.CalledProcessError as error:
        sys.exit(f"packages: {' '.join(error.cmd)} failed:\n{error.stderr}")
