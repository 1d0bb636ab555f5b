"""The whole story on nodes: what provision refuses, what it changes, and what holds afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play

pytestmark = pytest.mark.timeout(600)

TREES = "/etc /usr/bin /usr/lib/systemd /opt /var/lib/kubelet/config.yaml /etc/default"
BROKEN_DAEMON_JSON = '{"log-driver": "json-file",\n "features": {"buildkit": true,}\n}\n'


def fingerprint(node: Node) -> str:
    """A digest of names, modes and contents of everything a role could write."""
    return node.text(
        f"find {TREES} -xdev \\( -type f -o -type l \\) -printf '%p %m %l\\n' -type f -exec sha256sum {{}} + "
        "| sort | sha256sum"
    )


def allocatable(node: Node) -> int:
    """What the embedded kubelet's node status says of nvidia.com/gpu."""
    return int(json.loads(node.text("kubelet-pod node"))["allocatable"].get("nvidia.com/gpu", 0))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def seen_by_a_pod_with_two(node: Node) -> int:
    """How many GPUs a static pod has that asks a real kubelet for two."""
    node.run(
        "cat > /etc/kubernetes/manifests/two.yaml <<'YAML'\n"
        "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: default}\n"
        "spec:\n  hostNetwork: true\n  containers:\n    - name: main\n      image: gpuops/workload:1\n"
        "      imagePullPolicy: Never\n      command: [sleep, '1000000']\n"
        "      resources: {limits: {nvidia.com/gpu: 2}}\nYAML"
    )
    find = "docker ps --format '{{.ID}} {{.Names}}' | awk '/k8s_main_two-/{print $1}'"
    assert within(60, lambda: node.text(find) != "")
    return len(node.text(f"docker exec $({find}) sh -c 'ls /dev | grep nvidia[0-9]'").split())


@pytest.fixture(scope="module")
def healthy(make_node: Callable[..., Node]) -> Node:
    """A node with nothing wrong, provisioned by nobody yet."""
    return make_node("healthy", "--gpus", "8", "--kubelet", "embedded")


@pytest.fixture(scope="module")
def broken(make_node: Callable[..., Node]) -> Node:
    """A node on which one thing after the other is broken and mended."""
    return make_node("broken", "--gpus", "2", "--kubelet", "embedded")


# name -> (break it, mend it, extra variables for that host, words of the one line that is printed)
REFUSALS: dict[str, tuple[str, str, dict[str, object], tuple[str, ...]]] = {
    "no docker": (
        "mv /usr/sbin/dockerd /usr/sbin/dockerd.away; mv /usr/bin/docker /usr/bin/docker.away; "
        "mv /usr/bin/containerd /usr/bin/containerd.away",
        "mv /usr/sbin/dockerd.away /usr/sbin/dockerd; mv /usr/bin/docker.away /usr/bin/docker; "
        "mv /usr/bin/containerd.away /usr/bin/containerd",
        {},
        ("engine",),
    ),
    "no kubelet": (
        "mv /usr/bin/kubelet /root/; mv /etc/systemd/system/kubelet.service /root/; systemctl daemon-reload",
        "mv /root/kubelet /usr/bin/; mv /root/kubelet.service /etc/systemd/system/; systemctl daemon-reload",
        {},
        ("kubelet",),
    ),
    "unreadable daemon.json": (
        f"cp -p /etc/docker/daemon.json /root/; printf '{BROKEN_DAEMON_JSON}' > /etc/docker/daemon.json",
        "cp -p /root/daemon.json /etc/docker/daemon.json",
        {},
        ("/etc/docker/daemon.json:2:",),
    ),
    "unsupported distribution": (
        "cp -p --remove-destination /usr/lib/os-release /root/; "
        "printf 'ID=plan9\\nNAME=Plan9\\nVERSION_ID=4\\n' > /usr/lib/os-release; mv /etc/debian_version /root/",
        "cp -p /root/os-release /usr/lib/os-release; mv /root/debian_version /etc/",
        {},
        ("not supported",),
    ),
    "unreachable repository": (
        "true", "true", {"nvidia_docker_repository": "http://127.0.0.1:9/deb"}, ("127.0.0.1:9",)
    ),
    "wrong key": (
        "true", "true", {"nvidia_docker_repository_key_fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567"},
        ("0123456789ABCDEF0123456789ABCDEF01234567",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_before_anything_is_changed_on_any_host(
    what: str, healthy: Node, broken: Node, play: Callable[..., Play]
) -> None:
    breaking, mending, extra, words = REFUSALS[what]
    broken.run(breaking)
    try:
        before = fingerprint(healthy), fingerprint(broken)
        done = play("gpuops.k8s.provision", [healthy, broken], extra=extra)
        after = fingerprint(healthy), fingerprint(broken)
    finally:
        broken.run(mending)
    assert done.rc != 0
    assert after == before
    line = next(
        (line for line in done.output.splitlines() if broken.name in line and all(w in line for w in words)),
        "",
    )
    assert line, done.output[-3000:]


@pytest.mark.parametrize(("options", "word"), [(["--no-driver"], "driver"), (["--gpus", "0"], "GPU")])
def test_refuses_a_node_without_driver_or_gpus(
    options: list[str], word: str, make_node: Callable[..., Node], play: Callable[..., Play]
) -> None:
    node = make_node("bare", "--kubelet", "embedded", *options)
    before = fingerprint(node)
    done = play("gpuops.k8s.provision", [node])
    assert done.rc != 0
    assert fingerprint(node) == before
    assert any(node.name in line and word in line for line in done.output.splitlines()), done.output[-3000:]


def test_check_mode_on_a_fresh_node_runs_to_the_end_and_shows_what_would_change(
    healthy: Node, play: Callable[..., Play]
) -> None:
    before = fingerprint(healthy)
    done = play("gpuops.k8s.provision", [healthy], "--check", "--diff")
    assert done.rc == 0, done.output[-3000:]
    assert done.changed > 0
    added = [line for line in done.output.splitlines() if line.lstrip().startswith("+")]
    assert any('"default-runtime": "nvidia"' in line for line in added), done.output[-3000:]
    assert fingerprint(healthy) == before


def test_provision_keeps_settings_and_containers_and_the_rerun_changes_nothing(
    healthy: Node, play: Callable[..., Play]
) -> None:
    training = "docker inspect --format '{{.Id}} {{.State.Pid}}' training"
    before = healthy.text(training)
    done = play("gpuops.k8s.provision", [healthy])
    assert done.rc == 0, done.output[-3000:]
    assert healthy.text(training) == before
    daemon = json.loads(healthy.text("cat /etc/docker/daemon.json"))
    assert daemon["log-driver"] == "json-file"
    assert daemon["features"] == {"buildkit": True}
    assert daemon["insecure-registries"] == ["127.0.0.0/8"]
    assert daemon["default-runtime"] == "nvidia"

    services = "systemctl show -p MainPID -p ExecMainStartTimestampMonotonic docker kubelet gpu-device-plugin"
    running = healthy.text(services)
    second = play("gpuops.k8s.provision", [healthy])
    assert second.rc == 0
    assert second.changed == 0, second.output[-3000:]
    assert healthy.text(services) == running

    third = play("gpuops.k8s.provision", [healthy], "--check", "--diff")
    assert third.rc == 0
    assert third.changed == 0
    assert "\n+++ " not in third.output


def test_a_container_sees_the_gpus_it_asked_for_and_no_other(healthy: Node) -> None:
    two = healthy.text("kubelet-pod run --gpus 2 gpuops/workload:1 -- nvidia-smi -L")
    assert len([line for line in two.splitlines() if line.startswith("GPU ")]) == 2
    none = healthy.text("kubelet-pod run gpuops/workload:1 -- sh -c 'ls /dev | grep -c nvidia[0-9] || true'")
    assert none == "0"


def test_xid_79_takes_one_gpu_out_of_allocatable_within_a_second(healthy: Node) -> None:
    assert within(10, lambda: allocatable(healthy) == 8)
    healthy.gpu("xid", "3", "79")
    # A second for the plugin and the kubelet's node status, and what an SSH round trip costs here.
    assert within(2, lambda: allocatable(healthy) == 7)
    status = json.loads(healthy.text("gpu-device-plugin status --json"))
    assert [len(resource["devices"]) for resource in status["resources"]] == [8]  # still listed, all of them
    unhealthy = {gpu["index"]: gpu["reason"] for gpu in status["gpus"] if gpu["reason"]}
    assert list(unhealthy) == [3]
    assert "XID 79" in unhealthy[3]


@pytest.mark.real  # the embedded kubelet runs no static pods
def test_a_hardened_node_is_asked_as_its_runtime_accepts_with_no_variable_given(
    make_node: Callable[..., Node], play: Callable[..., Play], tmp_path: Path
) -> None:
    node = make_node("hard", "--gpus", "4", "--kubelet", "real")
    hardened: dict[str, object] = {"nvidia_docker_hardening": True}
    before = fingerprint(node)
    refused = play("gpuops.k8s.provision", [node], extra=hardened)
    assert refused.rc != 0 and fingerprint(node) == before
    assert "set device_plugin_config.flags.plugin.deviceListStrategy to [volume-mounts]" in refused.output

    by_mounts = {"flags": {"plugin": {"deviceListStrategy": ["volume-mounts"]}}}
    # In a pod, so that the plugin itself sees its GPUs through the hardened runtime.
    extra = {**hardened, "device_plugin_config": by_mounts, "device_plugin_deployment": "static_pod"}
    done = play("gpuops.k8s.provision", [node], extra=extra)
    assert done.rc == 0, done.output[-3000:]
    assert seen_by_a_pod_with_two(node) == 2
    report = tmp_path / "report.json"
    look = {"device_plugin_verify_report": str(report), "device_plugin_verify_timeout": 5}
    assert play("gpuops.k8s.verify", [node], extra=look).rc == 0
    said = {link["link"]: link["detail"] for link in json.loads(report.read_text())["links"]}
    assert "nor does one that names all by NVIDIA_VISIBLE_DEVICES, which is refused" in said["isolation"]
    assert said["request"] == "a container that asked for 1 sees 1"

    config = "/etc/nvidia-container-runtime/config.toml"
    node.run(f"sed -i 's/^accept-nvidia-visible-devices-as-volume-mounts = true/#&/' {config}")
    assert play("gpuops.k8s.verify", [node], extra=look).rc != 0
    found = json.loads(report.read_text())
    assert found["broken_link"] == "request"
    assert found["reason"].startswith(
        f"the device plugin hands out GPUs by volume-mounts, and {config} does not"
    )


@pytest.mark.real
def test_a_real_kubelet_with_the_gate_off_is_mended_once(
    make_node: Callable[..., Node], play: Callable[..., Play]
) -> None:
    node = make_node("gate", "--gpus", "4", "--kubelet", "real", "--gate-off")
    done = play("gpuops.k8s.provision", [node], extra={"device_plugin_deployment": "service"})
    assert done.rc == 0, done.output[-3000:]
    assert "DevicePlugins=false" not in node.text(
        "tr '\\0' ' ' < /proc/$(systemctl show -P MainPID kubelet)/cmdline"
    )
    kubelet = node.text("systemctl show -P MainPID kubelet")
    assert play("gpuops.k8s.provision", [node], extra={"device_plugin_deployment": "service"}).changed == 0
    assert node.text("systemctl show -P MainPID kubelet") == kubelet

    assert seen_by_a_pod_with_two(node) == 2
