# ruff: noqa: E501 - shell stays on one line
"""A real kubelet 1.20.2 with device plugins off: mended with one restart; before 1.28 every leftover goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_kit import Node, Play

pytestmark = [pytest.mark.real, pytest.mark.slow]

DROP_IN = "/etc/systemd/system/kubelet.service.d/30-gates.conf"
UNIT = (
    "[Service]\\n# ours\\nExecStart=\\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml --v=1 "
    "--feature-gates=AllAlpha=false,DevicePlugins=false $KUBELET_EXTRA_ARGS\\n"
)
PLACES = {
    "flag": (
        "/etc/default/kubelet",
        "printf 'KUBELET_EXTRA_ARGS=\"--v=1 --feature-gates=DevicePlugins=false\"\\n' > /etc/default/kubelet",
        'KUBELET_EXTRA_ARGS="--v=1"',
    ),
    "drop_in": (
        DROP_IN,
        f"mkdir -p $(dirname {DROP_IN}); printf '{UNIT}' > {DROP_IN}",
        "--feature-gates=AllAlpha=false ",
    ),
    "configuration": (
        "/var/lib/kubelet/config.yaml",
        "printf '# gates\\nfeatureGates:\\n  AllAlpha: false # stays\\n  DevicePlugins: false\\n' >> /var/lib/kubelet/config.yaml",
        "  AllAlpha: false # stays",
    ),
}
STARTS = "journalctl -u kubelet -o cat | grep -c '^Started kubelet'"
PLAY = """
- hosts: gpu_nodes
  gather_facts: false
  tasks:
    - gpuops.k8s.kubelet_feature_gate:
        restart: true
        target_version: "{{ target | default(omit) }}"
      register: gate
    - ansible.builtin.copy:
        content: "{{ gate | to_json }}"
        dest: "{{ result }}"
        mode: "0644"
      delegate_to: localhost
      vars: { ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}" }
      check_mode: false
      diff: false
      changed_when: false
"""


@pytest.fixture(scope="module")
def machine(make_node: Callable[..., Node]) -> Node:
    return make_node("gate", "--gpus", "2", "--kubelet", "real")


@pytest.fixture
def node(machine: Node) -> Iterator[Node]:
    machine.run(
        "cp -p /var/lib/kubelet/config.yaml /root/config.yaml; cp -p /etc/default/kubelet /root/default"
    )
    yield machine
    machine.run(
        f"rm -rf {DROP_IN}; mv /root/config.yaml /var/lib/kubelet/config.yaml; mv /root/default /etc/default/kubelet;"
        "systemctl daemon-reload; systemctl restart kubelet"
    )


@pytest.fixture
def gate(
    play: Callable[..., Play], tmp_path: Path, node: Node
) -> Callable[..., tuple[Play, dict[str, object]]]:
    """`gate(target="1.28")` runs the module on the node; the play and what the module returned."""

    def run(*arguments: str, **extra: object) -> tuple[Play, dict[str, object]]:
        (tmp_path / "gate.yml").write_text(PLAY)
        result = tmp_path / "gate.json"
        result.unlink(missing_ok=True)
        done = play(tmp_path / "gate.yml", [node], *arguments, extra={**extra, "result": str(result)})
        return done, json.loads(result.read_text()) if result.exists() else {}

    return run


@pytest.mark.parametrize("place", PLACES)
def test_the_gate_is_mended_where_it_is_off_with_one_restart(
    node: Node, gate: Callable[..., tuple], place: str
) -> None:
    path, breaks, kept = PLACES[place]
    node.run(f"{breaks}; systemctl daemon-reload; systemctl restart kubelet")
    before = int(node.text(STARTS))

    done, checked = gate("--check", "--diff")
    assert done.rc == 0, done.output
    assert (checked["files"], node.text(STARTS)) == ([path], str(before))

    done, mended = gate()
    assert done.rc == 0, done.output
    assert (mended["required"], mended["files"]) == ("needed", [path])
    assert mended["places"][0]["line"] > 0
    assert int(node.text(STARTS)) == before + 1
    assert "DevicePlugins" in node.text(f"grep DevicePlugins {path}")
    node.run(
        "timeout 20 sh -c 'until test -S /var/lib/kubelet/device-plugins/kubelet.sock; do sleep 0.1; done'"
    )

    done, again = gate()
    assert (done.changed, again["files"], int(node.text(STARTS))) == (0, [], before + 1)

    done, gone = gate(target="1.28")
    assert done.rc == 0, done.output
    assert gone["required"] == "leftover"
    assert int(node.text(STARTS)) == before + 2
    assert node.text(f"grep -rs DevicePlugins {path} | grep -v '~:' || true") == ""
    assert kept in node.text(f"cat {path}")


SERVICE: dict[str, object] = {"device_plugin_deployment": "service"}


@pytest.mark.parametrize("place", PLACES)
def test_provision_mends_it_with_one_restart_and_the_gpus_are_offered(
    node: Node, play: Callable[..., Play], place: str
) -> None:
    path, breaks, _kept = PLACES[place]
    node.run(f"{breaks}; systemctl daemon-reload; systemctl restart kubelet")
    before = int(node.text(STARTS))
    done = play("gpuops.k8s.provision", [node], extra=SERVICE)  # which verifies in the end
    assert done.rc == 0, done.output[-3000:]
    assert int(node.text(STARTS)) == before + 1
    assert "DevicePlugins" in node.text(f"cat {path}")
    assert "DevicePlugins=false" not in node.text(f"cat {path}")


def test_provision_for_a_kubelet_of_1_28_takes_the_leftover_away_everywhere_with_one_restart(
    node: Node, play: Callable[..., Play]
) -> None:
    breaks = "; ".join(breaks for _path, breaks, _kept in PLACES.values())
    node.run(f"{breaks}; systemctl daemon-reload; systemctl restart kubelet")
    before = int(node.text(STARTS))
    extra = {**SERVICE, "device_plugin_target_kubelet_version": "1.28"}
    done = play("gpuops.k8s.provision", [node], extra=extra)
    assert done.rc == 0, done.output[-3000:]
    assert int(node.text(STARTS)) == before + 1
    for path, _breaks, kept in PLACES.values():
        text = node.text(f"cat {path}")
        assert "DevicePlugins" not in text and kept in text


def test_a_kubelet_that_does_not_come_up_gets_its_old_file_back(
    node: Node, gate: Callable[..., tuple]
) -> None:
    node.run(f"{PLACES['configuration'][1]}; systemctl restart kubelet")
    old = node.text("cat /var/lib/kubelet/config.yaml")
    # A kubelet that refuses to start once the gate is on.
    node.run(
        "mv /usr/bin/kubelet /usr/bin/kubelet.real; printf '#!/bin/sh\\n"
        'grep -q "DevicePlugins: true" /var/lib/kubelet/config.yaml && { echo refusing the new gate; exit 1; }\\n'
        'exec /usr/bin/kubelet.real "$@"\\n\' > /usr/bin/kubelet; chmod 755 /usr/bin/kubelet'
    )
    try:
        done, _ = gate()
    finally:
        node.run("mv /usr/bin/kubelet.real /usr/bin/kubelet")
    assert done.rc != 0
    assert "put back and the kubelet is well again" in done.output
    assert "refusing the new gate" in done.output
    assert node.text("cat /var/lib/kubelet/config.yaml") == old
    assert node.text("curl -s http://127.0.0.1:10248/healthz") == "ok"
