"""What containers with a GPU are given beside it when the settings ask: IMEX, GDRCopy, GPUDirect Storage, MOFED.

As the peer has them: a CDI class each, whose devices are channels by number, else one that is called ``all``. Looking
for their files is apart (:func:`find`, :func:`find_storage_files`); the rest is pure.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .config import CDI_ANNOTATIONS, CDI_CRI, DRIVER_MOUNTS, Settings
from .roots import below, device_root

IMEX, GDRCOPY, GDS, MOFED = "imex-channel", "gdrcopy", "gds", "mofed"
KINDS = (IMEX, GDRCOPY, GDS, MOFED)
"""CDI classes, in the order in which answers name them."""

IMEX_CHANNEL = "/dev/nvidia-caps-imex-channels/channel"
PATTERNS = {
    IMEX: (f"{IMEX_CHANNEL}[0-9]*",),
    GDRCOPY: ("/dev/gdrdrv",),
    GDS: ("/dev/nvidia-fs*",),
    MOFED: ("/dev/infiniband/uverbs*", "/dev/infiniband/rdma_cm"),
}
STORAGE_FILES = ("/run/udev", "/etc/cufile.json")
"""What libcufile reads, below the driver root."""

NEXT_STEP = {
    IMEX: "load the driver with NVreg_CreateImexChannel0=1, or set up nvidia-imex",
    GDRCOPY: "load gdrdrv",
    GDS: "load nvidia-fs",
    MOFED: "load the InfiniBand drivers",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One of their device nodes that is there."""

    path: str
    """As a container gets it."""
    in_device_root: bool = True
    """Whether it was seen below a device root; else it is on the node where its name says."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One that is asked for and there."""

    kind: str
    name: str
    nodes: tuple[tuple[str, str], ...]
    """(path in the container, path on the node)."""
    mounts: tuple[tuple[str, str], ...] = ()
    """(path in the container, path on the node), read-only."""


def find(roots: Sequence[str]) -> tuple[Node, ...]:
    """All their nodes, of each kind below the first root that has any; ``roots`` as :func:`roots.dev_roots` gives them,
    of which "" is the "/" of this process."""
    found = []
    for patterns in PATTERNS.values():
        for root in roots:
            paths = [path for pattern in patterns for path in glob.glob(glob.escape(root) + pattern)]
            nodes = sorted(path[len(root) :] for path in paths if _is_device(path))
            if nodes:
                found += [Node(path, bool(root)) for path in nodes]
                break
    return tuple(found)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def find_storage_files(root: str) -> tuple[str, ...]:
    """STORAGE_FILES that are there below the driver root as this process sees it."""
    return tuple(path for path in STORAGE_FILES if os.path.exists(below(root, path)))


def asked(settings: Settings) -> Iterator[tuple[str, str]]:
    """(kind, name) of all that the settings ask for."""
    for number in settings.imex_channel_ids:
        yield IMEX, str(number)
    wanted = {GDRCOPY: settings.gdrcopy_enabled, GDS: settings.gds_enabled, MOFED: settings.mofed_enabled}
    for kind, on in wanted.items():
        if on:
            yield kind, "all"


def given(
    settings: Settings, nodes: Sequence[Node], storage_files: Sequence[str] = ()
) -> tuple[Feature, ...]:
    """Those asked for that are there, in the order of KINDS, channels in that of the settings."""
    found = []
    for kind, name in asked(settings):
        mine = [node for node in nodes if _belongs(node.path, kind, name)]
        if mine:
            root = device_root(settings)
            pairs = tuple(
                (node.path, below(root, node.path) if node.in_device_root else node.path) for node in mine
            )
            files = storage_files if kind == GDS else ()
            mounts = tuple((path, below(settings.nvidia_driver_root, path)) for path in files)
            found.append(Feature(kind, name, pairs, mounts))
    return tuple(found)


def _belongs(path: str, kind: str, name: str) -> bool:
    if kind == IMEX:
        return path == f"{IMEX_CHANNEL}{name}"
    return any(fnmatchcase(path, pattern) for pattern in PATTERNS[kind])


def missing(settings: Settings, nodes: Sequence[Node]) -> tuple[str, ...]:
    """A sentence for each that is asked for and not there. All but channels matter only where this program itself hands
    out their nodes; elsewhere the NVIDIA runtime finds them by a variable, and may see more than this process."""
    there = {(feature.kind, feature.name) for feature in given(settings, nodes)}
    ours = {CDI_ANNOTATIONS, CDI_CRI, DRIVER_MOUNTS} & set(settings.device_list_strategy)
    keys = {GDRCOPY: "gdrcopyEnabled", GDS: "gdsEnabled", MOFED: "mofedEnabled"}
    texts = []
    for kind, name in asked(settings):
        if (kind, name) in there or (kind != IMEX and not ours):
            continue
        what = f"imex.channelIDs: {IMEX_CHANNEL}{name}" if kind == IMEX else keys[kind]
        where = "" if kind == IMEX else f": {' or '.join(PATTERNS[kind])}"
        texts.append(f"{what}{where} is not there, so containers get none: {NEXT_STEP[kind]}")
    return tuple(texts)


def required_fault(settings: Settings, nodes: Sequence[Node]) -> str | None:
    """Why no GPU may be given out: a channel that is required is not there."""
    if not settings.imex_required:
        return None
    there = {feature.name for feature in given(settings, nodes) if feature.kind == IMEX}
    lacking = [str(number) for number in settings.imex_channel_ids if str(number) not in there]
    return f"IMEX channel {', '.join(lacking)} is required and not there" if lacking else None
