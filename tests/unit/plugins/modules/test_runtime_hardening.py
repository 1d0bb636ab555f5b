# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module writes both keys at once, remembers what was there, and forgets it with the undo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import _runtime_record
from ansible_collections.gpuops.k8s.plugins.modules import runtime_hardening as module

OWNERS = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n[nvidia-container-cli]\n"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`call(**options)`: the module's result for the file config.toml, its record in store/."""
    monkeypatch.setattr(_runtime_record, "DEFAULT_PATH", str(tmp_path / "store/container_runtime.json"))

    def run(**options):
        with (
            patch_module_args({"path": str(tmp_path / "config.toml"), **options}),
            pytest.raises(SystemExit),
        ):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_hardened_then_not_then_undone_gives_back_the_owners_file(call, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(OWNERS)
    config.chmod(0o640)
    foretold = call(_ansible_check_mode=True, _ansible_diff=True)
    assert foretold["changed"] and config.read_text() == OWNERS
    done = call()
    assert (done["changed"], set(done["before"].values())) == (True, {False})
    assert config.read_text() == foretold["diff"]["after"]
    assert Path(done["backup_file"]).read_text() == OWNERS
    assert not call()["changed"]
    assert call(hardened=False)["changed"]
    assert set(call(hardened=False)["after"].items()) == {
        ("accept-nvidia-visible-devices-as-volume-mounts", False),
        ("accept-nvidia-visible-devices-envvar-when-unprivileged", True),
    }
    assert call(state="absent")["changed"]
    assert (config.read_text(), oct(config.stat().st_mode)[-3:]) == (OWNERS, "640")
    assert not call(state="absent")["changed"]
    assert not (tmp_path / "store").exists()


def test_a_file_that_was_not_there_goes_again(call, tmp_path):
    assert call()["changed"]
    assert call(state="absent")["changed"]
    assert not (tmp_path / "config.toml").exists()


def test_a_file_that_is_no_toml_is_refused_and_left(call, tmp_path):
    (tmp_path / "config.toml").write_text("a = 1\nno toml\n")
    refused = call()
    assert refused["failed"] and f"{tmp_path}/config.toml:2:" in refused["msg"]
    assert (tmp_path / "config.toml").read_text() == "a = 1\nno toml\n"
    assert not (tmp_path / "store").exists()
