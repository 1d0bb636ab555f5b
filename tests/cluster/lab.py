"""A cluster for tests: started once, provisioned by the playbooks, asked through kubectl."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tests/testbed/cluster/cluster"
TESTBED = ROOT / "tests/testbed/testbed"
TREES = ROOT / "tests/testbed/trees.py"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
GPU = "nvidia.com/gpu"
PLUGIN = ("-n", "kube-system", "-l", "app.kubernetes.io/name=gpu-device-plugin")
REJECTED = ("UnexpectedAdmissionError", "OutOfnvidia.com/gpu")  # by a kubelet that has no plugin (K13)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 90.0, every: float = 0.25) -> Any:
    """The first true answer of ``condition``; AssertionError with ``what`` when time is up."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(every)


class Lab:
    """One cluster by its name; nodes are ``NAME-a``, ``NAME-b``, ``NAME-c``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.nodes = [f"{name}-{letter}" for letter in "abc"]
        self.inventory = folder / "inventory.yml"
        self.expected = dict.fromkeys(self.nodes, 8)
        self.plays = 0

    def up(self) -> None:
        self._run(CLUSTER, "down", self.name)
        done = self._run(CLUSTER, "up", self.name)
        assert done.returncode == 0, done.stderr
        self.write_inventory()

    def write_inventory(self) -> None:
        """For the playbooks; pods of the test cluster have no other network than the host's."""
        text = self._run(CLUSTER, "inventory", self.name).stdout
        self.inventory.write_text(
            text.replace("  vars:\n", "  vars:\n    device_plugin_host_network: true\n", 1)
        )

    def down(self) -> None:
        self._run(CLUSTER, "down", self.name)

    def logs(self) -> str:
        """The end of each component's log: a failing test prints it."""
        return self._run(CLUSTER, "logs", self.name, "--lines", "40").stdout

    def kubeconfig(self) -> str:
        """The administrator's, on this machine."""
        return self._run(CLUSTER, "kubeconfig", self.name).stdout.strip()

    def collections(self) -> str:
        """Where the collection is installed; GPUOPS_COLLECTIONS names another copy than this checkout's."""
        given = os.environ.get("GPUOPS_COLLECTIONS")
        return given or self._run(ROOT / "tests/tools/collection").stdout.strip()

    def play(
        self, playbook: str, *arguments: str, collections: str | Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the collection."""
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections or self.collections()),
            "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "ANSIBLE_HOST_KEY_CHECKING": "false",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "1",
        }
        words = [str(PLAYBOOK), f"gpuops.k8s.{playbook}", "-i", str(self.inventory), *arguments]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        self.plays += 1
        (self.folder / f"{self.plays:02}-{playbook}.log").write_text(done.stdout + done.stderr)
        return done

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        done = self._run(CLUSTER, "kubectl", self.name, "--", *arguments, stdin=stdin)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def apply(self, version: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        """An object in the namespace `default`."""
        whole = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(whole))

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """``kubectl get ... -o json``; [] while the API server is away."""
        text = self.kubectl("get", *arguments, "-o", "json", check=False)
        return json.loads(text)["items"] if text else []

    def offered(self) -> dict[str, int]:
        """Node -> allocatable GPUs."""
        nodes = self.objects("nodes")
        return {n["metadata"]["name"]: int(n["status"].get("allocatable", {}).get(GPU, 0)) for n in nodes}

    def all_offered(self) -> bool:
        return self.offered() == self.expected

    def hands_out(self, node: str, gpus: int, timeout: float = 180.0) -> None:
        """A pod made now that asks for ``gpus`` runs on the node and sees that many.

        A node's status may be of before; this can't be. A kubelet that is back before its plugin rejects a pod for good
        (K13), so another one asks again, as a Deployment's would.
        """
        name, deadline = f"proof-{node}", time.monotonic() + timeout
        text = json.dumps(pod(name, gpus, script=":", node=node))
        self.kubectl("apply", "-f", "-", stdin=text)
        while True:
            status = json.loads(self.kubectl("get", "pod", name, "-o", "json"))["status"]
            if status["phase"] == "Succeeded":
                break
            assert time.monotonic() < deadline, f"{gpus} GPUs of {node}: not within {timeout:g} s; {status}"
            if status["phase"] == "Failed":
                assert status.get("reason") in REJECTED, status
                self.kubectl("delete", "pod", name, "--wait=true", "--timeout=60s")
                self.kubectl("apply", "-f", "-", stdin=text)
            time.sleep(0.25)
        told = status["containerStatuses"][0]["state"]["terminated"].get("message", "")
        assert len(set(re.findall(r"/dev/nvidia\d+", told))) == gpus, f"{name} asked for {gpus}, saw {told!r}"
        self.kubectl("delete", "pod", name, "--wait=true", "--timeout=60s")

    def hands_out_all(self, held: dict[str, int] | None = None, timeout: float = 180.0) -> None:
        """Every node has all its GPUs for new pods, but those ``held`` (node -> GPUs) by running ones."""
        with ThreadPoolExecutor() as pool:
            asks = [
                pool.submit(self.hands_out, node, self.expected[node] - (held or {}).get(node, 0), timeout)
                for node in self.nodes
            ]
            for ask in asks:
                ask.result()

    def cordoned(self) -> list[str]:
        return [n["metadata"]["name"] for n in self.objects("nodes") if n["spec"].get("unschedulable")]

    def inside(self, node: str, script: str, check: bool = True) -> str:
        """A shell script in a node's container."""
        done = self._run("docker", "exec", "-i", f"gpuops-{node}", "sh", "-s", stdin=script)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def gpu(self, node: str, *verb: str) -> None:
        """Steer a node's GPUs: `testbed gpu`."""
        done = self._run(TESTBED, "gpu", node, *verb)
        assert done.returncode == 0, done.stderr

    def keep_tree(self, node: str) -> None:
        """Remember every file, package, unit and image of a node."""
        self._run("docker", "cp", TREES, f"gpuops-{node}:/var/log/trees.py")  # a place that is not compared
        self.inside(node, "python3 /var/log/trees.py save /var/log/tree.json")

    def changes(self, node: str) -> list[str]:
        """What of that is different now, a line each; trees.py has what may differ, and why."""
        said = self.inside(node, "python3 /var/log/trees.py compare /var/log/tree.json || test $? = 1")
        return [line for line in said.splitlines() if line[:2] in ("- ", "+ ", "~ ")]

    def api(self, action: str) -> None:
        done = self._run(CLUSTER, "api", self.name, action)
        assert done.returncode == 0, done.stderr

    @staticmethod
    def _run(*words: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, words)], input=stdin, capture_output=True, text=True, check=False)


def pod(name: str, gpus: int, script: str = "exec sleep 1000000", node: str | None = None) -> dict[str, Any]:
    """A pod on the host's network (the test cluster has no other); tells its GPUs in its termination message."""
    spec: dict[str, Any] = {
        "hostNetwork": True,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "main",
                "image": "gpuops/workload:1",
                "imagePullPolicy": "Never",
                "command": [
                    "sh",
                    "-c",
                    f"{{ ls -d /dev/nvidia[0-9]* | tr '\\n' ' '; {script}; }} > /dev/termination-log",
                ],
                "resources": {"limits": {GPU: gpus}},
            }
        ],
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
