# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's pod follows the DaemonSet in the gentlest way there is, against an API server that is a dictionary."""

from __future__ import annotations

import copy
import json

import pytest
from ansible.module_utils import basic
from ansible_collections.gpuops.k8s.plugins.modules import daemonset_pod


class Ended(Exception):
    """The module's way out; carries what it returned."""


def template(image: str, command: str = "run") -> dict:
    container = {"name": "plugin", "image": image, "args": [command]}
    return {"$patch": "replace", "spec": {"containers": [container], "nodeSelector": {"gpu": "true"}}}


class Server:
    """kubectl, the DaemonSet's controller and the kubelet of node a."""

    def __init__(self, *templates: dict, pod_of: int = 0, node: str = "a") -> None:
        owner = [{"uid": "u1", "controller": True}]
        self.revisions = [
            {
                "metadata": {"labels": {"controller-revision-hash": f"h{n}"}, "ownerReferences": owner},
                "revision": n,
                "data": {"spec": {"template": one}},
            }
            for n, one in enumerate(templates, start=1)
        ]
        self.owner, self.calls, self.starts, self.fate = owner, [], 1, "ready"
        self.late = 0  # how many looks it takes until the controller has seen the template
        self.pods = [self._pod(self.revisions[pod_of - 1])] if pod_of else []
        self.node, self.deleted = node, 0
        self.events: list[dict] | None = []  # None: who asks may not read them

    def _pod(self, revision: dict) -> dict:
        spec = copy.deepcopy(revision["data"]["spec"]["template"]["spec"])
        return {
            "kind": "Pod",
            "metadata": {
                "name": f"plugin-{self.starts}",
                "labels": dict(revision["metadata"]["labels"]),
                "ownerReferences": self.owner,
            },
            "spec": {**spec, "nodeName": "a"},
            "status": self._status(),
        }

    def _status(self) -> dict:
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if self.fate == "crash" else {"running": {}}
        return {
            "conditions": [{"type": "Ready", "status": "True" if self.fate == "ready" else "False"}],
            "containerStatuses": [{"name": "plugin", "containerID": f"c{self.starts}", "state": state}],
        }

    def __call__(self, words):
        words = words[words.index("kube-system") + 1 :]
        self.calls.append(words[0])
        if words[:2] == ["get", "events"] and self.events is None:
            return 1, "", 'events is forbidden: User "x" cannot list resource "events"'
        return 0, getattr(self, words[0])(*words[1:]), ""

    def get(self, kind, *more):
        if kind == "daemonset":
            self.late -= 1
            seen = 7 if self.late < 0 else 6
            return json.dumps(
                {
                    "metadata": {"name": "plugin", "uid": "u1", "generation": 7},
                    "spec": {"selector": {"matchLabels": {"app": "p"}}, "template": template("x")},
                    "status": {"observedGeneration": seen},
                }
            )
        if kind == "controllerrevisions":
            return json.dumps({"items": self.revisions})
        if kind == "events":
            assert "involvedObject.kind=DaemonSet,involvedObject.name=plugin" in more[1]
            assert "involvedObject.uid=u1" in more[1], "not those of a DaemonSet of that name that is gone"
            return json.dumps({"kind": "List", "items": self.events})
        assert f"spec.nodeName={self.node}" in more
        found = copy.deepcopy(self.pods)
        # The kubelet and the controller do their part after the answer, so that the module has to wait for it.
        if self.deleted == 1:
            self.starts += 1
            self.pods = [self._pod(max(self.revisions, key=lambda one: one["revision"]))]
        self.deleted -= 1
        for one in self.pods:
            images = [c["image"] for c in one["spec"]["containers"]]
            if images != one.setdefault("ran", images):
                self.starts += 1
                one["ran"], one["status"] = images, self._status()
        return json.dumps({"items": found})

    def patch(self, _kind, name, _type, _flag, text):
        change = json.loads(text)
        pod = next(one for one in self.pods if one["metadata"]["name"] == name)
        pod["metadata"]["labels"].update(change["metadata"].get("labels", {}))
        pod["metadata"].setdefault("annotations", {}).update(change["metadata"].get("annotations", {}))
        for wanted in change.get("spec", {}).get("containers", []):
            for container in pod["spec"]["containers"]:
                if container["name"] == wanted["name"]:
                    container["image"] = wanted["image"]
        return ""

    def delete(self, _kind, name, _wait, *force):
        self.forced = list(force)
        if force:
            self.pods, self.deleted = [], 1
        else:
            self.pods[0]["metadata"]["deletionTimestamp"] = "now"
            self.deleted = 2
        return name

    def logs(self, *_words):
        return "level=error problem=settings\n"


@pytest.fixture
def call(monkeypatch):
    def leave(_module, failed=False, **result):
        raise Ended({"failed": failed, **result})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", leave)
    monkeypatch.setattr(
        basic.AnsibleModule, "fail_json", lambda self, **result: leave(self, failed=True, **result)
    )

    def run(server, check=False, **options):
        monkeypatch.setattr(basic.AnsibleModule, "run_command", lambda _self, words, **_more: server(words))
        arguments = {
            "name": "plugin",
            "node": "a",
            "sleep": 0.001,
            "timeout": 2,
            "_ansible_check_mode": check,
        }
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **options}})
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", text.encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(Ended) as ended:
            daemonset_pod.main()
        return ended.value.args[0]

    return run


def test_a_new_image_goes_into_the_running_pod(call):
    server = Server(template("old"), template("new"), pod_of=1)
    result = call(server)
    assert (result["action"], result["changed"]) == ("swapped", True)
    assert (result["images_before"], result["images"]) == ({"plugin": "old"}, {"plugin": "new"})
    assert "delete" not in server.calls
    assert server.starts == 2, "the module came back before the new container ran"
    assert [p["metadata"]["labels"]["controller-revision-hash"] for p in server.pods] == ["h2"]


def test_a_second_run_does_nothing(call):
    server = Server(template("old"), template("new"), pod_of=1)
    call(server)
    result = call(server)
    assert (result["action"], result["changed"]) == ("none", False)
    assert server.calls.count("patch") == 1


def test_a_template_with_other_arguments_needs_another_pod(call):
    server = Server(template("old"), template("new", "run --verbose"), pod_of=1)
    result = call(server)
    assert (result["action"], result["pod"]) == ("replaced", "plugin-2")


@pytest.mark.parametrize(
    ("options", "force"), [({}, []), ({"immediate": True}, ["--force", "--grace-period=0"])]
)
def test_a_pod_leaves_the_api_server_at_once_when_its_program_sees_to_being_one(call, options, force):
    server = Server(template("old"), template("new", "run --verbose"), pod_of=1)
    result = call(server, **options)
    assert (result["action"], result["pod"], server.forced) == ("replaced", "plugin-2", force)


def test_a_pod_that_asks_for_time_to_end_is_not_taken_from_the_api_server_at_once(call):
    server = Server(template("old"), template("new", "run --verbose"), pod_of=1)
    server.pods[0]["spec"]["terminationGracePeriodSeconds"] = 30
    assert (call(server, immediate=True)["action"], server.forced) == ("replaced", [])


def test_a_pod_whose_template_is_forgotten_is_made_anew(call):
    server = Server(template("old"), template("new"), pod_of=1)
    del server.revisions[0]
    assert call(server)["action"] == "replaced"


def test_without_in_place_a_new_image_makes_a_new_pod(call):
    server = Server(template("old"), template("new"), pod_of=1)
    assert call(server, in_place=False)["action"] == "replaced"


def test_the_newest_template_is_the_one_with_the_greatest_number(call):
    server = Server(template("old"), template("new"), pod_of=2)
    server.revisions[0]["revision"] = 3  # what a rollback does
    assert call(server)["images"] == {"plugin": "old"}


def test_it_waits_until_the_controller_has_seen_the_template(call):
    server = Server(template("old"), template("new"), pod_of=1)
    server.late = 3
    assert call(server)["action"] == "swapped"


def test_check_mode_says_what_would_be_done_and_does_nothing(call):
    server = Server(template("old"), template("new"), pod_of=1)
    result = call(server, check=True)
    assert (result["action"], result["changed"]) == ("swapped", True)
    assert set(server.calls) == {"get"}


def test_an_annotation_makes_the_kubelet_look_and_is_no_change(call):
    server = Server(template("new"), pod_of=1)
    result = call(server, annotations={"settings": "4711"})
    assert (result["action"], result["changed"]) == ("annotated", False)
    assert server.pods[0]["metadata"]["annotations"] == {"settings": "4711"}
    assert call(server, annotations={"settings": "4711"})["action"] == "none"


def test_a_plugin_that_crashes_is_given_up_at_once_with_its_log(call):
    server = Server(template("old"), template("new"), pod_of=1)
    server.fate = "crash"
    result = call(server, timeout=600)
    assert result["failed"] and "CrashLoopBackOff" in result["msg"] and "problem=settings" in result["msg"]


@pytest.mark.parametrize("newest", [1, 2])
def test_a_pod_that_crashes_is_made_anew_and_the_new_one_is_judged(call, newest):
    server = Server(template("old"), template("bad"), pod_of=2)
    server.fate = "crash"
    server.pods[0]["status"] = server._status()
    server.revisions[newest - 1]["revision"] = 3  # back to the old one, or the bad one mended
    server.fate = "ready"
    result = call(server, timeout=600)
    assert (result["failed"], result["action"], result["pod"]) == (False, "replaced", "plugin-2")


def test_a_node_that_the_daemonset_does_not_select_is_named_with_the_selector(call):
    result = call(Server(template("new"), node="b"), node="b", timeout=0.05)
    assert result["failed"]
    assert "on b" in result["msg"] and "nodeSelector" in result["msg"]


def refused(message: str, last: str, count: int = 1, reason: str = "FailedCreate") -> dict:
    return {
        "metadata": {"creationTimestamp": "2026-11-23T09:00:00Z"},
        "reason": reason,
        "message": f"(combined from similar events): Error creating: {message}",
        "lastTimestamp": last,
        "count": count,
    }


QUOTA = 'pods "plugin-" is forbidden: exceeded quota: site, requested: pods=1, used: pods=0, limited: pods=0'


def test_pods_that_the_api_server_refuses_are_told_with_the_newest_events_words(call):
    server = Server(template("new"), node="b")
    server.events = [
        refused("an older reason", "2026-11-23T10:00:00Z", 99),
        refused(QUOTA, "2026-11-23T10:00:07Z", 3),
        refused("no failure", "2026-11-23T11:00:00Z", reason="SuccessfulCreate"),
    ]
    result = call(server, node="b", timeout=0.05)
    assert result["failed"]
    assert f"no pod could be created (at 2026-11-23T10:00:07Z, 3 times): {QUOTA}" in result["msg"]
    assert "older reason" not in result["msg"] and "nodeSelector" not in result["msg"]


def test_a_controller_that_waits_for_its_first_pod_is_not_taken_for_a_dead_one(call):
    server = Server(template("new"))
    server.late, server.events = 10**6, [refused(QUOTA, "2026-11-23T10:00:07Z")]
    result = call(server, timeout=0.05)
    assert QUOTA in result["msg"] and "kube-controller-manager" not in result["msg"]
    server.events = []
    assert "does kube-controller-manager run?" in call(server, timeout=0.05)["msg"]


def test_who_may_not_read_events_gets_the_advice_that_needs_none(call):
    server = Server(template("new"), node="b")
    server.events = None
    assert "nodeSelector" in call(server, node="b", timeout=0.05)["msg"]
