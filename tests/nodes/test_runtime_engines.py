"""Two engines on a node, a runtime that has to be named, an engine that fails: the role, and what verification says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play

ROLE = """\
- hosts: gpu_nodes
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: gpuops.k8s.nvidia_docker
        tasks_from: "{{ entry | default('main') }}"
"""


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playbook of this role alone."""
    path = tmp_path_factory.mktemp("play") / "role.yml"
    path.write_text(ROLE)
    return path


@pytest.mark.timeout(900)
def test_verification_looks_into_the_kubelets_containerd_though_docker_runs_beside_it(
    make_node: Callable[..., Node], play: Callable[..., Play], tmp_path: Path
) -> None:
    node = make_node("both", "--gpus", "2", "--kubelet", "embedded", "--engine", "containerd")
    node.run("systemctl start docker && docker info >/dev/null")
    report = tmp_path / "report.json"
    look: dict[str, object] = {"device_plugin_verify_report": str(report), "device_plugin_verify_timeout": 5}
    done = play("gpuops.k8s.provision", [node], extra=look)
    assert done.rc == 0, done.output[-3000:]
    said = {link["link"]: link["detail"] for link in json.loads(report.read_text())["links"]}
    assert said["engine"] == "containerd answers"
    assert said["request"] == "a container that asked for 1 sees 1"
    refused = play(
        "gpuops.k8s.provision",
        [node],
        extra={"device_plugin_engine": "crio", "device_plugin_deployment": "static_pod"},
    )
    assert refused.rc != 0
    assert refused.changed == 0
    assert "engine is crio, into which this role loads no image" in " ".join(refused.output.split())
    on_crio = {"device_plugin_engine": "crio", "device_plugin_verify_fail": False, **look}
    assert play("gpuops.k8s.verify", [node], extra=on_crio).rc == 0
    found = json.loads(report.read_text())
    assert found["broken_link"] == "engine", "nothing listens at CRI-O's socket here"


@pytest.mark.timeout(900)
def test_a_node_whose_runtime_has_to_be_named_is_provisioned_and_verified_by_that_name(
    make_node: Callable[..., Node], play: Callable[..., Play], tmp_path: Path
) -> None:
    node = make_node("named", "--gpus", "2", "--kubelet", "embedded")
    report = tmp_path / "report.json"
    extra: dict[str, object] = {
        "nvidia_docker_default_runtime": False,
        "nvidia_docker_runtime_name": "gpu",
        "device_plugin_verify_report": str(report),
        "device_plugin_verify_timeout": 5,
    }
    done = play("gpuops.k8s.provision", [node], extra=extra)
    assert done.rc == 0, done.output[-3000:]
    said = {link["link"]: link["detail"] for link in json.loads(report.read_text())["links"]}
    assert said["runtime"] == "runtime gpu is there; default runtime runc"
    assert said["request"] == "a container that asked for 1 sees 1"
    asked = play(
        "gpuops.k8s.verify",
        [node],
        extra={**extra, "device_plugin_verify_default_runtime": "gpu", "device_plugin_verify_runtime": ""},
    )
    assert asked.rc != 0
    assert json.loads(report.read_text())["reason"] == "the default runtime is runc, not gpu"


@pytest.mark.timeout(900)
def test_a_docker_that_fails_is_told_with_what_was_put_back_and_whether_it_runs(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("wayback", "--gpus", "2", "--kubelet", "none")
    drop_in = "/etc/systemd/system/docker.service.d/x.conf"
    refuse = (
        f"mkdir -p $(dirname {drop_in}); printf '[Service]\\nExecStartPre=/bin/sh -c "
        '"! grep -q {word} /etc/docker/daemon.json || {{ echo the-site-says-no-{word}; exit 1; }}"\\n\' '
        f">{drop_in}; systemctl daemon-reload"
    )
    restart: dict[str, object] = {"nvidia_docker_apply": "restart", "nvidia_docker_wait": 5}

    def said(**extra: object) -> str:
        done = play(role, [node], extra={**restart, **extra})
        assert done.rc != 0
        return " ".join(done.output.split())

    before = node.text("cat /etc/docker/daemon.json")
    # It starts with no file at all: neither with the new one nor with the old one.
    node.run(refuse.format(word="json-file"))
    dead = said()
    assert "the old files are back, and IT DOES NOT RUN" in dead
    assert "the-site-says-no-json-file" in dead, "the log's tail is there though the way back failed too"
    assert node.text("cat /etc/docker/daemon.json") == before
    node.run(f"rm {drop_in}; systemctl daemon-reload; systemctl reset-failed docker; systemctl start docker")
    # An earlier run has written the file and not applied it: nothing is there to be put back.
    assert play(role, [node], extra={"nvidia_docker_apply": "none"}).rc == 0
    node.run(refuse.format(word="nvidia"))
    nothing = said()
    assert "no file was put back, since this run has changed none" in nothing
    assert "the old files are back" not in nothing
    assert "IT DOES NOT RUN" in nothing
    node.run(f"rm {drop_in}; systemctl daemon-reload; systemctl reset-failed docker")
    assert play(role, [node], extra=restart).rc == 0
    assert node.text("docker info -f '{{.DefaultRuntime}}'") == "nvidia"
