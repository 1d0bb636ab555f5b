# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts, order and reasons of the fleet's report."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.filter.fleet_summary import FilterModule, fleet_summary


def device(gpu: str, healthy: bool = True, pod: str = "", **more: Any) -> dict[str, Any]:
    holder = {"namespace": "default", "pod": pod} if pod else None
    base = {"id": gpu, "index": gpu[-1], "uuid": gpu, "gpu": gpu, "model": "NVIDIA L4", "holder": holder}
    return {**base, "healthy": healthy, "reason": None if healthy else "XID 79", **more}


def node(host: str, uuids: list[str], devices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    gpus = {
        "gpus": [{"uuid": uuid, "index": number, "name": "NVIDIA L4"} for number, uuid in enumerate(uuids)]
    }
    status = {"version": "0.1.0", "resources": [{"name": "nvidia.com/gpu", "devices": devices}]}
    return {"host": host, "reachable": True, "gpus": gpus, "status": status, **more}


def test_the_filter_is_found_by_its_name() -> None:
    assert FilterModule().filters() == {"fleet_summary": fleet_summary}


def test_every_gpu_is_counted_once_as_held_free_unhealthy_or_not_offered() -> None:
    devices = [device("a0", pod="train"), device("a1"), device("a2", healthy=False, pod="train")]
    totals = fleet_summary([node("a", ["a0", "a1", "a2", "a3"], devices)])["totals"]
    counts = {word: totals[word] for word in ("gpus", "held", "free", "unhealthy", "not_offered")}
    assert counts == {"gpus": 4, "held": 1, "free": 1, "unhealthy": 1, "not_offered": 1}


def test_a_gpu_that_is_shared_is_one_tile_with_its_holders() -> None:
    devices = [device("a0", pod=f"p{copy}" if copy < 6 else "", id=f"a0::{copy}") for copy in range(8)]
    shown = fleet_summary([node("a", ["a0"], devices)])["nodes"][0]
    (tile,) = shown["resources"][0]["tiles"]
    assert (tile["copies"], tile["held"], len(tile["holders"]), tile["more"]) == (8, 6, 4, 2)
    assert shown["count"]["held"] == 1


def test_a_node_with_one_sick_gpu_needs_attention_and_comes_first() -> None:
    fleet = [
        node("well", ["w0"], [device("w0")]),
        {"host": "away", "reachable": False},
        node("sick", ["s0", "s1"], [device("s0"), device("s1", healthy=False)]),
    ]
    shown = fleet_summary(fleet)
    assert [(one["host"], one["state"]) for one in shown["nodes"]] == [
        ("sick", "bad"),
        ("away", "down"),
        ("well", "good"),
    ]
    assert (shown["totals"]["in_order"], shown["totals"]["attention"], shown["totals"]["unreachable"]) == (
        1,
        1,
        1,
    )


def test_only_the_first_broken_link_is_told_since_what_follows_is_broken_by_it() -> None:
    broken = {"gpus": {"broken_link": "driver", "reason": "no module", "next_step": "modprobe nvidia"}}
    shown = fleet_summary([{**node("a", [], []), **broken, "offered": {"broken_link": "plugin"}}])
    assert shown["nodes"][0]["why"] == [{"what": "driver", "why": "no module", "next": "modprobe nvidia"}]


def test_versions_name_the_nodes_that_differ() -> None:
    fleet = [node(host, [], [], versions={"kubelet": "1.30.4"}) for host in ("a", "b")]
    fleet.append(node("c", [], [], versions={"kubelet": "1.29.0"}))
    row = next(row for row in fleet_summary(fleet)["versions"] if row["name"] == "kubelet")
    assert [(value["version"], value["hosts"]) for value in row["values"]] == [
        ("1.30.4", ["a", "b"]),
        ("1.29.0", ["c"]),
    ]


def test_pods_wait_only_when_they_ask_for_gpus_and_have_no_node() -> None:
    def pod(name: str, limits: dict[str, str], **spec: Any) -> dict[str, Any]:
        return {
            "metadata": {"namespace": "default", "name": name},
            "spec": {"containers": [{"resources": {"limits": limits}}, {}], **spec},
            "status": {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "message": "Insufficient"}],
            },
        }

    pods = [
        pod("waits", {"nvidia.com/gpu": "9"}),
        pod("cpu-only", {"cpu": "1"}),
        pod("placed", {"nvidia.com/gpu": "1"}, nodeName="a"),
    ]
    assert fleet_summary([], pods)["waiting"] == [
        {
            "pod": "default/waits",
            "wants": [{"name": "nvidia.com/gpu", "count": 9}],
            "reason": "Insufficient",
        }
    ]


@pytest.mark.parametrize("part", ["gpus", "status", "offered", "object", "facts", "versions", "outcome"])
@pytest.mark.parametrize("said", [None, "", [], "broken", 7])
def test_a_part_that_could_not_be_asked_leaves_the_rest(part: str, said: Any) -> None:
    shown = fleet_summary([{**node("a", ["a0"], [device("a0")]), part: said}])
    assert [one["host"] for one in shown["nodes"]] == ["a"]


REFUSED = "The connection to the server 10.0.0.1:6443 was refused"


def answer(asked: str, words: str = "", reached: bool = True) -> dict[str, Any]:
    command = f"kubectl get {asked} -o json"
    return {
        "asked": asked, "by": "cp1", "command": command, "answered": not words, "reached": reached, "words": words
    }  # fmt: skip


def test_an_api_server_that_does_not_answer_is_told_once_with_the_next_step() -> None:
    (told,) = fleet_summary([], [], [answer("nodes", REFUSED), answer("pods", REFUSED)])["api"]
    assert told["why"] == REFUSED
    assert "which nodes are cordoned" in told["what"] and "which pods wait" in told["what"]
    assert told["next"].startswith("on cp1 run `kubectl get nodes`;")


def test_of_an_api_server_that_refuses_a_part_only_that_part_is_unknown() -> None:
    (told,) = fleet_summary([], [], [answer("nodes"), answer("pods", "pods is forbidden")])["api"]
    assert told["what"] == "The API server did not say which pods wait for GPUs"
    assert fleet_summary([], [], [answer("nodes"), answer("pods")])["api"] == []
    assert fleet_summary([], [])["api"] == []


def test_a_control_host_that_is_away_is_not_told_to_run_kubectl() -> None:
    (told,) = fleet_summary([], [], [answer("nodes", "No route to host", reached=False)])["api"]
    assert "cp1" in told["next"] and "SSH" in told["next"] and "kubectl" not in told["next"]
