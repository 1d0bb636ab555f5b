"""Two engines on a node, a runtime that has to be named, an engine that fails: the role, and what verification says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import Node, Play


@pytest.mark.timeout(900)
def test_verification_looks_into_the_kubelets_containerd_though_docker_runs_beside_it(
    make_node: Callable[..., Node], play: Callable[..., Play], tmp_path: Path
) -> None:
    node = make_node("both", "--gpus", "2", "--kubelet", "embedded")
    node.run(
        "sed -i s,/run/cri-dockerd.sock,/run/containerd/containerd.sock, /var/lib/kubelet/kubeadm-flags.env; "
        "docker save gpuops/pause:1 gpuops/workload:1 | ctr -n k8s.io images import -"
    )
    report = tmp_path / "report.json"
    look: dict[str, object] = {"device_plugin_verify_report": str(report), "device_plugin_verify_timeout": 5}
    done = play("gpuops.k8s.provision", [node], extra=look)
    assert done.rc == 0, done.output[-3000:]
    said = {link["link"]: link["detail"] for link in json.loads(report.read_text())["links"]}
    assert said["engine"] == "containerd answers"
    assert said["request"] == "a container that asked for 1 sees 1"
    refused = play(
        "gpuops.k8s.provision",
        [node],
        extra={"device_plugin_engine": "crio", "device_plugin_deployment": "static_pod"},
    )
    assert refused.rc != 0
    assert refused.changed == 0
    assert "engine is crio, into which this role loads no image" in " ".join(refused.output.split())
    on_crio = {"device_plugin_engine": "crio", "device_plugin_verify_fail": False, **look}
    assert play("gpuops.k8s.verify", [node], extra=on_crio).rc == 0
    found = json.loads(report.read_text())
    assert found["broken_link"] == "engine", "nothing listens at CRI-O's socket here"


@pytest.mark.timeout(900)
def test_a_node_whose_runtime_has_to_be_named_is_provisioned_and_verified_by_that_name(
    make_node: Callable[..., Node], play: Callable[..., Play], tmp_path: Path
) -> None:
    node = make_node("named", "--gpus", "2", "--kubelet", "embedded")
    report = tmp_path / "report.json"
    extra: dict[str, object] = {
        "nvidia_docker_default_runtime": False,
        "nvidia_docker_runtime_name": "gpu",
        "device_plugin_verify_report": str(report),
        "device_plugin_verify_timeout": 5,
    }
    done = play("gpuops.k8s.provision", [node], extra=extra)
    assert done.rc == 0, done.output[-3000:]
    said = {link["link"]: link["detail"] for link in json.loads(report.read_text())["links"]}
    assert said["runtime"] == "runtime gpu is there; default runtime runc"
    assert said["request"] == "a container that asked for 1 sees 1"
    asked = play(
        "gpuops.k8s.verify",
        [node],
        extra={**extra, "device_plugin_verify_default_runtime": "gpu", "device_plugin_verify_runtime": ""},
    )
    assert asked.rc != 0
    assert json.loads(report.read_text())["reason"] == "the default runtime is runc, not gpu"


@pytest.mark.timeout(900)
def test_a_docker_that_fails_is_told_with_what_was_put_back_and_whether_it_runs(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("wayback", "--gpus", "2", "--kubelet", "none")
    drop_in = "/etc/systemd/system/docker.service.d/x.conf"
    refuse = (
        f"mkdir -p $(dirname {drop_in}); printf '[Service]\\nExecStartPre=/bin/sh -c "
        '"! grep -q {word} /etc/docker/daemon.json || {{ echo the-site-says-no-{word}; exit 1; }}"\\n\' '
        f">{drop_in}; systemctl daemon-reload"
    )
    restart: dict[str, object] = {"nvidia_docker_apply": "restart", "nvidia_docker_wait": 5}

    def said(**extra: object) -> str:
        done = play(role, [node], extra={**restart, **extra})
        assert done.rc != 0
        return " ".join(done.output.split())

    before = node.text("cat /etc/docker/daemon.json")
    # It starts with no file at all: neither with the new one nor with the old one.
    node.run(refuse.format(word="json-file"))
    dead = said()
    assert "the old files are back, and IT DOES NOT RUN" in dead
    assert "the-site-says-no-json-file" in dead, "the log's tail is there though the way back failed too"
    assert node.text("cat /etc/docker/daemon.json") == before
    node.run(f"rm {drop_in}; systemctl daemon-reload; systemctl reset-failed docker; systemctl start docker")
    # An earlier run has written the file and not applied it: what it remembers comes back.
    assert play(role, [node], extra={"nvidia_docker_apply": "none"}).rc == 0
    node.run(refuse.format(word="nvidia"))
    again = said()
    assert "the old files are back and it runs with them." in again
    assert "IT DOES NOT RUN" not in again
    assert node.text("cat /etc/docker/daemon.json") == before
    node.run(f"rm {drop_in}; systemctl daemon-reload; systemctl reset-failed docker")
    assert play(role, [node], extra=restart).rc == 0
    assert node.text("docker info -f '{{.DefaultRuntime}}'") == "nvidia"


@pytest.mark.timeout(600)
def test_remove_leaves_the_links_that_others_have_made(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("links", "--gpus", "2", "--kubelet", "none")
    # The node's GPUs are all of one device number; a third kind of node stands for what has no link yet.
    node.run(
        "find /dev/char -lname '../nvidia*' -delete 2>/dev/null; mkdir -p /dev/char; rm -f /dev/char/1:5"
    )
    node.run(
        "ln -s ../nvidia0 /dev/char/$(printf %d:%d 0x$(stat -c %t /dev/nvidia0) 0x$(stat -c %T /dev/nvidia0))"
    )
    node.run("mkdir -p /dev/nvidia-caps && mknod /dev/nvidia-caps/nvidia-cap9 c 1 5")
    listed = "find /dev/char -lname '../nvidia*' -printf '%f %l\\n' | sort"
    before = node.text(listed)
    assert len(before.splitlines()) == 1
    assert play(role, [node]).rc == 0
    assert node.text(listed).splitlines() == [*before.splitlines(), "1:5 ../nvidia-caps/nvidia-cap9"]
    assert play(role, [node]).changed == 0
    assert play(role, [node], extra={"entry": "remove"}).rc == 0
    assert node.text(listed) == before
    assert node.text("ls -A /run/gpuops 2>/dev/null || true") == ""


@pytest.mark.timeout(600)
def test_a_cdi_specification_is_made_anew_for_a_new_driver_and_never_over_the_administrators(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("cdi", "--gpus", "2", "--kubelet", "none")
    extra: dict[str, object] = {"nvidia_docker_cdi": True, "nvidia_docker_engine": "none"}
    spec = "/etc/cdi/nvidia.yaml"
    assert play(role, [node], extra=extra).rc == 0
    made = node.text(f"cat {spec}")
    assert "nvidia.com/gpu" in made
    assert play(role, [node], extra=extra).changed == 0
    # The driver is updated; what the old specification names is gone.
    node.run(
        f"echo stale >{spec}; sed -i -E 's/[0-9]+[.][0-9]+([.][0-9]+)?/999.1/' /proc/driver/nvidia/version"
    )
    foretold = play(role, [node], "--check", extra=extra)
    assert "would make /etc/cdi/nvidia.yaml for driver 999.1, 2 GPUs; it was made for driver" in " ".join(
        foretold.output.split()
    )
    assert node.text(f"cat {spec}") == "stale"
    assert play(role, [node], extra=extra).rc == 0
    assert node.text(f"cat {spec}") == made
    assert play(role, [node], extra={"entry": "remove", **extra}).rc == 0
    assert node.run(f"test -e {spec}", check=False).returncode == 1
    node.run(f"mkdir -p /etc/cdi; echo mine >{spec}")
    assert play(role, [node], extra=extra).rc == 0
    assert play(role, [node], extra={"entry": "remove", **extra}).rc == 0
    assert node.text(f"cat {spec}") == "mine"


@pytest.mark.timeout(600)
def test_a_daemon_reload_is_looked_at_in_containerd_too(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("creload", "--gpus", "2", "--kubelet", "none", "--engine", "containerd")
    look: dict[str, object] = {"nvidia_docker_verify_daemon_reload": True}
    for extra, words in (
        ({"nvidia_docker_verify_image": ""}, "nvidia_docker_verify_image is empty"),
        (
            {"nvidia_docker_verify_image": "gpuops/workload:1", "nvidia_docker_engine": "none"},
            "neither docker nor containerd",
        ),
    ):
        refused = play(role, [node], extra={**look, **extra})
        assert (refused.rc != 0, refused.changed) == (True, 0)
        assert words in " ".join(refused.output.split())
    look["nvidia_docker_verify_image"] = "gpuops/workload:1"
    done = play(role, [node], extra=look)
    assert done.rc == 0, done.output
    assert "gpuops-daemon-reload" not in node.text(
        "ctr -n k8s.io containers ls -q; ctr -n k8s.io tasks ls -q"
    )
    # A container that can't open each of its GPUs after the reload is told: here a broken one comes with it.
    node.run(
        "mv /usr/bin/systemctl /usr/bin/systemctl.real; cat >/usr/bin/systemctl <<'EOT'\n"
        "#!/bin/sh\npid=$(ctr -n k8s.io tasks ls | awk '/gpuops-daemon-reload/ {print $2}')\n"
        '[ -z "$pid" ] || ln -sf /none /proc/$pid/root/dev/nvidia9\nexec /usr/bin/systemctl.real "$@"\nEOT\n'
        "chmod 755 /usr/bin/systemctl"
    )
    lost = play(role, [node], extra=look)
    assert lost.rc != 0
    assert "a daemon-reload took the GPU from a running container" in " ".join(lost.output.split())
    assert "gpuops-daemon-reload" not in node.text("ctr -n k8s.io containers ls -q")
