"""The kubelets that every case runs against: embedded ones always, a real one where its binary is at hand."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kubelet_nodes import EmbeddedNode, Node
from real_kubelet import RealNode, need_one

EMBEDDED = ("1.20", "1.36")
KUBELETS = [
    *(pytest.param(f"embedded-{version}", id=f"embedded-{version}") for version in EMBEDDED),
    pytest.param("real", id="real", marks=[pytest.mark.real, pytest.mark.slow]),
]


COUNTER = itertools.count(1)


def make(which: str) -> Node:
    """A node whose kubelet has not been started."""
    if which == "real":
        need_one()
        return RealNode()
    return EmbeddedNode(which.partition("-")[2])


@pytest.fixture(scope="module", params=KUBELETS)
def shared_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """One kubelet for a module's cases; `node` sees to it that it runs."""
    node = make(request.param)
    yield node
    node.close()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """A node whose kubelet runs, with the gate on."""
    if not shared_node.alive():
        shared_node.start()
    yield shared_node


@pytest.fixture
def resource(request: pytest.FixtureRequest) -> str:
    """A resource name that no other case uses."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:30]
    return f"example.com/{name}.{next(COUNTER)}"
