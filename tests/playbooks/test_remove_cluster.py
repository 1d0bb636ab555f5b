"""What remove takes from a node's object: our labels, verdict and cordon, and nothing of anybody else's.

The API server is example_kubectl.py, which keeps who has set which field.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import example_kubectl
import example_worlds
import pytest
import report_shots
import yaml

CORDON = {"spec": {"unschedulable": True}}


class Cluster:
    """One node, and the role's part of remove that speaks to the API server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store.json"
        report_shots.collection(folder)
        program = folder / "kubectl"
        text = example_worlds.KUBECTL.format(
            store=self.store, python=sys.executable, program=Path(example_kubectl.__file__)
        )
        program.write_text(text)
        program.chmod(0o755)
        self.server = example_kubectl.Server([example_worlds.node(labels={})])
        self.apply("kubelet", {"metadata": {"labels": {"site": "north"}}})

    def apply(self, manager: str, fields: dict[str, Any]) -> None:
        """As a program of this name would."""
        metadata = {"name": "gpu-node-1", **fields.get("metadata", {})}
        self.server.apply({"apiVersion": "v1", "kind": "Node", **fields, "metadata": metadata}, manager)
        self.store.write_text(json.dumps(self.server.objects))

    def remove(self, *arguments: str) -> str:
        """Prints of the run; afterwards ``server`` is what it has left."""
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "device_plugin_control_host": "control",
            "device_plugin_kubectl": str(self.folder / "kubectl"),
            "device_plugin_node_name": "gpu-node-1",
        }
        hosts = {"all": {"hosts": {"node": {}, "control": {}}, "vars": variables}}
        role = {"name": "gpuops.k8s.device_plugin", "tasks_from": "remove_cluster"}
        play = {"hosts": "node", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": role}]}
        (self.folder / "inventory.yml").write_text(yaml.safe_dump(hosts))
        (self.folder / "play.yml").write_text(yaml.safe_dump([play]))
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "play.yml",
                "-i",
                "inventory.yml",
                *arguments,
            ],
            cwd=self.folder,
            env={**os.environ, **report_shots.environment(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        self.server = example_kubectl.Server(json.loads(self.store.read_text()))
        return done.stdout

    @property
    def labels(self) -> dict[str, str]:
        return self.server.find("node", "gpu-node-1")["metadata"].get("labels", {})

    @property
    def cordoned(self) -> bool:
        return bool(self.server.find("node", "gpu-node-1").get("spec", {}).get("unschedulable"))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_node_that_failed_its_rollout_takes_pods_again_when_all_is_removed(cluster):
    cluster.apply("gpuops.k8s.labels", {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}})
    cluster.apply("gpuops.k8s.verify", {"metadata": {"labels": {"gpuops.io/verified": "false"}}})
    cluster.apply("gpuops.k8s.rollout", CORDON)
    assert cluster.cordoned
    cluster.remove()
    assert not cluster.cordoned
    assert cluster.labels == {"site": "north"}
    assert "changed=0" in cluster.remove()


def test_an_administrators_cordon_stays_beside_ours_and_alone(cluster):
    cluster.apply("kubectl-cordon", CORDON)
    cluster.apply("gpuops.k8s.rollout", CORDON)
    cluster.remove()
    assert cluster.cordoned
    assert "changed=0" in cluster.remove()
    assert cluster.cordoned


def test_check_mode_only_tells_of_the_cordon(cluster):
    cluster.apply("gpuops.k8s.rollout", CORDON)
    said = cluster.remove("--check", "--diff")
    assert cluster.cordoned
    assert '"unschedulable": true' in said
