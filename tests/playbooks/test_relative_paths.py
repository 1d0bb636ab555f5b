"""A relative path on the control host starts where the administrator is, not in the installed collection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report_shots
import yaml

ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the administrator runs; the collection is elsewhere, so that what is written into it is found."""
    report_shots.collection(tmp_path / "installed")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def ran(home: Path, playbook: str, *extra: str) -> subprocess.CompletedProcess[str]:
    variables: dict[str, Any] = {
        "device_plugin_kubelet_root_dir": str(home / "none"),
        "device_plugin_verify_visibility": False,
        "device_plugin_verify_timeout": 0,
    }
    hosts = {"gpu_nodes": {"hosts": {"node1": LOCAL}, "vars": variables}}
    (home / "inventory.yml").write_text(yaml.safe_dump(hosts))
    # A service manager or cron sets no PWD.
    environment = {name: value for name, value in os.environ.items() if name != "PWD"}
    return subprocess.run(
        [ANSIBLE, playbook, "-i", "inventory.yml", *extra],
        cwd=home,
        env={**environment, **report_shots.environment(home.parent / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("extra", "name"), [(["-e", "report_file=fleet.html"], "fleet.html"), ([], "gpu-report.html")]
)
def test_the_report_is_where_it_was_asked_for(home, extra, name):
    done = ran(home, "gpuops.k8s.report", *extra)
    assert done.returncode == 0, done.stdout
    assert (home / name).read_text().startswith("<!DOCTYPE html>")
    assert str(home / name) in done.stdout


def test_so_are_the_verdicts(home):
    files = [
        "-e",
        "verify_summary=all.json",
        "-e",
        "device_plugin_verify_report={{ inventory_hostname }}.json",
    ]
    done = ran(home, "gpuops.k8s.verify", *files)
    assert done.returncode != 0, "this machine is no GPU node"
    assert json.loads((home / "all.json").read_text())["broken"] == ["node1"]
    assert json.loads((home / "node1.json").read_text())["ok"] is False


def test_a_path_that_is_absolute_or_in_the_home_directory_stays_so(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    for path, place in (
        (f"{tmp_path}/there.html", tmp_path / "there.html"),
        ("~/mine.html", tmp_path / "me/mine.html"),
    ):
        done = ran(home, "gpuops.k8s.report", "-e", f"report_file={path}")
        assert place.exists(), done.stdout


def test_so_are_the_bill_of_materials_and_what_is_built(home):
    """sbom.yml alone, with a program in the place of Python that writes its --output."""
    (home / "python").write_text('#!/bin/sh\nfor last; do :; done\necho "{}" >"$last"\n')
    (home / "python").chmod(0o755)
    play = {
        "hosts": "gpu_nodes",
        "vars": {
            "device_plugin_sbom": "sbom.json",
            "device_plugin_build_dir": "built",
            "device_plugin_build_python": str(home / "python"),
            "device_plugin_image": "registry.test/plugin:1",
        },
        "tasks": [
            {
                "ansible.builtin.include_role": {
                    "name": "gpuops.k8s.device_plugin",
                    "tasks_from": "sbom",
                    "public": True,
                }
            },
            {
                "ansible.builtin.assert": {"that": "_device_plugin_bundle == where"},
                "vars": {
                    "where": f"{home}/built/{{{{ _device_plugin_release }}}}-{{{{ _device_plugin_arch }}}}",
                    "__device_plugin_sources": {"files": []},
                },
            },
        ],
    }
    elsewhere = home.parent / "plays"
    elsewhere.mkdir()
    (elsewhere / "play.yml").write_text(yaml.safe_dump([play]))
    done = ran(home, str(elsewhere / "play.yml"))
    assert done.returncode == 0, done.stdout
    assert (home / "sbom.json").exists()
