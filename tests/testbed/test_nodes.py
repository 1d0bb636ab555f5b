"""A node of the test bed looks like a machine to software that does not know better."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTBED = HERE / "testbed"
NODE = "selftest"
RUNTIME = {
    "log-driver": "json-file",
    "features": {"buildkit": True},
    "insecure-registries": ["127.0.0.0/8"],
    "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}},
    "default-runtime": "nvidia",
}

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(600)]


def bed(*words: str, check: bool = True) -> str:
    done = subprocess.run([sys.executable, TESTBED, *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stdout + done.stderr


def inside(command: str, *, check: bool = True, node: str = NODE) -> str:
    done = subprocess.run(
        [sys.executable, TESTBED, "ssh", node, "--", command], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return (done.stdout if check else done.stdout + done.stderr).strip()


def until(what: str, condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def up(*options: str, node: str = NODE) -> dict:
    bed("down", node)
    return json.loads(bed("up", node, *options))


@pytest.fixture(scope="module")
def node() -> Iterator[dict]:
    """Four A100s, docker, no kubelet, and NVIDIA's packages installed."""
    try:
        about = up("--gpus", "4", "--model", "A100", "--kubelet", "none")
        # The pristine state, before anything is installed.
        about["daemon_json"] = inside("cat /etc/docker/daemon.json")
        about["containers"] = inside("docker ps --format '{{.Names}} {{.Image}} {{.Command}}'")
        about["failed"] = inside("systemctl --failed --plain --no-legend")
        inside(
            "curl -sf http://127.0.0.1:8099/gpgkey -o /etc/apt/keyrings/nvidia.asc && "
            "echo 'deb [signed-by=/etc/apt/keyrings/nvidia.asc] http://127.0.0.1:8099/deb ./' "
            ">/etc/apt/sources.list.d/nvidia.list && apt-get -qq update && "
            "apt-get -qq install nvidia-container-toolkit"
        )
        inside(f"echo '{json.dumps(RUNTIME)}' >/etc/docker/daemon.json && systemctl restart docker")
        yield about
    finally:
        bed("down", NODE)


def test_a_fresh_node_has_no_failed_unit_and_a_training_container(node: dict):
    assert node["failed"] == ""
    assert json.loads(node["daemon_json"]) == {
        "log-driver": "json-file",
        "features": {"buildkit": True},
        "insecure-registries": ["127.0.0.0/8"],
    }
    assert node["containers"].startswith('training gpuops/workload:1 "sleep')


def test_its_gpus_are_on_the_bus_in_procfs_and_in_nvml(node: dict):
    assert inside("ls /dev/nvidia[0-9]").split() == [f"/dev/nvidia{n}" for n in range(4)]
    assert inside("grep -l 0x0302 /sys/bus/pci/devices/*/class | wc -l") == "4"
    assert inside("ls /proc/driver/nvidia/gpus | wc -l") == "4"
    assert inside("nvidia-smi -L | grep -c A100") == "4"


def test_the_repository_is_signed_and_offers_two_versions(node: dict):
    policy = inside("apt-cache madison nvidia-container-toolkit")
    assert [line.split("|")[1].strip() for line in policy.splitlines()] == ["1.18.0-1", "1.17.8-1"]
    fingerprint = inside(
        "gpg --show-keys --with-colons /etc/apt/keyrings/nvidia.asc | grep ^fpr | cut -d: -f10"
    )
    assert fingerprint == inside("cat /srv/nvidia-repo/fingerprint")
    inside("cp /etc/apt/keyrings/nvidia.asc /tmp/k; : >/etc/apt/keyrings/nvidia.asc")
    try:
        assert "NO_PUBKEY" in inside("apt-get update 2>&1", check=False)
    finally:
        inside("cp /tmp/k /etc/apt/keyrings/nvidia.asc")


def test_pinning_one_package_alone_ends_in_held_broken_packages(node: dict):
    said = inside("apt-get install -y --allow-downgrades nvidia-container-toolkit=1.17.8-1 2>&1", check=False)
    assert "held broken packages" in said


def visible(options: str = "", image: str = "gpuops/workload:1") -> list[str]:
    said = inside(f"docker run --rm {options} {image} sh -c 'nvidia-smi -L 2>/dev/null; true'")
    return [line.split("UUID: ")[1].rstrip(")") for line in said.splitlines()]


def uuids() -> list[str]:
    return inside("nvidia-smi --query-gpu=uuid --format=csv,noheader").split()


def test_a_container_sees_the_gpus_it_names_and_no_others(node: dict):
    gpus = uuids()
    assert visible("-e NVIDIA_VISIBLE_DEVICES=1,3") == [gpus[1], gpus[3]]
    assert visible(f"-e NVIDIA_VISIBLE_DEVICES={gpus[2]}") == [gpus[2]]
    assert visible("-e NVIDIA_VISIBLE_DEVICES=all") == gpus
    assert visible("-e NVIDIA_VISIBLE_DEVICES=void") == []
    assert visible("") == []
    assert visible("--runtime runc --gpus device=2") == [gpus[2]]


def test_a_gpu_that_is_not_there_is_an_error_that_names_it(node: dict):
    said = inside("docker run --rm -e NVIDIA_VISIBLE_DEVICES=17 gpuops/workload:1 true", check=False)
    assert "device error: 17: unknown device" in said


def test_the_hardened_runtime_takes_mounts_and_ignores_variables(node: dict):
    config = "/etc/nvidia-container-runtime/config.toml"
    inside(
        f"cp {config} /tmp/config; sed -i 's/^#accept-nvidia-visible-devices-as-volume-mounts = false/"
        "accept-nvidia-visible-devices-as-volume-mounts = true/; "
        "s/^#accept-nvidia-visible-devices-envvar-when-unprivileged"
        f" = true/accept-nvidia-visible-devices-envvar-when-unprivileged = false/' {config}"
    )
    try:
        assert visible("-e NVIDIA_VISIBLE_DEVICES=all") == []
        assert visible("-v /dev/null:/var/run/nvidia-container-devices/2") == [uuids()[2]]
    finally:
        inside(f"mv /tmp/config {config}")


def test_a_cdi_name_is_resolved_through_the_specification(node: dict):
    inside("nvidia-ctk cdi generate --output=/etc/cdi/nvidia.json")
    try:
        assert visible("-e NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=3") == [uuids()[3]]
    finally:
        inside("rm /etc/cdi/nvidia.json")


def test_a_mig_slice_is_all_its_container_sees(node: dict):
    bed("gpu", NODE, "mig", "1", "3g.40gb", "1g.10gb")
    try:
        slices = [
            line.split("UUID: ")[1].rstrip(")") for line in inside("nvidia-smi -L | grep MIG").splitlines()
        ]
        assert len(slices) == 2
        assert visible(f"-e NVIDIA_VISIBLE_DEVICES={slices[1]}") == [uuids()[1], slices[1]]
    finally:
        bed("gpu", NODE, "mig", "1", "off")


def test_verbs_reach_the_node(node: dict):
    bed("gpu", NODE, "lose", "2")
    assert "GPU2: GPU is lost" in inside("nvidia-smi -L", check=False)
    bed("gpu", NODE, "restore", "2")
    assert "lost" not in inside("nvidia-smi -L")
    bed("gpu", NODE, "remove", "3")
    assert inside("ls /dev/nvidia[0-9] | wc -l") == "3"
    bed("gpu", NODE, "add")
    assert inside("nvidia-smi -L | wc -l") == "4"
    assert "no GPU '9'" in bed("gpu", NODE, "lose", "9", check=False)


def test_a_reload_keeps_the_training_container(node: dict):
    pid = inside("docker inspect -f '{{.State.Pid}}' training")
    # `systemctl restart` in the fixture stopped it: start it, then only reload.
    inside("docker start training")
    pid = inside("docker inspect -f '{{.State.Pid}}' training")
    inside("systemctl reload docker")
    assert inside("docker inspect -f '{{.State.Pid}}' training") == pid


def test_a_restarted_node_has_its_gpus_again_and_another_boot_id(node: dict):
    before = inside("cat /proc/sys/kernel/random/boot_id")
    kept = uuids()
    subprocess.run(["docker", "restart", node["container"]], capture_output=True, check=True)
    until("systemd", lambda: inside("systemctl is-system-running", check=False) == "running", 60)
    after = inside("cat /proc/sys/kernel/random/boot_id")
    assert after != before
    # The hardware of the first start: a GPU that a verb added meanwhile (another test's) is gone again.
    assert len(uuids()) == len(kept)
    assert uuids()[:2] == kept[:2]
    # The engine's containers see the node's, not the machine's.
    assert inside("docker run --rm gpuops/workload:1 cat /proc/sys/kernel/random/boot_id") == after
    assert inside("journalctl -b -u ssh -q | head -1") != ""


def test_nothing_leaves_the_node(node: dict):
    assert "default" not in inside("ip route")
    assert inside("curl -s -m 3 http://169.254.169.254/; echo $?").endswith("7")


def test_the_inventory_names_the_nodes_repository(node: dict):
    text = bed("inventory", NODE)
    assert inside("cat /srv/nvidia-repo/fingerprint") in text
    published = subprocess.run(
        ["docker", "port", node["container"], "22"], capture_output=True, text=True, check=True
    ).stdout  # a restart may have moved it
    assert f"ansible_port: {published.strip().rpartition(':')[2]}" in text


def pod(name: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "hostNetwork": True,
                "containers": [
                    {
                        "name": "main",
                        "image": "gpuops/workload:1",
                        "imagePullPolicy": "Never",
                        "command": ["sleep", "1000000"],
                    }
                ],
            },
        }
    )


@pytest.mark.real
@pytest.mark.parametrize(
    ("engine", "running"),
    [
        ("docker", "docker ps -q --filter name=k8s_main_sleeper"),
        ("containerd", "ctr -n k8s.io c ls | grep -v training | grep workload"),
    ],
)
def test_a_real_kubelet_runs_a_static_pod(engine: str, running: str):
    directory = os.environ.get("KUBERNETES_BIN_DIR") or Path.home() / ".cache/gpuops/kubernetes-1.20.2/bin"
    if not (Path(directory) / "kubelet").exists():
        pytest.skip("no real kubelet: tests/testbed/kubernetes/build.sh builds one")
    name = f"selftest-{engine}"
    try:
        up("--gpus", "2", "--kubelet", "real", "--engine", engine, node=name)
        inside(f"echo '{pod('sleeper')}' >/etc/kubernetes/manifests/sleeper.json", node=name)
        until("the pod's container", lambda: inside(running, check=False, node=name))
    finally:
        bed("down", name)


def test_a_bare_node_has_neither_engine_nor_kubelet():
    try:
        up("--bare", "--gpus", "1", node="selftest-bare")
        assert inside("which docker dockerd containerd runc kubelet; true", node="selftest-bare") == ""
        assert "docker" not in inside("dpkg -l | awk '{print $2}'", node="selftest-bare")
        assert inside("systemctl is-system-running", node="selftest-bare") == "running"
    finally:
        bed("down", "selftest-bare")


def test_without_a_driver_the_gpus_are_on_the_bus_alone():
    try:
        up("--no-driver", "--gpus", "2", "--kubelet", "none", node="selftest-nodriver")
        there = (
            "ls /dev/nvidia* /proc/driver/nvidia /usr/lib/x86_64-linux-gnu/libnvidia-ml* 2>/dev/null; true"
        )
        assert inside(there, node="selftest-nodriver") == ""
        assert inside("grep -l 0x0302 /sys/bus/pci/devices/*/class | wc -l", node="selftest-nodriver") == "2"
    finally:
        bed("down", "selftest-nodriver")
