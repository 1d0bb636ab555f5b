"""The way back of a host service, and what a run that was killed half-way left behind, on a node with real systemd."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play, newer_plugin

pytestmark = pytest.mark.timeout(900)

OPT = "/opt/gpu-device-plugin"
WRITE_ONLY = """
- hosts: gpu_nodes
  gather_facts: false
  tasks: [{gpuops.k8s.kubelet_feature_gate: {restart: false}}]
"""


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    """Its kubelet is of a version whose gate can be off."""
    return make_node("rollback", "--gpus", "2", "--kubelet", "embedded", "--kubelet-version", "1.20")


@pytest.fixture(scope="module")
def newer(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed collection whose plugin has another version."""
    return newer_plugin(collections, tmp_path_factory.mktemp("newer"))


def current(node: Node) -> str:
    return node.text(f"readlink {OPT}/current")


def pid(node: Node) -> str:
    return node.text("systemctl show gpu-device-plugin --property=MainPID --value")


def version(node: Node) -> str:
    """What the running plugin says of itself."""
    return node.text(
        "gpu-device-plugin status --json | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"version\"])'"
    )


def test_a_host_service_whose_upgrade_fails_verification_runs_its_old_release_again(
    node: Node, play: Callable[..., Play], newer: Path
) -> None:
    first = play("gpuops.k8s.provision", [node])
    assert first.rc == 0, first.output[-3000:]
    old = current(node)
    assert version(node) == "0.1.0"

    # The new release counts two GPUs, and three were promised.
    done = play(
        "gpuops.k8s.provision",
        [node],
        collections=newer,
        extra={"device_plugin_expected_gpus": 3, "device_plugin_verify_timeout": 3},
    )
    assert done.rc != 0
    assert "rolled back" in done.output, done.output[-3000:]
    assert current(node) == old
    assert node.text("systemctl is-active gpu-device-plugin") == "active"
    assert version(node) == "0.1.0"

    done = play("gpuops.k8s.provision", [node], collections=newer)
    assert done.rc == 0, done.output[-3000:]
    assert f"plugin {old.rpartition('-py')[0]} -> 0.1.1-" in done.output, done.output[-3000:]
    assert version(node) == "0.1.1"
    # From a release that is older than another one beside it: what runs now is what has to stay.
    assert old in node.text(f"ls {OPT}").split()


def test_a_run_that_was_killed_before_its_restart_is_finished_by_the_next_one_with_one_restart(
    node: Node, play: Callable[..., Play], newer: Path
) -> None:
    service = "/etc/systemd/system/gpu-device-plugin.service"
    # The old release runs while `current` and the unit are of the new one already.
    node.run(
        f"cd {OPT}; new=$(readlink current); old=$(ls -d 0.1.0-*-py*); ln -sfn $old current; "
        "systemctl restart gpu-device-plugin; ln -sfn $new current"
    )
    assert version(node) == "0.1.0" and "0.1.1" in current(node)
    before = pid(node)
    done = play("gpuops.k8s.provision", [node], "--tags", "plugin", collections=newer)
    assert (done.rc, done.changed) == (0, 1), done.output[-3000:]
    assert version(node) == "0.1.1"
    assert pid(node) != before

    # The unit was written, and systemd has not read it.
    node.run(
        f"cp -p {service} /root/unit; sed -i s/RestartSec=200ms/RestartSec=201ms/ {service}; "
        f"systemctl daemon-reload; cp /root/unit {service}"
    )
    assert node.text("systemctl show gpu-device-plugin -p NeedDaemonReload --value") == "yes"
    done = play("gpuops.k8s.provision", [node], "--tags", "plugin", collections=newer)
    assert (done.rc, done.changed) == (0, 1), done.output[-3000:]
    assert (
        node.text("systemctl show gpu-device-plugin -p NeedDaemonReload -p RestartUSec --value")
        == "200ms\nno"
    )

    running = pid(node)
    done = play("gpuops.k8s.provision", [node], "--tags", "plugin", collections=newer)
    assert (done.rc, done.changed, pid(node)) == (0, 0, running), done.output[-3000:]


def test_a_gate_that_was_written_and_not_read_is_told_and_the_next_run_restarts_the_kubelet_once(
    node: Node, play: Callable[..., Play], newer: Path, tmp_path: Path
) -> None:
    off = "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false"
    node.run(
        f"cp -p /etc/default/kubelet /root/kubelet; echo '{off}' > /etc/default/kubelet; systemctl restart kubelet"
    )
    try:
        (tmp_path / "gate.yml").write_text(WRITE_ONLY)
        assert (
            play(tmp_path / "gate.yml", [node]).rc == 0
        )  # as far as a run comes that is killed before its restart
        assert "DevicePlugins=true" in node.text("cat /etc/default/kubelet")
        kubelet = node.text("systemctl show kubelet --property=MainPID --value")

        told = play("gpuops.k8s.verify", [node], extra={"device_plugin_verify_timeout": 1})
        assert told.rc != 0
        assert "BROKEN at gate" in told.output, told.output[-3000:]
        assert "runs with --feature-gates=DevicePlugins=false" in " ".join(told.output.split())

        done = play("gpuops.k8s.provision", [node], "--tags", "plugin,verify", collections=newer)
        assert (done.rc, done.changed) == (0, 1), done.output[-3000:]
        restarted = node.text("systemctl show kubelet --property=MainPID --value")
        assert restarted != kubelet
        again = play("gpuops.k8s.provision", [node], "--tags", "plugin", collections=newer)
        assert (again.rc, again.changed) == (0, 0), again.output[-3000:]
        assert node.text("systemctl show kubelet --property=MainPID --value") == restarted
        assert node.text("ls /var/lib/gpuops/*gate* 2>/dev/null || true") == ""
    finally:
        node.run("mv /root/kubelet /etc/default/kubelet; systemctl restart kubelet")


def test_a_node_that_goes_down_in_its_turn_is_told_and_the_next_run_knows_what_it_was_before(
    node: Node, play: Callable[..., Play]
) -> None:
    container = f"gpuops-{node.name}"
    over = threading.Event()

    def pull_the_plug() -> None:
        remembered = ["docker", "exec", container, "test", "-e", "/var/lib/gpuops/snapshot/manifest.json"]
        while (
            not over.is_set() and subprocess.run(remembered, check=False, capture_output=True).returncode != 0
        ):
            time.sleep(0.05)
        subprocess.run(["docker", "kill", container], check=False, capture_output=True)

    watcher = threading.Thread(target=pull_the_plug)
    watcher.start()
    try:
        done = play("gpuops.k8s.provision", [node])
    finally:
        over.set()
        watcher.join()
    assert done.rc != 0
    end = done.output[done.output.index("SUMMARY") :]
    assert node.name in end and "lost in its turn" in end and "The ramp stopped." in end, end
    assert "kubectl cordon" in end

    subprocess.run(["docker", "start", container], check=True, capture_output=True)
    deadline = time.monotonic() + 90
    while node.run("systemctl is-active kubelet docker", check=False).returncode != 0:
        assert time.monotonic() < deadline, "the node is not back"
        time.sleep(0.5)
    assert node.text("ls /var/lib/gpuops/snapshot/manifest.json")
    done = play("gpuops.k8s.provision", [node])
    assert done.rc == 0, done.output[-3000:]
    assert "has not come to its end here" in " ".join(done.output.split())
    assert node.text("ls -d /var/lib/gpuops/snapshot 2>/dev/null || true") == ""
