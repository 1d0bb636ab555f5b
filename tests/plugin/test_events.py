"""Events and the node condition: what is sent to an API server, and that nothing it does is in the way."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu_device_plugin import apiserver, logs
from gpu_device_plugin.apiserver import CONDITION, Reporter, condition, event, verdict
from gpu_device_plugin.counters import Counters
from gpu_device_plugin.engine import HealthChange
from kit import GPU, devices, plan, wait_until

SICK = HealthChange(GPU, "GPU-3", "3", "XID 79", None, 1)
WELL = HealthChange(GPU, "GPU-3", "3", None, "XID 79", 1)


class ApiServer:
    """Takes requests, remembers them, answers with `code`, and to a patch with the node as it is then."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, Any]] = []
        self.code = 201
        self.node: dict[str, Any] = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.command, self.path, self.headers["Authorization"], body))
                if self.command == "PATCH" and body and outer.code < 400:
                    others = [one for one in outer.node["status"]["conditions"] if one["type"] != CONDITION]
                    outer.node["status"]["conditions"] = [*others, *body["status"]["conditions"]]
                answer = json.dumps(outer.node if self.command == "PATCH" else {}).encode()
                self.send_response(outer.code)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def of(self, method: str) -> list[Any]:
        """What was sent; not the empty patch that only asks for the node."""
        return [body for verb, _path, _token, body in list(self.requests) if verb == method and body]

    def condition(self) -> Any:
        return self.of("PATCH")[-1]["status"]["conditions"][0]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    one = ApiServer()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def account(place: Path) -> Path:
    (place / "token").write_text("secret-1\n")
    return place


@pytest.fixture
def reporter(api: ApiServer, account: Path) -> Iterator[Reporter]:
    one = Reporter("node-1", Counters(), api.address, str(account))
    yield one
    one.close()


def engine(*sick: int, fault: str = "XID 79", nvml_problem: str | None = None, gpus: int = 8) -> Any:
    offered = [replace(one, fault=fault if one.fault else None) for one in devices(gpus, sick=sick)]
    return SimpleNamespace(plan=plan(gpu=offered), nvml_problem=nvml_problem)


def test_a_sick_gpu_is_an_event_and_a_condition(api, reporter):
    reporter.health((SICK,), engine(3))
    wait_until(lambda: api.of("POST") and api.of("PATCH"))
    (sent,) = api.of("POST")
    assert (sent["type"], sent["reason"]) == ("Warning", "GPUUnhealthy")
    assert sent["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert "GPU-3" in sent["message"] and "XID 79" in sent["message"]
    wait_until(lambda: api.condition()["status"] == "False")
    assert api.condition()["type"] == CONDITION
    assert "XID 79" in api.condition()["message"]
    assert ("PATCH", "/api/v1/nodes/node-1/status", "Bearer secret-1") in [one[:3] for one in api.requests]


def test_a_gpu_that_heals_clears_the_condition(api, reporter):
    reporter.health((SICK,), engine(3))
    wait_until(lambda: api.of("PATCH") and api.condition()["status"] == "False")
    reporter.health((WELL,), engine())
    wait_until(lambda: api.condition()["status"] == "True" and len(api.of("POST")) == 2)
    assert [one["reason"] for one in api.of("POST")] == ["GPUUnhealthy", "GPUHealthy"]


def test_nothing_is_said_of_devices_that_nobody_has_looked_at(api, reporter):
    time.sleep(0.3)
    assert api.requests == []
    reporter.health((), engine())
    wait_until(lambda: api.of("PATCH"))
    assert api.condition()["status"] == "True"


def test_a_restart_on_a_sick_node_leaves_the_condition_and_its_time_as_they_were(api, account):
    since = "2026-01-01T00:00:00Z"
    api.node["status"]["conditions"].append(
        {"type": CONDITION, "status": "False", "reason": "DevicesUnhealthy", "lastTransitionTime": since}
    )
    again = Reporter("node-1", Counters(), api.address, str(account))
    again.health((SICK,), engine(3))
    wait_until(lambda: api.of("PATCH"))
    again.close()
    assert [one["status"]["conditions"][0]["status"] for one in api.of("PATCH")] == ["False"]
    assert api.condition()["lastTransitionTime"] == since


def test_a_status_that_a_plugin_before_did_not_have_begins_now(api, reporter):
    api.node["status"]["conditions"].append(
        {"type": CONDITION, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    )
    reporter.health((SICK,), engine(3))
    wait_until(lambda: api.of("PATCH"))
    assert api.condition()["lastTransitionTime"] > "2026-01-01T00:00:00Z"


def test_without_a_driver_nothing_is_known_of_the_gpus_and_the_reason_is_told(api, reporter):
    reporter.health((), engine(gpus=0, nvml_problem="libnvidia-ml.so.1 is not there"))
    wait_until(lambda: api.of("PATCH"))
    assert api.condition()["status"] == "Unknown"
    assert api.condition()["message"] == "libnvidia-ml.so.1 is not there"
    reporter.health((), engine())
    wait_until(lambda: api.condition()["status"] == "True")


def test_known_gpus_of_a_driver_that_hangs_are_not_healthy(api, reporter):
    words = "NVML has not answered for 30 s"
    reporter.health((), engine(*range(8), fault=f"NVML can't be read: {words}", nvml_problem=words))
    wait_until(lambda: api.of("PATCH"))
    assert (api.condition()["status"], api.condition()["message"]) == ("False", words)


def test_a_reason_that_becomes_another_is_told_at_once(api, reporter):
    reporter.health((SICK,), engine(3))
    wait_until(lambda: api.of("PATCH") and api.condition()["status"] == "False")
    since = api.condition()["lastTransitionTime"]
    reporter.health((replace(SICK, fault="XID 48", before="XID 79"),), engine(3, fault="XID 48"))
    wait_until(lambda: "XID 48" in api.condition()["message"], 3)
    assert api.condition()["lastTransitionTime"] == since
    assert len(api.of("POST")) == 1  # it neither fell ill nor healed


def test_a_token_that_turned_is_used(api, reporter, account):
    reporter.health((SICK,), engine(3))
    wait_until(lambda: api.of("POST"))
    (account / "token").write_text("secret-2")
    reporter.health((WELL,), engine())
    wait_until(lambda: "Bearer secret-2" in [one[2] for one in api.requests])


def test_more_events_than_the_rate_allows_are_dropped_and_counted(api, account, monkeypatch):
    monkeypatch.setattr(apiserver, "EVENTS_A_MINUTE", 3)
    counters = Counters()
    reporter = Reporter("node-1", counters, api.address, str(account))
    for _ in range(10):
        reporter.health((SICK,), engine(3))
    wait_until(lambda: counters.events_sent.value("sent") + counters.events_sent.value("dropped") == 10)
    assert len(api.of("POST")) == 3
    reporter.close()


def test_a_server_that_forbids_is_told_once_with_the_rights_that_are_missing(api, account, capsys):
    logs.setup()
    api.code = 403
    counters = Counters()
    reporter = Reporter("node-1", counters, api.address, str(account))
    for _ in range(3):
        reporter.health((SICK,), engine(3))
    wait_until(lambda: counters.events_sent.value("failed") >= 3)
    reporter.close()
    assert "nodes/status: patch" in capsys.readouterr().err


def test_nothing_blocks_while_the_server_is_away(account):
    counters = Counters()
    reporter = Reporter("node-1", counters, "http://127.0.0.1:9", str(account))
    for _ in range(apiserver.QUEUE_LENGTH * 3):
        reporter.health((SICK,), engine(3))
    wait_until(lambda: counters.events_sent.value("failed"))
    reporter.close()


def test_outside_a_pod_nothing_is_started(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    before = set(threading.enumerate())  # a closed reporter of another test may still be ending
    reporter = Reporter("node-1", Counters())
    reporter.health((SICK,), engine(3))
    reporter.close()
    assert not [one for one in threading.enumerate() if one.name == "apiserver" and one not in before]


def test_the_objects_are_what_the_api_takes():
    one = event("node-1", SICK, 0.0)
    assert one["firstTimestamp"] == "1970-01-01T00:00:00Z"
    assert one["metadata"]["name"].startswith("node-1.")
    ill = verdict(None, ("3 (GPU-3): XID 79",))
    body = condition(ill, "1970-01-01T00:00:00Z", 60.0)["status"]["conditions"][0]
    assert body["lastTransitionTime"] == "1970-01-01T00:00:00Z"
    assert body["lastHeartbeatTime"] == "1970-01-01T00:01:00Z"
    assert len(verdict(None, ("x" * 5000,)).message) == len(verdict("x" * 5000, ()).message) == 1000


def test_the_address_inside_a_pod(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert apiserver.in_cluster() == "https://[fd00::1]:6443"
