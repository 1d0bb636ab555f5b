"""The container runtime role against real engines: what runs keeps running, whatever happens to the play."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node_kit import ROOT, TESTBED, VENV_BIN, Node, Play

PIDS = "docker ps -q --no-trunc | xargs docker inspect -f '{{.Id}} {{.State.Pid}}' | sort"
SITE = {"log-driver": "json-file", "features": {"buildkit": True}, "insecure-registries": ["127.0.0.0/8"]}
SEED = 20261123
MOMENTS = int(os.environ.get("GPUOPS_KILLS", "3"))


@pytest.mark.timeout(900)
def test_twenty_containers_keep_their_pids_through_provision_upgrade_rerun_and_remove(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("runtime", "--gpus", "2", "--kubelet", "none")
    node.run("for n in $(seq 19); do docker run -d --name work-$n gpuops/workload:1 sleep 1000000; done")
    before = node.text(PIDS)
    assert len(before.splitlines()) == 20
    steps: list[tuple[dict[str, object], bool]] = [
        ({"nvidia_docker_version": "1.17.8-1"}, True),
        ({"nvidia_docker_version": "1.18.0-1"}, True),
        ({"nvidia_docker_version": "1.18.0-1"}, False),
        ({"entry": "remove"}, True),
        ({"entry": "remove"}, False),
    ]
    for extra, changes in steps:
        done = play(role, [node], extra=extra)
        assert done.rc == 0, done.output
        assert (done.changed > 0) is changes, done.output
        assert node.text(PIDS) == before, extra
    assert json.loads(node.text("cat /etc/docker/daemon.json")) == SITE


@pytest.mark.timeout(1800)
def test_a_play_killed_at_any_moment_leaves_whole_files_and_the_next_one_finishes(
    make_node: Callable[..., Node], collections: Path, play: Callable[..., Play], role: Path, tmp_path: Path
) -> None:
    node = make_node("killed", "--gpus", "2", "--kubelet", "none")
    inventory = tmp_path / "kill.yml"
    inventory.write_text(
        subprocess.run([TESTBED, "inventory", node.name], check=True, capture_output=True, text=True).stdout
    )
    environment = dict(
        os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_COLLECTIONS_PATH=str(collections)
    )
    command = [str(VENV_BIN / "ansible-playbook"), "-i", str(inventory), str(role)]
    training = node.text("docker inspect -f '{{.State.Pid}}' training")
    # Watches every name that a reader could see while the play writes: each version must be whole JSON.
    node.run(
        "nohup setsid python3 -c '\n"
        "import json, os, time\n"
        "while True:\n"
        '    for name in ("/etc/docker/daemon.json", "/var/lib/gpuops/container_runtime.json"):\n'
        "        try:\n"
        "            text = open(name).read()\n"
        "        except OSError:\n"
        "            continue\n"
        "        try:\n"
        "            json.loads(text)\n"
        "        except ValueError:\n"
        '            open("/var/tmp/half", "a").write(name + "\\n" + text + "\\n")\n'
        "    time.sleep(0.002)\n"
        "' >/dev/null 2>&1 </dev/null &"
    )
    started = time.monotonic()
    first = play(role, [node])
    length = time.monotonic() - started
    assert first.rc == 0, first.output
    chance = random.Random(SEED)
    killed = 0
    for moment in range(MOMENTS):
        # Every second time the run that would mend it is killed as well.
        for entry in ("remove", "main")[: 1 + moment % 2]:
            process = subprocess.Popen(
                [*command, "-e", json.dumps({"entry": entry})],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=tmp_path, env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(timeout=chance.uniform(0.2, length))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
            daemon = json.loads(node.text("cat /etc/docker/daemon.json"))
            assert {key: daemon.get(key) for key in SITE} == SITE
        mended = play(role, [node])
        assert mended.rc == 0, mended.output
        assert node.text("docker info -f '{{.DefaultRuntime}}'") == "nvidia"
    assert killed >= MOMENTS // 2, "most runs ended before they could be killed"
    assert play(role, [node]).changed == 0
    assert node.text("docker inspect -f '{{.State.Pid}}' training") == training
    gone = play(role, [node], extra={"entry": "remove"})
    assert gone.rc == 0, gone.output
    assert json.loads(node.text("cat /etc/docker/daemon.json")) == SITE
    assert node.text("docker info -f '{{.DefaultRuntime}}'") == "runc"
    assert node.run("cat /var/tmp/half", check=False).stdout == ""
    left = node.text("ls -a /etc/docker | grep '^\\.daemon' || true")
    assert left == "", "a temporary file that nobody takes away"


@pytest.mark.timeout(600)
def test_an_engine_that_does_not_come_back_gets_its_old_files_and_the_play_fails_with_its_log(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("comeback", "--gpus", "2", "--kubelet", "none")
    before = node.text("cat /etc/docker/daemon.json")
    # The engine dies on any file that names nvidia: a fault that no validator of 20.10 can see.
    node.run(
        "mkdir -p /etc/systemd/system/docker.service.d; printf '[Service]\\nExecStartPre=/bin/sh -c "
        '"! grep -q nvidia /etc/docker/daemon.json || { echo the-site-says-no; exit 1; }"\\n\' '
        ">/etc/systemd/system/docker.service.d/x.conf; systemctl daemon-reload"
    )
    done = play(role, [node], extra={"nvidia_docker_apply": "restart", "nvidia_docker_wait": 5})
    assert done.rc != 0
    assert "the old files are back and it runs with them" in done.output
    assert "the-site-says-no" in done.output
    assert node.text("cat /etc/docker/daemon.json") == before
    assert node.text("docker info -f '{{.DefaultRuntime}}'") == "runc"
    node.run("rm -r /etc/systemd/system/docker.service.d; systemctl daemon-reload")
    assert play(role, [node]).rc == 0
    assert node.text("docker info -f '{{.DefaultRuntime}}'") == "nvidia"


@pytest.mark.timeout(600)
def test_hardened_a_container_that_names_gpus_itself_sees_none(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("hardened", "--gpus", "2", "--kubelet", "none")
    count = "docker run --rm {} gpuops/workload:1 sh -c 'ls /dev | grep -c nvidia[0-9] || true'"
    by_name, plain = count.format("-e NVIDIA_VISIBLE_DEVICES=all"), count.format("")
    assert play(role, [node]).rc == 0
    assert (node.text(by_name), node.text(plain)) == ("2", "0")
    assert play(role, [node], extra={"nvidia_docker_hardening": True}).rc == 0
    assert (node.text(by_name), node.text(plain)) == ("0", "0")
    listed = count.format(
        "-v /dev/null:/var/run/nvidia-container-devices/0 -e NVIDIA_VISIBLE_DEVICES=/var/run/nvidia-container-devices"
    )
    assert node.text(listed) == "1", "the device plugin's way by volume mounts still works"
    assert play(role, [node], extra={"nvidia_docker_hardening": True}).changed == 0
    assert play(role, [node]).changed == 0
    assert node.text(by_name) == "0", "a run that says nothing of it leaves it as it is"
    assert play(role, [node], extra={"nvidia_docker_hardening": False}).rc == 0
    assert node.text(by_name) == "2"


@pytest.mark.timeout(600)
def test_a_node_that_its_owner_has_hardened_stays_so_and_remove_puts_its_file_back(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("owned", "--gpus", "2", "--kubelet", "none")
    config = "/etc/nvidia-container-runtime/config.toml"
    owners = (
        "accept-nvidia-visible-devices-as-volume-mounts = true\n"
        "accept-nvidia-visible-devices-envvar-when-unprivileged = false # site rule 7\n"
    )
    node.run(f"mkdir -p /etc/nvidia-container-runtime; printf '{owners}' >{config}; chmod 640 {config}")
    look = "sh -c 'ls /dev | grep -c nvidia[0-9] || true'"
    by_name = f"docker run --rm -e NVIDIA_VISIBLE_DEVICES=all gpuops/workload:1 {look}"
    state = f"cat {config}; stat -c %a {config}"
    before = node.text(state)
    assert play(role, [node]).rc == 0
    assert node.text(state) == before
    assert node.text(by_name) == "0"
    assert play(role, [node], extra={"nvidia_docker_hardening": False}).rc == 0
    assert node.text(by_name) == "2"
    # A run that died when each line was written by itself left one of both.
    node.run(f"sed -i '/as-volume-mounts = /s/false/true/' {config}")
    assert play(role, [node], extra={"nvidia_docker_hardening": False}).changed == 1
    assert "as-volume-mounts = false" in node.text(f"cat {config}")
    done = play(role, [node], extra={"entry": "remove"})
    assert done.rc == 0, done.output
    assert node.text(state) == before
    assert "nvidia-container-toolkit" not in node.text("dpkg --get-selections | grep -w install || true")


@pytest.mark.timeout(600)
def test_a_daemon_reload_takes_no_gpu_from_a_running_container(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    node = make_node("reload", "--gpus", "2", "--kubelet", "none")
    node.run("find /dev/char -lname '../nvidia*' -delete 2>/dev/null || true")
    extra = {"nvidia_docker_verify_daemon_reload": True, "nvidia_docker_verify_image": "gpuops/workload:1"}
    done = play(role, [node], extra=extra)
    assert done.rc == 0, done.output
    assert int(node.text("find /dev/char -lname '../nvidia*' | wc -l")) >= 1
    assert node.text("docker ps -aq --filter name=gpuops-daemon-reload") == ""


STATIC_POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec:
  hostNetwork: true
  containers:
    - name: main
      image: gpuops/workload:1
      imagePullPolicy: Never
      command: [sleep, "1000000"]
      env: [{{name: NVIDIA_VISIBLE_DEVICES, value: "{gpus}"}}]
"""


def pod_container(node: Node, pod: str, seconds: float = 90) -> str:
    """Id and pid of a static pod's container in containerd, once it runs."""
    command = (
        "for id in $(ctr -n k8s.io containers ls -q labels.io.kubernetes.container.name==main); do "
        f"ctr -n k8s.io containers info $id | grep -q 'pod.name.: .{pod}-' && ctr -n k8s.io task ls | "
        "grep $id | grep RUNNING; done | awk '{print $1, $2}'"
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = node.run(command, check=False).stdout.strip()
        if found:
            return found
        time.sleep(1)
    raise AssertionError(
        f"pod {pod} does not run: {node.run('journalctl -u kubelet -n 20 --no-pager', check=False).stdout}"
    )


@pytest.mark.real
@pytest.mark.timeout(900)
def test_pods_of_a_real_kubelet_outlive_containerds_restart_and_a_later_one_gets_its_gpu(
    make_node: Callable[..., Node], play: Callable[..., Play], role: Path
) -> None:
    if not (Path.home() / ".cache/gpuops/kubernetes-1.20.2/bin/kubelet").exists():
        pytest.skip("no real kubelet in the cache; `make demo KUBELET=real` builds one")
    node = make_node("pods", "--gpus", "2", "--kubelet", "real", "--engine", "containerd")
    put = "cat >/etc/kubernetes/manifests/{}.yaml <<'EOT'\n{}EOT"
    node.run(put.format("before", STATIC_POD.format(name="before", gpus="void")))
    before = pod_container(node, "before")
    containerd = node.text("systemctl show -p MainPID --value containerd")
    done = play(role, [node])
    assert done.rc == 0, done.output
    assert node.text("systemctl show -p MainPID --value containerd") != containerd
    node.run(put.format("after", STATIC_POD.format(name="after", gpus="1")))
    after = pod_container(node, "after").split()[0]
    assert pod_container(node, "before") == before
    seen = node.text(f"ctr -n k8s.io task exec --exec-id look {after} ls /dev")
    assert [word for word in seen.split() if word.startswith("nvidia") and word[-1].isdigit()] == ["nvidia1"]
