"""``kubelet-pod``: run, list and remove pods on a node with the embedded kubelet, and show what the node offers."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .admin import AdminError, call

DEFAULT_RESOURCE = "nvidia.com/gpu"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status; of ``run`` in the foreground that of the container's command."""
    options = _parser().parse_args(_split(arguments)[0])
    options.command = _split(arguments)[1]
    try:
        return int(options.do(options))
    except AdminError as error:
        print(f"kubelet-pod: {error}", file=sys.stderr)
        return 1


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Before and after ``--``."""
    words = list(arguments)
    if "--" in words:
        at = words.index("--")
        return words[:at], words[at + 1 :]
    return words, []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubelet-pod", description=__doc__)
    parser.add_argument(
        "--root-dir",
        type=Path,
        default=Path(os.environ.get("KUBELET_ROOT_DIR", "/var/lib/kubelet")),
        help="of the kubelet (default: %(default)s)",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser(
        "run", help="admit a pod and run its container", usage="%(prog)s [options] IMAGE [-- CMD]"
    )
    run.add_argument("image", metavar="IMAGE")
    run.add_argument("--gpus", type=int, default=0, metavar="N", help="how many devices (default: none)")
    run.add_argument("--resource", default=DEFAULT_RESOURCE, metavar="NAME", help="default: %(default)s")
    run.add_argument("--name", default="", help="of the pod (default: from the image)")
    run.add_argument("-d", "--detach", action="store_true", help="print the pod's name and leave it running")
    run.add_argument("-q", "--quiet", action="store_true", help="no line about what was allocated")
    run.set_defaults(do=_run)
    ls = verbs.add_parser("ls", help="list pods")
    ls.add_argument("--json", action="store_true")
    ls.set_defaults(do=_ls)
    rm = verbs.add_parser("rm", help="stop and remove pods")
    rm.add_argument("names", nargs="*", metavar="NAME")
    rm.add_argument("--all", action="store_true")
    rm.set_defaults(do=_rm)
    verbs.add_parser("node", help="capacity and allocatable, as JSON").set_defaults(do=_node)
    return parser


def _run(options: argparse.Namespace) -> int:
    if shutil.which("docker") is None:
        raise AdminError(
            "no docker here: the embedded kubelet starts containers through docker alone; "
            "a node with containerd wants a real kubelet (testbed up --kubelet real)"
        )
    limits = {options.resource: options.gpus} if options.gpus else {}
    pod = call(
        options.root_dir,
        "admit",
        name=options.name,
        limits=limits,
        image=options.image,
        command=options.command,
    )
    name = pod["name"]
    docker = ["docker", "run", *(["--detach"] if options.detach else []), *pod["arguments"]]
    if not options.detach and sys.stdin.isatty():
        docker.append("--interactive")
    status = 125
    try:
        status = subprocess.run(
            [*docker, options.image, *options.command],
            check=False,
            stdout=subprocess.DEVNULL if options.detach else None,
        ).returncode
    except KeyboardInterrupt:
        status = 130
    finally:
        if status != 0 or not options.detach:
            call(options.root_dir, "finished", name=name, status=status)
            call(options.root_dir, "remove", name=name)
    if options.detach and status == 0:
        print(name)
    elif status in (125, 126, 127) and not options.quiet:
        print(
            f"kubelet-pod: the engine did not start pod {name} (docker's message is above)", file=sys.stderr
        )
    return status


def _ls(options: argparse.Namespace) -> int:
    pods = call(options.root_dir, "list")
    if options.json:
        print(json.dumps(pods, indent=1))
        return 0
    rows = [("NAME", "STATUS", "IMAGE", "DEVICES"), *(_row(pod) for pod in pods)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip())
    return 0


def _row(pod: dict[str, Any]) -> tuple[str, str, str, str]:
    held = "; ".join(f"{resource}: {', '.join(ids) or '-'}" for resource, ids in pod["devices"].items())
    why = f" ({pod['reason']})" if pod["phase"] == "Failed" and pod["reason"] else ""
    return pod["name"], pod["phase"] + why, pod["image"], held or "-"


def _rm(options: argparse.Namespace) -> int:
    names = [pod["name"] for pod in call(options.root_dir, "list")] if options.all else options.names
    if not names and not options.all:
        print("kubelet-pod: name the pods to remove, or say --all", file=sys.stderr)
        return 2
    for name in names:
        call(options.root_dir, "remove", name=name)
        print(f"{name} removed")
    return 0


def _node(options: argparse.Namespace) -> int:
    print(json.dumps(call(options.root_dir, "node"), indent=1))
    return 0
