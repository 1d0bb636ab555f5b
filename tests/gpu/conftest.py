"""Tests on real GPUs: they skip themselves where NVML can not be opened, and where the stand-in is in use.

They need pytest and the plugin's requirements (files/plugin/requirements.in), nothing else of this project's tools, and
no container engine: `python -m pytest tests/gpu` from a checkout on the GPU machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin"))

from gpu_device_plugin.devices import SourceError
from gpu_device_plugin.nvml import NvmlSource
from gpu_device_plugin.roots import visible_roots
from kit import Node, short_directory


@pytest.fixture
def source() -> Iterator[NvmlSource]:
    """The machine's own NVML."""
    if os.environ.get("NVML_STANDIN_STATE"):
        pytest.skip("the stand-in NVML is in use")
    one = NvmlSource(visible_roots("/", "/driver-root"))
    try:
        one.scan()
    except SourceError as error:
        pytest.skip(f"no GPU here: {error}")
    if not one.handles():
        pytest.skip("NVML can be opened, but there is no GPU that it can read")
    yield one
    one.close()


@pytest.fixture
def node() -> Iterator[Node]:
    """A kubelet's directories and an embedded kubelet."""
    with short_directory() as place:
        one = Node(place)
        one.kubelet.start()
        yield one
        one.kubelet.stop()
