"""The generated modules are what the .proto files say, and the wire is the kubelet's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "files/plugin/src"))

from gpu_device_plugin.api import (  # noqa: E402
    deviceplugin_v1beta1_pb2 as dp,
)
from gpu_device_plugin.api import (  # noqa: E402
    pluginregistration_v1_pb2 as reg,
)
from gpu_device_plugin.api import (  # noqa: E402
    podresources_v1_pb2 as pods,
)


def test_generating_again_gives_the_same_files(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "tests/tools/protos", tmp_path],
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    kept = {
        p.name: p.read_text() for p in (ROOT / "files/plugin/src/gpu_device_plugin/api").glob("*_pb2.py*")
    }
    made = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert len(made) == 6
    assert made == kept


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (
            dp.RegisterRequest(version="v1beta1", endpoint="e", resource_name="r"),
            b"\n\x07v1beta1\x12\x01e\x1a\x01r",
        ),
        (
            dp.RegisterRequest(
                options=dp.DevicePluginOptions(
                    pre_start_required=True, get_preferred_allocation_available=True
                )
            ),
            b"\x22\x04\x08\x01\x10\x01",
        ),
        (
            dp.Device(ID="i", health="h", topology=dp.TopologyInfo(nodes=[dp.NUMANode(ID=1)])),
            b"\n\x01i\x12\x01h\x1a\x04\n\x02\x08\x01",
        ),
        (
            dp.ContainerPreferredAllocationRequest(
                available_deviceIDs=["a"], must_include_deviceIDs=["b"], allocation_size=2
            ),
            b"\n\x01a\x12\x01b\x18\x02",
        ),
        (
            dp.AllocateRequest(container_requests=[dp.ContainerAllocateRequest(devices_ids=["a"])]),
            b"\n\x03\n\x01a",
        ),
        (
            dp.ContainerAllocateResponse(
                mounts=[dp.Mount(container_path="c", host_path="h", read_only=True)],
                devices=[dp.DeviceSpec(container_path="c", host_path="h", permissions="p")],
                cdi_devices=[dp.CDIDevice(name="n")],
            ),
            b"\x12\x08\n\x01c\x12\x01h\x18\x01\x1a\x09\n\x01c\x12\x01h\x1a\x01p\x2a\x03\n\x01n",
        ),
        (dp.ContainerAllocateResponse(envs={"a": "b"}), b"\n\x06\n\x01a\x12\x01b"),
        (dp.ContainerAllocateResponse(annotations={"a": "b"}), b"\x22\x06\n\x01a\x12\x01b"),
        (
            reg.PluginInfo(type="t", name="n", endpoint="e", supported_versions=["v"]),
            b"\n\x01t\x12\x01n\x1a\x01e\x22\x01v",
        ),
        (
            pods.ContainerDevices(
                resource_name="r", device_ids=["a"], topology=pods.TopologyInfo(nodes=[{"ID": 1}])
            ),
            b"\n\x01r\x12\x01a\x1a\x04\n\x02\x08\x01",
        ),
        (pods.GetPodResourcesRequest(pod_name="p", pod_namespace="n"), b"\n\x01p\x12\x01n"),
    ],
)
def test_field_numbers_are_the_kubelets(message: object, wire: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == wire  # type: ignore[attr-defined]


def test_paths_of_the_methods_are_the_kubelets() -> None:
    names = {
        f"/{service.full_name}/{method.name}"
        for module in (dp, reg, pods)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {
        "/v1beta1.Registration/Register",
        "/v1.PodResourcesLister/List",
        "/pluginregistration.Registration/GetInfo",
    } <= names
    assert {"/v1beta1.DevicePlugin/ListAndWatch", "/v1beta1.DevicePlugin/Allocate"} <= names
