"""What happens to nodes in a year, in minutes: restarts, absences, and a hundred pods through it all."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time

import pytest
from lab import GPU, PLUGIN, REJECTED, pod, wait_until

pytestmark = [pytest.mark.node, pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]

KILL_PLUGIN = "kill -9 $(pgrep -f '[g]pu_device_plugin') 2>/dev/null || true"
SEED = 20261123

# Two leftovers of last year's gate, where an administrator and kubeadm leave them. Kubelet 1.20 takes them.
LEFTOVERS = """
printf 'featureGates:\\n  DevicePlugins: true\\n' >> /var/lib/kubelet/config.yaml
echo 'KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true' > /etc/default/kubelet
systemctl restart kubelet
"""
# No newer kubelet can be had here, so 1.28 is played by 1.20 behind a door. It tells 1.28's version, and refuses the
# gate, by flag and by file, as 1.28 does, which no longer knows it. What comes after the start is 1.20's doing.
NEXT_KUBELET = """
mv /usr/bin/kubelet /usr/bin/kubelet-1.20
cat > /usr/bin/kubelet <<'END'
#!/bin/sh
case "$*" in *--version*) echo "Kubernetes v1.28.0"; exit 0 ;; esac
if { echo "$*"; cat /var/lib/kubelet/config.yaml; } | grep -q DevicePlugins; then
  echo 'E1123 run.go:74] "command failed" err="unrecognized feature gate: DevicePlugins"' >&2
  exit 1
fi
exec /usr/bin/kubelet-1.20 "$@"
END
chmod 755 /usr/bin/kubelet
systemctl restart kubelet
"""
OLD_KUBELET = "mv /usr/bin/kubelet-1.20 /usr/bin/kubelet; systemctl restart kubelet"
DOCKER_BEGAN = "systemctl show -p ExecMainStartTimestampMonotonic docker"
WELL = "curl -sf -m 2 http://127.0.0.1:10248/healthz || true"


def start_ids(lab) -> dict[str, str]:
    """Pod -> id of its container and how often it was restarted: unchanged while nobody touches it."""
    return {
        p["metadata"]["name"]: p["status"]["containerStatuses"][0]["containerID"]
        + f" {p['status']['containerStatuses'][0]['restartCount']}"
        for p in lab.objects("pods", "-n", "default", "-l", "app=train")
        if p["status"].get("containerStatuses")
    }


def plugin_containers(lab) -> dict[str, str]:
    """Node -> the container of the plugin that runs there."""
    pods = lab.objects("pods", *PLUGIN)
    return {p["spec"]["nodeName"]: p["status"]["containerStatuses"][0]["containerID"] for p in pods}


@pytest.fixture
def clean(lab):
    yield lab
    lab.kubectl("delete", "pods", "--all", "-n", "default", "--wait=true", "--timeout=60s", check=False)


def test_everything_is_offered_again_after_a_docker_restart(clean):
    node = clean.nodes[0]
    began = clean.inside(node, DOCKER_BEGAN)
    clean.inside(node, "systemctl restart docker")
    assert clean.inside(node, DOCKER_BEGAN) != began
    clean.hands_out(node, 8)
    assert clean.all_offered()


def test_everything_is_offered_again_after_a_node_has_rebooted(clean):
    node = clean.nodes[1]
    before = plugin_containers(clean)
    subprocess.run(["docker", "restart", "-t", "20", f"gpuops-{node}"], check=True, capture_output=True)
    clean.write_inventory()  # docker has given the container another port for ssh
    clean.hands_out(node, 8)
    assert clean.all_offered()
    wait_until(lambda: plugin_containers(clean)[node] != before[node], "another container of the plugin", 30)
    before.pop(node)
    assert before.items() <= plugin_containers(clean).items(), "other nodes' plugins were touched"


def test_nothing_is_lost_while_the_api_server_is_away(clean):
    node = clean.nodes[0]
    manifest = pod("train-0", 2, node=node)
    manifest["metadata"]["labels"] = {"app": "train"}
    clean.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    clean.kubectl("wait", "--for=condition=Ready", "pod/train-0", "--timeout=120s")
    before = start_ids(clean)
    clean.api("stop")
    try:
        # The minute that the test is about. A plugin and a kubelet that start meanwhile have nobody to ask.
        clean.inside(clean.nodes[1], KILL_PLUGIN)
        clean.inside(clean.nodes[2], "systemctl restart kubelet")
        time.sleep(60)
        assert clean.objects("nodes") == [], "the API server was not away"
    finally:
        clean.api("start")
    clean.hands_out_all({node: 2})
    assert clean.all_offered()
    assert start_ids(clean) == before and before


def test_a_node_that_leaves_and_returns_offers_everything_again(clean):
    node = clean.nodes[2]
    subprocess.run(["docker", "pause", f"gpuops-{node}"], check=True, capture_output=True)

    def ready() -> str:
        form = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return clean.kubectl("get", "node", node, "-o", form)

    try:
        wait_until(lambda: ready() == "Unknown", f"{node} is missed", 120)
    finally:
        subprocess.run(["docker", "unpause", f"gpuops-{node}"], check=True, capture_output=True)
    clean.hands_out(node, 8)
    assert ready() == "True" and clean.all_offered()


def test_a_gpu_that_fell_off_the_bus_stays_out_until_it_was_reset(clean):
    node = clean.nodes[1]
    # XID 79, and a double-bit error, by whose count falling to 0 a reset is seen later.
    clean.gpu(node, "xid", "0", "79")
    clean.gpu(node, "ecc", "0")
    try:
        wait_until(lambda: clean.offered()[node] == 7, "7 GPUs on offer", 30)
        clean.kubectl("delete", "pods", *PLUGIN, "--field-selector", f"spec.nodeName={node}")
        clean.inside(node, "systemctl restart kubelet")
        # Neither another plugin nor another kubelet heals it, nor does what befalls other GPUs.
        clean.gpu(node, "mig", "1", "3g.40gb", "3g.40gb")
        clean.gpu(node, "mig", "1", "off")
        clean.hands_out(node, 7)
        assert clean.offered()[node] == 7
        verified = clean.play("verify", "--limit", node)
        assert verified.returncode != 0
        assert "XID 79 (GPU has fallen off the bus)" in " ".join(verified.stdout.split())
    finally:
        clean.gpu(node, "restore", "0")
    clean.hands_out(node, 8)


def test_a_newer_kubelet_that_does_not_know_the_gate_finds_no_leftover_of_it(clean):
    node = clean.nodes[1]
    manifest = pod("train-1", 2, node=node)
    manifest["metadata"]["labels"] = {"app": "train"}
    clean.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    clean.kubectl("wait", "--for=condition=Ready", "pod/train-1", "--timeout=120s")
    clean.inside(node, LEFTOVERS)
    clean.hands_out(node, 6)
    before = start_ids(clean)

    done = clean.play("provision", "--limit", node, "-e", "device_plugin_target_kubelet_version=1.28.0")

    assert done.returncode == 0, done.stdout[-4000:]
    clean.inside(node, NEXT_KUBELET)
    try:
        wait_until(lambda: clean.inside(node, WELL) == "ok", "the newer kubelet is well", 60)
        clean.hands_out(node, 6)
        assert start_ids(clean) == before and before
        # The door is real: what was taken away would have kept this kubelet from starting.
        clean.inside(node, LEFTOVERS)
        wait_until(
            lambda: "unrecognized feature gate" in clean.inside(node, "journalctl -u kubelet -n 20"),
            "a refusal",
            30,
        )
        done = clean.play("provision", "--limit", node)
        assert done.returncode == 0, done.stdout[-4000:]
        clean.hands_out(node, 6)
        assert start_ids(clean) == before
    finally:
        clean.inside(node, OLD_KUBELET)
        clean.hands_out(node, 6)
    assert clean.all_offered()


def test_a_hundred_pods_never_share_a_gpu_while_kubelets_and_plugins_are_killed(clean):
    chance = random.Random(SEED)
    # The termination message, because a kubelet that is killed at the wrong moment loses a container's log.
    script = "cat /proc/uptime; sleep {}; cat /proc/uptime"
    waiting = [pod(f"p{n}", chance.randint(1, 4), script.format(chance.randint(1, 6))) for n in range(100)]
    manifests = {p["metadata"]["name"]: p for p in waiting}
    clean.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": waiting})
    )
    logs: dict[str, tuple[str, str]] = {}
    rejected, kills, next_kill, deadline = 0, 0, time.monotonic() + 5, time.monotonic() + 900
    while len(logs) < 100:
        assert time.monotonic() < deadline, f"{len(logs)} of 100 pods have ended"
        for one in clean.objects("pods", "-n", "default"):
            name, status = one["metadata"]["name"], one["status"]
            if name in logs or status.get("phase") not in ("Succeeded", "Failed"):
                continue
            if status["phase"] == "Failed":
                # K13: a kubelet that comes back before its plugin rejects what is not running, for good.
                assert status.get("reason") in REJECTED, status
                rejected += 1
                clean.kubectl("delete", "pod", name, "--wait=true", "--timeout=60s")
                clean.kubectl("apply", "-f", "-", stdin=json.dumps(manifests[name]))
                continue
            text = status["containerStatuses"][0]["state"]["terminated"].get("message", "")
            assert text.count("\n") >= 2, f"{name} has left no word: {status}"
            logs[name] = (one["spec"]["nodeName"], text)
        if time.monotonic() > next_kill and len(logs) < 90:
            node = chance.choice(clean.nodes)
            clean.inside(node, chance.choice([KILL_PLUGIN, "systemctl kill -s KILL kubelet"]), check=False)
            kills += 1
            next_kill = time.monotonic() + chance.uniform(3, 8)
        time.sleep(0.5)

    held: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for name, (node, text) in logs.items():
        gpus = re.findall(r"/dev/nvidia\d+", text)
        first, last = (float(line.split()[-2]) for line in text.strip().splitlines())
        limits = manifests[name]["spec"]["containers"][0]["resources"]["limits"]
        assert len(gpus) == limits[GPU], f"{name} asked for {limits[GPU]} and saw {gpus}"
        for gpu in gpus:
            held.setdefault((node, gpu), []).append((first, last, name))
    for place, times in held.items():
        times.sort()
        for (_, end, one), (begin, _, other) in zip(times, times[1:]):
            assert begin >= end, f"{place} was held by {one} and {other} at the same time"
    assert kills >= 3, "nothing was killed, so nothing was shown"
    clean.hands_out_all()
    assert clean.all_offered()
    print(
        f"{kills} kills, {rejected} pods rejected by a kubelet that was back before its plugin, seed {SEED}"
    )
