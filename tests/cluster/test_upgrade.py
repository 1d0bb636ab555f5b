"""The plugin goes from an old version to a new one and back, on nodes whose GPUs are at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import GPU, PLUGIN, Lab, pod, wait_until
from node_kit import newer_plugin
from watchers import Watch

pytestmark = [pytest.mark.node, pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]

# So that the API server shows what the kubelet knows within a fifth of a second, not a second (the default is ten).
TELL_OFTEN = """
sed -i 's/^nodeStatusUpdateFrequency:.*/nodeStatusUpdateFrequency: 200ms/' /var/lib/kubelet/config.yaml
systemctl restart kubelet
"""
DIP = 2.0  # seconds that a node may offer less


def containers(lab: Lab, *selector: str) -> dict[str, str]:
    """Node -> image, container id, restarts and start of the one pod there that ``selector`` finds."""
    found = {}
    for one in lab.objects("pods", *selector):
        status = one["status"]["containerStatuses"][0]
        # Of the names that one image has, a node tells any; so the one that was asked for.
        image = one["spec"]["containers"][0]["image"]
        words = (image, status["containerID"], status["restartCount"], status["state"])
        found[one["spec"]["nodeName"]] = json.dumps(words, sort_keys=True)
    return found


def images(lab: Lab) -> dict[str, str]:
    """Node -> tag of the plugin's image that runs there."""
    return {node: json.loads(words)[0].rpartition(":")[2] for node, words in containers(lab, *PLUGIN).items()}


@pytest.fixture(scope="module")
def training(lab):
    """Every node has a pod at work on half of its GPUs."""
    for node in lab.nodes:
        lab.inside(node, TELL_OFTEN)
    lab.hands_out_all()
    pods = [pod(f"train-{node}", 4, node=node) for node in lab.nodes]
    for one in pods:
        one["metadata"]["labels"] = {"app": "train"}
    lab.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    lab.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "pod", "-l", "app=train")
    return containers(lab, "-l", "app=train")


def rollout(lab: Lab, *arguments: str, collections: Path | None = None) -> Watch:
    with Watch(lab) as watch:
        done = lab.play("provision", *arguments, collections=collections)
    assert done.returncode == 0, done.stdout[-4000:]
    return watch


def held(watch: Watch, processes: int = 1) -> None:
    """What has to be true of every node through a rollout that replaces its plugin; says what was measured.

    ``processes``: 2 where the new one may start, and wait, while the old one ends. Only one serves.
    """
    for node, seen in watch.seen.items():
        dips, unserved = seen.dips(8), seen.unserved()
        print(f"{node}: allocatable below 8 for {dips} s, no plugin's socket for {unserved} s")
        assert all(len(plugins) <= processes for _, plugins in seen.plugins), f"two plugins at once on {node}"
        assert all(len(names) <= 1 for _, names in seen.sockets), f"two sockets for {GPU} on {node}"
        assert len(unserved) == len(dips) == 1, (
            f"the plugin of {node} was to be replaced once, and that to be seen"
        )
        assert max([*dips, *unserved]) < DIP
    spans = sorted(
        (min(at for at, n in s.sockets if not n), max(at for at, n in s.sockets)) for s in watch.seen.values()
    )
    assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:])), "one node after the other"


def test_a_new_version_and_the_way_back_disturb_no_pod(lab, training, tmp_path):
    old, here = images(lab), Path(lab.collections())
    watch = rollout(lab, collections=newer_plugin(here, tmp_path))
    held(watch)
    new = images(lab)
    assert len(set(new.values())) == 1 and set(new.values()).isdisjoint(old.values())
    assert all(tag.startswith("0.1.1-") for tag in new.values())
    assert containers(lab, "-l", "app=train") == training

    held(rollout(lab, collections=here))
    assert images(lab) == old
    assert containers(lab, "-l", "app=train") == training


def test_a_new_pod_for_the_same_version_disturbs_no_pod(lab, training):
    """What can't be changed in a running pod: here its memory limit. So the pod is made anew."""
    old = images(lab)
    limits = json.dumps({"device_plugin_resources": {"limits": {"memory": "300Mi"}}})
    held(rollout(lab, "-e", limits), processes=2)
    assert images(lab) == old
    memory = {
        p["spec"]["containers"][0]["resources"]["limits"]["memory"] for p in lab.objects("pods", *PLUGIN)
    }
    assert memory == {"300Mi"}
    assert containers(lab, "-l", "app=train") == training

    held(rollout(lab), processes=2)
    assert containers(lab, "-l", "app=train") == training


def test_a_version_that_fails_on_the_second_node_never_reaches_the_third(lab, training):
    first, second, third = lab.nodes
    before, old = containers(lab, *PLUGIN), images(lab)
    # On the second node something else has the new image's name, and can't start.
    lab.inside(
        second, "ctr -n k8s.io images tag docker.io/gpuops/workload:1 docker.io/gpuops/device-plugin:next"
    )

    done = lab.play("provision", "-e", "device_plugin_image=gpuops/device-plugin:next")

    assert done.returncode != 0
    summary = done.stdout[done.stdout.index("TASK [Summary]") :]
    lines = {
        line.split()[0]: line for line in summary.splitlines() if line.startswith(f"        {lab.name}-")
    }
    assert "provisioned, plugin " in lines[first] and lines[first].endswith(" -> next")
    assert "rolled back, cordoned" in lines[second]
    assert "untouched" in lines[third]
    assert "CrashLoopBackOff" in "\n".join(done.stdout.splitlines()[-12:])
    assert lab.cordoned() == [second]
    assert images(lab) == {**old, first: "next"}
    assert containers(lab, *PLUGIN)[third] == before[third], "the third node's plugin was touched"
    wait_until(lab.all_offered, "every GPU on offer, by the old plugin on the second node", 30)
    assert containers(lab, "-l", "app=train") == training

    lab.inside(second, "ctr -n k8s.io images rm docker.io/gpuops/device-plugin:next")
    done = lab.play("provision")
    assert done.returncode == 0, done.stdout[-4000:]
    assert images(lab) == old and lab.cordoned() == []
    assert containers(lab, "-l", "app=train") == training
