"""Building the plugin's image: two runs at the same time, another architecture, an archive of something else.

`docker` is a program that keeps images as files in a folder; the real one builds in tests/cluster and molecule/cluster.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
PLAY = [
    {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {"set_fact": {"ansible_facts": {"architecture": "{{ machine }}"}}},
            {"include_role": {"name": "gpuops.k8s.device_plugin", "tasks_from": "image"}},
        ],
    }
]
DOCKER = """#!{python}
# image ls|inspect, build, save, load, over $DOCKER_STORE/NAME files that hold what an image would
import json, os, pathlib, sys, time
node = pathlib.Path(os.environ["DOCKER_STORE"])
words = sys.argv[1:]
with (node / "calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")

def file(name):
    return node / name.replace("/", "_")

def whole(context):
    return sorted(str(p.relative_to(context)) for p in context.rglob("*"))

if words[:2] == ["image", "ls"]:
    print((node / "loaded").read_text() if (node / "loaded").exists() else "")
elif words[:2] == ["image", "inspect"]:
    name = words[-1]
    if name == os.environ["BASE"]:
        print(os.environ.get("BASE_MACHINE", "amd64"))
    else:
        sys.exit("Error: No such image: " + name)
elif words[0] == "build":
    context = pathlib.Path(words[-1])
    before = whole(context)
    me = node / f"building-{{os.getpid()}}"
    me.write_text(str(context))
    # Until as many build at the same time as the test wants, and both have looked twice.
    deadline = time.monotonic() + 60
    while len(list(node.glob("building-*"))) < int(os.environ.get("TOGETHER", "1")):
        if time.monotonic() > deadline:
            sys.exit("the other build never came")
        time.sleep(0.05)
    if whole(context) != before or "site-packages/gpu_device_plugin/__main__.py" not in before:
        sys.exit("the context changed under the build")
    print("built")
elif words[0] == "save":
    target, name = pathlib.Path(words[words.index("--output") + 1]), words[-1]
    with target.open("w") as out:
        out.write("image " + name + "\\n")
        out.flush()
        time.sleep(0.5)
        out.write("whole")
elif words[0] == "load":
    text = pathlib.Path(words[-1]).read_text()
    if not text.endswith("whole"):
        sys.exit("a broken archive was loaded")
    (node / "loaded").write_text(text.split()[1])
"""

BUNDLE = """#!{python}
# tools/bundle.py's part: --tar FILE gets a site-packages (the real one fetches wheels; tests/plugin has it)
import io, sys, tarfile
with tarfile.open(sys.argv[sys.argv.index("--tar") + 1], "w:gz") as tar:
    tar.addfile(tarfile.TarInfo("site-packages/gpu_device_plugin/__main__.py"), io.BytesIO())
"""


class Machine:
    """Folders that are the control host's cache and the node's engine."""

    def __init__(self, folder: Path, collections: str) -> None:
        self.folder, self.collections = folder, collections
        self.store = folder / "engine"
        self.store.mkdir()
        (folder / "bin").mkdir()
        for name, text in {"docker": DOCKER, "bundle": BUNDLE}.items():
            (folder / "bin" / name).write_text(text.format(python=sys.executable))
            (folder / "bin" / name).chmod(0o755)
        (folder / "play.yml").write_text(yaml.safe_dump(PLAY))

    def start(self, extra: dict[str, object], **environment: str) -> subprocess.Popen[str]:
        """One provision's part that brings the image."""
        extra = {
            "machine": "x86_64",
            "device_plugin_build_dir": str(self.folder / "build"),
            "device_plugin_base_image": "base:1",
            "device_plugin_build_python": str(self.folder / "bin/bundle"),
            "device_plugin_engine": "docker",
            **extra,
        }
        return subprocess.Popen(
            [ANSIBLE, "-i", "node,", self.folder / "play.yml", "-e", json.dumps(extra)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={
                **os.environ, "BASE": "base:1", "DOCKER_STORE": str(self.store), "ANSIBLE_NOCOLOR": "1",
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "ANSIBLE_COLLECTIONS_PATH": self.collections,
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_PYTHON_INTERPRETER": sys.executable, **environment,
            },
        )  # fmt: skip

    def calls(self, word: str) -> int:
        """How often docker was called with this first word."""
        lines = (self.store / "calls").read_text().splitlines()
        return sum(json.loads(line)[0] == word for line in lines)


@pytest.fixture(scope="module")
def collections() -> str:
    done = subprocess.run([CHECKOUT / "tests/tools/collection"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, collections: str) -> Machine:
    return Machine(tmp_path, collections)


def ended(run: subprocess.Popen[str]) -> str:
    output, _ = run.communicate(timeout=180)
    assert run.returncode == 0, output
    return output


def test_two_runs_that_build_at_the_same_time_do_each_other_no_harm(machine: Machine) -> None:
    runs = [machine.start({}, TOGETHER="2") for _ in range(2)]
    for run in runs:
        ended(run)
    contexts = {path.read_text() for path in machine.store.glob("building-*")}
    assert len(contexts) == 2
    assert [Path(one).exists() for one in contexts] == [False, False]
    assert [path.suffix for path in (machine.folder / "build").iterdir()] == [".tar"]
    (machine.store / "loaded").unlink()
    ended(machine.start({}))
    assert machine.calls("build") == 2, "what is built already was built again"


def test_another_base_makes_another_image_of_the_same_sources(machine: Machine) -> None:
    ended(machine.start({}))
    first = (machine.store / "loaded").read_text()
    ended(machine.start({"device_plugin_base_image": "base:2"}, BASE="base:2"))
    assert (machine.store / "loaded").read_text() != first
    assert machine.calls("build") == 2


@pytest.mark.parametrize(
    ("extra", "environment", "words"),
    [
        ({"machine": "aarch64"}, {}, "can not build .* for aarch64: its base image base:1 is for amd64"),
        ({}, {"BASE": "another:1"}, "No such image: base:1. Have docker run there and hold the base image"),
        ({}, {"PATH": "/usr/local/sbin:/usr/bin:/bin"}, "docker"),
    ],
    ids=["architecture", "no base", "no docker"],
)  # fmt: skip
def test_a_build_host_that_can_not_build_is_told_before_anything_is_fetched(
    machine: Machine, extra: dict[str, object], environment: dict[str, str], words: str
) -> None:
    run = machine.start(extra, **environment)
    output, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert re.search(words, " ".join(output.split())), output
    assert not (machine.folder / "build").exists()


def test_an_archive_of_another_image_is_refused_by_its_name(machine: Machine, tmp_path: Path) -> None:
    archive = tmp_path / "given.tar"
    archive.write_text("image other/plugin:1\nwhole")
    given = {"device_plugin_image_source": "archive", "device_plugin_image_archive": str(archive)}
    run = machine.start({**given, "device_plugin_image": "site/plugin:7"})
    output, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "given.tar holds no image site/plugin:7" in " ".join(output.split())
    (machine.store / "loaded").unlink()
    ended(machine.start({**given, "device_plugin_image": "other/plugin:1"}))


@pytest.mark.parametrize(
    ("asked", "there", "known"),
    [
        ("site/plugin:7", "site/plugin:7", True),
        ("site/plugin:7", "docker.io/site/plugin:7", True),
        ("plugin:7", "docker.io/library/plugin:7", True),
        ("docker.io/site/plugin:7", "site/plugin:7", True),
        ("site/plugin:7", "registry.example:5000/site/plugin:7", False),
        ("plugin:7", "site/plugin:7", False),
        ("site/plugin:7", "site/plugin:71", False),
    ],
)  # fmt: skip
def test_an_image_is_known_by_its_whole_name_as_the_kubelet_looks_for_it(
    machine: Machine, asked: str, there: str, known: bool
) -> None:
    (machine.store / "loaded").write_text(there)
    run = machine.start(
        {
            "device_plugin_image": asked, "device_plugin_image_source": "archive",
            "device_plugin_image_archive": "/nowhere.tar",
        }
    )  # fmt: skip
    output, _ = run.communicate(timeout=120)
    assert ("nowhere.tar" in output, run.returncode == 0) == (not known, known), output


def test_an_image_that_the_kubelet_pulls_is_looked_for_in_no_engine(machine: Machine) -> None:
    for engine in ("docker", "crio"):
        ended(machine.start({"device_plugin_image_source": "present", "device_plugin_engine": engine}))
    assert not (machine.store / "calls").exists(), (machine.store / "calls").read_text()


def test_a_push_needs_no_engine_on_the_node_that_we_can_ask(machine: Machine) -> None:
    ended(machine.start({"device_plugin_image_push": True, "device_plugin_engine": "crio"}))
    assert (machine.calls("build"), machine.calls("push")) == (1, 1)
    assert '["image", "ls"' not in (machine.store / "calls").read_text()
