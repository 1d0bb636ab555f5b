"""The scenario's verify must fail where the roles did nothing: a mutation test of molecule/default/verify.yml."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import ROOT, Node, Play

VERIFY = ROOT / "molecule/default/verify.yml"


def fresh(make_node: Callable[..., Node], name: str) -> Node:
    """A node with what prepare.yml leaves."""
    node = make_node(name, "--gpus", "2", "--kubelet", "embedded")
    node.run("docker inspect --format '{{.Id}} {{.State.Pid}}' training > /var/tmp/training-before")
    return node


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    """The one that is provisioned in the end."""
    return fresh(make_node, "mutation")


def emptied(collections: Path, target: Path, role: str) -> Path:
    """A copy of the installed collection in which one role's main entry does nothing."""
    shutil.copytree(collections / "ansible_collections", target / "ansible_collections")
    main = target / "ansible_collections/gpuops/k8s/roles" / role / "tasks/main.yml"
    assert main.exists()
    main.write_text("---\n- name: Nothing\n  ansible.builtin.meta: noop\n")
    return target


def test_verify_fails_where_the_container_runtime_role_does_nothing(
    make_node: Callable[..., Node], play: Callable[..., Play], collections: Path, tmp_path: Path
) -> None:
    node = fresh(make_node, "mutation-runtime")
    mutant = emptied(collections, tmp_path / "mutant", "nvidia_docker")
    play("gpuops.k8s.provision", [node], "--skip-tags", "verify", collections=mutant)
    node.run("systemctl is-active gpu-device-plugin")  # the other role did its part
    done = play(VERIFY, [node])
    assert done.rc != 0
    told = "assertion: daemon['default-runtime'] | default('none') == 'nvidia'"
    assert told in done.output, done.output[-3000:]


def test_verify_fails_where_the_device_plugin_role_does_nothing(
    node: Node, play: Callable[..., Play], collections: Path, tmp_path: Path
) -> None:
    mutant = emptied(collections, tmp_path / "mutant", "device_plugin")
    play("gpuops.k8s.provision", [node], "--skip-tags", "verify", collections=mutant)
    assert node.text("docker info --format '{{.DefaultRuntime}}'") == "nvidia"  # the other role did its part
    done = play(VERIFY, [node])
    assert done.rc != 0
    assert "What the kubelet offers" in done.output.rpartition("fatal:")[0]


def test_verify_passes_once_the_roles_have_done_their_work(node: Node, play: Callable[..., Play]) -> None:
    assert play("gpuops.k8s.provision", [node]).rc == 0
    done = play(VERIFY, [node])
    assert done.rc == 0, done.output[-3000:]


def test_verify_fails_on_an_empty_inventory(tmp_path: Path) -> None:
    (tmp_path / "empty.yml").write_text("all: {}\n")
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", tmp_path / "empty.yml", VERIFY],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode != 0
    assert "expected 1 host in gpu_nodes, found 0" in done.stdout
