#!/usr/bin/env python3
"""Steers the GPUs of the machine this runs on: the command line of world.World."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models
from world import World, WorldError, here


def parser() -> argparse.ArgumentParser:
    """The verbs."""
    top = argparse.ArgumentParser(prog="testbed gpu NAME", description="Steer simulated GPUs.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, gpu: bool = True) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        if gpu:
            made.add_argument("gpu", help="index, UUID or PCI address")
        return made

    xid = verb("xid", "an XID critical error")
    xid.add_argument("code", type=int)
    xid.add_argument("--gi", type=int, help="GPU instance that it hit")
    xid.add_argument("--ci", type=int, help="compute instance that it hit")
    verb("lose", "the GPU falls off the bus")
    verb("restore", "the GPU is well again: not lost, counters at zero")
    ecc = verb("ecc", "ECC errors (default: one uncorrected)")
    ecc.add_argument("--uncorrected", type=int, default=1)
    ecc.add_argument("--corrected", type=int, default=0)
    ecc.add_argument("--pending", action="store_true", help="a row remap is pending")
    ecc.add_argument("--failed", action="store_true", help="a row remap failed")
    fail = verb("init-fail", "nvmlInit fails from now on", gpu=False)
    fail.add_argument("code", type=int, nargs="?", default=9, help="NVML error (9: driver not loaded)")
    verb("init-ok", "nvmlInit works again", gpu=False)
    mig = verb("mig", "MIG on with these instances (none: on and empty; off: MIG off)")
    mig.add_argument("profiles", nargs="*", metavar="PROFILE")
    verb("remove", "the GPU leaves the machine")
    add = verb("add", "one more GPU", gpu=False)
    add.add_argument("model", nargs="?", choices=sorted(models.MODELS))
    process = verb("process", "a compute process holds the GPU")
    process.add_argument("pid", type=int)
    process.add_argument("--memory", type=int, default=1024, help="MiB")
    process.add_argument("--command", default="python3", help="its name")
    process.add_argument("--gi", type=int)
    process.add_argument("--ci", type=int)
    verb("end-processes", "no process holds the GPU any more")
    update = verb("set", "set keys of the GPU: set 0 temperature=93 errors='{\"nvmlDeviceGetName\": 999}'")
    update.add_argument("values", nargs="+", metavar="KEY=JSON")
    verb("show", "the GPUs as JSON", gpu=False)
    return top


def act(world: World, asked: argparse.Namespace) -> object:
    """Do it; what to print, or None."""
    if asked.verb == "xid":
        world.xid(asked.gpu, asked.code, asked.gi, asked.ci)
    elif asked.verb in ("lose", "restore", "remove"):
        getattr(world, asked.verb)(asked.gpu)
    elif asked.verb == "ecc":
        world.ecc(
            asked.gpu,
            uncorrected=asked.uncorrected,
            corrected=asked.corrected,
            pending=asked.pending,
            failed=asked.failed,
        )
    elif asked.verb == "init-fail":
        world.init_fail(asked.code)
    elif asked.verb == "init-ok":
        world.init_ok()
    elif asked.verb == "mig":
        world.mig(asked.gpu, *asked.profiles)
    elif asked.verb == "add":
        return {"uuid": world.add(asked.model)}
    elif asked.verb == "process":
        world.process(asked.gpu, asked.pid, asked.memory, asked.command, asked.gi, asked.ci)
    elif asked.verb == "end-processes":
        world.end_processes(asked.gpu)
    elif asked.verb == "set":
        world.update(
            asked.gpu, **{key: json.loads(value) for key, value in (v.split("=", 1) for v in asked.values)}
        )
    elif asked.verb == "show":
        state = world.read()
        return [
            {
                "index": index,
                "uuid": gpu["uuid"],
                "name": gpu["name"],
                "bus": models.bus_id(gpu),
                "minor": gpu["minor"],
                "numa_node": gpu["numa_node"],
                "lost": gpu["lost"],
                "mig": [f"{d['profile']} gi{d['gi']} {d['uuid']}" for d in gpu["mig"]["devices"]],
                "processes": [p["pid"] for p in gpu["processes"]],
            }
            for index, gpu in enumerate(state["gpus"])
        ]
    return None


def main() -> None:
    """Exit 1 with a message for a verb that makes no sense."""
    asked = parser().parse_args()
    world = here()
    if not world.state.exists():
        sys.exit(f"gpu: {world.state} is not there: this machine has no GPU driver")
    try:
        answer = act(world, asked)
    except WorldError as error:
        sys.exit(f"gpu: {error}")
    if answer is not None:
        print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
