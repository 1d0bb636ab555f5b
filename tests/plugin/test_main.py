"""The program as its users meet it: a process with flags, signals, a config file, a status and a check."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import pytest
from gpu_device_plugin import daemon, logs, turn
from gpu_device_plugin.__main__ import main
from gpu_device_plugin.config_load import load
from kit import GPU, SOURCE, Node, PluginProcess, wait_until

SHARED = """\
version: v1
sharing:
  timeSlicing:
    resources:
    - name: nvidia.com/gpu
      replicas: 4
"""


def ready(plugin: PluginProcess) -> None:
    plugin.wait_logged("event=registered")


def test_it_offers_every_gpu_and_says_so(node, start):
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    ready(plugin)
    assert plugin.logged("event=starting", "version=0.1.0")
    assert plugin.logged('event="NVML read"', "gpus=8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_within_a_second_and_no_socket_left(node, start, number):
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    ready(plugin)
    began = time.monotonic()
    plugin.signal(number)
    assert plugin.wait() == 0
    assert time.monotonic() - began < 1
    assert node.own_sockets() == []
    assert list((node.root / "run").iterdir()) == []
    wait_until(lambda: node.kubelet.healthy(GPU) == set())


def test_a_new_one_waits_until_the_one_before_has_ended_k6(node, start):
    node.kubelet.start()
    first = start()
    node.kubelet.wait_for(GPU, 8)
    ready(first)
    sockets = node.own_sockets()
    second = start()
    second.wait_logged("event=starting")
    time.sleep(1)  # in which it would have registered
    assert node.own_sockets() == sockets and not second.logged("event=registered")
    first.process.kill()
    ready(second)
    assert second.logged('event="the plugin before has ended"')
    node.kubelet.wait_for(GPU, 8)


def test_a_new_one_does_not_wait_for_ever_for_one_that_hangs(tmp_path, capsys):
    logs.setup()
    held = turn.wait(str(tmp_path))
    assert held is not None
    assert turn.wait(str(tmp_path), seconds=0.1) is None
    assert "another plugin runs on this node and does not end" in capsys.readouterr().err
    os.close(held)
    again = turn.wait(str(tmp_path), seconds=0.1)
    assert again is not None
    os.close(again)


def test_it_ends_as_fast_while_no_kubelet_is_there(start):
    plugin = start()
    plugin.wait_logged('event="NVML read"')
    plugin.signal(signal.SIGTERM)
    assert plugin.wait(2) == 0


def test_killed_and_started_again_it_is_registered_once(node, start):
    node.kubelet.start()
    first = start()
    node.kubelet.wait_for(GPU, 8)
    first.process.kill()
    first.wait()
    wait_until(lambda: node.kubelet.healthy(GPU) == set())
    second = start()
    node.kubelet.wait_for(GPU, 8)
    ready(second)
    assert second.status()["resources"][0]["phase"] == "listed"


def test_an_xid_makes_the_gpu_unhealthy_and_is_remembered_over_a_restart(node, machine, start):
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    machine.xid(3, 79)
    node.kubelet.wait_for(GPU, 7, 1)
    assert plugin.wait_logged('event="device unhealthy"', "index=3", "XID 79")
    plugin.stop()
    start()
    node.kubelet.wait_for(GPU, 7, 1)
    state = json.loads((node.root / "state/health.json").read_text())
    assert "79" in json.dumps(state)


def test_an_application_xid_changes_nothing(node, machine, start):
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    machine.xid(3, 31)
    plugin.wait_logged('event="GPU event"', "xid=31")
    machine.xid(2, 79)
    node.kubelet.wait_for(GPU, 7, 1)


def test_a_lost_gpu_stays_listed_as_unhealthy(node, machine, start):
    node.kubelet.start()
    start("--rescan-seconds=1")
    node.kubelet.wait_for(GPU, 8)
    machine.lose(1)
    node.kubelet.wait_for(GPU, 7, 1)


def test_a_lost_gpu_stays_listed_over_a_restart_of_the_plugin_k19(node, machine, start):
    node.kubelet.start()
    first = start()
    node.kubelet.wait_for(GPU, 8)
    ids = set(node.kubelet.devices(GPU))
    first.stop()
    machine.lose(1)
    start()
    node.kubelet.wait_for(GPU, 7, 1)
    assert set(node.kubelet.devices(GPU)) == ids


def test_gpus_that_go_and_come_back_are_seen_at_once_though_a_rescan_is_far_off(node, machine, start):
    node.kubelet.start()
    start("--rescan-seconds=600")
    node.kubelet.wait_for(GPU, 8)
    for index in (3, 2, 3):  # each is lost while the events are still being watched anew for the one before
        machine.lose(index)
        node.kubelet.wait_for(GPU, 7, 1, seconds=3)
        machine.restore(index)
        node.kubelet.wait_for(GPU, 8, seconds=3)


def test_without_a_driver_it_ends_with_1_and_says_the_next_step(node, machine, start):
    machine.init_fail(9)
    plugin = start()
    assert plugin.wait() == 1
    assert plugin.logged("level=error", "modprobe nvidia", "failOnInitError=false")


def test_told_to_wait_it_adopts_a_driver_that_comes_late(node, machine, start):
    node.kubelet.start()
    machine.init_fail(9)
    plugin = start("--fail-on-init-error=false")
    plugin.wait_logged('event="NVML can\'t be read"')
    status = plugin.status()
    assert not status["ready"] and "modprobe" in status["reason"]
    machine.init_ok()
    node.kubelet.wait_for(GPU, 8, seconds=5)
    wait_until(lambda: plugin.status()["ready"], 5)


def test_refused_settings_end_it_with_2_and_name_the_place(node, place, start):
    config = place / "config.yaml"
    config.write_text("version: v1\nflags:\n  migStratgy: single\n")
    plugin = start(f"--config-file={config}")
    assert plugin.wait() == 2
    assert plugin.logged("level=error", f"{config}:3", "migStratgy")


def write(path: Path, text: str) -> None:
    """As an editor does: a new file put in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_an_edit_of_the_config_file_is_applied_within_a_second(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    began = time.monotonic()
    write(config, SHARED)
    wait_until(lambda: len(node.kubelet.healthy(GPU)) == 32, 5)
    assert time.monotonic() - began < 3
    assert plugin.wait_logged('event="config file applied"', "generation=2")
    wait_until(lambda: set(node.kubelet.devices(GPU)) == node.kubelet.healthy(GPU), 5, "old ids to leave")
    config.write_text("version: v1\n")  # in place, too
    wait_until(lambda: len(node.kubelet.healthy(GPU)) == 8, 5)
    wait_until(lambda: len(node.kubelet.devices(GPU)) == 8, 5, "replicas to leave")
    assert not plugin.logged("unhealthy"), "ids that leave are no illness of their GPU"


def test_a_config_map_whose_link_turns_is_seen(node, place, start):
    node.kubelet.start()
    folder = place / "map"
    for name, text in (("..1", "version: v1\n"), ("..2", SHARED)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(text)
    (folder / "..data").symlink_to("..1")
    (folder / "config.yaml").symlink_to("..data/config.yaml")
    start(f"--config-file={folder / 'config.yaml'}")
    node.kubelet.wait_for(GPU, 8)
    (folder / "..data_tmp").symlink_to("..2")
    (folder / "..data_tmp").rename(folder / "..data")
    wait_until(lambda: len(node.kubelet.healthy(GPU)) == 32, 5)


def test_a_wrong_edit_is_refused_and_the_old_settings_stay(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text(SHARED)
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 32)
    write(config, "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 1}]}}\n")
    plugin.wait_logged("config file refused", "replicas")
    assert len(node.kubelet.healthy(GPU)) == 32
    assert "replicas" in plugin.status()["config"]["problem"]
    write(config, "version: v1\n")
    node.kubelet.wait_for(GPU, 8)
    assert plugin.status()["config"]["problem"] is None


def test_an_edit_that_this_node_cannot_honour_is_refused(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    write(config, SHARED.replace("replicas: 4", "replicas: 10000"))
    plugin.wait_logged("config file refused")
    assert len(node.kubelet.healthy(GPU)) == 8


def test_hangup_reads_the_file_again(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    plugin.signal(signal.SIGHUP)
    plugin.wait_logged("nothing changed")
    assert plugin.process.poll() is None


def test_another_plugin_directory_is_moved_to_live(node, place, start):
    node.kubelet.start()
    other = Node(place / "two")
    other.kubelet.start()
    config = place / "config.yaml"
    flags = [flag for flag in node.flags() if "plugin-dir" not in flag]
    config.write_text(f"version: v1\nkubelet: {{pluginDir: {node.plugin_dir}}}\n")
    node.flags = lambda: flags  # type: ignore[method-assign]
    plugin = start(f"--config-file={config}")
    try:
        node.kubelet.wait_for(GPU, 8)
        write(config, f"version: v1\nkubelet: {{pluginDir: {other.plugin_dir}}}\n")
        other.kubelet.wait_for(GPU, 8)
        assert node.own_sockets() == []
        ready(plugin)
    finally:
        other.kubelet.stop()


def test_going_over_to_the_other_registration_and_back_the_kubelet_keeps_one_stream_k06(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    for way in ("plugins-registry", "device-plugins", "plugins-registry"):
        since = time.monotonic()
        write(config, f"version: v1\nkubelet: {{registration: {way}}}\n")
        wait_until(lambda since=since: node.kubelet.lists(GPU, since) and len(node.kubelet.healthy(GPU)) == 8)
    plugin.wait_logged("config file applied", "generation=4")
    time.sleep(0.5)
    assert len(node.kubelet.healthy(GPU)) == 8


def test_where_holders_are_asked_is_changed_without_another_registration(node, place, start):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    flags = [flag for flag in node.flags() if "pod-resources-dir" not in flag]
    node.flags = lambda: flags  # type: ignore[method-assign]
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    write(config, f"version: v1\nkubelet: {{podResourcesDir: {node.settings.pod_resources_dir}}}\n")
    plugin.wait_logged("config file applied")
    wait_until(lambda: plugin.status()["holders_known"])
    assert len(node.kubelet.registrations(GPU)) == 1


class OldLink:
    """A link that stands."""

    closed = False
    registrations = types.MappingProxyType({})

    def close(self) -> None:
        self.closed = True


def test_an_edit_for_which_no_link_can_be_made_leaves_the_old_one_and_says_why(place, monkeypatch):
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    argv = [f"--config-file={config}", f"--run-dir={place}", f"--state-dir={place}"]
    one = daemon.Daemon(argv, {}, load(argv, {}, daemon.read_file))
    one.link = old = OldLink()

    def no_inotify() -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("gpu_device_plugin.inotify.Inotify", no_inotify)
        before = one.settings
        for _ in range(2):  # asked for again it is no more in use than before
            config.write_text(f"version: v1\nkubelet: {{pluginDir: {place}/other}}\n")
            one.reload()
            assert one.link is old and not old.closed
            assert "Too many open files" in one.config_problem
            assert one.settings == before and one.config_generation == 1
    one.reload()
    assert one.link is not old and old.closed
    assert one.config_problem is None and one.settings.kubelet.plugin_dir == f"{place}/other"
    one.link.close()


def test_an_edit_to_an_address_that_is_taken_is_refused_and_the_old_one_serves_on(place):
    taken, free = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    old, other = (f"127.0.0.1:{one.getsockname()[1]}" for one in (free, taken))
    free.close()
    config = place / "config.yaml"
    config.write_text(f"version: v1\nmetrics: {{address: '{old}'}}\n")
    argv = [f"--config-file={config}", f"--run-dir={place}", f"--state-dir={place}"]
    one = daemon.Daemon(argv, {}, load(argv, {}, daemon.read_file))
    one._open_metrics(one.settings)
    try:
        config.write_text(f"version: v1\nmetrics: {{address: '{other}'}}\n")
        one.reload()
        assert other in one.config_problem
        with urllib.request.urlopen(f"http://{old}/healthz", timeout=5) as answer:
            assert answer.status == 200
    finally:
        one.metrics.close()
        taken.close()


def test_the_status_names_devices_health_and_holders(node, machine, start):
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    ready(plugin)
    node.kubelet.admit("train", {GPU: 2})
    machine.xid(7, 48)
    node.kubelet.wait_for(GPU, 7, 1)
    status = plugin.status()
    assert status["ready"] and status["driver_version"] == "570.133.20"
    assert status["device_list_strategy"] == ["envvar"]  # verification asks the runtime the same way
    (resource,) = status["resources"]
    assert [device["index"] for device in resource["devices"]] == [str(number) for number in range(8)]
    assert {device["holder"]["pod"] for device in resource["devices"] if device["holder"]} == {"train"}
    assert sum(device["holder"] is not None for device in resource["devices"]) == 2
    assert "48" in resource["devices"][7]["reason"]
    shown = plugin.command("status")
    assert shown.returncode == 0
    for word in (GPU, "registered", "default/train", "Unhealthy", "XID 48", "NVIDIA H100 80GB HBM3"):
        assert word in shown.stdout


def test_the_status_of_nothing_says_where_it_looked(node, machine):
    done = subprocess.run(
        [sys.executable, "-m", "gpu_device_plugin", "status", *node.flags()],
        env=machine.environ(PYTHONPATH=str(Path(__file__).parents[2] / "files/plugin/src")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(node.root / "run/status.sock") in done.stderr


@pytest.fixture
def real_places(machine, monkeypatch):
    """The machine's sysfs and /proc where check looks for the real ones."""
    monkeypatch.setattr("gpu_device_plugin.check.SYSFS", str(machine.sys))
    monkeypatch.setattr("gpu_device_plugin.check.PROC", str(machine.proc))


@pytest.mark.usefixtures("real_places")
def test_check_on_a_good_node_finds_nothing_wrong(node, machine, capsys):
    node.kubelet.start()
    flags = [*node.flags(), f"--nvidia-dev-root={machine.root}"]
    assert main(["check", *flags], machine.environ()) == 0
    shown = capsys.readouterr().out
    assert "FAIL" not in shown
    for words in (
        "driver: 570.133.20",
        "8: NVIDIA H100",
        "nvidia.com/gpu: 8 devices, 8 healthy",
        "answers on",
    ):
        assert words in shown


@pytest.mark.usefixtures("real_places")
def test_check_names_each_broken_link(node, machine, capsys):
    machine.init_fail(9)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.plugin_dir / "kubelet.sock"))
    flags = [*node.flags(), f"--nvidia-dev-root={machine.root}"]
    assert main(["check", "--json", *flags], machine.environ()) == 1
    answer = json.loads(capsys.readouterr().out)
    failed = {one["what"]: one["text"] for one in answer["findings"] if one["state"] == "fail"}
    assert not answer["ok"]
    assert "modprobe nvidia" in failed["driver"]
    assert "nobody listens" in failed["kubelet"]
    machine.init_ok()
    machine.lose(6)
    assert main(["check", *flags], machine.environ()) == 1
    assert "FAIL  gpus: GPU 6" in capsys.readouterr().out
    machine.restore(6)
    (machine.dev / "nvidia3").unlink()
    assert main(["check", *flags], machine.environ()) == 1
    shown = capsys.readouterr().out
    assert "missing below" in shown and "/dev/nvidia3" in shown
    assert "8 on the PCI bus but 7 by NVML" in shown


@pytest.mark.usefixtures("real_places")
def test_check_looks_for_the_program_that_cdi_specifications_call(node, machine, place, capsys):
    node.kubelet.start()
    flags = [*node.flags(), f"--nvidia-dev-root={machine.root}", "--device-list-strategy=cdi-cri"]
    flags += [f"--cdi-spec-dir={place / 'cdi'}", "--nvidia-cdi-hook-path=/opt/nvidia-ctk"]
    assert main(["check", *flags], machine.environ()) == 1
    assert "FAIL  cdi: /opt/nvidia-ctk" in capsys.readouterr().out
    mounted = place / "driver-root"
    (mounted / "opt").mkdir(parents=True)
    (mounted / "opt/nvidia-ctk").touch()
    flags += [f"--container-driver-root={mounted}"]
    assert main(["check", *flags], machine.environ()) == 0
    assert "cdi: /opt/nvidia-ctk is there" in capsys.readouterr().out
    main(["check", *flags, "--nvidia-driver-root=/run/nvidia/driver"], machine.environ())
    assert " cdi: " not in capsys.readouterr().out


def test_check_tells_of_another_plugin(node, machine, start, capsys):
    node.kubelet.start()
    start()
    node.kubelet.wait_for(GPU, 8)
    flags = [flag for flag in node.flags() if "run-dir" not in flag]
    main(["check", *flags, f"--run-dir={node.root / 'elsewhere'}"], machine.environ())
    assert "other sockets answer" in capsys.readouterr().out


def test_check_with_wrong_settings_is_2(capsys):
    assert main(["check", "--mig-strategy=sngle"], {}) == 2
    assert "--mig-strategy" in capsys.readouterr().out


def test_version_and_help(capsys):
    assert main(["--version"], {}) == 0
    assert capsys.readouterr().out == "gpu-device-plugin 0.1.0\n"
    assert main(["--help"], {}) == 0
    assert "--mig-strategy" in capsys.readouterr().out


def test_json_logs_are_one_document_a_line(node, start):
    plugin = start("--log-format=json")
    wait_until(lambda: plugin.logged("NVML read"))
    lines = [json.loads(line) for line in plugin.logged('"event"')]
    assert {"time", "level", "event"} <= set(lines[-1])


def test_systemd_is_told_ready_status_and_the_watchdog_is_fed(node, place, start):
    node.kubelet.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place / "notify"))
        systemd.settimeout(10)
        plugin = start(NOTIFY_SOCKET=str(place / "notify"), WATCHDOG_USEC="400000")
        seen: list[str] = []
        while not (
            any("READY=1" in one for one in seen)
            and any("8/8 healthy; registered" in one for one in seen)
            and any("WATCHDOG=1" in one for one in seen)
        ):
            seen.append(systemd.recv(4096).decode())
        plugin.signal(signal.SIGTERM)
        while "STOPPING=1" not in seen[-1]:
            seen.append(systemd.recv(4096).decode())


def test_garbage_is_collected_again_once_the_start_is_over_but_not_among_what_it_made(node, machine):
    program = """
import gc, os, signal, sys, threading
gc.disable()
from gpu_device_plugin import daemon
daemon.SETTLED_SECONDS = 0.2
def tell():
    print(gc.isenabled(), gc.get_freeze_count() > 10_000, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Timer(1.5, tell).start()
sys.exit(daemon.run(sys.argv[1:], os.environ))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *node.flags()],
        env=machine.environ(PYTHONPATH=str(SOURCE)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_memory_threads_and_idle_cpu_stay_small(node, start):
    """Not the benchmark: a bound that only a fault would break."""
    node.kubelet.start()
    plugin = start()
    node.kubelet.wait_for(GPU, 8)
    ready(plugin)
    pid = plugin.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 60_000
    assert len(os.listdir(f"/proc/{pid}/task")) <= 16

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 8, "over 4 % of a core while nothing happens"
