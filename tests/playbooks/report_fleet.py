"""A fleet for the report's tests and for its pictures in docs/: what report.yml has gathered of nine nodes.

The shapes are those of gpu_info, device_plugin_info and the plugin's status; the numbers are made up. `hostile_fleet`
holds names and reasons that try to be markup.
"""

from __future__ import annotations

import uuid
from typing import Any

H100, A100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S"
XID_79 = (
    "XID 79 (GPU has fallen off the bus): reset the GPU (nvidia-smi --gpu-reset) or reboot the node; "
    "if it returns, replace the GPU"
)
VERSIONS = {"kubelet": "1.30.4", "containerd": "1.7.22", "container toolkit": "1.18.0"}
RUNTIME_FILES = [
    "/etc/containerd/config.toml",
    "/etc/nvidia-container-runtime/config.toml",
    "/etc/systemd/system/containerd.service.d/10-gpuops.conf",
]


def gpu_uuid(host: str, index: int) -> str:
    """The same for each run, so that pictures differ only where the page does."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{host}/{index}')}"


def device(host: str, gpu: int, model: str, holder: str = "", fault: str = "", **more: Any) -> dict[str, Any]:
    """One device of a resource; ``holder`` is NAMESPACE/POD."""
    namespace, _, pod = holder.partition("/")
    found = {
        "id": gpu_uuid(host, gpu),
        "index": str(gpu),
        "uuid": gpu_uuid(host, gpu),
        "gpu": gpu_uuid(host, gpu),
        "model": model,
        "healthy": not fault,
        "reason": fault or None,
        "replica": None,
        "holder": {"namespace": namespace, "pod": pod, "container": "main"} if holder else None,
    }
    return {**found, **more}


def node(
    name: str,
    model: str,
    count: int = 8,
    resources: dict[str, list[dict[str, Any]]] | None = None,
    faults: dict[int, str] | None = None,
    offered: dict[str, Any] | None = None,
    outcome: dict[str, Any] | None = None,
    cordoned: bool = False,
    plugin: str = "0.1.0",
    driver: str = "570.133.20",
    **more: Any,
) -> dict[str, Any]:
    """One node as playbooks/vars/report.yml puts it together."""
    resources, faults = resources or {}, faults or {}
    counts = {
        resource: {
            "registered": len(devices),
            "healthy": sum(one["healthy"] for one in devices),
            "allocatable": sum(one["healthy"] for one in devices),
            "expected": len(devices),
        }
        for resource, devices in resources.items()
    }
    status: dict[str, Any] = {}
    if plugin:
        status = {
            "version": plugin,
            "gpus": [
                {"uuid": gpu_uuid(name, index), "index": index, "reason": faults.get(index)}
                for index in range(count)
            ],
            "resources": [
                {"name": resource, "problem": None, "devices": devices}
                for resource, devices in resources.items()
            ],
            "problems": [],
        }
    return {
        "host": name,
        "name": name,
        "reachable": True,
        "facts": {"distribution": "Ubuntu", "distribution_version": "22.04", "kernel": "5.15.0-122-generic"},
        "gpus": {
            "driver_version": driver,
            "cuda_version": "12.8",
            "gpus": [
                {"uuid": gpu_uuid(name, index), "index": index, "name": model} for index in range(count)
            ],
            "problems": [],
            "broken_link": None,
        },
        "offered": {"resources": counts, "broken_link": None, **(offered or {})},
        "versions": VERSIONS,
        "default_runtime": "nvidia",
        "status": status,
        "object": {
            "spec": {"unschedulable": True} if cordoned else {},
            "status": {
                "allocatable": {resource: str(one["allocatable"]) for resource, one in counts.items()},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        "outcome": outcome or {},
        **more,
    }


def gpus(host: str, model: str, holders: list[str], faults: dict[int, str] | None = None) -> dict[str, Any]:
    """The resource nvidia.com/gpu with one device a holder ("" is free)."""
    faults = faults or {}
    return {
        "nvidia.com/gpu": [
            device(host, index, model, who, faults.get(index, "")) for index, who in enumerate(holders)
        ]
    }


def fleet() -> list[dict[str, Any]]:
    """A training cluster in the middle of a rollout."""
    done = {"state": "provisioned", "failed": False, "files": RUNTIME_FILES, "reason": ""}
    same = {"state": "unchanged", "failed": False, "files": [], "reason": ""}
    undone = {
        "state": "rolled back, cordoned",
        "failed": True,
        "files": RUNTIME_FILES[:2],
        "reason": "verify: expected 8 nvidia.com/gpu, the node offers 0: no kubelet answers at http://127.0.0.1:10248/healthz",
    }
    pretrain = [f"research/llama-pretrain-worker-{index}" for index in range(4)]
    slices = [
        device(
            "gpu-a100-01", 7, A100, "notebooks/jupyter-ana" if part < 2 else "", "",
            id=f"MIG-{part}", uuid=f"MIG-{part}", index=f"7:{part}",
        )
        for part in range(3)
    ]  # fmt: skip
    shares = [
        device(
            "gpu-l40s-01", index, L40S, f"inference/embed-{index}-{copy}" if copy < 3 + index else "", "",
            id=f"{gpu_uuid('gpu-l40s-01', index)}::{copy}", replica=copy,
        )
        for index in range(2)
        for copy in range(8)
    ]  # fmt: skip
    sick = {3: XID_79}
    return [
        node("gpu-h100-01", H100, resources=gpus("gpu-h100-01", H100, [pretrain[0]] * 8), outcome=done),
        node("gpu-h100-02", H100, resources=gpus("gpu-h100-02", H100, [pretrain[1]] * 8), outcome=done),
        node(
            "gpu-h100-03",
            H100,
            resources=gpus("gpu-h100-03", H100, [pretrain[2]] * 3 + [""] + ["research/eval-mmlu"] * 2 + [""] * 2, sick),
            faults=sick,
            outcome=same,
            offered={
                "broken_link": "healthy",
                "reason": f"1 of 8 nvidia.com/gpu: {gpu_uuid('gpu-h100-03', 3)}: {XID_79}",
                "next_step": "run `gpu-device-plugin status` on the node; drain it, then reset the GPU or reboot",
            },
        ),
        node(
            "gpu-a100-01",
            A100,
            resources={
                "nvidia.com/gpu": [
                    device("gpu-a100-01", index, A100, "research/finetune-7b" if index < 4 else "")
                    for index in range(7)
                ],
                "nvidia.com/mig-2g.20gb": slices,
            },
            outcome=same,
        ),
        node("gpu-a100-02", A100, resources=gpus("gpu-a100-02", A100, [""] * 8), outcome=same, driver="550.127.05"),
        node(
            "gpu-a100-03",
            A100,
            plugin="",
            cordoned=True,
            outcome=undone,
            offered={
                "broken_link": "kubelet",
                "reason": "no kubelet answers at http://127.0.0.1:10248/healthz: connection refused",
                "next_step": "systemctl status kubelet; journalctl -u kubelet -n 50",
            },
        ),
        node("gpu-l40s-01", L40S, count=2, resources={"nvidia.com/gpu.shared": shares}, outcome=done),
        node(
            "gpu-l40s-02",
            L40S,
            count=2,
            resources=gpus("gpu-l40s-02", L40S, ["inference/rerank-5d8f7c9b4-x2x7p", ""]),
            outcome=same,
        ),
        {"host": "gpu-l40s-03", "name": "gpu-l40s-03", "reachable": False},
    ]  # fmt: skip


def pending() -> list[dict[str, Any]]:
    """Two pods that the scheduler could not place."""
    return [
        pod("research", "llama-pretrain-worker-3", 8,
            "0/9 nodes are available: 8 Insufficient nvidia.com/gpu, 1 node(s) were unschedulable."),
        pod("notebooks", "jupyter-bo", 4, "0/9 nodes are available: 9 Insufficient nvidia.com/gpu."),
    ]  # fmt: skip


def pod(namespace: str, name: str, wants: int, message: str) -> dict[str, Any]:
    """A pending pod as the API server gives it."""
    return {
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": str(wants)}}}]},
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": message}],
        },
    }


def refused() -> list[dict[str, Any]]:
    """What playbooks/vars/report.yml makes of an API server that is away."""
    said = "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
    same = {"by": "control-1", "answered": False, "reached": True, "words": said}
    return [
        {"asked": asked, "command": f"kubectl get {asked} -o json", **same} for asked in ("nodes", "pods")
    ]


# Each tries another place: text, attribute, link, style, a template's own marks, and a word without a place to break.
HOSTILE = [
    "<script>document.title='taken'</script>",
    '"onmouseover="document.title=\'taken\'" x="',
    "'><img src=http://evil.test/x.png onerror=document.title='taken'>",
    "javascript:document.title='taken'",
    "{{ 7 * 191 }}{% raw %}",
    "</style><style>*{display:none}</style>",
    "n" * 253,
]


def hostile_fleet() -> list[dict[str, Any]]:
    """Every text that comes from a node, a pod or a program, as an attacker would have it."""
    return [
        node(
            text,
            text,
            2,
            resources={
                text: [
                    device(text, 0, text, f"{text}/{text}", text, index=text),
                    device(text, 1, text, f"{text}/{text}"),
                ]
            },
            faults={0: text},
            offered={"broken_link": text, "reason": text, "next_step": text},
            outcome={"state": text, "failed": True, "files": [text], "reason": text},
            plugin=text,
            driver=text,
            versions={text: text},
            default_runtime=text,
            facts={"distribution": text, "distribution_version": text, "kernel": text},
        )
        for text in HOSTILE
    ]
