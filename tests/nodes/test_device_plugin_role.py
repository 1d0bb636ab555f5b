# ruff: noqa: E501 - shell stays on one line
"""The role device_plugin on a node with a real kubelet: three forms, take-over, refusals before any change, remove."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play
from sabotage import DIR, serve

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROLE = "- hosts: gpu_nodes\n  roles:\n    - role: gpuops.k8s.device_plugin\n"
DRA = "/var/lib/kubelet/plugins/gpu.nvidia.com"
REMOVE = "- hosts: gpu_nodes\n  tasks:\n    - ansible.builtin.include_role: {name: gpuops.k8s.device_plugin, tasks_from: remove}\n"
VERIFY = {"device_plugin_verify_visibility": False, "device_plugin_verify_timeout": 30}
PEER = (
    "import grpc, time; from concurrent import futures; s = grpc.server(futures.ThreadPoolExecutor(1)); "
    f"s.add_insecure_port('unix://{DIR}/nvidia-gpu.sock'); s.start(); time.sleep(600)"
)


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    return make_node("role", "--gpus", "2", "--kubelet", "real")


@pytest.fixture
def role(play: Callable[..., Play], node: Node, tmp_path) -> Callable[..., Play]:
    """`role(deployment="service", ...)` runs the role; `role(text=REMOVE)` another play."""

    def run(*arguments: str, text: str = ROLE, **extra: object) -> Play:
        (tmp_path / "role.yml").write_text(text)
        return play(
            tmp_path / "role.yml",
            [node],
            *arguments,
            extra={f"device_plugin_{k}": v for k, v in extra.items()},
        )

    return run


def peer(node: Node) -> None:
    node.run(
        "printf '[Service]\\nExecStart=/opt/gpu-device-plugin/current/bin/python -c \"%s\"\\n' "
        f'"{PEER}" > /run/systemd/system/nvidia-device-plugin.service; systemctl daemon-reload; systemctl start nvidia-device-plugin; '
        f"timeout 20 sh -c 'until test -S {DIR}/nvidia-gpu.sock; do sleep 0.1; done'"
    )


def test_check_mode_on_a_fresh_node_runs_to_the_end_and_changes_nothing(
    node: Node, role: Callable[..., Play]
) -> None:
    done = role("--check", "--diff")
    assert done.rc == 0, done.output
    assert done.changed > 0
    assert (
        node.text(
            "ls /opt/gpu-device-plugin /etc/systemd/system/gpu-device-plugin.service 2>/dev/null || true"
        )
        == ""
    )


def test_the_service_is_hardened_and_the_second_run_changes_nothing(
    node: Node, role: Callable[..., Play]
) -> None:
    done = role(deployment="service")
    assert done.rc == 0, done.output
    status = node.text("cat /proc/$(systemctl show gpu-device-plugin --property=MainPID --value)/status")
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    again = role(deployment="service")
    assert (again.rc, again.changed) == (0, 0), again.output
    checked = role("--check", "--diff", deployment="service")
    assert (checked.rc, checked.changed) == (0, 0), checked.output


def test_a_killed_plugin_is_back_at_once_and_the_verdict_is_where_programs_read_it(
    node: Node, play: Callable[..., Play], tmp_path: Path
) -> None:
    node.run("kill -KILL $(systemctl show gpu-device-plugin --property=MainPID --value)")
    files = {
        "verify_summary": str(tmp_path / "all.json"),
        "device_plugin_verify_report": str(tmp_path / "{{ inventory_hostname }}.json"),
        "device_plugin_verify_status_file": "/run/gpus-verified.json",
    }
    done = play("gpuops.k8s.verify", [node], extra=VERIFY | files)
    assert done.rc == 0, done.output
    assert "1 of 1 hosts OK" in done.output
    verdict = json.loads((tmp_path / f"{node.name}.json").read_text())
    assert (verdict["ok"], verdict["resources"]["nvidia.com/gpu"]["registered"]) == (True, 2)
    assert json.loads(node.text("cat /run/gpus-verified.json")) == verdict
    summary = json.loads((tmp_path / "all.json").read_text())
    assert summary == {"ok": True, "broken": [], "hosts": {node.name: verdict}}


def test_another_plugin_is_refused_before_any_change_and_taken_over_when_asked(
    node: Node, role: Callable[..., Play], play: Callable[..., Play]
) -> None:
    node.run("systemctl stop gpu-device-plugin")
    peer(node)
    try:
        refused = role(deployment="service")
        assert refused.rc != 0
        assert refused.changed == 0
        assert "nvidia-gpu.sock already hands out these GPUs" in refused.output.replace("\n        ", " ")
        taken = role(deployment="service", takeover=True)
        assert taken.rc == 0, taken.output
        assert node.text("systemctl is-active nvidia-device-plugin || true") == "inactive"
    finally:
        node.run(f"systemctl stop nvidia-device-plugin; rm -f {DIR}/nvidia-gpu.sock", check=False)
    assert play("gpuops.k8s.verify", [node], extra=VERIFY).rc == 0


def test_the_static_pod_takes_the_services_place_and_back(
    node: Node, role: Callable[..., Play], play: Callable[..., Play]
) -> None:
    # The pod needs the nvidia runtime to see GPUs.
    assert play("gpuops.k8s.provision", [node], "--tags", "runtime,always").rc == 0
    done = role(deployment="static_pod")
    assert done.rc == 0, done.output
    verified = play("gpuops.k8s.verify", [node], extra=VERIFY)
    assert verified.rc == 0, verified.output
    container = node.text("docker ps -q --filter name=k8s_gpu-device-plugin_")
    node.run(f"docker cp {container}:/opt/gpu-device-plugin /root/in-pod")
    assert node.text("systemctl is-active gpu-device-plugin || true") == "inactive"
    again = role(deployment="static_pod")
    assert (again.rc, again.changed) == (0, 0), again.output
    back = role(deployment="service")
    assert back.rc == 0, back.output
    # The same plugin and wheels in both, byte for byte.
    files = "cd {} && find . -type f ! -name '*.pyc' -exec sha256sum {{}} + | sort -k 2"
    in_pod = node.text(files.format("/root/in-pod"))
    assert in_pod == node.text(files.format("/opt/gpu-device-plugin/current/lib/python3*/site-packages"))
    assert "gpu_device_plugin/__main__.py" in in_pod and "grpc/_cython/cygrpc" in in_pod
    verified = play("gpuops.k8s.verify", [node], extra=VERIFY)
    assert verified.rc == 0, verified.output


@pytest.mark.parametrize(
    ("breaks", "mends", "words"),
    [
        ("mv /usr/bin/kubelet /root/", "mv /root/kubelet /usr/bin/", "no kubelet of kubeadm found"),
        (
            "mv /proc/driver/nvidia/version /proc/driver/nvidia/away",
            "mv /proc/driver/nvidia/away /proc/driver/nvidia/version",
            "kernel module is not loaded",
        ),
        (
            f"mkdir -p {DRA}; {serve('dra', f'{DRA}/dra.sock')}",
            f"systemctl stop dra; rm -r {DRA}",
            f"a DRA driver ({DRA}/dra.sock) hands out the GPUs of this node",
        ),
    ],
    ids=["no kubelet", "no driver", "DRA"],
)
def test_a_node_that_can_not_work_is_refused_in_one_line_before_any_change(
    node: Node, role: Callable[..., Play], breaks: str, mends: str, words: str
) -> None:
    node.run(breaks)
    try:
        done = role(deployment="service")
    finally:
        node.run(mends)
    assert done.rc != 0
    assert done.changed == 0
    text = " ".join(done.output.split())
    assert f"{node.name}: " in text
    assert words in text


def test_remove_leaves_nothing_behind(node: Node, role: Callable[..., Play]) -> None:
    done = role(text=REMOVE)
    assert done.rc == 0, done.output
    left = "ls -d /opt/gpu-device-plugin /etc/gpu-device-plugin /etc/systemd/system/gpu-device-plugin.service /usr/local/bin/gpu-device-plugin /var/lib/gpu-device-plugin /etc/kubernetes/manifests/gpu-device-plugin.yaml 2>/dev/null || true"
    assert node.text(left) == ""
    assert node.text(f"ls {DIR} | grep gpuops || true") == ""
    again = role(text=REMOVE)
    assert (again.rc, again.changed) == (0, 0), again.output
