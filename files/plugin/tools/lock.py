#!/usr/bin/env python3
"""Makes requirements.lock from requirements.in: exact versions, with the hash of every wheel that a supported
Python on a supported machine would get.

    python3 files/plugin/tools/lock.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bundle import ARCHITECTURES, PYTHONS, platforms

HERE = Path(__file__).resolve().parent.parent
HEAD = "# Made by tools/lock.py from requirements.in; wheels for CPython {} on {}.\n"


def resolve(python: str, arch: str) -> list[dict]:
    """What pip would install for this Python on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
                "--only-binary", ":all:",
                "--target", folder, "--python-version", python, "--implementation", "cp", *platforms(arch),
                "--report", str(report), "-r", str(HERE / "requirements.in"),
            ],
            check=True,
        )  # fmt: skip
        return json.loads(report.read_text())["install"]


def main() -> int:
    """Writes the file and says what is in it."""
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    pythons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for python in PYTHONS:
        for arch in ARCHITECTURES:
            for item in resolve(python, arch):
                key = (item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"])
                hashes[key].add(item["download_info"]["archive_info"]["hashes"]["sha256"])
                pythons[key].add(python)
    lines = [HEAD.format(", ".join(PYTHONS), " and ".join(ARCHITECTURES))]
    for key in sorted(hashes):
        name, version = key
        marker = ""
        if pythons[key] != set(PYTHONS):
            marker = " ; " + " or ".join(
                f'python_version == "{python}"' for python in PYTHONS if python in pythons[key]
            )
        rows = [
            f"{name}=={version}{marker}",
            *(f"    --hash=sha256:{value}" for value in sorted(hashes[key])),
        ]
        lines.append(" \\\n".join(rows) + "\n")
    (HERE / "requirements.lock").write_text("".join(lines))
    print(f"requirements.lock: {len(hashes)} packages, {sum(map(len, hashes.values()))} wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
