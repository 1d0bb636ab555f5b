# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd's files: what is planned for each configuration version, engine version and starting state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _runtime_containerd as containerd
from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_edit as toml
from ansible_collections.gpuops.k8s.plugins.module_utils._daemon_flags import Flag
from ansible_collections.gpuops.k8s.plugins.module_utils._runtime import Plan, Refusal, Want
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WANT = Want()
NVIDIA = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": WANT.path}}


class Machine:
    """A machine's /etc/containerd in a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.dropin = root / "conf.d/99-nvidia.toml"
        self.record: dict[str, Any] = {}

    def load(self) -> containerd.Loaded:
        return containerd.load(str(self.config), str(self.dropin))

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def present(self, version: str = "1.6.20", want: Want = WANT, fix: bool = False) -> Plan:
        return self.write(containerd.plan_present(self.load(), want, version, self.record, fix))

    def absent(self) -> Plan:
        return self.write(containerd.plan_absent(self.load(), WANT, self.record))

    def write(self, plan: Plan) -> Plan:
        for edit in plan.edits:
            path = Path(edit.path)
            if edit.new is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(edit.new.encode())
        self.record = plan.record
        return plan

    def dropin_value(self) -> dict[str, Any]:
        return toml.parse(self.dropin.read_text()).value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


V2 = """\
# kubeadm's
version = 2
root = "/data"  # big disk

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true  # kubelet too
"""
V3 = V2.replace("version = 2", "version = 3").replace(
    "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
)
V1 = """\
[plugins.cri]
  sandbox_image = "registry.local/pause:3.9"
  [plugins.cri.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.cri.containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
WITH_CGROUP = {**NVIDIA, "options": {"SystemdCgroup": True, "BinaryName": WANT.path}}
RUNC = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}}
FULL = {
    "sandbox_image": "registry.local/pause:3.9",
    "containerd": {"snapshotter": "overlayfs", "runtimes": {"runc": RUNC}},
}


def merged(base: dict[str, Any], runtime: dict[str, Any], default: bool = True) -> dict[str, Any]:
    inner = base.get("containerd", {})
    new = {**inner, "runtimes": {**inner.get("runtimes", {}), "nvidia": runtime}}
    return {**base, "containerd": {**new, "default_runtime_name": "nvidia"} if default else new}


FIRST = {"sandbox_image": "registry.local/pause:3.9", "containerd": {"runtimes": {"runc": RUNC}}}
OURS = {"containerd": {"default_runtime_name": "nvidia", "runtimes": {"nvidia": WITH_CGROUP}}}
BARE = {
    "containerd": {
        "default_runtime_name": "nvidia",
        "runtimes": {"nvidia": NVIDIA, "runc": {"runtime_type": "io.containerd.runc.v2"}},
    }
}
GOLDEN = [
    # name, config.toml, engine, its version key and CRI table in the drop-in, what stands in the table
    ("no file, 1.6", None, "1.6.20", 2, "io.containerd.grpc.v1.cri", BARE),
    ("no file, 1.7", None, "1.7.24", 2, "io.containerd.grpc.v1.cri", BARE),
    ("no file, 2.0", None, "2.0.4", 3, "io.containerd.cri.v1.runtime", BARE),
    ("no file, 2.1", None, "2.1.0", 3, "io.containerd.cri.v1.runtime", BARE),
    ("version 1, 1.6", V1, "1.6.20", None, "cri", merged(FIRST, WITH_CGROUP)),
    ("version 2, 1.6", V2, "1.6.20", 2, "io.containerd.grpc.v1.cri", merged(FULL, WITH_CGROUP)),
    ("version 2, 1.7", V2, "1.7.24", 2, "io.containerd.grpc.v1.cri", merged(FULL, WITH_CGROUP)),
    ("version 2, 2.0", V2, "2.0.4", 2, "io.containerd.grpc.v1.cri", merged(FULL, WITH_CGROUP)),
    ("version 2, 2.1", V2, "2.1.1", 2, "io.containerd.grpc.v1.cri", OURS),
    ("version 3, 2.0", V3, "2.0.4", 3, "io.containerd.cri.v1.runtime", merged(FULL, WITH_CGROUP)),
    ("version 3, 2.2", V3, "2.2.0", 3, "io.containerd.cri.v1.runtime", OURS),
    ("version 4, 2.3", V3.replace("version = 3", "version = 4"), "2.3.0", 4, "io.containerd.cri.v1.runtime", OURS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "engine", "version", "table", "expected"), GOLDEN, ids=[g[0] for g in GOLDEN]
)
def test_the_expected_drop_in(
    machine: Machine,
    name: str,
    text: str | None,
    engine: str,
    version: int | None,
    table: str,
    expected: Any,
) -> None:
    if text is not None:
        machine.put("config.toml", text)
    plan = machine.present(engine)
    head = {} if version is None else {"version": version}
    assert machine.dropin_value() == {**head, "plugins": {table: expected}}
    assert plan.action == "restart"
    assert plan.after["default_runtime"] == "nvidia"
    line = f'imports = ["{machine.root}/conf.d/*.toml"]\n'
    if text is None:
        assert machine.config.read_text() == f"version = {version}\n{line}"
    else:
        assert machine.config.read_text().replace(line, "", 1) == text
    again = machine.present(engine)
    assert (again.changed, again.action) == (False, "none")


def test_the_named_runtime_only(machine: Machine) -> None:
    machine.put("config.toml", V2)
    machine.present(want=Want(default=False))
    cri = machine.dropin_value()["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri == merged(FULL, WITH_CGROUP, default=False)


def test_from_default_to_named_only_takes_the_default_back(machine: Machine) -> None:
    machine.put("config.toml", V2)
    machine.present()
    plan = machine.present(want=Want(default=False))
    assert (plan.changed, plan.after["default_runtime"]) == (True, None)


def test_cdi_is_switched_on(machine: Machine) -> None:
    machine.present("1.7.24", Want(cdi=True))
    assert machine.dropin_value()["plugins"]["io.containerd.grpc.v1.cri"]["enable_cdi"] is True
    with pytest.raises(Refusal, match=r"needs containerd 1\.7"):
        machine.present("1.6.20", Want(cdi=True))


def test_a_copy_follows_its_original(machine: Machine) -> None:
    machine.put("config.toml", V2)
    machine.present()
    machine.put("config.toml", machine.config.read_text().replace("pause:3.9", "pause:3.10"))
    assert machine.present().changed
    assert machine.dropin_value()["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"].endswith("3.10")


def test_a_configuration_that_has_it_already_is_left_alone(machine: Machine) -> None:
    machine.put(
        "config.toml",
        "version = 2\n" + toml.dumps({"plugins": {"io.containerd.grpc.v1.cri": merged(FULL, WITH_CGROUP)}}),
    )
    before = machine.files()
    assert not machine.present().changed
    assert machine.files() == before


def test_an_imported_file_counts_and_a_sleeping_one_is_not_woken(machine: Machine) -> None:
    machine.put("config.toml", f'version = 2\nimports = ["{machine.root}/extra.toml"]\n')
    machine.put("extra.toml", V2)
    machine.put("conf.d/old.toml", "version = 2\n[debug]\nlevel = 'trace'\n")
    machine.present()
    assert machine.dropin_value()["plugins"]["io.containerd.grpc.v1.cri"] == merged(FULL, WITH_CGROUP)
    assert toml.parse(machine.config.read_text()).value["imports"] == [
        f"{machine.root}/extra.toml", str(machine.dropin)
    ]  # fmt: skip


def test_an_import_that_is_there_already_is_used(machine: Machine) -> None:
    machine.put("config.toml", f'version = 2\nimports = ["{machine.root}/conf.d/*.toml"]\n')
    plan = machine.present()
    assert [edit.path for edit in plan.edits if edit.changes] == [str(machine.dropin)]
    machine.absent()
    assert machine.config.read_text() == f'version = 2\nimports = ["{machine.root}/conf.d/*.toml"]\n'


@pytest.mark.parametrize("item", ["cri", "io.containerd.grpc.v1.cri"])
def test_a_disabled_cri_plugin_is_refused_or_mended(machine: Machine, item: str) -> None:
    text = f'# Docker\'s package\ndisabled_plugins = ["{item}"] # why\n'
    machine.put("config.toml", text)
    before = machine.files()
    with pytest.raises(Refusal) as caught:
        machine.present()
    assert f"{machine.config}:2: key disabled_plugins names {item}" in str(caught.value)
    assert machine.files() == before
    machine.present(fix=True)
    assert "disabled_plugins = [] # why\n" in machine.config.read_text()
    assert not machine.present(fix=True).changed
    machine.absent()
    assert machine.files() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "config.toml",
            "version = 2\nimports = [\n",
            "config.toml:2:11: this array is never closed; file left untouched",
        ),
        (
            "config.toml",
            "version = 2\n[a]\n[a]\n",
            "config.toml:3:1: table a is given twice; file left untouched",
        ),
        (
            "config.toml",
            'imports = "x"\n',
            "config.toml: key imports must be a list of strings; file left untouched",
        ),
        (
            "config.toml",
            "version = 3\n",
            "config.toml: key version is 3, but containerd 1.6.20 reads 1 and 2; no file changed",
        ),
        ("config.toml", 'version = "2"\n', "config.toml: key version must be a number; file left untouched"),
        ("config.toml", 'imports = ["gone.toml"]\n', "gone.toml: imported by"),
        ("conf.d/99-nvidia.toml", "x = \n", "conf.d/99-nvidia.toml:1:5: a value is missing here"),
    ],
)
def test_refuses_what_it_cannot_merge(machine: Machine, name: str, text: str, message: str) -> None:
    machine.put(name, text)
    if name != "config.toml":
        machine.put("config.toml", f'imports = ["{machine.root}/conf.d/*.toml"]\n')
    before = machine.files()
    with pytest.raises(Refusal) as caught:
        machine.present()
    assert message in str(caught.value)
    assert machine.files() == before


def test_a_later_file_that_would_win_is_refused_with_its_line(machine: Machine) -> None:
    machine.put("config.toml", f'version = 2\nimports = ["{machine.root}/conf.d/*.toml"]\n')
    machine.put("conf.d/zz.toml", '# x\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "y"\n')
    before = machine.files()
    with pytest.raises(Refusal) as caught:
        machine.present()
    assert "conf.d/zz.toml:3: table" in str(caught.value)
    assert "99-nvidia.toml" in str(caught.value)
    assert machine.files() == before
    assert machine.present("2.1.0").changed  # tables are merged there: no clash


def test_another_configuration_file_on_the_command_line_is_refused() -> None:
    flags = [Flag("c", "/k3s/config.toml", "/etc/x.service:9")]
    with pytest.raises(Refusal) as caught:
        containerd.check_flags("/etc/containerd/config.toml", flags)
    assert "/etc/x.service:9" in str(caught.value)
    assert "Set config_path to /k3s/config.toml" in str(caught.value)


def test_a_file_we_made_goes_and_one_with_additions_stays(machine: Machine) -> None:
    machine.present()
    machine.absent()
    assert machine.files() == {}
    machine.present()
    machine.put("config.toml", machine.config.read_text() + "oom_score = 1\n")
    machine.absent()
    assert machine.files() == {"config.toml": b"version = 2\noom_score = 1\n"}


def test_the_scratch_copy_holds_what_is_planned_and_nothing_points_outside(
    machine: Machine, tmp_path: Path
) -> None:
    machine.put("config.toml", V2)
    loaded = machine.load()
    plan = containerd.plan_present(loaded, WANT, "1.6.20", {}, False)
    scratch = tmp_path / "scratch"
    candidate = containerd.scratch_copy(loaded, plan, str(scratch))
    assert candidate == str(scratch) + str(machine.config)
    copy = toml.parse(Path(candidate).read_text()).value
    assert copy["imports"] == [f"{scratch}{machine.root}/conf.d/*.toml"]
    assert (scratch / str(machine.dropin).lstrip("/")).is_file()


@pytest.mark.parametrize("table", ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"])
def test_the_engines_dump_is_held_against_the_wish(table: str) -> None:
    good = toml.dumps({"plugins": {table: merged({}, NVIDIA)}})
    assert containerd.check_dump(good, WANT) is None
    assert "default_runtime_name would be" in (
        containerd.check_dump(good.replace('default_runtime_name = "nvidia"', ""), WANT) or ""
    )
    assert "would run" in (containerd.check_dump(good.replace("nvidia-container-runtime", "x"), WANT) or "")
    assert "no CRI plugin" in (containerd.check_dump("", WANT) or "")


# Any file: keys of an administrator, comments, blank lines, our tables among them.
KEYS = st.sampled_from(["root", "state", "oom_score", "grpc", "debug", "x.y", '"q r"'])
VALUES = st.sampled_from(['"a"', "1", "true", "[1, 2]", '{ a = "b" }', "'''x\ny'''", '["a", # c\n  "b"]'])
COMMENTS = st.sampled_from(["", "# note\n", "\n", "   # [plugins]\n"])
ROOT = st.lists(st.tuples(KEYS, VALUES, COMMENTS), max_size=4, unique_by=lambda item: item[0].split(".")[0])
CRI = st.sampled_from(
    ["", V2.partition("big disk\n")[2], '[plugins."io.containerd.grpc.v1.cri"]\n  enable_selinux = true\n']
)


@st.composite
def configurations(draw: st.DrawFn) -> str:
    lines = [f"{key} = {value}  {comment or chr(10)}" for key, value, comment in draw(ROOT)]
    lines.insert(draw(st.integers(0, len(lines))), "version = 2 # ours is 2\n")
    imports = draw(st.sampled_from([None, "imports = []\n", "imports = [\n  # none yet\n]\n"]))
    if imports:
        lines.insert(draw(st.integers(0, len(lines))), imports)
    return (
        draw(COMMENTS)
        + "".join(lines)
        + draw(COMMENTS)
        + draw(CRI)
        + draw(st.sampled_from(["", "[last]\n", "[last]\nx=1"]))
    )


@given(text=st.none() | configurations(), engine=st.sampled_from(["1.6.20", "1.7.24", "2.1.0"]))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_present_present_absent_gives_back_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, text: str | None, engine: str
) -> None:
    machine = Machine(tmp_path_factory.mktemp("any"))
    if text is not None:
        machine.put("config.toml", text)
    before = machine.files()
    assert machine.present(engine).changed
    now = toml.parse(machine.config.read_text()).value
    was = toml.parse(text or "version = 2").value
    if text is not None:
        assert {k: v for k, v in now.items() if k != "imports"} == {
            k: v for k, v in was.items() if k != "imports"
        }
    assert f"{machine.root}/conf.d/*.toml" in now["imports"]
    middle = machine.files()
    assert not machine.present(engine).changed
    assert machine.files() == middle
    machine.absent()
    assert machine.files() == before
    assert not machine.absent().changed
