"""The CDI specification: content, validity, atomic writing."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import jsonschema
import pytest
from gpu_device_plugin import cdi
from gpu_device_plugin.cdi import DriverFiles
from gpu_device_plugin.config import Settings, SharedResource, Sharing
from gpu_device_plugin.devices import HostDevice
from gpu_device_plugin.features import GDS, IMEX, MOFED, Feature
from gpu_device_plugin.resources import plan
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_nodes import cut, gpu, node, uuid

ENV = {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.*$"}}
PATH = {"type": "string", "pattern": "^/"}
EDITS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        "env": ENV,
        "deviceNodes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["path"],
                "properties": {
                    "path": PATH,
                    "hostPath": PATH,
                    "type": {"enum": ["b", "c", "u", "p"]},
                    "major": {"type": "integer"},
                    "minor": {"type": "integer"},
                    "fileMode": {"type": "integer"},
                    "permissions": {"type": "string", "pattern": "^[rwm]{1,3}$"},
                    "uid": {"type": "integer"},
                    "gid": {"type": "integer"},
                },
            },
        },
        "mounts": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["containerPath", "hostPath"],
                "properties": {
                    "hostPath": PATH,
                    "containerPath": PATH,
                    "type": {"type": "string"},
                    "options": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "hooks": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["hookName", "path"],
                "properties": {
                    "hookName": {
                        "enum": [
                            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
                        ]
                    },
                    "path": PATH,
                    "args": {"type": "array", "items": {"type": "string"}},
                    "env": ENV,
                    "timeout": {"type": "integer"},
                },
            },
        },
    },
}  # fmt: skip
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["cdiVersion", "kind", "devices"],
    "properties": {
        "cdiVersion": {"enum": ["0.3.0", "0.4.0", "0.5.0", "0.6.0"]},
        "kind": {
            "type": "string",
            "pattern": "^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z][A-Za-z0-9_-]*[A-Za-z0-9]$",
        },
        "annotations": {"type": "object"},
        "containerEdits": EDITS,
        "devices": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "containerEdits"],
                "properties": {
                    "name": {"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"},
                    "annotations": {"type": "object"},
                    "containerEdits": EDITS,
                },
            },
        },
    },
}
"""What CDI's SPEC.md 0.6.0 says of a specification: fields, names, and that no edit is empty."""

DRIVER = DriverFiles(
    ("/usr/lib64/libcuda.so.550.54.15", "/usr/lib64/libnvidia-ml.so.550.54.15"),
    ("/usr/bin/nvidia-smi",),
    ("/run/nvidia-persistenced/socket",),
)


def built(
    snapshot: object, settings: Settings | None = None, driver: DriverFiles = DRIVER
) -> dict[str, object]:
    settings = settings or Settings()
    spec = cdi.build(plan(snapshot, settings), snapshot, settings, driver)  # type: ignore[arg-type]
    jsonschema.validate(spec, SCHEMA)
    return spec


def test_each_gpu_and_slice_is_a_device_with_its_nodes() -> None:
    spec = built(node(gpu(0), cut(1, "1g.10gb")), Settings(mig_strategy="mixed"))
    assert (spec["cdiVersion"], spec["kind"]) == ("0.5.0", "k8s.device-plugin.nvidia.com/gpu")
    assert spec["devices"] == [
        {
            "name": uuid(0),
            "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "permissions": "rw"}]},
        },
        {
            "name": "MIG-00000001-0000-4000-8000-000000000000",
            "containerEdits": {
                "deviceNodes": [
                    {"path": "/dev/nvidia1", "permissions": "rw"},
                    {"path": "/dev/nvidia-caps/nvidia-cap100", "permissions": "rw"},
                    {"path": "/dev/nvidia-caps/nvidia-cap101", "permissions": "rw"},
                ]
            },
        },
    ]
    kind = "k8s.device-plugin.nvidia.com/gpu"
    assert cdi.names(spec) == {f"{kind}={uuid(0)}", f"{kind}=MIG-00000001-0000-4000-8000-000000000000"}


def test_what_all_devices_share_stands_once() -> None:
    edits = built(node(gpu(0), control_paths=("/dev/nvidiactl",)))["containerEdits"]
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    assert edits == {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl", "permissions": "rw"}],
        "mounts": [
            {"hostPath": path, "containerPath": path, "options": options}
            for path in (*DRIVER.libraries, *DRIVER.binaries)
        ]
        + [
            {
                "hostPath": "/run/nvidia-persistenced/socket",
                "containerPath": "/run/nvidia-persistenced/socket",
                "options": ["nosuid", "nodev", "rbind", "rprivate", "noexec"],
            }
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-ctk",
                "args": [
                    "nvidia-ctk",
                    "hook",
                    "create-symlinks",
                    "--link",
                    "libcuda.so.1::/usr/lib64/libcuda.so",
                ],
            },
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-ctk",
                "args": ["nvidia-ctk", "hook", "update-ldcache", "--folder", "/usr/lib64"],
            },
        ],
    }


def test_nvidia_ctk_takes_hook_as_its_first_word_and_no_program_means_no_hooks() -> None:
    edits = built(node(gpu(0)), Settings(nvidia_cdi_hook_path="/opt/bin/nvidia-cdi-hook"))["containerEdits"]
    calls = [hook["args"][:2] for hook in edits["hooks"]]  # type: ignore[index]
    assert calls == [["nvidia-cdi-hook", "create-symlinks"], ["nvidia-cdi-hook", "update-ldcache"]]
    assert {hook["path"] for hook in edits["hooks"]} == {"/opt/bin/nvidia-cdi-hook"}  # type: ignore[index]
    assert "hooks" not in built(node(gpu(0)), Settings(nvidia_cdi_hook_path=""))["containerEdits"]  # type: ignore[operator]
    without_cuda = DriverFiles(("/usr/lib64/libnvidia-ml.so.1.2",))
    hooks = built(node(gpu(0)), driver=without_cuda)["containerEdits"]["hooks"]  # type: ignore[index]
    assert [hook["args"][2] for hook in hooks] == ["update-ldcache"]


def test_roots_stand_before_what_is_on_the_host_and_not_before_what_is_in_the_container() -> None:
    spec = built(node(gpu(0)), Settings(nvidia_driver_root="/run/nvidia/driver"))
    assert spec["devices"][0]["containerEdits"]["deviceNodes"] == [  # type: ignore[index]
        {"path": "/dev/nvidia0", "hostPath": "/run/nvidia/driver/dev/nvidia0", "permissions": "rw"}
    ]
    mount = spec["containerEdits"]["mounts"][0]  # type: ignore[index]
    assert mount["hostPath"] == "/run/nvidia/driver/usr/lib64/libcuda.so.550.54.15"
    assert mount["containerPath"] == "/usr/lib64/libcuda.so.550.54.15"
    apart = built(node(gpu(0)), Settings(nvidia_driver_root="/run/nvidia/driver", nvidia_dev_root="/"))
    assert apart["devices"][0]["containerEdits"]["deviceNodes"] == [
        {"path": "/dev/nvidia0", "permissions": "rw"}
    ]  # type: ignore[index]


def test_without_driver_files_and_control_nodes_only_the_variable_is_left() -> None:
    assert built(node(gpu(0), control_paths=()), driver=DriverFiles())["containerEdits"] == {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"]
    }


def test_whole_gpus_bring_their_display_nodes_with_the_links_by_pci_address() -> None:
    bus = gpu(0).pci_bus_id
    nodes = ((bus, "/dev/dri/card1"), (bus, "/dev/dri/renderD128"), (cut(1).pci_bus_id, "/dev/dri/card2"))
    spec = built(node(gpu(0), cut(1, "1g.10gb"), display_nodes=nodes), Settings(mig_strategy="mixed"))
    whole, piece = (device["containerEdits"] for device in spec["devices"])  # type: ignore[attr-defined]
    paths = ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"]
    assert [one["path"] for one in whole["deviceNodes"]] == paths
    assert whole["hooks"][0]["args"][2:] == [
        "create-symlinks",
        "--link",
        f"../card1::/dev/dri/by-path/pci-{bus}-card",
        "--link",
        f"../renderD128::/dev/dri/by-path/pci-{bus}-render",
    ]
    assert "/dev/dri/card2" not in [one["path"] for one in piece["deviceNodes"]]
    assert "hooks" not in piece
    bare = built(node(gpu(0), display_nodes=nodes), Settings(nvidia_cdi_hook_path=""))["devices"][0]  # type: ignore[index]
    assert "hooks" not in bare["containerEdits"]


def test_devices_are_named_by_index_when_answers_are() -> None:
    spec = built(node(gpu(0), cut(1, "1g.10gb")), Settings(mig_strategy="mixed", device_id_strategy="index"))
    assert cdi.names(spec) == {cdi.qualified("gpu", "0"), cdi.qualified("gpu", "1:0")}


def test_replicas_are_one_device_and_host_devices_and_gpus_without_nodes_none() -> None:
    sharing = Sharing(resources=(SharedResource("nvidia.com/gpu", 3),))
    host = (HostDevice("example.com/fpga", "x", ("/dev/x",)),)
    spec = built(node(gpu(0), gpu(1, paths=()), host_devices=host), Settings(time_slicing=sharing))
    assert [device["name"] for device in spec["devices"]] == [uuid(0)]  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.just("1g.10gb"), max_size=2)), max_size=4),
    st.sampled_from(["none", "mixed"]),
    st.sampled_from(["uuid", "index"]),
    st.sampled_from(["/", "/run/nvidia/driver", "/a/../b"]),
)
def test_every_node_s_specification_is_valid(
    gpus: list[tuple[int, list[str]]], strategy: str, names: str, root: str
) -> None:
    snapshot = node(*(cut(index, *profiles) if profiles else gpu(index) for index, profiles in gpus))
    built(snapshot, Settings(mig_strategy=strategy, device_id_strategy=names, nvidia_driver_root=root))


CHANNEL = "/dev/nvidia-caps-imex-channels/channel"


def test_channels_and_features_are_kinds_of_their_own_named_as_with_the_peer() -> None:
    features = (
        Feature(IMEX, "0", ((f"{CHANNEL}0", f"{CHANNEL}0"),)),
        Feature(IMEX, "3", ((f"{CHANNEL}3", f"/d{CHANNEL}3"),)),
        Feature(GDS, "all", (("/dev/nvidia-fs0", "/dev/nvidia-fs0"),), (("/run/udev", "/d/run/udev"),)),
    )
    imex, gdrcopy, gds, mofed = specs = cdi.build_features(features)
    for spec in specs:
        jsonschema.validate(spec, SCHEMA)
    assert imex == {
        "cdiVersion": "0.5.0",
        "kind": "k8s.device-plugin.nvidia.com/imex-channel",
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": f"{CHANNEL}0", "permissions": "rw"}]}},
            {
                "name": "3",
                "containerEdits": {
                    "deviceNodes": [{"path": f"{CHANNEL}3", "hostPath": f"/d{CHANNEL}3", "permissions": "rw"}]
                },
            },
        ],
    }
    assert gds["devices"] == [
        {
            "name": "all",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/nvidia-fs0", "permissions": "rw"}],
                "mounts": [
                    {
                        "hostPath": "/d/run/udev",
                        "containerPath": "/run/udev",
                        "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                    }
                ],
            },
        }
    ]
    assert [spec["devices"] for spec in (gdrcopy, mofed)] == [[], []]
    assert cdi.names(imex) == {
        "k8s.device-plugin.nvidia.com/imex-channel=0",
        "k8s.device-plugin.nvidia.com/imex-channel=3",
    }


def test_each_kind_has_a_file_which_goes_when_nothing_of_it_is_left(tmp_path: Path) -> None:
    there = (Feature(MOFED, "all", (("/dev/infiniband/rdma_cm", "/dev/infiniband/rdma_cm"),)),)
    for spec in (built(node(gpu(0))), *cdi.build_features(there)):
        cdi.write(str(tmp_path), spec)
    vendor = "k8s.device-plugin.nvidia.com"
    assert sorted(os.listdir(tmp_path)) == [f"{vendor}-gpu.json", f"{vendor}-mofed.json"]
    for spec in cdi.build_features(()):
        cdi.write(str(tmp_path), spec)
    assert os.listdir(tmp_path) == [cdi.FILE_NAME]


def test_removing_takes_every_file_of_ours_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").touch()
    channel = (Feature(IMEX, "0", ((f"{CHANNEL}0", f"{CHANNEL}0"),)),)
    for spec in (built(node(gpu(0))), *cdi.build_features(channel)):
        cdi.write(str(tmp_path), spec)
    cdi.remove(str(tmp_path))
    assert os.listdir(tmp_path) == ["nvidia.yaml"]
    cdi.remove(str(tmp_path / "not there"))


def driver_tree(root: Path) -> None:
    for name in (
        "usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15",
        "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15",
        "usr/lib/x86_64-linux-gnu/libcuda.so.535.1.1",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/bin/nvidia-smi",
        "usr/bin/nvidia-other",
        "lib/firmware/nvidia/550.54.15/gsp_ga10x.bin",
        "lib/firmware/nvidia/535.1.1/gsp_ga10x.bin",
        "run/nvidia-fabricmanager/socket",
        "usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.550.54.15",
        "usr/lib/x86_64-linux-gnu/libnvidia-egl-gbm.so.1.1.2",
        "etc/vulkan/icd.d/nvidia_icd.json",
        "usr/share/vulkan/icd.d/nvidia_icd.json",
        "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        "usr/share/glvnd/egl_vendor.d/50_mesa.json",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / "usr/lib/x86_64-linux-gnu/libcuda.so.1").symlink_to("libcuda.so.550.54.15")
    (root / "usr/lib/x86_64-linux-gnu/libgone.so.550.54.15").symlink_to("nowhere")
    (root / "usr/lib64").symlink_to("lib/x86_64-linux-gnu")


def test_the_drivers_files_of_the_running_version_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver_tree(tmp_path)
    (tmp_path / "run/nvidia-persistenced").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("run/nvidia-persistenced/socket")
        found = cdi.find_driver_files(str(tmp_path), "550.54.15")
    assert found == DriverFiles(
        (
            "/usr/lib64/libcuda.so.550.54.15",
            "/usr/lib64/libnvidia-egl-gbm.so.1.1.2",
            "/usr/lib64/libnvidia-ml.so.550.54.15",
            "/usr/lib64/vdpau/libvdpau_nvidia.so.550.54.15",
        ),
        ("/usr/bin/nvidia-smi",),
        (
            "/etc/vulkan/icd.d/nvidia_icd.json",
            "/lib/firmware/nvidia/550.54.15/gsp_ga10x.bin",
            "/run/nvidia-persistenced/socket",
            "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        ),
    )


@pytest.mark.parametrize("version", [None, "", "*", "550", "../../x.1", "550.54\n"])
def test_without_a_version_that_is_one_nothing_is_looked_for(tmp_path: Path, version: str | None) -> None:
    driver_tree(tmp_path)
    assert cdi.find_driver_files(str(tmp_path), version) == DriverFiles()
    assert cdi.find_driver_files(str(tmp_path / "none"), "550.54.15") == DriverFiles()


def test_the_file_is_written_whole_readable_by_all_and_only_when_it_differs(tmp_path: Path) -> None:
    directory = tmp_path / "var/run/cdi"
    spec = built(node(gpu(0)))
    path = Path(cdi.write(str(directory), spec))
    assert path == directory / "k8s.device-plugin.nvidia.com-gpu.json"
    assert json.loads(path.read_text()) == spec
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    cdi.write(str(directory), spec)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    other = built(node(gpu(0), gpu(1)))
    cdi.write(str(directory), other)
    assert json.loads(path.read_text()) == other
    assert os.listdir(directory) == [path.name]


def test_a_file_that_is_no_text_is_replaced(tmp_path: Path) -> None:
    (tmp_path / cdi.FILE_NAME).write_bytes(b"\xff")
    spec = built(node(gpu(0)))
    cdi.write(str(tmp_path), spec)
    assert json.loads((tmp_path / cdi.FILE_NAME).read_text()) == spec


def test_without_devices_which_cdi_does_not_allow_the_file_goes(tmp_path: Path) -> None:
    cdi.write(str(tmp_path), built(node(gpu(0))))
    empty = cdi.build(plan(node(), Settings()), node(), Settings())
    for _ in range(2):
        assert cdi.write(str(tmp_path), empty) == str(tmp_path / cdi.FILE_NAME)
        assert os.listdir(tmp_path) == []
    cdi.write(str(tmp_path / "not there"), empty)
    assert not (tmp_path / "not there").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = built(node(gpu(0)))
    cdi.write(str(tmp_path), spec)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cdi.write(str(tmp_path), built(node(gpu(0), gpu(1))))
    assert os.listdir(tmp_path) == [cdi.FILE_NAME]
    assert json.loads((tmp_path / cdi.FILE_NAME).read_text()) == spec


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    specs = [built(node(*map(gpu, range(count)))) for count in (1, 8)]
    path = Path(cdi.write(str(tmp_path), specs[0]))
    done = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not done.is_set():
            text = path.read_text()
            if json.loads(text) not in specs:
                wrong.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        cdi.write(str(tmp_path), specs[number % 2])
    done.set()
    reader.join()
    assert wrong == []
