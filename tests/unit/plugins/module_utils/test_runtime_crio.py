# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CRI-O's drop-in for each starting state. No CRI-O can be had where CI runs: these tables are what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _runtime_crio as crio
from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_edit as toml
from ansible_collections.gpuops.k8s.plugins.module_utils._daemon_flags import Flag
from ansible_collections.gpuops.k8s.plugins.module_utils._runtime import Plan, Refusal, Want

WANT = Want()
BASE: dict[str, Any] = {"runtime_path": WANT.path, "runtime_type": "oci"}
MONITOR = "/usr/libexec/crio/conmon"


def load(root: Path, **files: str) -> crio.Loaded:
    directory = root / "crio.conf.d"
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        if name == "main":
            (root / "crio.conf").write_text(text)
        else:
            (directory / name).write_text(text)
    return crio.load(str(root / "crio.conf"), str(directory / "99-nvidia.toml"))


def written(plan: Plan) -> dict[str, Any] | None:
    return toml.parse(plan.edits[0].new or "").value["crio"]["runtime"]


GOLDEN = [
    ("nothing configured, conmon found", {}, WANT, MONITOR, {**BASE, "monitor_path": MONITOR}),
    ("nothing configured, no conmon", {}, WANT, None, BASE),
    ("crio.conf names conmon", {"main": '[crio.runtime]\nconmon = "/c"\n'}, WANT, MONITOR, BASE),
    (
        "the packaged drop-in with crun",
        {
            "10-crio.conf": '[crio.runtime]\ndefault_runtime = "crun"\n[crio.runtime.runtimes.crun]\n'
            'runtime_path = "/usr/libexec/crio/crun"\nmonitor_path = "/usr/libexec/crio/conmon2"\n'
            'monitor_cgroup = "pod"\nallowed_annotations = ["x"]\n'
        },
        WANT,
        MONITOR,
        {**BASE, "monitor_cgroup": "pod", "monitor_path": "/usr/libexec/crio/conmon2"},
    ),
]


@pytest.mark.parametrize(
    ("name", "files", "want", "monitor", "entry"), GOLDEN, ids=[case[0] for case in GOLDEN]
)
def test_the_expected_drop_in(
    tmp_path: Path,
    name: str,
    files: dict[str, str],
    want: Want,
    monitor: str | None,
    entry: dict[str, Any],
) -> None:
    plan = crio.plan_present(load(tmp_path, **files), want, monitor)
    assert written(plan) == {"default_runtime": "nvidia", "runtimes": {"nvidia": entry}}
    assert plan.action == "restart"
    loaded = load(tmp_path, **{"99-nvidia.toml": plan.edits[0].new or ""})
    again = crio.plan_present(loaded, want, monitor)
    assert (again.changed, again.action) == (False, "none")
    gone = crio.plan_absent(loaded, want)
    assert (gone.edits[0].new, gone.action) == (None, "restart")


def test_the_named_runtime_only(tmp_path: Path) -> None:
    plan = crio.plan_present(load(tmp_path), Want(default=False), None)
    assert written(plan) == {"runtimes": {"nvidia": BASE}}


def test_a_later_drop_in_that_would_win_is_refused(tmp_path: Path) -> None:
    loaded = load(tmp_path, **{"zz.conf": '[crio.runtime]\ndefault_runtime = "crun"\n'})
    with pytest.raises(Refusal) as caught:
        crio.plan_present(loaded, WANT, None)
    assert "zz.conf: key crio.runtime.default_runtime is read after" in str(caught.value)
    assert not crio.plan_present(loaded, Want(default=False), None).edits[0].old


def test_a_broken_file_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"crio\.conf:2:5: .*; file left untouched"):
        crio.plan_present(load(tmp_path, main="[crio]\nx = \n"), WANT, None)


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        (
            Flag("default-runtime", "crun", "/etc/sysconfig/crio:3"),
            "crio gets --default-runtime=crun from /etc/sysconfig/crio:3",
        ),
        (Flag("runtimes", "x:/y", "u:1"), "crio gets --runtimes=x:/y from u:1"),
        (Flag("config", "/else", "u:1"), "crio is started with --config=/else"),
        (Flag("config-dir", "/else.d", "u:1"), "crio is started with --config-dir=/else.d"),
    ],
)
def test_a_flag_that_would_win_is_refused(flag: Flag, part: str) -> None:
    with pytest.raises(Refusal) as caught:
        crio.check_flags("/etc/crio/crio.conf", "/etc/crio/crio.conf.d/99-nvidia.toml", [flag], WANT)
    assert part in str(caught.value)


def test_the_scratch_copy_has_crio_conf_and_every_drop_in(tmp_path: Path) -> None:
    loaded = load(tmp_path, main="# main\n", **{"10-a.conf": "# a\n"})
    plan = crio.plan_present(loaded, WANT, None)
    (tmp_path / "scratch").mkdir()
    main, directory = crio.scratch_copy(loaded, plan, str(tmp_path / "scratch"))
    assert Path(main).read_text() == "# main\n"
    assert sorted(path.name for path in Path(directory).iterdir()) == ["10-a.conf", "99-nvidia.toml"]
