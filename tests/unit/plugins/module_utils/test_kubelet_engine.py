# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - samples stay on one line
"""The kubelet's engine is what its settings say, wherever they stand, and what its version means where they say nothing."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubelet_engine as engine_of

CONTAINERD = "unix:///run/containerd/containerd.sock"
CRIO = "unix:///var/run/crio/crio.sock"
FLAG = '{0}="--v=2 --container-runtime=remote --container-runtime-endpoint={1}"\n'
UNIT = "[Service]\nEnvironmentFile=-/etc/default/kubelet\nExecStart=/usr/bin/kubelet {0}\n"
KEY = "kind: KubeletConfiguration\n# containerRuntimeEndpoint: unix:///old.sock\ncontainerRuntimeEndpoint: {0}\n"
K3S = {"/etc/systemd/system/k3s-agent.service": "[Service]\nExecStart=/usr/local/bin/k3s agent\n"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/var/lib/kubelet/kubeadm-flags.env", FLAG.format("KUBELET_KUBEADM_ARGS", CONTAINERD)),
        ("/etc/default/kubelet", FLAG.format("KUBELET_EXTRA_ARGS", CONTAINERD)),
        ("/etc/sysconfig/kubelet", FLAG.format("KUBELET_EXTRA_ARGS", CONTAINERD)),
        ("/etc/systemd/system/kubelet.service", UNIT.format(f"--container-runtime-endpoint {CONTAINERD}")),
        ("/etc/systemd/system/kubelet.service.d/0-containerd.conf", f'[Service]\nEnvironment="A=--container-runtime-endpoint={CONTAINERD}"\n'),
        ("/usr/lib/systemd/system/kubelet.service.d/10.conf", f'[Service]\nEnvironment="A=--container-runtime-endpoint={CONTAINERD}"\n'),
        ("/var/lib/kubelet/config.yaml", KEY.format(CONTAINERD)),
        ("/etc/kubernetes/kubelet/config.json", f'{{"kind": "KubeletConfiguration", "containerRuntimeEndpoint": "{CONTAINERD}"}}'),
        ("/etc/kubernetes/kubelet.env", FLAG.format("KUBELET_ARGS", CONTAINERD)),
    ],
)  # fmt: skip
def test_an_endpoint_is_found_in_every_place(node, path, text):
    found = engine_of.find(node({path: text}), version="1.20.2")
    assert (found.engine, found.endpoint, found.place) == ("containerd", CONTAINERD, path)


def test_kubesprays_configuration_is_found(node):
    root = node(
        {
            "/etc/kubernetes/kubelet.env": "KUBELET_ARGS=--config=/etc/kubernetes/kubelet-config.yaml\n",
            "/etc/kubernetes/kubelet-config.yaml": KEY.format(f'"{CRIO}"'),
        }
    )
    assert engine_of.find(root, version="1.31.0").engine == "crio"


@pytest.mark.parametrize(
    ("endpoint", "engine"),
    [
        (CONTAINERD, "containerd"),
        (CRIO, "crio"),
        ("unix:///var/run/dockershim.sock", "docker"),
        ("unix:///run/cri-dockerd.sock", "docker"),
        ("unix:///run/site.sock", "other"),
    ],
)
def test_an_endpoint_names_its_engine(node, endpoint, engine):
    root = node({"/etc/default/kubelet": FLAG.format("KUBELET_EXTRA_ARGS", endpoint)})
    assert engine_of.find(root).engine == engine


@pytest.mark.parametrize(
    ("version", "engine"),
    [
        ("1.20.2", "docker"),
        ("1.23.17", "docker"),
        ("1.24.0", "containerd"),
        ("1.36.2", "containerd"),
        ("", ""),
    ],
)
def test_without_an_endpoint_the_version_decides(node, version, engine):
    assert (
        engine_of.find(node({"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n"}), version=version).engine
        == engine
    )


def test_docker_by_name_needs_no_version(node):
    root = node({"/etc/default/kubelet": 'KUBELET_EXTRA_ARGS="--container-runtime=docker"\n'})
    assert engine_of.find(root).engine == "docker"


def test_the_strongest_place_wins_and_comments_and_unused_files_say_nothing(node):
    files = {
        "/var/lib/kubelet/config.yaml": KEY.format(CRIO),
        "/var/lib/kubelet/kubeadm-flags.env": FLAG.format(
            "KUBELET_KUBEADM_ARGS", "unix:///run/cri-dockerd.sock"
        ),
        "/etc/default/kubelet": "# " + FLAG.format("KUBELET_EXTRA_ARGS", CRIO),
    }
    assert engine_of.find(node(files)).engine == "docker", "a flag wins over a file"
    root = node({"/etc/default/kubelet": FLAG.format("KUBELET_EXTRA_ARGS", CONTAINERD)})
    assert engine_of.find(root).engine == "containerd", "the last flag wins"


def test_a_configuration_that_the_kubelet_does_not_read_says_nothing(node):
    root = node(
        {
            "/etc/systemd/system/kubelet.service": UNIT.format("--config=/srv/kubelet.yaml"),
            "/var/lib/kubelet/config.yaml": KEY.format(CRIO),
            "/srv/kubelet.yaml": KEY.format(CONTAINERD),
        }
    )
    assert engine_of.find(root).place == "/srv/kubelet.yaml"


def test_a_drop_in_that_starts_the_kubelet_anew_takes_the_units_flags_away(node):
    root = node(
        {
            "/usr/lib/systemd/system/kubelet.service": UNIT.format(f"--container-runtime-endpoint={CRIO}"),
            "/etc/systemd/system/kubelet.service.d/10.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --v=1\n",
        }
    )
    assert engine_of.find(root, version="1.20.0").engine == "docker"


@pytest.mark.parametrize(
    ("files", "name", "engine"),
    [
        (K3S, "k3s", "embedded"),
        ({**K3S, "/etc/rancher/k3s/config.yaml": "docker: true\n"}, "k3s", "docker"),
        ({"/etc/systemd/system/k3s.service": "ExecStart=/usr/local/bin/k3s server --docker\n"}, "k3s", "docker"),
        ({**K3S, "/etc/rancher/k3s/config.yaml": f"container-runtime-endpoint: {CONTAINERD}\n"}, "k3s", "containerd"),
        ({**K3S, "/etc/rancher/k3s/config.yaml": f'kubelet-arg:\n  - "container-runtime-endpoint={CRIO}"\n'}, "k3s", "crio"),
        ({"/usr/lib/systemd/system/rke2-server.service": "ExecStart=/usr/local/bin/rke2 server\n"}, "rke2", "embedded"),
        ({"/var/snap/microk8s/current/args/kubelet": "--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n"}, "microk8s", "embedded"),
        ({"/etc/systemd/system/k0sworker.service": "ExecStart=/usr/local/bin/k0s worker\n"}, "k0s", "embedded"),
    ],
)  # fmt: skip
def test_a_distribution_with_a_containerd_of_its_own_is_told_from_one_that_uses_the_nodes(
    node, files, name, engine
):
    found = engine_of.find(node(files))
    assert (found.engine, found.distribution) == (engine, name)
    assert found.reason
