# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What containers see is compared with what they asked for, by a stand-in docker."""

from __future__ import annotations

import json
import os
import socket
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubelet_engine, _visibility
from ansible_collections.gpuops.k8s.plugins.modules import gpu_visibility_info as module

DOCKER = """#!/bin/sh
case "$1" in
  info) echo '{default} {{"nvidia": {{}}, "runc": {{}}}}' ;;
  image) echo 'registry.k8s.io/pause:3.9' ;;
  run)
    echo "$@" >> {folder}/runs
    case "$*" in *NVIDIA_VISIBLE_DEVICES=all*) [ -z "{refuses}" ] || {{ echo "{refuses}" >&2; exit 125; }} ;; esac ;;
  inspect) echo 4242 ;;
esac
"""


@pytest.fixture
def docker(tmp_path, monkeypatch, capsys):
    """`docker(default, asked, unasked, named, config, refuses, **options)`: the module's result when containers see
    these nodes and NVIDIA's runtime has this config.toml; ``refuses`` is what one that names all GPUs fails with."""

    def run(default="nvidia", asked=(), unasked=(), named=None, config="", refuses="", **options):
        program = tmp_path / "docker"
        program.write_text(DOCKER.format(default=default, folder=tmp_path, refuses=refuses))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        looks = iter([list(look) for look in (unasked, named, asked) if look is not None])
        monkeypatch.setattr(_visibility, "gpu_nodes", lambda pid: next(looks))
        runtime_config = tmp_path / "config.toml"
        runtime_config.write_text(config)
        options = {"engine": "docker", "runtime_config": str(runtime_config), **options}
        with patch_module_args(options), pytest.raises(SystemExit):
            module.main()
        runs = tmp_path / "runs"
        return json.loads(capsys.readouterr().out), runs.read_text().splitlines() if runs.exists() else []

    return run


def test_a_container_that_sees_what_it_asked_for_breaks_nothing(docker):
    found, runs = docker(asked=["/dev/nvidia0", "/dev/nvidia1"], gpus=2)
    assert (found["broken_link"], found["count"], found["isolated"]) == (None, 2, True)
    assert "NVIDIA_VISIBLE_DEVICES" not in runs[0]
    assert "NVIDIA_VISIBLE_DEVICES=0,1" in runs[1]
    assert all("--network none" in run and "--pull never" in run for run in runs)


def test_another_default_runtime_is_told_and_nothing_is_started(docker):
    found, runs = docker(default="runc", gpus=2)
    assert (found["broken_link"], runs) == ("runtime", [])
    assert docker(default="runc", require_default="")[0]["broken_link"] is None


def test_a_named_runtime_is_used_and_no_default_is_required_beside_it(docker):
    found, runs = docker(default="runc", runtime="nvidia", asked=["/dev/nvidia0"], gpus=1)
    assert found["broken_link"] is None
    assert all("--runtime nvidia" in run for run in runs)
    assert docker(runtime="gpu", gpus=1)[0]["reason"] == "docker has no runtime gpu"


def test_a_container_that_sees_what_it_did_not_ask_for_is_told(docker):
    found, _runs = docker(unasked=["/dev/nvidia0"], asked=["/dev/nvidia0"], gpus=1)
    assert (found["broken_link"], found["isolated"]) == ("isolation", False)


def test_too_few_and_wrong_nodes_are_told(docker):
    assert docker(asked=["/dev/nvidia0"], gpus=2)[0]["broken_link"] == "request"
    found, _runs = docker(asked=["/dev/nvidia0"], gpus=["GPU-3"], expect_nodes=["/dev/nvidia3"])
    assert found["reason"] == "a container that asked for GPU-3 sees /dev/nvidia0, not /dev/nvidia3"


HARDENED = (
    "accept-nvidia-visible-devices-as-volume-mounts = true\n"
    "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n[nvidia-container-cli]\n"
)


def test_on_a_hardened_node_it_asks_by_mounts_and_one_that_names_gpus_must_see_none(docker):
    found, runs = docker(config=HARDENED, named=[], asked=["/dev/nvidia0", "/dev/nvidia1"], gpus=2)
    assert (found["broken_link"], found["count"], found["asked_by"]) == (None, 2, "volume-mounts")
    assert (found["named"], found["isolated"]) == ([], True)
    nothing, named, asking = runs
    assert "NVIDIA_VISIBLE_DEVICES" not in nothing and "--volume" not in nothing
    assert "NVIDIA_VISIBLE_DEVICES=all" in named and "--volume" not in named
    assert "--volume /dev/null:/var/run/nvidia-container-devices/0" in asking
    assert "--volume /dev/null:/var/run/nvidia-container-devices/1" in asking


def test_an_older_toolkit_that_refuses_a_container_with_the_variable_refuses_the_variable(docker):
    said = (
        "nvidia-container-cli: insufficient privileges to read device list from NVIDIA_VISIBLE_DEVICES envvar"
    )
    found, _runs = docker(config=HARDENED, refuses=said, asked=["/dev/nvidia0"], gpus=1)
    assert (found["broken_link"], found["named"], found["isolated"]) == (None, [], True)
    found, _runs = docker(config=HARDENED, refuses="no space left on device", gpus=1)
    assert found["broken_link"] == "request" and "no space left" in found["reason"]


def test_a_hardened_node_whose_runtime_takes_the_variable_all_the_same_is_told(docker):
    found, _runs = docker(config=HARDENED, named=["/dev/nvidia0"], asked=["/dev/nvidia0"], gpus=1)
    assert (found["broken_link"], found["isolated"]) == ("isolation", False)
    assert "config.toml refuses NVIDIA_VISIBLE_DEVICES, yet" in found["reason"]


def test_where_both_ways_are_accepted_it_asks_by_the_one_the_plugin_takes(docker):
    both = HARDENED.replace("= false", "= true")
    assert docker(config=both, asked=["/dev/nvidia0"], gpus=1)[0]["asked_by"] == "envvar"
    options = {"gpus": 1, "device_list_strategy": ["envvar", "volume-mounts"]}
    assert docker(config=both, asked=["/dev/nvidia0"], **options)[0]["asked_by"] == "volume-mounts"


@pytest.mark.parametrize(
    ("config", "strategy", "remedy"),
    [
        (HARDENED, "envvar", "set deviceListStrategy: [volume-mounts]"),
        ("", "volume-mounts", "set nvidia_docker_hardening: true"),
    ],
)
def test_a_plugin_that_hands_out_gpus_as_the_runtime_refuses_is_told(docker, config, strategy, remedy):
    named = [] if config else None
    found, runs = docker(config=config, named=named, gpus=1, device_list_strategy=[strategy])
    assert (found["broken_link"], found["visible"]) == ("request", None)
    assert f"the device plugin hands out GPUs by {strategy}" in found["reason"]
    assert found["next_step"].startswith(remedy)
    assert len(runs) == (2 if config else 1), "nobody has to ask to know it"


def test_a_plugin_that_uses_cdi_is_not_held_to_the_runtimes_settings(docker):
    options = {"gpus": 1, "device_list_strategy": ["cdi-annotations"], "asked": ["/dev/nvidia0"]}
    assert docker(**options)[0]["broken_link"] is None
    assert docker(config=HARDENED, named=[], **options)[0]["broken_link"] is None


def test_a_node_that_takes_cdi_alone_is_not_asked_and_not_blamed(docker):
    found, _runs = docker(config=HARDENED.splitlines()[1], named=[], gpus=1)
    (request,) = [link for link in found["links"] if link["link"] == "request"]
    assert (found["broken_link"], request["ok"]) == (None, None)


def test_a_configuration_that_no_runtime_can_read_is_told_with_its_place(docker):
    found, runs = docker(config="disable-require = false\nno toml\n", gpus=1)
    assert (found["broken_link"], runs) == ("runtime", [])
    assert "config.toml:2:" in found["reason"]


def test_without_a_configuration_nvidias_defaults_count(docker, tmp_path):
    found, _runs = docker(asked=["/dev/nvidia0"], gpus=1, runtime_config=str(tmp_path / "none.toml"))
    assert (found["broken_link"], found["asked_by"]) == (None, "envvar")


def test_check_mode_starts_nothing(docker):
    found, runs = docker(gpus=2, _ansible_check_mode=True)
    assert (runs, found["visible"], found["isolated"]) == ([], None, None)


@pytest.mark.parametrize(
    ("gpus", "ids"),
    [(2, ["0", "1"]), ("2", ["0", "1"]), (["GPU-a"], ["GPU-a"]), ("GPU-a, 3", ["GPU-a", "3"]), (0, [])],
)
def test_gpus_are_asked_for_by_number_or_name(gpus, ids):
    assert module.asked_for(gpus) == ids


@pytest.mark.parametrize(
    ("images", "image"),
    [
        (["a:1", "registry.k8s.io/pause:3.9"], "registry.k8s.io/pause:3.9"),
        (["rancher/mirrored-pause:3.6"], "rancher/mirrored-pause:3.6"),
        (["nginx:1"], None),
    ],
)
def test_the_pause_image_of_the_node_is_taken(images, image):
    assert _visibility.pick_image(images) == image


def test_the_default_runtime_of_containerd_is_read_from_its_dump():
    dump = """
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'nvidia'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
      BinaryName = '/usr/bin/nvidia-container-runtime'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
"""
    default, binaries = _visibility.parse_cri(dump)
    assert default == "nvidia"
    assert binaries == {"nvidia": "/usr/bin/nvidia-container-runtime", "runc": ""}


def kubelets(monkeypatch, engine, endpoint="", reason="a file says so"):
    """The kubelet of this machine talks to this engine."""
    found = _kubelet_engine.Found(engine, endpoint, "kubeadm", "/etc/default/kubelet", reason)
    monkeypatch.setattr(_kubelet_engine, "find", lambda: found)


def test_auto_looks_into_the_kubelets_engine_and_not_into_the_other_one(docker, monkeypatch, tmp_path):
    ctr = tmp_path / "ctr"
    ctr.write_text("#!/bin/sh\necho the site has stopped it >&2\nexit 1\n")
    ctr.chmod(0o755)
    kubelets(monkeypatch, "containerd")
    with monkeypatch.context() as only:
        only.setattr(os.path, "exists", lambda path: path == "/var/run/docker.sock")
        found, runs = docker(engine="auto", gpus=1)
    assert (found["engine"], found["broken_link"], runs) == ("containerd", "engine", [])
    assert found["reason"] == "containerd does not answer: the site has stopped it"
    kubelets(monkeypatch, "docker")
    assert docker(engine="auto", asked=["/dev/nvidia0"], gpus=1)[0]["engine"] == "docker"


def links(found):
    return {link["link"]: link["ok"] for link in found["links"]}


def test_without_a_kubelet_the_engine_that_is_there_is_taken(docker, monkeypatch):
    kubelets(monkeypatch, "")
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/var/run/docker.sock")
    assert docker(engine="auto", asked=["/dev/nvidia0"], gpus=1)[0]["engine"] == "docker"


def test_cri_o_that_answers_is_neither_ok_nor_broken_where_no_container_can_be_started(
    docker, monkeypatch, tmp_path
):
    path = tmp_path / "crio.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        kubelets(monkeypatch, "crio", f"unix://{path}")
        found, runs = docker(engine="auto", gpus=1, strict=True)
    assert links(found) == {"engine": True, "runtime": None, "isolation": None, "request": None}
    assert (found["broken_link"], found["isolated"], runs) == (None, None, [])
    assert "failed" not in found
    assert "can't be looked at (cri-o)" in found["links"][1]["detail"]


def test_cri_o_that_does_not_answer_is_broken(docker, monkeypatch, tmp_path):
    kubelets(monkeypatch, "crio", f"unix://{tmp_path}/none.sock")
    assert docker(engine="auto", gpus=1)[0]["broken_link"] == "engine"
    monkeypatch.setattr(_visibility, "CRIO", f"unix://{tmp_path}/none.sock")
    assert "journalctl -u crio" in docker(engine="crio", gpus=1)[0]["next_step"]


def test_a_containerd_that_the_distribution_brought_is_not_looked_into(docker, monkeypatch):
    kubelets(monkeypatch, "embedded", reason="k3s runs a containerd of its own")
    found, runs = docker(engine="auto", gpus=1)
    assert links(found) == {"engine": None, "runtime": None, "isolation": None, "request": None}
    assert runs == []
    assert "k3s" in found["links"][0]["detail"]
