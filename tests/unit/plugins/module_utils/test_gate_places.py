# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - samples stay on one line
"""Every place of every distribution is looked into, and the stronger one wins."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_places as places_of
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_text as text_of

GATE = "DevicePlugins"
FLAG = 'KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=false"\n'
UNIT = "[Service]\nEnvironmentFile=-/etc/default/kubelet\nExecStart=/usr/bin/kubelet --config={0}\n"
MAP = "kind: KubeletConfiguration\nfeatureGates:\n  DevicePlugins: false\n"
ARG = '- "feature-gates=DevicePlugins=false"\n'


def found_in(root, distribution="auto", extra=()):
    places = places_of.find_places(root, distribution, tuple(extra))
    return [(place.path, entry.line) for place, entry in places_of.survey(root, places, GATE)[1]]


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("/etc/default/kubelet", FLAG, 1),
        ("/etc/sysconfig/kubelet", "# mine\n" + FLAG, 2),
        ("/var/lib/kubelet/kubeadm-flags.env", FLAG.replace("EXTRA", "KUBEADM"), 1),
        ("/var/lib/kubelet/config.yaml", MAP, 3),
        ("/etc/kubernetes/kubelet/kubelet-config.json", '{"featureGates": {"DevicePlugins": false}}', 1),
        (
            "/etc/systemd/system/kubelet.service",
            "[Service]\nExecStart=/k --feature-gates=DevicePlugins=false\n",
            2,
        ),
        (
            "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
            '[Service]\nEnvironment="X=--feature-gates=DevicePlugins=false"\n',
            2,
        ),
        (
            "/usr/lib/systemd/system/kubelet.service.d/20-x.conf",
            '[Service]\nEnvironment="X=--feature-gates=DevicePlugins=false"\n',
            2,
        ),
        ("/etc/kubernetes/kubelet.env", 'KUBELET_ARGS="--feature-gates=DevicePlugins=false"\n', 1),
        ("/etc/kubernetes/kubelet-config.yaml", MAP, 3),
        ("/etc/rancher/k3s/config.yaml", "kubelet-arg:\n" + ARG, 2),
        ("/etc/rancher/k3s/config.yaml.d/gpu.yaml", "kubelet-arg+:\n" + ARG, 2),
        ("/etc/rancher/rke2/config.yaml", "kubelet-arg:\n" + ARG, 2),
        (
            "/etc/systemd/system/k3s-agent.service",
            "ExecStart=/k3s agent --kubelet-arg=feature-gates=DevicePlugins=false\n",
            1,
        ),
        ("/var/snap/microk8s/current/args/kubelet", "--v=1\n--feature-gates=DevicePlugins=false\n", 2),
        (
            "/etc/systemd/system/k0sworker.service",
            "ExecStart=/k0s worker --kubelet-extra-args=--feature-gates=DevicePlugins=false\n",
            1,
        ),
        (
            "/etc/k0s/k0s.yaml",
            "spec:\n  workerProfiles:\n  - values:\n      featureGates:\n        DevicePlugins: false\n",
            5,
        ),
    ],
)
def test_the_gate_is_found_in_each_place_with_its_line(node, path, text, line):
    assert found_in(node({path: text})) == [(path, line)]


def test_a_configuration_file_and_drop_ins_named_by_flags_are_followed(node):
    root = node(
        {
            "/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/k --config=/opt/k.yaml --config-dir=/opt/k.d\n",
            "/opt/k.yaml": MAP,
            "/opt/k.d/10-a.conf": MAP,
            "/opt/k.d/readme.txt": MAP,
        }
    )
    assert found_in(root) == [("/opt/k.yaml", 3), ("/opt/k.d/10-a.conf", 3)]


def test_an_environment_file_of_a_unit_is_followed(node):
    root = node(
        {
            "/etc/systemd/system/kubelet.service": "[Service]\nEnvironmentFile=-/opt/flags\nExecStart=/k $A\n",
            "/opt/flags": FLAG,
        }
    )
    assert found_in(root) == [("/opt/flags", 1)]


def test_an_extra_file_is_looked_into_whatever_its_kind(node):
    root = node({"/opt/a.yaml": MAP, "/opt/b.env": FLAG, "/opt/args": "--feature-gates=DevicePlugins=true\n"})
    assert found_in(root, extra=["/opt/a.yaml", "/opt/b.env", "/opt/args"]) == [
        ("/opt/a.yaml", 3),
        ("/opt/b.env", 1),
        ("/opt/args", 1),
    ]


@pytest.mark.parametrize(
    ("files", "effective"),
    [
        ({"/var/lib/kubelet/config.yaml": MAP}, False),
        ({"/var/lib/kubelet/config.yaml": MAP, "/etc/default/kubelet": FLAG.replace("false", "true")}, True),
        (
            {
                "/var/lib/kubelet/kubeadm-flags.env": FLAG.replace("false", "true"),
                "/etc/default/kubelet": FLAG,
            },
            False,
        ),
        (
            {
                "/etc/systemd/system/kubelet.service": UNIT.format("/opt/k.yaml"),
                "/opt/k.yaml": "kind: KubeletConfiguration\n",
                "/var/lib/kubelet/config.yaml": MAP,
            },
            None,
        ),
        (
            {
                "/etc/systemd/system/kubelet.service": "ExecStart=/k --config=/k.yaml --config-dir=/k.d\n",
                "/k.yaml": MAP,
                "/k.d/1.conf": "featureGates:\n  DevicePlugins: null\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_a_flag_wins_over_a_file_and_an_unused_file_does_not_count(node, files, effective):
    root = node(files)
    assert places_of.survey(root, places_of.find_places(root), GATE)[2] is effective


@pytest.mark.parametrize(
    ("files", "distribution", "service"),
    [
        ({}, "kubeadm", "kubelet"),
        ({"/etc/kubernetes/kubelet.env": ""}, "kubespray", "kubelet"),
        ({"/etc/systemd/system/k3s.service": ""}, "k3s", "k3s"),
        ({"/etc/systemd/system/k3s-agent.service": ""}, "k3s", "k3s-agent"),
        ({"/usr/lib/systemd/system/rke2-agent.service": ""}, "rke2", "rke2-agent"),
        ({"/etc/systemd/system/k0sworker.service": ""}, "k0s", "k0sworker"),
        ({"/var/snap/microk8s/current/args/kubelet": ""}, "microk8s", "snap.microk8s.daemon-kubelite"),
    ],
)
def test_the_distribution_and_its_service_are_recognised(node, files, distribution, service):
    root = node(files)
    assert places_of.detect(root) == distribution
    assert places_of.service(root, distribution) == service


@pytest.mark.parametrize(
    ("files", "distribution", "path", "kind"),
    [
        ({}, "kubeadm", "/etc/default/kubelet", text_of.ENV),
        (
            {"/var/lib/kubelet/config.yaml": "a: 1\n"},
            "kubeadm",
            "/var/lib/kubelet/config.yaml",
            text_of.CONFIG,
        ),
        (
            {"/var/lib/kubelet/config.yaml": "a: 1\n", "/etc/default/kubelet": "X=--feature-gates=A=true\n"},
            "kubeadm",
            "/etc/default/kubelet",
            text_of.ENV,
        ),
        ({}, "k3s", "/etc/rancher/k3s/config.yaml", text_of.KUBELET_ARG),
        ({}, "microk8s", places_of.MICROK8S_ARGS, text_of.ARGS),
    ],
)
def test_a_new_mention_goes_where_gates_are_already_or_else_to_the_configuration(
    node, files, distribution, path, kind
):
    root = node(files)
    places = places_of.find_places(root)
    texts = places_of.survey(root, places, GATE)[0]
    place = places_of.place_to_add(places, texts, distribution)
    assert (place.path, place.kind) == (path, kind)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("a: 1\n", "http://127.0.0.1:10248/healthz"),
        ("healthzPort: 10999\n", "http://127.0.0.1:10999/healthz"),
        ("X=--healthz-port=7\n", "http://127.0.0.1:7/healthz"),
        ("healthzBindAddress: 10.0.0.7\n", "http://10.0.0.7:10248/healthz"),
        ("healthzBindAddress: 0.0.0.0\n", "http://127.0.0.1:10248/healthz"),
    ],
)
def test_healthz_is_asked_where_the_kubelet_serves_it(text, url):
    assert places_of.healthz_url({"f": text}) == url
