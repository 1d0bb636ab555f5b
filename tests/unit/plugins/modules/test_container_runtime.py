# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it: files on disk, backups, check mode, what it returns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import (
    _files,
    _runtime_docker,
    _runtime_engines,
    _runtime_probe,
)
from ansible_collections.gpuops.k8s.plugins.module_utils._daemon_flags import Flag
from ansible_collections.gpuops.k8s.plugins.modules import container_runtime

ORIGINAL = '{"log-driver": "json-file"}\n'


class World:
    """One machine: its files, and a docker daemon that may run."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.root, self.capsys = root, capsys
        self.daemon_json = root / "daemon.json"
        self.pid: Any = 4242
        self.flags: list[Flag] = []
        self.live = _runtime_docker.Live("20.10.24", "runc", {"runc": "runc"}, None)
        self.complaint: Any = None
        monkeypatch.setattr(_runtime_engines, "daemon_flags", lambda *_a, **_k: (self.pid, self.flags))
        monkeypatch.setattr(_runtime_probe, "docker_live", lambda *_a: self.live)
        monkeypatch.setattr(_runtime_probe, "validate_docker", lambda *_a: self.complaint)
        monkeypatch.setattr(_runtime_probe, "program_version", lambda _name: "")
        monkeypatch.setattr(_runtime_probe, "started_before", lambda _pid, written: bool(written))

    def run(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        options = {
            "engine": "docker",
            "config_path": str(self.daemon_json),
            "record_path": str(self.root / "lib/record.json"),
            **arguments,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
        }
        with patch_module_args(options), pytest.raises(SystemExit):
            container_runtime.main()
        return json.loads(self.capsys.readouterr().out)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    made = World(tmp_path, monkeypatch, capsys)
    made.daemon_json.write_text(ORIGINAL)
    return made


def test_writes_keeps_mode_and_a_dated_backup(world: World) -> None:
    os.chmod(world.daemon_json, 0o640)
    result = world.run()
    assert result["changed"]
    assert result["action_needed"] == "reload"
    assert json.loads(world.daemon_json.read_text())["default-runtime"] == "nvidia"
    assert world.daemon_json.stat().st_mode & 0o777 == 0o640
    [backup] = result["backup_files"]
    assert Path(backup["backup"]).read_text() == ORIGINAL
    assert Path(backup["backup"]).name.startswith("daemon.json.20")
    assert result["diff"][0]["before"] == ORIGINAL
    assert result["files"] == [str(world.daemon_json)]


def test_a_link_is_followed(world: World) -> None:
    real = world.root / "real.json"
    world.daemon_json.rename(real)
    world.daemon_json.symlink_to(real)
    world.run()
    assert world.daemon_json.is_symlink()
    assert "nvidia" in real.read_text()


def test_check_mode_says_the_same_and_writes_nothing(world: World) -> None:
    before = world.files()
    checked = world.run(check=True)
    assert world.files() == before
    done = world.run()
    for key in ("changed", "action_needed", "files", "before", "after", "diff"):
        assert checked[key] == done[key]


def test_no_backup_on_request_and_none_without_a_file(world: World) -> None:
    assert world.run(backup=False)["backup_files"][0]["backup"] is None
    world.daemon_json.unlink()
    assert world.run()["backup_files"] == [{"path": str(world.daemon_json), "backup": None}]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda w: w.daemon_json.write_text("{,}"), "daemon.json:1:2: "),
        (lambda w: w.daemon_json.write_bytes(b'{"a": "\xff"}'), "daemon.json: byte 7 is not UTF-8"),
        (lambda w: w.flags.append(Flag("default-runtime", "x", "/etc/y:3")), "/etc/y:3"),
        (
            lambda w: setattr(w, "complaint", "unknown directive: foo"),
            "dockerd would refuse it: unknown directive: foo",
        ),
    ],
)
def test_a_refusal_leaves_every_file_byte_for_byte(
    world: World, prepare: Callable[[World], Any], message: str
) -> None:
    prepare(world)
    before = world.files()
    result = world.run()
    assert result["failed"]
    assert message in result["msg"]
    assert "\n" not in result["msg"]
    assert world.files() == before


def test_present_present_absent_leaves_the_original_and_no_record(world: World) -> None:
    world.run()
    world.live = _runtime_docker.Live(
        "20.10.24", "nvidia", {"nvidia": "/usr/bin/nvidia-container-runtime"}, None
    )
    second = world.run()
    assert (second["changed"], second["action_needed"], second["backup_files"]) == (False, "none", [])
    first = world.run(state="absent")
    assert first["run_again"]
    world.live = _runtime_docker.Live(
        "20.10.24", "runc", {"nvidia": "/usr/bin/nvidia-container-runtime"}, None
    )
    last = world.run(state="absent")
    assert not last["run_again"]
    assert world.daemon_json.read_text() == ORIGINAL
    assert not (world.root / "lib").exists()
    again = world.run(state="absent")
    assert (again["changed"], again["action_needed"]) == (False, "none")


def test_a_run_that_died_before_its_reload_is_told_with_its_backups(world: World) -> None:
    first = world.run()
    second = world.run()
    assert (second["changed"], second["action_needed"]) == (False, "reload")
    assert second["backup_files"] == first["backup_files"]


def test_dying_while_writing_is_healed_by_the_next_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(container_runtime, "_put", die)
        with (
            pytest.raises(KeyboardInterrupt),
            patch_module_args(
                {
                    "engine": "docker",
                    "config_path": str(world.daemon_json),
                    "record_path": str(world.root / "lib/record.json"),
                }
            ),
        ):
            container_runtime.main()
    assert world.daemon_json.read_text() == ORIGINAL
    assert world.run()["changed"]
    assert world.run(state="absent")["changed"]
    assert world.daemon_json.read_text() == ORIGINAL


def test_a_write_that_fails_halfway_puts_the_first_file_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.root / "config.toml"
    config.write_text("version = 2\n")
    before = world.files()
    replace = _files.replace

    def full(module: Any, path: str, text: str, mode: int = 0o644) -> None:
        if path == str(config) and "imports" in text:
            raise _files.FileError(f"{path}: No space left on device; nothing changed.")
        replace(module, path, text, mode)

    monkeypatch.setattr(_files, "replace", full)
    result = world.run(
        engine="containerd", config_path=str(config), dropin_path=str(world.root / "conf.d/99-nvidia.toml")
    )
    assert "No space left" in result["msg"]
    left = {
        name: text
        for name, text in world.files().items()
        if not name.startswith("lib/") and not name.endswith("~")
    }
    assert left == before


def test_containerd_and_crio_through_the_module(world: World) -> None:
    config, dropin = world.root / "config.toml", world.root / "conf.d/99-nvidia.toml"
    config.write_text("# mine\nversion = 2\n")
    arguments = {"engine": "containerd", "config_path": str(config), "dropin_path": str(dropin)}
    assert world.run(**arguments)["files"] == [str(dropin), str(config)]
    stale = world.run(**arguments)
    assert (stale["changed"], stale["action_needed"], stale["restart_required"]) == (False, "restart", True)
    world.run(**arguments, state="absent")
    assert config.read_text() == "# mine\nversion = 2\n"
    assert not dropin.exists()
    crio = {
        "engine": "crio",
        "config_path": str(world.root / "crio.conf"),
        "dropin_path": str(world.root / "c.d/99.toml"),
    }
    assert world.run(**crio)["files"] == [crio["dropin_path"]]
    # CRI-O reads every file of that directory: nothing but the drop-in may lie there.
    world.run(**crio, default=False)
    assert os.listdir(world.root / "c.d") == ["99.toml"]
