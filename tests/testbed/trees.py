#!/usr/bin/env python3
"""Is a node what it was? Every file's path, kind, mode, owner and content, before and after.

    trees.py save FILE       write the node's tree, packages, units and images into FILE
    trees.py compare FILE    print what is different now, one line each; exit code 1 where anything is

Runs on the node with any Python 3.9, standard library only. What may differ is in EXCEPT, each with its reason; nothing
else is left out but file systems of the kernel.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator

KERNEL = ("/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue")
# Reason -> patterns of whole paths.
EXCEPT = {
    "logs": [r"/var/log(/.*)?"],
    "what runs now: process ids, sockets, counters. The names below /run itself are compared": [
        r"/run/.+/.+",
        r"/run/(motd.dynamic|utmp|xtables.lock|reboot-required.*)",
    ],
    "caches": [r"/var/cache/.*", r"/etc/ld\.so\.cache", r".*/__pycache__(/.*)?"],
    "apt's indices: the next `apt update` drops those of a repository that is gone": [
        r"/var/lib/apt/(lists|periodic|mirrors)(/.*)?",
        r"/var/lib/apt/(extended_states|daily_lock)",
    ],
    "dpkg's database with its times and copies; packages are compared by dpkg's list": [
        r"/var/lib/dpkg/(status|available|diversions|statoverride|lock|cmethopt|.*-old|triggers/.*)",
        r"/var/backups/.*",
    ],
    "the engines' stores; images are compared by the engines' lists": [
        r"/var/lib/(docker|containerd|cni)(/.*)?",
        r"/opt/(containerd|cni)(/.*)?",
    ],
    "the kubelet's own state; it drops a resource some minutes after its plugin": [
        r"/var/lib/kubelet/(pods|plugins|plugins_registry|pki|embedded|pod-resources)(/.*)?",
        r"/var/lib/kubelet/(cpu|memory)_manager_state",
        r"/var/lib/kubelet/device-plugins/(kubelet\.sock|kubelet_internal_checkpoint|DEPRECATION)",
    ],
    "systemd's own state: timers, random seed": [r"/var/lib/(systemd|logrotate|private|dbus|sudo)(/.*)?"],
    "Ansible's own directory for temporary files": [r"/(root|home/[^/]+)/\.ansible(/.*)?"],
    "dated copies of the administrator's files from before each change: theirs to throw away": [
        r"/etc/.*\.[0-9]{8}T[0-9]{6}Z(\.[0-9]+)?~"
    ],
}
# Lists that say more than the files behind them. A program that is missing makes an empty list.
LISTS = {
    "packages": ["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n"],
    "packages on hold": ["apt-mark", "showhold"],
    "units": ["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"],
    "failed units": ["systemctl", "list-units", "--failed", "--no-legend", "--no-pager", "--plain"],
    "images of docker": [
        "docker",
        "image",
        "ls",
        "--no-trunc",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.ID}}",
    ],
    "images of containerd": ["ctr", "-n", "k8s.io", "images", "ls", "-q"],
    "docker's runtimes": ["docker", "info", "--format", "default {{.DefaultRuntime}}"],
    "addresses of apt": ["apt-get", "indextargets", "--format", "$(SITE)"],
}
WHY = [(re.compile("|".join(patterns)), reason) for reason, patterns in EXCEPT.items()]


def excepted(path: str) -> str | None:
    """The reason why this path may differ, or None."""
    return next((reason for pattern, reason in WHY if pattern.fullmatch(path)), None)


def paths(top: str) -> Iterator[str]:
    """``top`` and everything below it, in order, but the kernel's file systems. Links are not followed."""
    yield top
    try:
        names = sorted(os.listdir(top))
    except OSError:
        return
    for name in names:
        path = os.path.join(top, name)
        if path in KERNEL:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            yield from paths(path)
        else:
            yield path


def describe(path: str) -> str | None:
    """Kind, mode, owner, group, and content as a hash; None where the file has gone meanwhile."""
    try:
        found = os.lstat(path)
        words = [stat.filemode(found.st_mode), f"{found.st_uid}:{found.st_gid}"]
        if stat.S_ISLNK(found.st_mode):
            words.append("-> " + os.readlink(path))
        elif stat.S_ISREG(found.st_mode):
            digest = hashlib.blake2b(digest_size=12)
            with open(path, "rb") as source:
                for chunk in iter(lambda: source.read(1 << 20), b""):
                    digest.update(chunk)
            words.append(digest.hexdigest())
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            words.append(f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}")
    except OSError:
        return None
    return " ".join(words)


def look() -> dict[str, str]:
    """Path or `list: line` -> what it is."""
    tree = {}
    for path in paths("/"):
        if excepted(path) is None:
            what = describe(path)
            if what is not None:
                tree[path] = what
    for name, command in LISTS.items():
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        except OSError:
            continue
        for line in done.stdout.splitlines():
            tree[f"{name}: {' '.join(line.split())}"] = ""
    return tree


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """`+` for what has come, `-` for what has gone, `~` for what has changed, with both sides."""
    lines = [f"- {path} ({before[path]})" for path in before.keys() - after.keys()]
    lines += [f"+ {path} ({after[path]})" for path in after.keys() - before.keys()]
    both = before.keys() & after.keys()
    lines += [f"~ {path}: {before[path]} => {after[path]}" for path in both if before[path] != after[path]]
    return sorted(lines, key=lambda line: (line[2:], line[0]))


def main(words: list[str]) -> int:
    if len(words) != 2 or words[0] not in ("save", "compare"):
        print(__doc__, file=sys.stderr)
        return 2
    place = os.path.abspath(words[1])
    now = look()
    # The record is no part of what it records, nor is this program where it was copied for the run.
    for own in (place, os.path.abspath(__file__)):
        now.pop(own, None)
    if words[0] == "save":
        with open(place, "w") as target:
            json.dump(now, target)
        print(f"{len(now)} entries")
        return 0
    with open(place) as source:
        before = json.load(source)
    found = differences(before, now)
    print("\n".join(found) or f"no difference in {len(before)} entries")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
