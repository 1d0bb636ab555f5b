"""Each playbook ends non-zero where it would do nothing: a misnamed or empty group, or a --limit without its nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report_shots
import yaml
from test_rollout import Fleet, summary

PLAYBOOKS = ("provision", "verify", "report", "remove")
NODES = {"hosts": {"a": {}, "b": {}}}
CONTROL: dict[str, Any] = {"hosts": {"control": {}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    report_shots.collection(folder)
    return folder


def ran(home: Path, playbook: str, inventory: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """Exit code, and all that was printed as one line. No node is there: what connects fails."""
    (home / "inventory.yml").write_text(yaml.safe_dump(inventory))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, f"gpuops.k8s.{playbook}", "-i", "inventory.yml", *arguments],
        cwd=home,
        env={**os.environ, **report_shots.environment(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_limit_that_leaves_no_node_is_an_error(home, playbook):
    code, said = ran(home, playbook, {"all": CONTROL, "gpu_nodes": NODES}, "--limit", "control")
    assert code == 2, said
    assert "gpu_nodes names 2 of the inventory, and --limit control leaves none of them" in said


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_an_empty_inventory_is_an_error(home, playbook):
    code, said = ran(home, playbook, {"all": {}})
    assert code == 2 and "gpu_nodes names no host of this inventory" in said


def test_an_empty_inventory_is_an_error_with_a_limit_too(home):
    code, said = ran(home, "provision", {"all": {}}, "--limit", "a")
    assert code != 0 and "the inventory has no host; check -i" in said


@pytest.mark.parametrize(
    "inventory",
    [
        {"all": CONTROL, "gpu_nodes": {"hosts": {}}},
        {"all": CONTROL, "workers": NODES},
        # The plays' hosts are chosen before any host's variables are known.
        {"all": {**CONTROL, "vars": {"gpu_nodes": "workers"}}, "workers": NODES},
    ],
    ids=["empty", "misnamed", "named by the inventory"],
)
def test_a_group_without_hosts_is_an_error(home, inventory):
    code, said = ran(home, "provision", inventory)
    assert code == 2
    assert "nothing was done: gpu_nodes names no host of this inventory. Check -i and --limit" in said
    assert "-e gpu_nodes=GROUP" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["-e", "gpu_nodes=workers"],
        ["-e", "gpu_nodes=all:!control"],
        ["-e", '{"gpu_nodes": ["a", "b"]}'],
        ["-e", "gpu_nodes=workers", "--limit", "b", "--tags", "verify"],
    ],
)
def test_where_there_are_hosts_nobody_is_asked_anything(home, arguments):
    code, said = ran(home, "hosts", {"all": CONTROL, "workers": NODES}, *arguments)
    assert code == 0, said
    assert said.endswith("PLAY RECAP *********************************************************************")


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_each_playbook_goes_on_to_its_nodes(home, playbook):
    away = {"hosts": {"a": {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_connection": "ssh"}}}
    _, said = ran(home, playbook, {"all": CONTROL, "gpu_nodes": away}, "--limit", "gpu_nodes,control")
    assert "UNREACHABLE" in said and "nothing was done" not in said


def test_a_host_that_is_away_ends_a_rollout_before_any_change_and_a_limit_goes_on_without_it(tmp_path):
    fleet = Fleet(tmp_path)
    away = {
        "ansible_connection": "{{ 'ssh' if inventory_hostname == 'b' else 'local' }}",
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
    }
    done = fleet.provision(**away)
    assert done.returncode != 0 and fleet.new() == "", done.stdout
    done = fleet.provision("--limit", "!b", **away)
    assert done.returncode == 0, done.stdout
    assert summary(done) == dict.fromkeys("ac", "provisioned, 2 files changed")
