"""Container nodes for tests, and playbooks run against them as a user would run them.

Every test here needs docker and root; where no engine answers and none can be had, all are skipped with that reason.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_kit import ROOT, TESTBED, VENV_BIN, Node, Play, read_recap

ROLE = """\
- hosts: gpu_nodes
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: gpuops.k8s.nvidia_docker
        tasks_from: "{{ entry | default('main') }}"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder carries the mark `node`."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.node)


@pytest.fixture(scope="session")
def engine() -> None:
    """A docker engine that answers, or a skip that says why there is none."""
    done = subprocess.run([TESTBED, "engine"], check=False, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"no docker engine: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def make_node(engine: None) -> Iterator[Callable[..., Node]]:
    """`make_node("name", "--gpus", "4")` starts a node; all are removed after the module."""
    started: list[str] = []

    def start(name: str, *options: str) -> Node:
        name = f"test-{name}"
        subprocess.run([TESTBED, "down", name], check=False, capture_output=True, timeout=120)
        started.append(name)
        done = subprocess.run(
            [TESTBED, "up", name, *options], check=False, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Node(name)

    yield start
    if started and not os.environ.get("GPUOPS_KEEP_NODES"):
        subprocess.run([TESTBED, "down", *started], check=False, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playbook of the role nvidia_docker alone."""
    path = tmp_path_factory.mktemp("play") / "role.yml"
    path.write_text(ROLE)
    return path


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built and installed as a user gets it."""
    environment = dict(os.environ, PATH=f"{VENV_BIN}:{os.environ['PATH']}")
    done = subprocess.run(
        [ROOT / "tests/tools/collection"], check=True, capture_output=True, text=True, env=environment
    )
    return Path(done.stdout.strip())


@pytest.fixture
def play(collections: Path, tmp_path: Path) -> Callable[..., Play]:
    """`play("gpuops.k8s.provision", [node], "--check", extra={...}, collections=...)` runs ansible-playbook."""

    def run(
        playbook: str | Path,
        nodes: list[Node],
        *arguments: str,
        extra: dict[str, object] | None = None,
        collections: Path = collections,
        timeout: float = 900,
    ) -> Play:
        inventory = tmp_path / "nodes.yml"
        inventory.write_text(
            subprocess.run(
                [TESTBED, "inventory", *(node.name for node in nodes)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        command = [str(VENV_BIN / "ansible-playbook"), "-i", str(inventory), str(playbook), *arguments]
        if extra:
            command += ["-e", json.dumps(extra)]
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=dict(
                os.environ,
                PATH=f"{VENV_BIN}:{os.environ['PATH']}",
                ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
                ANSIBLE_COLLECTIONS_PATH=str(collections),
                ANSIBLE_NOCOLOR="1",
            ),
        )
        return Play(done.returncode, done.stdout, read_recap(done.stdout))

    return run
