"""A real kubelet on this machine: its own mount namespace, a runtime that runs nothing, static pods, no API server.

It needs root and a binary: KUBERNETES_BIN_DIR/kubelet, or the one that tests/testbed/kubernetes/build.sh left in the
cache. It touches no cgroup, no iptables, and no address but 127.0.0.1; its /var/lib/kubelet is a directory of ours.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_cri import FakeRuntime
from fake_plugin import wait_until
from kubelet_nodes import Node, PodOutcome

CACHE = Path(os.environ.get("GPUOPS_CACHE", Path.home() / ".cache/gpuops"))
DEFAULT_ROOT = Path("/var/lib/kubelet")


def binary() -> Path | None:
    """The kubelet to test."""
    named = os.environ.get("KUBERNETES_BIN_DIR")
    for directory in [Path(named)] if named else sorted(CACHE.glob("kubernetes-*/bin")):
        if os.access(directory / "kubelet", os.X_OK):
            return directory / "kubelet"
    return None


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """Ports on 127.0.0.1 that nobody has: several suites may run beside each other, and a node has the usual ones."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in names:
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            ports[name] = server.getsockname()[1]
    return ports


def why_not() -> str:
    """Why there is no real kubelet here; empty when there is one."""
    if binary() is None:
        return "no binary (set KUBERNETES_BIN_DIR, or run tests/testbed/kubernetes/build.sh)"
    if os.geteuid() != 0:
        return "not root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        return "no mount namespaces here (unshare --mount)"
    return ""


def need_one() -> None:
    """Skip the test where there is no real kubelet; fail it where GPUOPS_REAL_KUBELET says `required`."""
    reason = why_not()
    if reason:
        required = os.environ.get("GPUOPS_REAL_KUBELET") == "required"
        (pytest.fail if required else pytest.skip)(f"no real kubelet: {reason}")


class RealNode(Node):
    """The binary, with static pods."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        found = binary()
        assert found is not None
        self._binary = os.path.abspath(found)
        text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = re.sub(r"^Kubernetes v", "", text.strip()).partition("-")[0]
        self.name = f"real-{self.version}"
        self._static = self.base / "static"
        self._static.mkdir()
        self._empty = self.base / "empty"
        self._empty.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = free_ports(("port", "read_only", "healthz"))
        self._names: dict[str, str] = {}
        """A case's name for a pod -> the pod's own: no two pods ever share one, however slowly the first goes."""
        self.log = self.base / "kubelet.log"
        minor = int(self.version.split(".")[1])
        self._remote = minor < 27
        self._runtime = FakeRuntime(
            self.base / "cri.sock", "runtime.v1alpha2" if minor < 26 else "runtime.v1"
        )

    def start(self, *, gate: bool = True, root_dir: Path | None = None) -> None:
        minor = int(self.version.split(".")[1])
        config: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "127.0.0.1",
            "port": self._ports["port"],
            "readOnlyPort": self._ports["read_only"],
            "healthzPort": self._ports["healthz"],
            "staticPodPath": str(self._static),
            "fileCheckFrequency": "1s",
            "syncFrequency": "1s",
            "nodeStatusUpdateFrequency": "1s",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%"},
            "featureGates": {"DevicePlugins": False} if not gate else {},
        }
        if minor >= 31:
            config["failCgroupV1"] = False
        file = self.base / "config.json"
        file.write_text(json.dumps(config))
        cri = f"unix://{self.base / 'cri.sock'}"
        flags = [f"--config={file}", f"--container-runtime-endpoint={cri}", "--hostname-override=conformance"]
        if self._remote:
            flags += ["--container-runtime=remote", f"--image-service-endpoint={cri}"]
        if root_dir is not None:
            flags.append(f"--root-dir={root_dir}")
        DEFAULT_ROOT.mkdir(exist_ok=True)
        self.started_at = time.time_ns()
        script = f'mount --bind "$1" {DEFAULT_ROOT}; shift; exec "$@"'
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh",
                 str(self.root_dir), self._binary, *flags],
                # Kubelet 1.20 has deleted files where it runs.
                cwd=self._empty, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "AWS_EC2_METADATA_DISABLED": "true"},
            )  # fmt: skip
        if gate:
            before = self._sock()
            wait_until(
                lambda: self._sock() not in (None, before) or not self.alive(), 30, "kubelet.sock made anew"
            )
        wait_until(lambda: self._get("healthz", "/healthz") == "ok" or not self.alive(), 30, "healthz")
        wait_until(
            lambda: ((root_dir or self.root_dir) / "pod-resources/kubelet.sock").exists() or not self.alive(),
            30,
        )
        if not self.alive():
            lines = self.log.read_text().splitlines()
            fatal = [
                line for line in lines if re.match(r"F\d{4} |panic|fatal error|E\d{4} .*command failed", line)
            ]
            raise RuntimeError(f"the kubelet ended: {fatal[-1] if fatal else lines[-5:]}")

    def _sock(self) -> tuple[int, int] | None:
        try:
            status = self.kubelet_sock.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_ctime_ns

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(15)
        self._process = None

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        super().close()
        self._runtime.stop()

    def run_pod(self, name: str, limits: dict[str, int]) -> PodOutcome:
        own = f"{name}-{next(self._numbers)}"
        self._names[name] = f"{own}-conformance"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": own, "namespace": "default"},
            "spec": {
                "hostNetwork": True,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "main",
                        "image": "fake:1",
                        "imagePullPolicy": "Never",
                        "resources": {"limits": {key: str(value) for key, value in limits.items()}},
                    }
                ],
            },
        }
        temporary = self._static / f".{own}"
        temporary.write_text(json.dumps(pod))
        temporary.rename(self._static / f"{own}.json")
        try:
            return wait_until(lambda: self._outcome(name), 20, f"an answer to pod {name}")
        except TimeoutError as error:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])
            raise TimeoutError(f"{error}; the kubelet's log:\n{tail}") from None

    def _outcome(self, name: str) -> PodOutcome | None:
        for pod in self._pods():
            if pod["metadata"]["name"] == self._names[name] and pod["status"].get("phase") == "Failed":
                status = pod["status"]
                return PodOutcome(False, f"{status.get('reason', '')}: {status.get('message', '')}")
        identity = self._runtime.container_of(self._names[name])
        if (
            identity is None
            or self._runtime.containers[identity].state != self._runtime.messages.CONTAINER_RUNNING
        ):
            return None
        config = self._runtime.configs[identity]
        own = ("/etc/hosts", "/dev/termination-log", "/var/run/secrets/kubernetes.io/serviceaccount")
        return PodOutcome(
            True,
            envs={item.key: item.value for item in config.envs},
            devices=tuple((d.container_path, d.host_path, d.permissions) for d in config.devices),
            mounts=tuple(
                (m.container_path, m.host_path, m.readonly)
                for m in config.mounts
                if m.container_path not in own
            ),
            annotations={k: v for k, v in config.annotations.items() if "io.kubernetes" not in k},
            cdi=tuple(d.name for d in config.CDI_devices),
        )

    def remove_pod(self, name: str) -> None:
        own = self._names.get(name)
        if own is None:
            return
        (self._static / f"{own.removesuffix('-conformance')}.json").unlink(missing_ok=True)
        wait_until(
            lambda: own not in {pod["metadata"]["name"] for pod in self._pods()}, 20, f"pod {name} to go"
        )

    def pod_name(self, name: str) -> str:
        return self._names.get(name, name)

    def _pods(self) -> list[dict[str, Any]]:
        return list(json.loads(self._get("read_only", "/pods") or "{}").get("items") or ())

    def restart_container(self, name: str) -> None:
        identity = self._runtime.container_of(self._names[name])
        assert identity is not None
        self._runtime.exit_container(identity)
        wait_until(
            lambda: self._runtime.container_of(self._names[name]) not in (None, identity),
            40,
            f"{name} to be started again",
        )

    def registrations_counted(self, resource: str) -> int:
        text = self._get("read_only", "/metrics") or ""
        found = re.search(
            rf'^kubelet_device_plugin_registration_total{{resource_name="{re.escape(resource)}"}} (\d+)',
            text,
            re.M,
        )
        return int(found[1]) if found else 0

    def _get(self, port: str, path: str) -> str | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._ports[port]}{path}", timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            return None
