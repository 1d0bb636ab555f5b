"""Every sabotaged node is told by the right link with exit code not 0; a healthy node names nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play
from sabotage import ALL, Sabotage, break_node, mend_node


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    """A provisioned node, before whose kubelet's 1.26 the gate can be off."""
    return make_node("sabotage", "--gpus", "8", "--kubelet", "embedded", "--kubelet-version", "1.20")


def verify(
    play: Callable[..., Play], node: Node, tmp_path: Path, one: Sabotage | None = None, wait: int = 2
) -> tuple[int, dict[str, object]]:
    report = tmp_path / "report.json"
    extra = {
        "device_plugin_verify_report": str(report),
        "device_plugin_verify_timeout": wait,
        **dict(one.extra if one else ()),
    }
    done = play("gpuops.k8s.verify", [node], extra=extra)
    assert report.exists(), done.output
    return done.rc, json.loads(report.read_text())


def test_a_provisioned_node_names_nothing(node: Node, play: Callable[..., Play], tmp_path: Path) -> None:
    done = play("gpuops.k8s.provision", [node])
    assert done.rc == 0, done.output
    rc, found = verify(play, node, tmp_path, wait=20)
    assert (rc, found["broken_link"], found["broken"]) == (0, None, [])


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_the_broken_link_is_named(
    node: Node, play: Callable[..., Play], tmp_path: Path, one: Sabotage
) -> None:
    break_node(node.name, one)
    try:
        rc, found = verify(play, node, tmp_path, one)
    finally:
        mend_node(node.name, one)
    assert rc != 0
    assert found["broken_link"] == one.link, found["reason"]
    assert one.says in str(found["reason"])
    assert found["next_step"]


def test_a_node_on_which_all_was_mended_names_nothing(
    node: Node, play: Callable[..., Play], tmp_path: Path
) -> None:
    rc, found = verify(play, node, tmp_path, wait=30)
    assert (rc, found["broken_link"]) == (0, None), found["reason"]
