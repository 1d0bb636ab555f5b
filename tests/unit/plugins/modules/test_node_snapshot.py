# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot puts back exactly what was there, whatever happened in between."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils import basic
from ansible_collections.gpuops.k8s.plugins.modules import node_snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Ended(Exception):
    """The module's way out; carries what it returned."""


@pytest.fixture
def call(monkeypatch, tmp_path):
    def leave(_module, failed=False, **result):
        raise Ended({"failed": failed, **result})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", leave)
    monkeypatch.setattr(
        basic.AnsibleModule, "fail_json", lambda self, **result: leave(self, failed=True, **result)
    )

    def run(state, paths=None, check=False):
        arguments = {
            "state": state,
            "dest": str(tmp_path / "gpuops" / "snapshot"),
            "_ansible_check_mode": check,
        }
        if paths is not None:
            arguments["paths"] = [str(path) for path in paths]
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(Ended) as ended:
            node_snapshot.main()
        return ended.value.args[0]

    return run


def tree(folder):
    """Everything below ``folder``: path -> kind, mode, content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder", oct(path.stat().st_mode))
        else:
            found[name] = ("file", oct(path.stat().st_mode), path.read_bytes())
    return found


def test_changed_removed_and_new_files_are_put_right(call, tmp_path):
    root = tmp_path / "etc"
    (root / "docker").mkdir(parents=True)
    (root / "docker/daemon.json").write_text("{}")
    (root / "docker/daemon.json").chmod(0o640)
    (root / "docker/key").write_bytes(b"\xff\x00")
    (root / "docker/link").symlink_to("key")
    before = tree(root)
    call("saved", [root / "docker", root / "kubelet.env"])

    (root / "docker/daemon.json").write_text('{"default-runtime": "nvidia"}')
    (root / "docker/key").unlink()
    (root / "docker/conf.d").mkdir()
    (root / "docker/conf.d/99-nvidia.toml").write_text("x")
    (root / "docker/link").unlink()
    (root / "docker/link").write_text("no link any more")
    (root / "kubelet.env").write_text("KUBELET_EXTRA_ARGS=")

    tried = call("restored", check=True)
    assert tried["changed"] and tree(root) != before
    result = call("restored")
    assert result["changed"]
    assert result["files"] == tried["files"]
    assert str(root / "kubelet.env") in result["files"]
    assert tree(root) == before


def test_restoring_what_has_not_changed_touches_nothing(call, tmp_path):
    file = tmp_path / "daemon.json"
    file.write_text("{}")
    call("saved", [file])
    inode = file.stat().st_ino
    result = call("restored")
    assert not result["changed"] and result["files"] == []
    assert file.stat().st_ino == inode


def test_without_a_snapshot_restoring_fails_and_says_so(call):
    result = call("restored")
    assert result["failed"] and "no finished snapshot" in result["msg"]


def test_discarding_leaves_nothing_behind(call, tmp_path):
    call("saved", [tmp_path / "absent"])
    assert not call("discarded")["changed"]
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_nobody_discarded_stays_what_the_node_was_before(call, tmp_path):
    first, second = tmp_path / "daemon.json", tmp_path / "config.toml"
    first.write_text("before")
    second.write_text("not changed yet")
    assert call("saved", [first])["kept"] is False

    # The run dies here, half-way. The next one knows of one file more.
    first.write_text("half-changed")
    again = call("saved", [first, second])
    assert again["kept"] and again["saved_at"] and again["files"] == [str(first), str(second)]

    second.write_text("changed")
    assert call("restored")["files"] == sorted([str(first), str(second)])
    assert (first.read_text(), second.read_text()) == ("before", "not changed yet")

    call("discarded")
    assert call("saved", [first])["kept"] is False


def test_a_file_that_is_named_twice_and_one_after_it_both_come_back(call, tmp_path):
    folder, other = tmp_path / "kubelet.service.d", tmp_path / "daemon.json"
    folder.mkdir()
    (folder / "10.conf").write_text("ten")
    (folder / "20.conf").write_text("twenty")
    other.write_text("old")
    call("saved", [folder, folder / "10.conf", folder / "10.conf", other])
    (folder / "10.conf").write_text("new")
    other.write_text("new")
    call("restored")
    texts = [(folder / "10.conf").read_text(), (folder / "20.conf").read_text(), other.read_text()]
    assert texts == ["ten", "twenty", "old"]


def test_a_copy_that_was_never_finished_is_made_anew(call, tmp_path):
    file = tmp_path / "daemon.json"
    file.write_text("before")
    call("saved", [file])
    (tmp_path / "gpuops/snapshot" / node_snapshot.MANIFEST).unlink()
    file.write_text("now")
    assert call("saved", [file])["kept"] is False
    file.write_text("later")
    call("restored")
    assert file.read_text() == "now"


def test_what_is_put_back_never_shows_under_a_name_that_the_kubelet_reads(call, tmp_path, monkeypatch):
    manifest = tmp_path / "plugin.yaml"
    manifest.write_text("old")
    call("saved", [manifest])
    manifest.write_text("new")
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(os.path.basename(a)), replace(a, b)))
    call("restored")
    assert seen and all(name.startswith(".") for name in seen)


def test_relative_paths_are_refused(call):
    assert "must be absolute: etc/a" in call("saved", ["etc/a"])["msg"]


names = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"])
contents = st.dictionaries(names, st.binary(max_size=4), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(before=contents, after=contents)
def test_any_tree_comes_back_from_any_other(tmp_path_factory, before, after):
    root, dest = tmp_path_factory.mktemp("etc"), str(tmp_path_factory.mktemp("run") / "snapshot")

    def become(wanted):
        for path in [p for p in root.rglob("*") if not p.is_dir()]:
            path.unlink()
        for name, text in wanted.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)

    become(before)
    first = tree(root)
    node_snapshot.save([str(root)], dest)
    become(after)
    manifest = json.loads((tmp_path_factory.getbasetemp() / dest / node_snapshot.MANIFEST).read_text())
    for path in node_snapshot.added(manifest):
        node_snapshot.remove(path)
    for path, saved in manifest["entries"].items():
        if node_snapshot.differs(path, saved, dest):
            node_snapshot.put_back(path, saved, dest)
    assert tree(root) == first
