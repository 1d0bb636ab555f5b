# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How kubectl is called, and what becomes of what it says."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils._kubectl import (
    Kubectl,
    KubectlError,
    default_kubeconfig,
)

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns"}}
REFUSED = "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"


class Script:
    """Answers calls in turn; remembers them."""

    def __init__(self, *answers):
        self.answers, self.calls, self.stdin = list(answers), [], []

    def __call__(self, arguments, stdin):
        self.calls.append(arguments)
        self.stdin.append(stdin)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, tuple) else (0, json.dumps(answer), "")


class Clock:
    """A clock that sleeping moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(seconds, 0.01)


def pod(phase, ready="False"):
    return {**POD, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}


def test_all_settings_reach_the_command_line():
    run = Script("")
    Kubectl(run, "k3s kubectl", "/etc/k.yaml", "site", "gpu").call("version")
    expected = "k3s kubectl --kubeconfig /etc/k.yaml --context site --namespace gpu version"
    assert run.calls == [expected.split()]


def test_an_older_kubectl_without_the_flag_is_asked_again_without_it_and_from_then_on():
    run = Script((1, "", "Error: unknown flag: --show-managed-fields"), POD, POD)
    kubectl = Kubectl(run)
    assert kubectl.get([POD]) == [POD]
    kubectl.get([POD])
    assert ["--show-managed-fields" in call for call in run.calls] == [True, False, False]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("The connection to the server localhost:8080 was refused", "set `kubeconfig`"),
        ('no matches for kind "Gpu" in version "x/v1"', "CustomResourceDefinition installed"),
        ('Apply failed with 1 conflict: conflict with "kubectl-edit": .spec.replicas', "`force: true`"),
    ],
)
def test_errors_say_what_to_do_next(said, advice):
    with pytest.raises(KubectlError) as caught:
        Kubectl(Script((1, "", said))).get([POD])
    assert said in str(caught.value) and advice in str(caught.value)


def test_waiting_ends_when_the_object_is_ready():
    run = Script(pod("Pending"), pod("Running"), pod("Running", "True"))
    clock = Clock()
    assert Kubectl(run).wait([POD], timeout=60, sleep=1, clock=clock)[0]["status"]["phase"] == "Running"
    assert clock.now == 2


def test_an_api_server_that_is_away_is_waited_for():
    clock = Clock()
    Kubectl(Script((1, "", REFUSED), (1, "", REFUSED), pod("Running", "True"))).wait(
        [POD], timeout=60, sleep=1, clock=clock
    )
    assert clock.now == 2


def test_an_api_server_that_stays_away_fails_with_its_address_when_time_is_up():
    clock = Clock()
    with pytest.raises(KubectlError, match=r"10\.0\.0\.1:6443"):
        Kubectl(Script((1, "", REFUSED))).wait([POD], timeout=5, sleep=1, clock=clock)
    assert clock.now == 5


def test_when_time_is_up_the_reason_is_told():
    with pytest.raises(KubectlError, match=r"not ready after 3 s:\nPod a in namespace ns: phase Pending"):
        Kubectl(Script({**POD, "status": {"phase": "Pending"}})).wait(
            [POD], timeout=3, sleep=1, clock=Clock()
        )


def test_a_daemonset_whose_pods_are_refused_is_told_with_the_reason():
    workload = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "d", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "d"}}},
    }
    reason = 'pods "d-" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes'
    event = {"metadata": {}, "reason": "FailedCreate", "message": reason, "eventTime": "2026-11-23T10:00:00Z"}

    def run(arguments, stdin):
        if "events" in arguments:
            return 0, json.dumps({"kind": "List", "items": [event]}), ""
        return 0, "" if "pods" in arguments else json.dumps(workload), ""

    with pytest.raises(KubectlError, match="has not seen the change yet") as raised:
        Kubectl(run).wait([workload], timeout=3, sleep=1, clock=Clock())
    assert f"  no pod could be created (at 2026-11-23T10:00:00Z): {reason}" in str(raised.value)


def test_a_hopeless_object_is_not_waited_for():
    clock = Clock()
    with pytest.raises(KubectlError, match="failed:"):
        Kubectl(Script(pod("Failed"))).wait([POD], timeout=300, sleep=1, clock=clock)
    assert clock.now == 0


@pytest.mark.parametrize(
    ("environment", "files", "chosen"),
    [
        ({}, ["/etc/kubernetes/admin.conf"], "/etc/kubernetes/admin.conf"),
        ({}, ["/etc/rancher/k3s/k3s.yaml"], "/etc/rancher/k3s/k3s.yaml"),
        ({"KUBECONFIG": "/mine"}, ["/etc/kubernetes/admin.conf"], None),
        ({"HOME": "/home/a"}, ["/home/a/.kube/config", "/etc/kubernetes/admin.conf"], None),
        ({}, [], None),
    ],
)
def test_an_installers_kubeconfig_is_taken_only_where_nobody_set_another(environment, files, chosen):
    assert default_kubeconfig(environment, exists=files.__contains__) == chosen


NODE = {
    "metadata": {"name": "n", "resourceVersion": "7"},
    "status": {"conditions": [{"type": "Ready"}, {"type": "GPUsHealthy"}]},
}
CONFLICT = (1, "", "the object has been modified; please apply your changes to the latest version")


def test_a_condition_is_taken_out_of_the_status_and_all_else_is_sent_back_as_read():
    run = Script(NODE, "")
    Kubectl(run).remove_conditions("n", ["GPUsHealthy"])
    assert run.calls[-1] == ["kubectl", "replace", "--raw", "/api/v1/nodes/n/status", "-f", "-"]
    assert json.loads(run.stdin[-1]) == {**NODE, "status": {"conditions": [{"type": "Ready"}]}}


def test_a_status_that_the_kubelet_wrote_meanwhile_is_read_again():
    run = Script(NODE, CONFLICT, NODE, "")
    Kubectl(run).remove_conditions("n", ["GPUsHealthy"])
    assert len(run.calls) == 4


def test_a_kubelet_that_always_comes_first_is_not_tried_for_ever():
    run = Script(*[NODE, CONFLICT] * 10)
    with pytest.raises(KubectlError, match="has been modified"):
        Kubectl(run).remove_conditions("n", ["GPUsHealthy"])
    assert len(run.calls) == 20


def test_a_condition_that_is_not_there_costs_no_write():
    run = Script(NODE)
    Kubectl(run).remove_conditions("n", ["MemoryPressure"])
    assert len(run.calls) == 1
