"""A container runtime that runs nothing: a real kubelet admits and "starts" pods on it in milliseconds.

It keeps what the kubelet wanted each container to have, which is what the device manager made of the plugin's answer.
"""

from __future__ import annotations

import importlib.util
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc


def compile_messages(package: str) -> ModuleType:
    """cri.proto's messages under ``runtime.v1alpha2`` or ``runtime.v1``."""
    text = (
        (Path(__file__).parent / "cri.proto")
        .read_text()
        .replace("package runtime.v1alpha2", f"package {package}")
    )
    with tempfile.TemporaryDirectory() as directory:
        name = f"cri_{package.rpartition('.')[2]}"
        (Path(directory) / f"{name}.proto").write_text(text)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{directory}",
                f"--python_out={directory}",
                f"{name}.proto",
            ],
            check=True,
        )
        spec = importlib.util.spec_from_file_location(f"{name}_pb2", Path(directory) / f"{name}_pb2.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class FakeRuntime:
    """Serves RuntimeService and ImageService on a socket."""

    def __init__(self, socket: Path, package: str = "runtime.v1alpha2") -> None:
        self.messages = compile_messages(package)
        self.sandboxes: dict[str, Any] = {}
        self.containers: dict[str, Any] = {}
        """id -> ContainerStatus"""
        self.configs: dict[str, Any] = {}
        """id -> ContainerConfig, as the kubelet sent it"""
        self._of: dict[str, str] = {}
        self._lock = threading.RLock()
        pb = self.messages
        empty = pb.Empty
        runtime = {
            "Version": (empty, lambda _: pb.VersionResponse(
                version="0.1.0", runtime_name="fake", runtime_version="1.0.0", runtime_api_version="v1alpha2")),
            "Status": (empty, lambda _: pb.StatusResponse(status=pb.RuntimeStatus(conditions=[
                pb.RuntimeCondition(type=kind, status=True) for kind in ("RuntimeReady", "NetworkReady")]))),
            "UpdateRuntimeConfig": (empty, lambda _: empty()),
            "RunPodSandbox": (pb.RunPodSandboxRequest, self._run_sandbox),
            "StopPodSandbox": (pb.PodSandboxId, self._stop_sandbox),
            "RemovePodSandbox": (pb.PodSandboxId, self._remove_sandbox),
            "PodSandboxStatus": (pb.PodSandboxId, self._sandbox_status),
            "ListPodSandbox": (pb.ListPodSandboxRequest, self._list_sandboxes),
            "CreateContainer": (pb.CreateContainerRequest, self._create),
            "StartContainer": (pb.ContainerId, self._start),
            "StopContainer": (pb.ContainerId, lambda r: self.exit_container(r.container_id, 137) or empty()),
            "RemoveContainer": (pb.ContainerId, self._remove),
            "ListContainers": (pb.ListContainersRequest, self._list),
            "ContainerStatus": (pb.ContainerId, self._status),
            "UpdateContainerResources": (empty, lambda _: empty()),
            "ListContainerStats": (empty, lambda _: empty()),
            "ReopenContainerLog": (empty, lambda _: empty()),
        }  # fmt: skip
        image = {
            "ListImages": (empty, lambda _: pb.ListImagesResponse()),
            "ImageStatus": (pb.ImageStatusRequest, lambda r: pb.ImageStatusResponse(image=pb.Image(
                id=f"sha256:{r.image.image}", repo_tags=[r.image.image], size=1, uid=pb.Int64Value(value=0)))),
            "PullImage": (pb.ImageStatusRequest, lambda r: pb.PullImageResponse(image_ref=r.image.image)),
            "RemoveImage": (empty, lambda _: empty()),
            "ImageFsInfo": (empty, lambda _: pb.ImageFsInfoResponse(image_filesystems=[pb.FilesystemUsage(
                timestamp=time.time_ns(), fs_id=pb.FilesystemIdentifier(mountpoint="/"),
                used_bytes=pb.UInt64Value(value=1), inodes_used=pb.UInt64Value(value=1))])),
        }  # fmt: skip
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        for service, methods in (("RuntimeService", runtime), ("ImageService", image)):
            handlers = {name: self._handler(*method) for name, method in methods.items()}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"{package}.{service}", handlers),)
            )
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def stop(self) -> None:
        """Close the socket."""
        self._server.stop(None).wait(5)

    def container_of(self, pod: str) -> str | None:
        """Id of the newest container of the pod with that name."""
        with self._lock:
            for identity, sandbox in reversed(self._of.items()):
                status = self.sandboxes.get(sandbox)
                if status is not None and status.metadata.name == pod:
                    return identity
        return None

    def exit_container(self, identity: str, code: int = 1) -> None:
        """Its process ended."""
        with self._lock:
            status = self.containers.get(identity)
            if status is not None and status.state != self.messages.CONTAINER_EXITED:
                status.state = self.messages.CONTAINER_EXITED
                status.finished_at = time.time_ns()
                status.exit_code = code

    def _handler(self, request: Any, function: Any) -> Any:
        def call(message: Any, context: grpc.ServicerContext) -> Any:
            try:
                with self._lock:
                    return function(message)
            except KeyError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no {error}")

        return grpc.unary_unary_rpc_method_handler(call, request.FromString, lambda m: m.SerializeToString())

    def _run_sandbox(self, request: Any) -> Any:
        identity = secrets.token_hex(8)
        config = request.config
        self.sandboxes[identity] = self.messages.PodSandboxStatus(
            id=identity, metadata=config.metadata, created_at=time.time_ns(), labels=config.labels,
            annotations=config.annotations, network={"ip": "10.0.0.1"},
        )  # fmt: skip
        return self.messages.PodSandboxId(pod_sandbox_id=identity)

    def _stop_sandbox(self, request: Any) -> Any:
        if request.pod_sandbox_id in self.sandboxes:
            self.sandboxes[request.pod_sandbox_id].state = self.messages.SANDBOX_NOTREADY
            for identity, sandbox in self._of.items():
                if sandbox == request.pod_sandbox_id:
                    self.exit_container(identity, 137)
        return self.messages.Empty()

    def _remove_sandbox(self, request: Any) -> Any:
        self.sandboxes.pop(request.pod_sandbox_id, None)
        return self.messages.Empty()

    def _sandbox_status(self, request: Any) -> Any:
        return self.messages.PodSandboxStatusResponse(status=self.sandboxes[request.pod_sandbox_id])

    def _list_sandboxes(self, request: Any) -> Any:
        wanted = request.filter
        return self.messages.ListPodSandboxResponse(items=[
            self.messages.PodSandbox(
                id=s.id, metadata=s.metadata, state=s.state, created_at=s.created_at, labels=s.labels,
                annotations=s.annotations)
            for s in self.sandboxes.values()
            if wanted.id in ("", s.id) and wanted.label_selector.items() <= s.labels.items()
            and (not wanted.HasField("state") or wanted.state.state == s.state)
        ])  # fmt: skip

    def _create(self, request: Any) -> Any:
        identity = secrets.token_hex(8)
        config = request.config
        self._of[identity] = request.pod_sandbox_id
        self.configs[identity] = config
        self.containers[identity] = self.messages.ContainerStatus(
            id=identity, metadata=config.metadata, created_at=time.time_ns(), image=config.image,
            image_ref=f"sha256:{config.image.image}", labels=config.labels, annotations=config.annotations,
        )  # fmt: skip
        return self.messages.ContainerId(container_id=identity)

    def _start(self, request: Any) -> Any:
        status = self.containers[request.container_id]
        status.state, status.started_at = self.messages.CONTAINER_RUNNING, time.time_ns()
        return self.messages.Empty()

    def _remove(self, request: Any) -> Any:
        for table in (self.containers, self.configs, self._of):
            table.pop(request.container_id, None)
        return self.messages.Empty()

    def _list(self, request: Any) -> Any:
        wanted = request.filter
        return self.messages.ListContainersResponse(containers=[
            self.messages.Container(
                id=c.id, pod_sandbox_id=self._of[c.id], metadata=c.metadata, image=c.image, image_ref=c.image_ref,
                state=c.state, created_at=c.created_at, labels=c.labels, annotations=c.annotations)
            for c in self.containers.values()
            if wanted.id in ("", c.id) and wanted.pod_sandbox_id in ("", self._of[c.id])
            and wanted.label_selector.items() <= c.labels.items()
            and (not wanted.HasField("state") or wanted.state.state == c.state)
        ])  # fmt: skip

    def _status(self, request: Any) -> Any:
        return self.messages.ContainerStatusResponse(status=self.containers[request.container_id])
