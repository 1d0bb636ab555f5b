"""Rollouts that stop: a node that can't start with its new configuration, and one that may not be drained."""

from __future__ import annotations

import pytest
from lab import PLUGIN, pod, wait_until

pytestmark = [pytest.mark.node, pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]

GATE_OFF = """
echo 'KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false' > /etc/default/kubelet
systemctl restart kubelet
"""
# A kubelet that refuses every configuration but the old one.
SABOTAGE = """
mv /usr/bin/kubelet /usr/bin/kubelet.real
cat > /usr/bin/kubelet <<'END'
#!/bin/sh
case "$*" in *--version* | *DevicePlugins=false*) exec /usr/bin/kubelet.real "$@" ;; esac
echo "F1123 failed to run Kubelet: sabotaged: this node can't start with its new configuration" >&2
exit 1
END
chmod 755 /usr/bin/kubelet
"""
MEND = "mv /usr/bin/kubelet.real /usr/bin/kubelet"
FILES = "cat /etc/default/kubelet /etc/containerd/config.toml; ls /etc/containerd/conf.d 2>/dev/null || true"
WELL = "curl -sf -m 2 http://127.0.0.1:10248/healthz"


def outcomes(lab, done):
    """Node -> its line of the summary."""
    summary = done.stdout[done.stdout.index("TASK [Summary]") :]
    lines = [line for line in summary.splitlines() if line.startswith(f"        {lab.name}-")]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("device_plugin_node_name=nobody", "the cluster has no node nobody (but "),
        ("device_plugin_kubectl=/nowhere/kubectl", "can't ask the API server: "),
        ("device_plugin_kubeconfig=/etc/kubernetes/scheduler.conf", " patch nodes, patch daemonsets.apps, "),
    ],
)
def test_what_the_api_server_would_refuse_is_said_before_the_first_change(bare_lab, choice, reason):
    for node in bare_lab.nodes:
        bare_lab.keep_tree(node)
    done = bare_lab.play("provision", "-e", choice)
    assert done.returncode != 0
    assert reason in " ".join(done.stdout.split()), done.stdout[-4000:]
    assert [bare_lab.changes(node) for node in bare_lab.nodes] == [[], [], []]


def test_first_is_provisioned_second_rolled_back_and_cordoned_third_untouched(bare_lab):
    lab = bare_lab
    assert not any(lab.offered().values()), "these nodes are not bare; this test comes first"
    first, second, third = lab.nodes
    for node in lab.nodes:
        lab.inside(node, GATE_OFF)
        # As GPU feature discovery has it; no node's turn comes by that.
        lab.kubectl("label", "node", node, "nvidia.com/gpu.present=true")
    lab.inside(second, SABOTAGE)
    before = lab.inside(second, FILES)
    lab.keep_tree(third)

    done = lab.play("provision", "-e", "device_plugin_kubelet_timeout=15")

    assert done.returncode != 0
    said = outcomes(lab, done)
    assert said[first].startswith("provisioned, "), said
    assert said[second].startswith("rolled back, cordoned, "), done.stdout[-4000:]
    assert said[third] == "untouched", said
    assert "sabotaged" in "\n".join(done.stdout.splitlines()[-10:]), done.stdout[-4000:]
    assert lab.cordoned() == [second]
    assert lab.inside(second, FILES) == before
    assert lab.changes(third) == []
    wait_until(
        lambda: lab.inside(second, WELL, check=False) == "ok",
        "the second node's kubelet runs again, with its old configuration",
    )
    assert lab.offered() == {first: 8, second: 0, third: 0}
    assert [one["spec"]["nodeName"] for one in lab.objects("pods", *PLUGIN)] == [first]
    lab.hands_out(first, 8)

    # Mended by hand, the next run takes the second node back, and goes on to the third.
    lab.inside(second, MEND)
    done = lab.play("provision")
    assert done.returncode == 0, done.stdout[-4000:]
    said = outcomes(lab, done)
    assert said[first] == "unchanged"
    assert said[second].startswith("provisioned, ") and said[third].startswith("provisioned, ")
    assert lab.cordoned() == []
    lab.hands_out_all()


@pytest.fixture
def clean(lab):
    yield lab
    lab.kubectl("delete", "poddisruptionbudget,deployment", "serving", "--ignore-not-found")
    lab.kubectl("uncordon", *lab.nodes)


def test_a_node_is_drained_by_choice_but_not_against_a_disruption_budget(clean):
    lab = clean
    node, others = lab.nodes[1], {lab.nodes[0], lab.nodes[2]}
    labels = {"app": "serving"}
    one = pod("serving", 2, node=node)["spec"]
    one.pop("nodeSelector")
    one["restartPolicy"] = "Always"
    budget = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    serving = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": one},
    }
    lab.apply("policy/v1beta1", "PodDisruptionBudget", "serving", budget)
    for other in others:
        lab.kubectl("cordon", other)
    lab.apply("apps/v1", "Deployment", "serving", serving)
    lab.kubectl("wait", "--for=condition=Available", "--timeout=60s", "deployment/serving")
    for other in others:
        lab.kubectl("uncordon", other)
    before = places(lab)
    assert list(before.values()) == [node]

    done = lab.play("provision", "--limit", node, "-e", "rollout_drain=true", "-e", "rollout_drain_timeout=5")
    assert done.returncode != 0
    assert outcomes(lab, done) == {node: "not changed, cordoned"}
    assert "disruption budget" in "\n".join(done.stdout.splitlines()[-14:]), done.stdout[-3000:]
    assert places(lab) == before, "a pod was moved against its budget"
    assert lab.cordoned() == [node]

    lab.kubectl("delete", "poddisruptionbudget", "serving")
    done = lab.play("provision", "--limit", node, "-e", "rollout_drain=true")
    assert done.returncode == 0, done.stdout[-4000:]
    assert outcomes(lab, done) == {node: "unchanged"}
    lab.kubectl("wait", "--for=condition=Available", "--timeout=60s", "deployment/serving")
    assert set(places(lab).values()) <= others
    assert lab.cordoned() == []
    lab.kubectl("delete", "deployment", "serving", "--cascade=foreground")
    lab.hands_out_all()


def places(lab):
    """Pod of the Deployment -> the node it is on, but those that are on their way out."""
    pods = lab.objects("pods", "-n", "default", "-l", "app=serving")
    return {
        p["metadata"]["name"]: p["spec"].get("nodeName")
        for p in pods
        if not p["metadata"].get("deletionTimestamp")
    }
