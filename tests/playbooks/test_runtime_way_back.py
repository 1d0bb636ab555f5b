"""When an engine does not take its new files: what comes back, what is said, and its log in it. Stand-in systemd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAY = [
    {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {
                "include_role": {"name": "gpuops.k8s.nvidia_docker", "tasks_from": "apply"},
                "vars": {
                    "nvidia_docker_apply": "restart",
                    "nvidia_docker_wait": 1,
                    "__nvidia_docker_change": {
                        "item": "docker", "action_needed": "restart", "backup_files": "{{ files }}",
                    },
                },
            }
        ],
    }
]  # fmt: skip
PROGRAMS = {
    "systemctl": """case "$*" in
  *show*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\n' ;;
  *restart*) echo "Job for docker.service failed" >&2; exit 1 ;;
esac
""",
    "journalctl": "echo the-sites-log\n",
    "docker": 'echo no socket >&2; exit "$DOCKER_RC"\n',
}


@pytest.fixture(scope="module")
def collections() -> str:
    done = subprocess.run([ROOT / "tests/tools/collection"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def said(tmp_path: Path, collections: str) -> Callable[..., str]:
    """`said(files, runs)`: what the play fails with, when it put these files back and the engine then runs or not."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAY))

    def run(files: list[dict[str, str]], runs: bool) -> str:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"), "-i", "node,", tmp_path / "play.yml",
                "-e", json.dumps({"files": files, "ansible_python_interpreter": sys.executable}),
            ],
            check=False, capture_output=True, text=True, timeout=120,
            env={
                **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DOCKER_RC": "0" if runs else "1",
                "ANSIBLE_COLLECTIONS_PATH": collections, "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            },
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        return done.stdout

    return run


def test_the_files_come_back_and_the_log_is_told_whether_the_engine_runs_then_or_not(
    said: Callable[..., str], tmp_path: Path
) -> None:
    config, copy, made = tmp_path / "daemon.json", tmp_path / "daemon.json~", tmp_path / "99-nvidia.toml"
    for runs, words in (
        (True, "the old files are back and it runs with them."),
        (False, "back, and IT DOES NOT RUN"),
    ):
        copy.write_text("old")
        config.write_text("new")
        made.touch()
        text = said([{"path": str(config), "backup": str(copy)}, {"path": str(made), "backup": ""}], runs)
        assert words in text
        assert "the-sites-log" in text
        assert (config.read_text(), made.exists()) == ("old", False)


def test_a_run_that_has_changed_no_file_does_not_say_that_one_came_back(said: Callable[..., str]) -> None:
    text = said([], False)
    assert "no file was put back, since this run has changed none" in text
    assert "old files are back" not in text
    assert "the-sites-log" in text


def test_files_that_can_not_be_put_back_are_told_with_their_copies_and_the_log(
    said: Callable[..., str], tmp_path: Path
) -> None:
    text = said([{"path": str(tmp_path / "daemon.json"), "backup": "/nowhere/daemon.json~"}], True)
    assert "THE OLD FILES ARE NOT BACK" in text
    assert "copy them by hand: /nowhere/daemon.json~" in text
    assert "the-sites-log" in text
