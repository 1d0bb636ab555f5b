"""Fixtures of the plugin's tests: a node, its kubelet, the GPUs, the plugin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kit import LinkUnderTest, Node, PluginProcess, short_directory
from testbed_nvml import Machine, standin


@pytest.fixture
def place() -> Iterator[Path]:
    """A short temporary directory."""
    with short_directory() as directory:
        yield directory


@pytest.fixture
def node(place: Path) -> Iterator[Node]:
    """A node whose kubelet (1.36) is not started yet."""
    one = Node(place)
    yield one
    if one.kubelet.running:
        one.kubelet.stop()


@pytest.fixture
def link(node: Node) -> Iterator[LinkUnderTest]:
    """State, service and kubelet link in this process, offering nothing yet."""
    one = LinkUnderTest(node.settings)
    yield one
    one.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Eight simulated H100s."""
    with standin(gpus=8, model="H100") as one:
        yield one


@pytest.fixture
def start(node: Node, machine: Machine) -> Iterator[Callable[..., PluginProcess]]:
    """Starts the program on the node; ends it afterwards."""
    started: list[PluginProcess] = []

    def run(*flags: str, **environ: str) -> PluginProcess:
        one = PluginProcess(node, machine.environ(**environ), *flags)
        started.append(one)
        return one

    yield run
    for one in started:
        one.stop()
