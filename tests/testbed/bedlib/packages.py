"""The signed apt repository with stand-ins for NVIDIA's packages.

Names, versions, dependencies and file paths are the real ones; what is inside is ours (tests/testbed/packages/).
The key is thrown away with the cache. On a node the directory lies in /srv/nvidia-repo, served on 127.0.0.1:8099:
`deb/` is the repository, `gpgkey` its key (armored), `fingerprint` the key's fingerprint.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bedlib.common import TESTBED, cache, digest_of, locked, out, run, step

SOURCES = TESTBED / "packages"
TOOLKIT_VERSIONS = ("1.17.8-1", "1.18.0-1")


@dataclass(frozen=True)
class Package:
    """One .deb: `files` maps its paths to files in tests/testbed/packages (or to text, with the mode)."""

    name: str
    version: str
    depends: str
    about: str
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    conffiles: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)


def _toolkit(version: str) -> list[Package]:
    upstream = version.split("-", maxsplit=1)[0]
    library = f"usr/lib/x86_64-linux-gnu/libnvidia-container.so.{upstream}"

    def source(name: str) -> str:
        return (SOURCES / name).read_text(encoding="utf-8").replace("@VERSION@", upstream)

    return [
        Package(
            "libnvidia-container1", version, "", "NVIDIA container runtime library",
            {library: (f"stand-in for libnvidia-container {upstream}\n", 0o644)},
            links={"usr/lib/x86_64-linux-gnu/libnvidia-container.so.1": f"libnvidia-container.so.{upstream}"},
        ),
        Package(
            "libnvidia-container-tools", version, f"libnvidia-container1 (>= {version})",
            "NVIDIA container runtime library (command-line tools)",
            {"usr/bin/nvidia-container-cli": (source("nvidia-container-cli"), 0o755)},
        ),
        Package(
            "nvidia-container-toolkit-base", version, "", "NVIDIA Container Toolkit Base",
            {
                "usr/bin/nvidia-container-runtime": (source("nvidia-container-runtime"), 0o755),
                "usr/bin/nvidia-ctk": (source("nvidia-ctk"), 0o755),
                "usr/lib/nvidia-container-toolkit/standin.py": (source("standin.py"), 0o755),
                "etc/nvidia-container-runtime/config.toml": (source("config.toml"), 0o644),
            },
            conffiles=("/etc/nvidia-container-runtime/config.toml",),
        ),
        Package(
            "nvidia-container-toolkit", version,
            f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (>= {version}), "
            "libnvidia-container-tools (<< 2.0.0)",
            "NVIDIA Container toolkit",
            {"usr/bin/nvidia-container-runtime-hook": (source("nvidia-container-runtime-hook"), 0o755)},
            links={"usr/bin/nvidia-container-toolkit": "nvidia-container-runtime-hook"},
        ),
    ]  # fmt: skip


def catalogue() -> list[Package]:
    """All packages of the repository."""
    legacy = [
        Package(
            "nvidia-docker2", "2.14.0-1", "nvidia-container-toolkit (>= 1.14.0-1)", "nvidia-docker CLI wrapper",
            {
                "usr/bin/nvidia-docker": ('#!/bin/sh\nexec docker "$@"\n', 0o755),
                "etc/docker/daemon.json": (
                    '{\n    "runtimes": {\n        "nvidia": {\n            "path": "nvidia-container-runtime",\n'
                    '            "runtimeArgs": []\n        }\n    }\n}\n',
                    0o644,
                ),
            },
            conffiles=("/etc/docker/daemon.json",),
        ),
        Package(
            "nvidia-container-runtime", "3.14.0-1", "nvidia-container-toolkit (>= 1.14.0-1)",
            "NVIDIA Container Toolkit meta-package",
            {"usr/share/doc/nvidia-container-runtime/README": ("see nvidia-container-toolkit-base\n", 0o644)},
        ),
    ]  # fmt: skip
    return [package for version in TOOLKIT_VERSIONS for package in _toolkit(version)] + legacy


def build() -> Path:
    """The repository's directory in the cache, built when it is missing."""
    target = cache("repository", digest_of(SOURCES, Path(__file__)))
    if target.exists():
        return target
    with open(cache("repository", ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        with step("the signed package repository"):
            part = Path(tempfile.mkdtemp(prefix="part-", dir=target.parent))
            part.chmod(0o755)
            (part / "deb").mkdir()
            # NVIDIA's own list says `<address>/deb/$(ARCH) /`: both spellings lead to the same files.
            (part / "deb/amd64").symlink_to(".")
            for package in catalogue():
                _deb(package, part / "deb")
            _sign(part)
            part.rename(target)
    return target


def _deb(package: Package, pool: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for path, (text, mode) in package.files.items():
            _file(root / path, text, mode)
        for path, goal in package.links.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(goal)
        control = [
            f"Package: {package.name}", f"Version: {package.version}", "Architecture: amd64", "Section: utils",
            "Priority: optional", "Maintainer: NVIDIA stand-in <nobody@example.invalid>",
            *([f"Depends: {package.depends}"] if package.depends else []),
            f"Description: {package.about}", " A stand-in for tests: no GPU is involved.",
        ]  # fmt: skip
        _file(root / "DEBIAN/control", "\n".join(control) + "\n", 0o644)
        if package.conffiles:
            _file(root / "DEBIAN/conffiles", "\n".join(package.conffiles) + "\n", 0o644)
        run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", root, pool])


def _file(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _sign(root: Path) -> None:
    """Packages, Release, InRelease and the key."""
    pool = root / "deb"
    index = ""
    for deb in sorted(pool.glob("*.deb")):
        data = deb.read_bytes()
        index += out(["dpkg-deb", "-f", deb]) + "\n"
        index += f"Filename: ./{deb.name}\nSize: {len(data)}\n"
        index += f"MD5sum: {hashlib.md5(data).hexdigest()}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (pool / "Packages").write_text(index, encoding="utf-8")
    (pool / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
    release = "Origin: stand-in\nLabel: libnvidia-container\nSuite: stable\nArchitectures: amd64\n"
    release += "Date: Mon, 01 Jan 2024 00:00:00 UTC\nSHA256:\n"
    for name in ("Packages", "Packages.gz"):
        data = (pool / name).read_bytes()
        release += f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
    (pool / "Release").write_text(release, encoding="utf-8")
    home = cache("repository-key", "x").parent
    home.chmod(0o700)
    with locked("repository-key"):
        env = {**os.environ, "GNUPGHOME": str(home)}
        gpg = ["gpg", "--batch", "--yes", "--quiet"]
        who = "NVIDIA stand-in (throw-away key) <nobody@example.invalid>"
        if not out([*gpg, "--list-secret-keys"], env=env):
            run([*gpg, "--passphrase", "", "--quick-gen-key", who, "rsa3072", "sign", "never"], env=env)
        run([*gpg, "--clearsign", "-o", pool / "InRelease", pool / "Release"], env=env)
        run([*gpg, "-abs", "-o", pool / "Release.gpg", pool / "Release"], env=env)
        run([*gpg, "--armor", "--export", "-o", root / "gpgkey"], env=env)
        listing = out([*gpg, "--with-colons", "--fingerprint"], env=env)
        run(["gpgconf", "--kill", "all"], env=env, check=False)
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    (root / "fingerprint").write_text(fingerprint + "\n", encoding="utf-8")
