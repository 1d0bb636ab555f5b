"""The machine that each example of a changing module meets: files at real paths, engines, a kubelet, an API server.

`enter.sh` runs a command where /etc is a copy, /run and /var/lib are empty, the network is a loopback of its own and
systemctl, kubelet and kubectl are programs of this file: nothing of the machine that runs the tests is touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "files/plugin/deploy"
PLACES = "/etc /var/lib /run"
"""Where a module may write; and the API server's store."""

ENTER = """#!/bin/sh -e
# enter.sh SCRATCH COMMAND...: in namespaces of its own (unshare has made them).
scratch=$1; shift
ip link set lo up
mkdir -p "$scratch/etc"
mount -t tmpfs etc "$scratch/etc"
cp -a /etc/. "$scratch/etc/"
mount --bind "$scratch/etc" /etc
for place in /run /var/lib /usr/lib/systemd/system; do
  [ ! -d "$place" ] || mount -t tmpfs empty "$place"
done
rm -rf /etc/docker /etc/containerd /etc/crio /etc/kubernetes /etc/systemd/system/*.service
mkdir -p /etc/kubernetes
: >/etc/kubernetes/admin.conf
"$1" "$scratch/healthz.py" & # the interpreter: first word of the command
exec "$@"
"""
HEALTHZ = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 10248), Answer).serve_forever()
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in
  *--property=ActiveState*) echo active ;;
  show*) printf 'Id=%s\\nLoadState=loaded\\nActiveState=active\\nSubState=running\\nUnitFileState=enabled\\n' "$2" ;;
  is-active*) echo active ;;
  *) echo "$*" >>{log} ;;
esac
"""
KUBELET = "#!/bin/sh\necho Kubernetes v1.20.2\n"
KUBECTL = '#!/bin/sh\nEXAMPLE_STORE={store} exec {python} {program} "$@"\n'

GATE_OFF = (
    "kind: KubeletConfiguration\nfeatureGates:\n  AllAlpha: false # stays\n  DevicePlugins: false\nport: 1\n"
)


@dataclass(frozen=True)
class World:
    """What one example finds, and whether it has something to change."""

    changes: bool
    shell: str = ""
    """Run before the example."""
    prepare: tuple[dict[str, object], ...] = ()
    """Tasks run before the example."""
    objects: tuple[dict[str, object], ...] = ()
    """Added to what the API server holds."""
    proof: str = ""
    """Shell that succeeds after the example and fails before it; {store} and {log} (of systemctl) are files."""


def file(path: str, text: str) -> str:
    """Shell that writes a file."""
    return f"mkdir -p {Path(path).parent}\ncat >{path} <<'TEXT'\n{text}TEXT\n"


def node(**metadata: object) -> dict[str, object]:
    conditions = [{"type": "Ready", "status": "True"}, {"type": "GPUsHealthy", "status": "False"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "gpu-node-1", "uid": "n1", "generation": 1, "labels": {"site": "a"}, **metadata},
        "status": {"conditions": conditions},
    }


def with_image(image: str) -> dict[str, object]:
    return {"spec": {"containers": [{"name": "gpu-device-plugin", "image": image}]}}


OWNER = [{"uid": "d1", "controller": True}]
DAEMONSET: dict[str, object] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "gpu-device-plugin", "namespace": "kube-system", "uid": "d1", "generation": 2},
    "spec": {"selector": {"matchLabels": {"app": "p"}}, "template": with_image("plugin:2")},
    "status": {"observedGeneration": 2},
}
REVISIONS: tuple[dict[str, object], ...] = tuple(
    {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"r{number}",
            "labels": {"controller-revision-hash": f"h{number}"},
            "ownerReferences": OWNER,
        },
        "revision": number,
        "data": {"spec": {"template": with_image(f"plugin:{number}")}},
    }
    for number in (1, 2)
)
POD: dict[str, object] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "gpu-device-plugin-a",
        "labels": {"controller-revision-hash": "h1"},
        "ownerReferences": OWNER,
    },
    "spec": {"nodeName": "gpu-node-1", "containers": [{"name": "gpu-device-plugin", "image": "plugin:1"}]},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {"name": "gpu-device-plugin", "containerID": "c1", "state": {"running": {}}, "ready": True}
        ],
    },
}
OLD_DAEMONSET = {**DAEMONSET, "metadata": {**dict(DAEMONSET["metadata"]), "name": "gpuops-device-plugin"}}  # type: ignore[call-overload]
CONFIG_MAP: dict[str, object] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "kubelet-config", "namespace": "kube-system"},
    "data": {"kubelet": GATE_OFF.replace("false\nport", "true\nport")},
}
DEPLOYED = yaml.safe_dump({
    "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "site", "namespace": "kube-system"},
    "spec": {"selector": {"matchLabels": {"app": "s"}}, "template": with_image("site:1")},
})  # fmt: skip

NVIDIA_CONFIG = "/etc/nvidia-container-runtime/config.toml"
ONE_RESTART = "test $(grep -c '^restart kubelet' {log}) = 1"
WORLDS: dict[str, dict[str, World]] = {
    "container_runtime": {
        "Docker uses the NVIDIA runtime for every container": World(
            True,
            file("/etc/docker/daemon.json", '{\n  "log-driver": "json-file"\n}\n'),
            proof="cd /etc/docker && grep -q json-file daemon.json && grep -q 'default-runtime.*nvidia' daemon.json",
        ),
        "Containerd offers it to pods with the runtime class nvidia, and only to them": World(
            True,
            file("/etc/containerd/config.toml", "version = 2 # the site's\n"),
            proof="cd /etc/containerd && grep -q \"the site's\" config.toml && grep -q BinaryName conf.d/99-nvidia.toml"
            " && ! grep -q default_runtime_name conf.d/99-nvidia.toml",
        ),
        "Take it away again": World(
            True,
            file("/etc/crio/crio.conf", '[crio.runtime]\nconmon = "/usr/bin/conmon"\n'),
            prepare=({"gpuops.k8s.container_runtime": {"engine": "crio"}},),
            proof="test -e /etc/crio/crio.conf && test ! -e /etc/crio/crio.conf.d/99-nvidia.toml",
        ),
    },
    "kubelet_feature_gate": {
        "Let the kubelet offer device plugins, whatever its version": World(
            True,
            file("/var/lib/kubelet/config.yaml", GATE_OFF),
            proof="grep -q 'DevicePlugins: true' /var/lib/kubelet/config.yaml && " + ONE_RESTART,
        ),
        "Before an upgrade to 1.28, take the gate away that would stop the new kubelet": World(
            True,
            file("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true,A=false\n"),
            proof="! grep -q DevicePlugins /etc/default/kubelet /var/lib/kubelet/config.yaml && "
            "grep -q A=false /etc/default/kubelet && grep -q 'false # stays' /var/lib/kubelet/config.yaml && "
            + ONE_RESTART,
        ),
        "Take the gate out of what kubeadm upgrade will write": World(
            True, objects=(CONFIG_MAP,), proof="! grep -q DevicePlugins {store} && grep -q AllAlpha {store}"
        ),
        "Only say where the gate is named": World(
            False, file("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true\n")
        ),
    },
    "kubernetes_manifest": {
        "Deploy a DaemonSet and wait until every node runs it": World(
            True, proof="""grep -q '"name": "site"' {store}"""
        ),
        "Label a node": World(True, objects=(node(),), proof="grep -q gpu.present {store}"),
        "Take away a label of ours and a condition that a removed program has left": World(
            True, proof="! grep -qE 'gpu.present|GPUsHealthy' {store} && grep -q '\"site\": \"a\"' {store}"
        ),
        "See what a change of a file would do": World(
            False, f"mkdir -p /etc/kubernetes/gpu; cp {DEPLOY}/daemonset.yaml /etc/kubernetes/gpu/device-plugin.yaml"
        ),
        "Delete the DaemonSet, and wait until its pods have gone": World(
            True, objects=(OLD_DAEMONSET,), proof="! grep -q gpuops-device-plugin {store}"
        ),
    },
    "daemonset_pod": {
        "Give the node the plugin that the DaemonSet now asks for": World(
            True, objects=(DAEMONSET, *REVISIONS, POD), proof="""grep -q '"containerID": "c1+"' {store}"""
        ),
    },
    "runtime_hardening": {
        "Let no unprivileged container name its GPUs": World(
            True,
            file(NVIDIA_CONFIG, "disable-require = false # the site's\n"),
            proof=f"grep -q \"the site's\" {NVIDIA_CONFIG} && grep -q 'unprivileged = false' {NVIDIA_CONFIG}",
        ),
        "Put back what stood there before": World(
            True, proof=f"printf \"disable-require = false # the site's\\n\" | cmp - {NVIDIA_CONFIG}"
        ),
    },
    "node_snapshot": {
        "Remember docker's configuration": World(
            False,
            file("/etc/docker/daemon.json", '{"log-driver": "json-file"}\n'),
            proof="test -e /var/lib/gpuops/snapshot",
        ),
        "Put it back": World(
            True,
            file("/etc/docker/daemon.json", "{}\n"),
            proof="grep -q json-file /etc/docker/daemon.json",
        ),
        "Make docker read it": World(True, proof="grep -q '^reload docker' {log}"),
    },
}  # fmt: skip


def build(scratch: Path, python: str, templates: Path) -> None:
    """The programs, the store and the entrance below ``scratch``; the examples' templates beside the playbook."""
    programs = scratch / "bin"
    programs.mkdir(parents=True)
    store, log = scratch / "store.json", scratch / "systemctl.log"
    store.write_text("[]")
    log.touch()
    kubectl = KUBECTL.format(
        store=store, python=python, program=Path(__file__).with_name("example_kubectl.py")
    )
    for name, text in (
        ("bin/systemctl", SYSTEMCTL.format(log=log)),
        ("bin/kubelet", KUBELET),
        ("bin/kubectl", kubectl),
        ("enter.sh", ENTER),
    ):
        (scratch / name).write_text(text)
        (scratch / name).chmod(0o755)
    (scratch / "healthz.py").write_text(HEALTHZ)
    templates.mkdir(exist_ok=True)
    (templates / "daemonset.yaml.j2").write_text(DEPLOYED)


def shell_of(world: World, scratch: Path) -> str:
    """Shell that makes this world."""
    add = (
        "import json, sys; path = sys.argv[1]; held = json.load(open(path)) + json.loads(sys.argv[2]); "
        "json.dump(held, open(path, 'w'))"
    )
    objects = json.dumps(world.objects).replace("'", "'\\''")
    lines = [f": >{scratch}/systemctl.log", world.shell]
    lines += [f"python3 -c \"{add}\" {scratch}/store.json '{objects}'"] if world.objects else []
    return "\n".join(lines)


def print_of(scratch: Path) -> str:
    """Shell that prints one word for all that a module may have written."""
    return (
        f"{{ find {PLACES} -xdev ! -type d ! -type s -printf '%p %m %l\\n' -type f -exec sha256sum {{}} + | sort; "
        f"cat {scratch}/store.json; }} | sha256sum"
    )
