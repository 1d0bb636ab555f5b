"""`testbed gpu NAME VERB ...`: hands the words to the node, where nvml/gpu_verbs.py acts on them."""

from __future__ import annotations

import argparse
import subprocess

from bedlib import node


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `testbed gpu`."""
    parser.add_argument("name", help="the node")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="VERB ...",
        help="xid GPU CODE [--gi N --ci N] | lose GPU | restore GPU | ecc GPU | init-fail CODE | init-ok | "
        "mig GPU PROFILE ... | remove GPU | add [MODEL] | process GPU PID | show",
    )  # fmt: skip


def run_in_node(asked: argparse.Namespace) -> int:
    """The exit code of the verb."""
    container = node.info(asked.name)["container"]
    words = ["docker", "exec", container, "python3", "/opt/testbed/nvml/gpu_verbs.py", *asked.words]
    return subprocess.run(words, check=False).returncode
