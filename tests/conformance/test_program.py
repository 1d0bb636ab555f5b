"""The embedded kubelet as a program: flags, files and refusals as the real one has them, pods that survive its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from embedded_kubelet.configuration import FatalError, check_gates, read_flags, read_gates, read_run, seconds
from embedded_kubelet.version import behaviour, parse
from fake_plugin import FakePlugin, wait_until
from real_kubelet import binary, free_ports, need_one

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = f"{ROOT / 'tests/testbed/kubelet'}:{ROOT / 'files/plugin/src'}"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m embedded_kubelet WORDS`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "embedded_kubelet", *words],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Program:
    """One run of it, on directories of its own."""

    def __init__(self, base: Path, version: str, config: dict[str, Any] | None = None) -> None:
        self.root = base
        self.plugin_dir = base / "device-plugins"
        self.healthz_port = free_ports(["healthz"])["healthz"]
        file = base / "config.yaml"
        settings = {"nodeStatusUpdateFrequency": "100ms", "healthzPort": self.healthz_port, **(config or {})}
        file.write_text(
            yaml.safe_dump(
                {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **settings}
            )
        )
        self._command = [
            sys.executable,
            "-m",
            "embedded_kubelet",
            "kubelet",
            f"--config={file}",
            f"--root-dir={base}",
        ]
        self._environment = {
            **os.environ,
            "PYTHONPATH": PYTHONPATH,
            "EMBEDDED_KUBELET_VERSION": version,
            "EMBEDDED_KUBELET_PLUGIN_DIR": str(self.plugin_dir),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, env=self._environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.healthz() == "ok", 20, "healthz")

    def end(self, *, kill: bool = False) -> int:
        assert self.process is not None
        (self.process.kill if kill else self.process.terminate)()
        return self.process.wait(10)

    def healthz(self) -> str | None:
        """What it says on its port."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.healthz_port}/healthz", timeout=2) as response:
                return str(response.read().decode())
        except OSError:
            return None

    def pod(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run("pod", "--root-dir", str(self.root), *words)

    def node(self) -> dict[str, dict[str, int]]:
        return dict(json.loads(self.pod("node").stdout))


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: sockets lie in it."""
    directory = Path(tempfile.mkdtemp(prefix="ge-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def program(base: Path) -> Iterator[Program]:
    """Runs, imitating 1.36."""
    program = Program(base, "1.36.2")
    program.start()
    yield program
    if program.process is not None and program.process.poll() is None:
        program.end(kill=True)


# -- versions and gates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "told"), [("1.20", "1.20.2"), ("v1.27.3", "1.27.3"), ("1.36.2", "1.36.2")])
def test_version_is_printed_in_the_real_ones_words(asked: str, told: str) -> None:
    done = run("kubelet", "--version", EMBEDDED_KUBELET_VERSION=asked)
    assert (done.returncode, done.stdout) == (0, f"Kubernetes v{told}\n")


@pytest.mark.parametrize(
    ("version", "unnamed", "true", "false"),
    [
        ("1.7", False, "exits", "exits"),
        ("1.8", False, True, False),
        ("1.9", False, True, False),
        ("1.10", True, True, False),
        ("1.25", True, True, False),
        ("1.26", True, "warns", "exits"),
        ("1.27", True, "warns", "exits"),
        ("1.28", True, "exits", "exits"),
        ("1.36", True, "exits", "exits"),
    ],
)
def test_the_gates_table(version: str, unnamed: bool, true: Any, false: Any) -> None:
    assert check_gates({}, version) == (unnamed, [])
    for value, wanted in ((True, true), (False, false)):
        if wanted == "exits":
            with pytest.raises(FatalError, match="DevicePlugins"):
                check_gates({"DevicePlugins": value}, version)
        elif wanted == "warns":
            on, warnings = check_gates({"DevicePlugins": value}, version)
            assert on
            assert "GA feature gate" in warnings[0]
        else:
            assert check_gates({"DevicePlugins": value}, version) == (wanted, [])


def test_the_flag_wins_key_by_key_and_keys_only_in_the_file_survive(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("kind: KubeletConfiguration\nfeatureGates: {DevicePlugins: false, CPUManager: false}\n")
    environment = {"EMBEDDED_KUBELET_VERSION": "1.20"}
    assert not read_run([f"--config={file}"], environment).settings.gate
    assert read_run([f"--config={file}", "--feature-gates=DevicePlugins=true"], environment).settings.gate
    assert not read_run([f"--config={file}", "--feature-gates=CPUManager=true"], environment).settings.gate
    assert (
        read_flags(["--feature-gates=A=true", "--feature-gates", "B=false"])["feature-gates"]
        == "A=true,B=false"
    )


def test_drop_ins_are_merged_in_order_and_null_deletes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "kind: KubeletConfiguration\nfeatureGates: {DevicePlugins: false}\nhealthzPort: 1\n"
    )
    drop_ins = tmp_path / "d"
    drop_ins.mkdir()
    (drop_ins / "10.conf").write_text(
        "kind: KubeletConfiguration\nhealthzPort: 2\nfeatureGates: {DevicePlugins: null}\n"
    )
    (drop_ins / "20.conf").write_text("kind: KubeletConfiguration\nhealthzPort: 3\n")
    (drop_ins / "30.yaml").write_text("kind: KubeletConfiguration\nhealthzPort: 4\n")
    flags = [f"--config={tmp_path / 'c.yaml'}", f"--config-dir={drop_ins}"]
    result = read_run(flags, {"EMBEDDED_KUBELET_VERSION": "1.30"})
    assert result.healthz == ("127.0.0.1", 3)
    with pytest.raises(FatalError, match="DevicePlugins"):
        read_run(flags[:1], {"EMBEDDED_KUBELET_VERSION": "1.30"})


REFUSED = [
    ["--nope"],
    ["--feature-gates=Nope=true"],
    ["--feature-gates=DevicePlugins"],
    ["--feature-gates=DevicePlugins=maybe"],
    ["--config=/does/not/exist"],
    ["--config={bad_gate}"],
    ["--config={bad_type}"],
    ["--config={broken}"],
    ["stray"],
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Broken files, by name."""
    head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
    contents = {
        "bad_gate": f"{head}featureGates: {{Nope: true}}\n",
        "bad_type": f'{head}featureGates: {{DevicePlugins: "yes please"}}\n',
        "broken": f"{head}featureGates: {{\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return {name: str(tmp_path / name) for name in contents}


@pytest.mark.parametrize("flags", REFUSED, ids=lambda flags: flags[0])
def test_what_the_real_kubelet_refuses_ends_the_embedded_one(flags: list[str], files: dict[str, str]) -> None:
    done = run("kubelet", *(flag.format(**files) for flag in flags), EMBEDDED_KUBELET_VERSION="1.20")
    assert done.returncode != 0
    assert done.stderr.strip()


@pytest.mark.real
@pytest.mark.parametrize("flags", REFUSED, ids=lambda flags: flags[0])
def test_the_real_kubelet_refuses_the_same(flags: list[str], files: dict[str, str], tmp_path: Path) -> None:
    need_one()
    command = [str(binary()), f"--root-dir={tmp_path}", *(flag.format(**files) for flag in flags)]
    done = subprocess.run(
        ["unshare", "--mount", "--net", "timeout", "20", *command],
        env={"PATH": os.environ["PATH"], "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        check=False,
    )
    assert done.returncode not in (0, 124), "it started"


def test_flags_that_change_nothing_here_are_taken() -> None:
    flags = "--kubeconfig=/x --cgroup-driver systemd --v=4 --fail-swap-on=false --container-runtime-endpoint=unix:///x"
    assert read_run(flags.split(), {"EMBEDDED_KUBELET_VERSION": "1.36"}).settings.gate


@pytest.mark.parametrize(("text", "value"), [("10s", 10), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text, "x") == value


@pytest.mark.parametrize("text", ["", "10", "s", "10x", "-1s", "1s "])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(FatalError, match="invalid duration"):
        seconds(text, "x")


def test_versions_that_are_none() -> None:
    for text in ("", "latest", "1", "v"):
        with pytest.raises(ValueError, match="is no Kubernetes version"):
            parse(text)
    assert behaviour("1.32").deletes_every_file
    assert not behaviour("1.33").deletes_every_file
    assert read_gates("") == {}


# -- running -----------------------------------------------------------------------------------------------------


def test_it_serves_publishes_and_stops_leaving_its_socket_dead(program: Program) -> None:
    assert program.healthz() == "ok"
    with FakePlugin(program.plugin_dir, "nvidia.com/gpu", ["a", "b", "c"]).come() as plugin:
        wait_until(lambda: program.node()["allocatable"].get("nvidia.com/gpu") == 3)
        plugin.set({"a": "Healthy", "b": "Unhealthy", "c": "Healthy"})
        wait_until(
            lambda: (
                program.node() == {"capacity": {"nvidia.com/gpu": 3}, "allocatable": {"nvidia.com/gpu": 2}}
            )
        )
        assert program.end() == 0
        assert (program.plugin_dir / "kubelet.sock").is_socket()
        program.start()
        wait_until(lambda: program.node()["allocatable"]["nvidia.com/gpu"] == 0)


def test_a_pod_that_asks_for_too_much_or_for_nothing_known_is_refused_in_words(program: Program) -> None:
    none = program.pod("run", "--gpus", "2", "image:1")
    assert none.returncode == 1
    assert "does not offer nvidia.com/gpu" in none.stderr
    with FakePlugin(program.plugin_dir, "nvidia.com/gpu", ["a"]).come():
        wait_until(lambda: program.node()["allocatable"].get("nvidia.com/gpu") == 1)
        two = program.pod("run", "--gpus", "2", "image:1")
        assert two.returncode == 1
        assert "Insufficient nvidia.com/gpu: 2 asked, 1 free of 1 allocatable" in two.stderr
    assert program.pod("rm", "nobody").returncode == 1


def test_without_a_kubelet_the_pod_command_says_so(base: Path) -> None:
    done = run("pod", "--root-dir", str(base), "ls")
    assert done.returncode == 1
    assert "no embedded kubelet answers" in done.stderr


@pytest.mark.node
def test_a_container_gets_what_the_plugin_answered_and_holds_it_over_a_restart(program: Program) -> None:
    images = subprocess.run(
        ["docker", "image", "inspect", "gpuops/workload:1"], capture_output=True, check=False
    ).returncode
    if images != 0:
        pytest.skip("no image gpuops/workload:1 in a docker engine here (testbed image workload)")
    name = f"gpuops-kubelet-{os.getpid()}"
    with FakePlugin(program.plugin_dir, "nvidia.com/gpu", ["a", "b", "c"]).come() as plugin:
        wait_until(lambda: program.node()["allocatable"].get("nvidia.com/gpu") == 3)
        shown = program.pod(
            "run", "--gpus", "2", "--name", f"{name}-1", "gpuops/workload:1", "--", "sh", "-c", "echo $IDS"
        )
        assert shown.returncode == 0, shown.stderr
        assert set(shown.stdout.strip().split(",")) == set(plugin.allocated[0])
        assert program.pod("run", "gpuops/workload:1", "--", "sh", "-c", "exit 7").returncode == 7
        detached = program.pod(
            "run", "-d", "--gpus", "1", "--name", name, "gpuops/workload:1", "--", "sleep", "600"
        )
        assert detached.returncode == 0, detached.stderr
        try:
            [pod] = json.loads(program.pod("ls", "--json").stdout)
            assert (pod["phase"], pod["devices"]) == ("Running", {"nvidia.com/gpu": plugin.allocated[1]})
            program.end(kill=True)
            program.start()
            [same] = json.loads(program.pod("ls", "--json").stdout)
            assert same["devices"] == pod["devices"]
            subprocess.run(["docker", "kill", f"k8s_main_{name}"], check=True, capture_output=True)
            wait_until(lambda: json.loads(program.pod("ls", "--json").stdout)[0]["phase"] == "Failed")
            assert json.loads(program.pod("ls", "--json").stdout)[0]["devices"] == {"nvidia.com/gpu": []}
        finally:
            assert program.pod("rm", name).returncode == 0
    assert json.loads(program.pod("ls", "--json").stdout) == []


def test_it_is_up_quickly(base: Path) -> None:
    """Not a timed test: a bound that only a start that hangs would miss."""
    began = time.monotonic()
    program = Program(base, "1.20")
    program.start()
    program.end()
    assert time.monotonic() - began < 20
