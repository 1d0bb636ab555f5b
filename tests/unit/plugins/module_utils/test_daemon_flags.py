# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon's flags, each with the file and line it stands in."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.gpuops.k8s.plugins.module_utils import _daemon_flags as daemon

UNIT = """\
[Unit]
Description=ExecStart=/not/this --wrong
[Service]
# ExecStart=/nor/this
EnvironmentFile=-{env}
Environment="LEVEL=debug" OTHER=1
ExecStart=/usr/sbin/dockerd -H fd:// \\
  --log-level=${{LEVEL}} $DOCKER_OPTS
ExecReload=/bin/kill -s HUP $MAINPID
"""


def directories(tmp_path: Path) -> tuple[str, ...]:
    made = []
    for name in ("etc", "run", "lib"):
        (tmp_path / name).mkdir()
        made.append(str(tmp_path / name))
    return tuple(made)


def test_flags_of_unit_and_environment_file_carry_their_places(tmp_path: Path) -> None:
    where = directories(tmp_path)
    env = tmp_path / "default"
    env.write_text("# comment\nDOCKER_OPTS='--default-runtime=kata --add-runtime kata=/k'\n")
    unit = tmp_path / "lib/docker.service"
    unit.write_text(UNIT.format(env=env))
    found = daemon.flags(daemon.unit_command("docker.service", where))
    assert [(str(flag), flag.place) for flag in found] == [
        ("-H=fd://", f"{unit}:7"),
        ("--log-level=debug", f"{unit}:6"),
        ("--default-runtime=kata", f"{env}:2"),
        ("--add-runtime=kata=/k", f"{env}:2"),
    ]


def test_a_drop_in_replaces_the_command_and_a_nearer_one_hides_a_farther_one(tmp_path: Path) -> None:
    where = directories(tmp_path)
    (tmp_path / "lib/docker.service").write_text("[Service]\nExecStart=/usr/sbin/dockerd --one\n")
    for name in ("etc", "lib"):
        (tmp_path / name / "docker.service.d").mkdir()
    (tmp_path / "lib/docker.service.d/10.conf").write_text(
        "[Service]\nExecStart=\nExecStart=/x/dockerd --hidden\n"
    )
    near = tmp_path / "etc/docker.service.d/10.conf"
    near.write_text("[Service]\nExecStart=\nExecStart=/x/dockerd --config-file /y\n")
    assert daemon.flags(daemon.unit_command("docker.service", where)) == [
        daemon.Flag("config-file", "/y", f"{near}:3")
    ]


def test_no_unit_no_flags(tmp_path: Path) -> None:
    assert daemon.unit_command("docker.service", directories(tmp_path)) == []


def process(
    proc: Path, pid: int, words: list[str], started: int, namespace: str = "pid:[1]", state: str = "S"
) -> None:
    folder = proc / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (folder / "stat").write_text(f"{pid} (a) b) {state} " + " ".join(["0"] * 18) + f" {started} 0\n")
    os.symlink(namespace, folder / "ns/pid")


def test_the_running_daemon_of_this_namespace_is_found(tmp_path: Path) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    os.symlink("pid:[1]", tmp_path / "self/ns/pid")
    process(tmp_path, 7, ["/usr/sbin/dockerd", "--default-runtime", "kata"], 50)
    process(tmp_path, 5, ["dockerd", "--nested"], 10, namespace="pid:[2]")
    process(tmp_path, 4, ["/usr/bin/containerd"], 10)
    process(tmp_path, 3, ["dockerd", "--dead"], 1, state="Z")
    pid, flags = daemon.daemon_flags("docker.service", ("dockerd",), (str(tmp_path),), str(tmp_path))
    assert pid == 7
    assert flags == [daemon.Flag("default-runtime", "kata", "running dockerd (pid 7)")]


def test_a_flag_of_a_file_is_not_told_twice(tmp_path: Path) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    os.symlink("pid:[1]", tmp_path / "self/ns/pid")
    unit = tmp_path / "docker.service"
    unit.write_text("[Service]\nExecStart=/usr/sbin/dockerd --default-runtime=kata\n")
    process(tmp_path, 7, ["/usr/sbin/dockerd", "--default-runtime=kata"], 50)
    _pid, flags = daemon.daemon_flags("docker.service", ("dockerd",), (str(tmp_path),), str(tmp_path))
    assert flags == [daemon.Flag("default-runtime", "kata", f"{unit}:2")]


def test_the_containerd_that_dockerd_started_is_not_taken_for_the_machines(tmp_path: Path) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    os.symlink("pid:[1]", tmp_path / "self/ns/pid")
    process(tmp_path, 7, ["containerd", "--config", "/var/run/docker/containerd/containerd.toml"], 5)
    process(tmp_path, 9, ["containerd"], 50)
    pid, _words = daemon.process_command(("containerd",), str(tmp_path), "/docker/containerd/containerd.toml")
    assert pid == 9
