"""Where MIG instances lie: placement on a GPU, capability nodes, mig-minors. Standard library only."""

from __future__ import annotations

import uuid

import models


class MigError(ValueError):
    """Instances that a GPU cannot hold: says which and why."""


def mig_minor(gpu: int, gi: int, ci: int | None = None) -> int:
    """The minor of a MIG capability node, as the driver numbers them: 135 a GPU, 9 a GPU instance."""
    return 3 + gpu * 135 + gi * 9 + (0 if ci is None else 1 + ci)


def mig_minors(state: dict) -> str:
    """The text of /proc/driver/nvidia-caps/mig-minors: every instance there could be."""
    lines = ["config 1", "monitor 2"]
    for gpu in sorted(gpu["minor"] for gpu in state["gpus"]):
        for gi in range(15):
            lines.append(f"gpu{gpu}/gi{gi}/access {mig_minor(gpu, gi)}")
            lines += [f"gpu{gpu}/gi{gi}/ci{ci}/access {mig_minor(gpu, gi, ci)}" for ci in range(8)]
    return "\n".join(lines) + "\n"


def capability_minors(state: dict) -> set[int]:
    """Minors of the capability nodes that exist: config, monitor, and those of instances."""
    minors = {1, 2} if any(gpu["mig"]["capable"] for gpu in state["gpus"]) else set()
    for gpu in state["gpus"]:
        for device in gpu["mig"]["devices"]:
            minors |= {
                mig_minor(gpu["minor"], device["gi"]),
                mig_minor(gpu["minor"], device["gi"], device["ci"]),
            }
    return minors


def place(gpu: dict, profiles: tuple[str, ...]) -> list[dict]:
    """MIG devices for these profile names, in order of their instance ids. Raises MigError when they do not fit."""
    known = {profile.name: profile for profile in models.MODELS[gpu["model"]].mig}
    for name in profiles:
        if name not in known:
            raise MigError(f"no MIG profile {name!r} on {gpu['name']}: one of {', '.join(known)}")
    wanted = sorted((known[name] for name in profiles), key=lambda profile: (-profile.size, len(profile.gis)))
    slots = _slots(wanted, frozenset())
    if slots is None or sum(profile.slices for profile in wanted) > 7:
        raise MigError(f"{' '.join(profiles)} do not fit on one {gpu['name']}")
    devices = []
    ids: set[int] = set()
    for profile, slot in zip(wanted, slots):
        gi = next(number for number in profile.gis if number not in ids)
        ids.add(gi)
        devices.append(
            {
                "uuid": f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, gpu['uuid'] + f'/{gi}/0/{profile.name}')}",
                "gi": gi,
                "ci": 0,
                "profile": profile.name,
                "profile_id": profile.id,
                "slices": profile.slices,
                "memory_mib": profile.memory_mib,
                "multiprocessors": profile.multiprocessors,
                "start": slot,
                "size": profile.size,
            }
        )
    devices.sort(key=lambda device: device["gi"])
    for index, device in enumerate(devices):
        device["index"] = index
    return devices


def _slots(wanted: list[models.MigProfile], taken: frozenset[int]) -> list[int] | None:
    """A start for each profile so that none overlap, or None."""
    if not wanted:
        return []
    for start in wanted[0].starts:
        span = frozenset(range(start, start + wanted[0].size))
        if not span & taken:
            rest = _slots(wanted[1:], taken | span)
            if rest is not None:
                return [start, *rest]
    return None
