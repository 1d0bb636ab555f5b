# ruff: noqa: E501 - shell stays on one line
"""What the role does by choice, on a real API server: registry, build host, taint, Events, ConfigMap, verdict, forms; and its undoing.

One cluster of two nodes (docker and containerd, two GPUs each); the tests follow each other.
GPUOPS_CHOICES=NAME takes a cluster that is up (`cluster up NAME --node a=docker:H100:2 --node b=containerd:A100:2`), and leaves it up.
"""

from __future__ import annotations

import json
import os

import pytest
import registry
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from lab import CLUSTER, PLUGIN, ROOT, Lab, wait_until

pytestmark = [pytest.mark.node, pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
# What docker's own client and builder leave where they are used for the first time: on the node that was chosen to build.
BUILDER = ("/root/.docker", "/root/.docker/.buildNodeID", "/run/runc")
STATUS = "/var/lib/gpuops-verified.json"
KUBELET_CONFIG = """apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
# asked for by the storage team, see their page
featureGates:
  DevicePlugins: true
  RotateKubeletServerCertificate: true
kind: KubeletConfiguration
rotateCertificates: true
"""
CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {
        "name": "kubelet-config-1.20",
        "namespace": "kube-system",
        "annotations": {
            "kubeadm.kubernetes.io/component-config.hash": "sha256:306a726156f1e2879bedabbdfa452caae8a63929426a55de71c22fe901fde977"
        },
        "labels": {"site": "north"},
    },
    "data": {"kubelet": KUBELET_CONFIG, "other": "kept\n"},
}
# kube-proxy's part: the API server's service address, for pods that speak to it.
SERVICE = "ip route replace 10.96.0.0/16 dev eth0; iptables -t nat -A OUTPUT -d 10.96.0.1/32 -p tcp --dport 443 -j DNAT --to-destination {address}:6443"
DOCKER_PULLS = """
python3 - <<'END'
import json
path = "/etc/docker/daemon.json"
config = json.load(open(path))
config["insecure-registries"].append("{registry}")
json.dump(config, open(path, "w"))
END
systemctl reload docker
"""
CONTAINERD_PULLS = """
mkdir -p /etc/containerd/certs.d/{registry}
printf '[host."http://{registry}"]\\n' > /etc/containerd/certs.d/{registry}/hosts.toml
printf '\\n[plugins."io.containerd.grpc.v1.cri".registry]\\nconfig_path = "/etc/containerd/certs.d"\\n' >> /etc/containerd/config.toml
systemctl restart containerd
"""
# Another device plugin, as far as the kubelet sees: its own socket, two devices.
OTHER = """
import time
from concurrent import futures

import grpc
from gpu_device_plugin.api import deviceplugin_v1beta1_pb2 as api

FOLDER = "/var/lib/kubelet/device-plugins"


def watch(request, context):
    yield api.ListAndWatchResponse(devices=[api.Device(ID=f"other-{n}", health="Healthy") for n in range(2)])
    while context.is_active():
        time.sleep(0.2)


methods = {
    "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(
        lambda request, context: api.DevicePluginOptions(), api.Empty.FromString, api.DevicePluginOptions.SerializeToString
    ),
    "ListAndWatch": grpc.unary_stream_rpc_method_handler(
        watch, api.Empty.FromString, api.ListAndWatchResponse.SerializeToString
    ),
}
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", methods),))
server.add_insecure_port(f"unix://{FOLDER}/nvidia-gpu.sock")
server.start()
register = grpc.insecure_channel(f"unix://{FOLDER}/kubelet.sock").unary_unary(
    "/v1beta1.Registration/Register", api.RegisterRequest.SerializeToString, api.Empty.FromString
)
register(api.RegisterRequest(version="v1beta1", endpoint="nvidia-gpu.sock", resource_name="nvidia.com/gpu"), timeout=5)
time.sleep(1e6)
"""


def other_plugin(image):
    """The DaemonSet of another plugin, under the name that NVIDIA's manifest gives it."""
    labels = {"name": "nvidia-device-plugin-ds"}
    folder = "/var/lib/kubelet/device-plugins"
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-c", OTHER],
        "volumeMounts": [{"name": "plugins", "mountPath": folder}],
    }
    spec = {
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "plugins", "hostPath": {"path": folder}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "nvidia-device-plugin-daemonset", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


class Choices(Lab):
    """The cluster, with a registry on its network and what is asked of the role."""

    def __init__(self, name, folder):
        super().__init__(name, folder)
        self.nodes = [f"{name}-a", f"{name}-b"]
        self.expected = dict.fromkeys(self.nodes, 2)
        self.choices = {}

    def up(self):
        if "GPUOPS_CHOICES" not in os.environ:
            self._run(CLUSTER, "down", self.name)
            done = self._run(
                CLUSTER, "up", self.name, "--node", "a=docker:H100:2", "--node", "b=containerd:A100:2"
            )
            assert done.returncode == 0, done.stderr
        self.inventory.write_text(
            self._run(CLUSTER, "inventory", self.name).stdout.replace(
                "  vars:\n", "  vars:\n    device_plugin_host_network: true\n", 1
            )
        )

    def prepare(self):
        """Registry and the nodes' way to it, the API server's service address, kubeadm's ConfigMap, somebody's taint."""
        where = registry.start(f"gpuops-{self.name}-control")
        address = where.partition(":")[0]
        for node, pulls in zip(self.nodes, (DOCKER_PULLS, CONTAINERD_PULLS)):
            script = pulls.format(registry=where) + SERVICE.format(address=address)
            self.inside(node, f"test ! -e /run/choices || exit 0; touch /run/choices\n{script}")
        self.kubectl("apply", "-f", "-", stdin=json.dumps(CONFIG_MAP))
        self.kubectl("taint", "node", self.nodes[1], "nvidia.com/gpu=present:NoSchedule", "--overwrite")
        self.choices = {
            "device_plugin_build_host": self.nodes[0],
            "device_plugin_build_dir": str(self.folder / "build"),
            "device_plugin_image_push": True,
            "device_plugin_image_repository": f"{where}/gpuops/device-plugin",
            "device_plugin_sbom": str(self.folder / "sbom.json"),
            "device_plugin_taint": True,
            "device_plugin_events": True,
            "device_plugin_config_map": True,
            "device_plugin_target_kubelet_version": "1.28",
            "device_plugin_verify_label": True,
            "device_plugin_verify_status_file": STATUS,
        }

    def chosen(self, playbook, *arguments, **other):
        """A playbook with the choices above, some of them otherwise."""
        extra = self.choices | {f"device_plugin_{name}": value for name, value in other.items()}
        return self.play(playbook, "-e", json.dumps(extra), *arguments)

    def node(self, name):
        return json.loads(self.kubectl("get", "node", name, "-o", "json"))

    def taints(self, name):
        return [t for t in self.node(name)["spec"].get("taints", []) if t["key"] == "nvidia.com/gpu"]

    def condition(self, name):
        found = [c for c in self.node(name)["status"]["conditions"] if c["type"] == "GPUsHealthy"]
        return found[0]["status"] if found else None

    def pods(self):
        """Node -> the plugin's pod."""
        return {p["spec"]["nodeName"]: p for p in self.objects("pods", *PLUGIN)}


def changed(done):
    """Names of the tasks that changed something, a word for each time."""
    found, task = [], ""
    for line in done.stdout.splitlines():
        if line.startswith(("TASK [", "RUNNING HANDLER [")):
            task = line.partition("[")[2].partition("]")[0]
        elif line.startswith("changed: "):
            found.append(f"{line.partition(': ')[2]} {task}")
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Choices(os.environ.get("GPUOPS_CHOICES", "choices"), tmp_path_factory.mktemp("choices"))
    lab.up()
    lab.prepare()
    for node in lab.nodes:
        lab.keep_tree(node)
    done = lab.chosen("provision")
    assert done.returncode == 0, done.stdout[-6000:]
    wait_until(lab.all_offered, "4 GPUs on offer")
    yield lab
    if "GPUOPS_CHOICES" not in os.environ:
        lab.down()


def test_a_docker_node_builds_and_pushes_and_every_kubelet_pulls(lab):
    name = lab.choices["device_plugin_image_repository"]
    pods = lab.pods()
    assert {pod["spec"]["containers"][0]["image"].rpartition(":")[0] for pod in pods.values()} == {name}
    assert {
        pod["status"]["containerStatuses"][0]["imageID"].partition("@")[0].removeprefix("docker-pullable://")
        for pod in pods.values()
    } == {name}
    assert sorted(pods) == lab.nodes
    tags = json.loads(
        lab.inside(f"{lab.name}-control", "curl -sf http://127.0.0.1:5000/v2/gpuops/device-plugin/tags/list")
    )["tags"]
    assert {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in pods.values()} <= set(tags)
    # No archive went through the control host, and nothing is left of the build.
    assert [path.name for path in (lab.folder / "build").iterdir()] == []
    assert lab.inside(lab.nodes[0], "ls -d /var/tmp/gpu-device-plugin* 2>/dev/null || true") == ""


def test_the_bill_of_materials_is_valid_and_names_the_image_that_runs(lab):
    text = (lab.folder / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    image = json.loads(text)["metadata"]["component"]
    assert f"{image['name']}:{image['version']}" == lab.pods()[lab.nodes[0]]["spec"]["containers"][0]["image"]


def test_the_second_run_changes_nothing(lab):
    again = lab.chosen("provision")
    assert (again.returncode, changed(again)) == (0, [])


def test_both_nodes_are_tainted_and_the_plugins_pods_run_there_all_the_same(lab):
    for node in lab.nodes:
        assert lab.taints(node) == [TAINT]


def test_the_verdict_is_on_the_node_and_on_its_object(lab):
    for node in lab.nodes:
        assert lab.node(node)["metadata"]["labels"]["gpuops.io/verified"] == "true"
        verdict = json.loads(lab.inside(node, f"cat {STATUS}"))
        assert (verdict["host"], verdict["ok"], verdict["resources"]["nvidia.com/gpu"]["allocatable"]) == (
            node,
            True,
            2,
        )


def test_kubeadms_config_map_loses_the_gate_and_nothing_else(lab):
    live = json.loads(
        lab.kubectl("get", "configmap", "-n", "kube-system", "kubelet-config-1.20", "-o", "json")
    )
    assert live["data"] == {
        "kubelet": KUBELET_CONFIG.replace("  DevicePlugins: true\n", ""),
        "other": "kept\n",
    }
    for field in ("labels", "annotations"):
        assert CONFIG_MAP["metadata"][field].items() <= live["metadata"][field].items()
    assert yaml.safe_load(live["data"]["kubelet"])["featureGates"] == {"RotateKubeletServerCertificate": True}


def test_a_sick_gpu_makes_an_event_and_a_condition_and_a_broken_verdict(lab):
    node = lab.nodes[0]
    wait_until(lambda: lab.condition(node) == "True", "the condition of a healthy node")
    lab.gpu(node, "lose", "1")
    wait_until(lambda: lab.condition(node) == "False", "the condition of a sick node")
    events = wait_until(
        lambda: [e for e in lab.objects("events", "-n", "default") if e["reason"] == "GPUUnhealthy"],
        "an Event",
    )
    assert events[0]["involvedObject"]["name"] == node and "GPU is lost" in events[0]["message"]
    assert lab.condition(lab.nodes[1]) == "True"

    broken = lab.chosen("verify", verify_timeout=5)
    assert broken.returncode != 0
    labels = {one: lab.node(one)["metadata"]["labels"]["gpuops.io/verified"] for one in lab.nodes}
    assert labels == {node: "false", lab.nodes[1]: "true"}
    assert json.loads(lab.inside(node, f"cat {STATUS}"))["ok"] is False

    lab.gpu(node, "restore", "1")
    wait_until(lambda: lab.condition(node) == "True", "the condition of a healthy node")
    wait_until(lab.all_offered, "4 GPUs on offer")


def test_a_node_whose_name_the_api_server_does_not_know_is_broken_and_not_unknown(lab):
    done = lab.chosen(
        "verify",
        "--limit",
        lab.nodes[0],
        verify_label=False,
        verify_timeout=2,
        verify_status_file="",
        node_name="nobody",
    )
    assert done.returncode != 0
    assert 'nodes "nobody" not found' in " ".join(done.stdout.split())


def test_a_node_leaves_the_daemonset_for_a_static_pod_built_elsewhere(lab):
    """The image comes as an archive from the docker node, which this run does not touch otherwise."""
    first, second = lab.nodes
    before = lab.pods()[first]["metadata"]["uid"]
    other = {
        "deployment": "static_pod",
        "image_push": False,
        "image_repository": "gpuops/device-plugin",
        "events": False,
    }
    done = lab.chosen("provision", "--limit", second, **other)
    assert done.returncode == 0, done.stdout[-6000:]
    pods = lab.pods()
    assert pods[second]["metadata"]["name"] == f"gpu-device-plugin-{second}"
    assert pods[first]["metadata"]["uid"] == before
    assert lab.condition(second) is None
    assert [path.suffix for path in (lab.folder / "build").iterdir()] == [".tar"]
    assert lab.taints(second) == [TAINT]
    wait_until(lab.all_offered, "4 GPUs on offer")


def test_back_in_the_daemonset_without_events_and_taint(lab):
    """What an earlier run has set and this one does not want is taken away; somebody's taint stays."""
    done = lab.chosen(
        "provision", events=False, taint=False, image_push=False, image_repository="gpuops/device-plugin"
    )
    assert done.returncode == 0, done.stdout[-6000:]
    first, second = lab.nodes
    assert (lab.taints(first), lab.taints(second)) == ([], [TAINT])
    assert [lab.condition(node) for node in lab.nodes] == [None, None]
    assert lab.kubectl("get", "clusterrole,clusterrolebinding", "-o", "name").count("gpu-device-plugin") == 0
    assert "serviceaccount/gpu-device-plugin" not in lab.kubectl(
        "get", "serviceaccount", "-n", "kube-system", "-o", "name"
    )
    assert sorted(lab.pods()) == lab.nodes
    again = lab.chosen(
        "provision", events=False, taint=False, image_push=False, image_repository="gpuops/device-plugin"
    )
    assert (again.returncode, changed(again)) == (0, []), again.stdout[-6000:]


def test_remove_leaves_the_cluster_and_every_file_of_its_nodes_as_they_were(lab):
    done = lab.chosen("provision")
    assert done.returncode == 0, done.stdout[-6000:]
    wait_until(lambda: lab.condition(lab.nodes[0]) == "True", "the condition")
    done = lab.chosen("remove")
    assert done.returncode == 0, done.stdout[-6000:]
    # The images of an earlier choice have a name by which this one's removal does not know them.
    script = (ROOT / "roles/device_plugin/files/remove-images.sh").read_text()
    for node in lab.nodes:
        lab.inside(node, f"set -- gpuops/device-plugin remove\n{script}")
    for node in lab.nodes:
        about = lab.node(node)
        assert [name for name in about["metadata"]["labels"] if "gpuops" in name or "nvidia" in name] == []
        assert [name for name in about["metadata"].get("annotations", {}) if "gpuops" in name] == []
        assert lab.condition(node) is None
        assert lab.inside(node, f"ls {STATUS} /etc/gpu-device-plugin 2>/dev/null || true") == ""
    assert [lab.taints(node) for node in lab.nodes] == [[], [TAINT]]
    kinds = "daemonset,configmap,role,rolebinding,serviceaccount,clusterrole,clusterrolebinding"
    assert "gpu-device-plugin" not in lab.kubectl("get", kinds, "-n", "kube-system", "-o", "name")
    again = lab.chosen("remove")
    assert (again.returncode, changed(again)) == (0, []), again.stdout[-6000:]
    different = {node: lab.changes(node) for node in lab.nodes}
    assert [line for lines in different.values() for line in lines if line.split()[1] not in BUILDER] == [], (
        different
    )


def test_another_plugins_daemonset_is_refused_and_taken_over_when_asked(lab):
    where = lab.choices["device_plugin_image_repository"]
    tags = lab.inside(
        f"{lab.name}-control", "curl -sf http://127.0.0.1:5000/v2/gpuops/device-plugin/tags/list"
    )
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(other_plugin(f"{where}:{json.loads(tags)['tags'][0]}")))
    wait_until(lab.all_offered, "4 GPUs on offer by the other plugin", 180)
    refused = lab.chosen("provision", taint=False)
    assert (refused.returncode != 0, changed(refused)) == (True, []), refused.stdout[-6000:]
    assert "nvidia-gpu.sock already hands out these GPUs" in " ".join(refused.stdout.split())
    assert lab.all_offered()

    taken = lab.chosen("provision", taint=False, takeover=True)
    assert taken.returncode == 0, taken.stdout[-6000:]
    assert "nvidia-device-plugin" not in lab.kubectl("get", "daemonset", "-n", "kube-system", "-o", "name")
    assert sorted(lab.pods()) == lab.nodes
    wait_until(lab.all_offered, "4 GPUs on offer by ours")
