"""Every number of the kubelet's contract, K1 to K30, has a case that bears it: from both sides, where it has two."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
NUMBERS = frozenset(range(1, 31))
ONLY_OF_A_PLUGIN = {2, 10, 11}
"""A client's deadline, and a plugin's own watch over its socket and the directory."""


def numbers(file: str) -> set[int]:
    """Of the cases in a file: test_k09_k10_... has two."""
    tree = ast.parse((HERE / file).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    heads = [re.match(r"test_((?:k\d\d_)+)", name) for name in names]
    return {int(number) for head in heads if head for number in re.findall(r"k(\d\d)", head[1])}


def test_every_number_is_asked_of_the_kubelets():
    assert numbers("test_kubelets.py") == NUMBERS - ONLY_OF_A_PLUGIN


def test_every_number_is_asked_of_our_plugin():
    assert numbers("test_our_plugin.py") == NUMBERS
