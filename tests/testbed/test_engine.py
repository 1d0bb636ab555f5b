"""Where a machine lacks something, the test bed says what, and how to get it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bedlib import engine, image, node
from bedlib.common import BedError

TESTBED = Path(__file__).resolve().parent / "testbed"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(engine, "answers", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return monkeypatch


def test_without_root_it_says_who_has_to_start_docker(no_engine: pytest.MonkeyPatch):
    no_engine.setattr(engine.os, "geteuid", lambda: 1000)
    with pytest.raises(BedError, match="run this as root, or start docker and add yourself to the group"):
        engine.ensure()


def test_without_apt_it_names_what_to_install(no_engine: pytest.MonkeyPatch):
    no_engine.setattr(engine.os, "geteuid", lambda: 0)
    with pytest.raises(BedError, match=r"docker\.io, .*there is no apt-get here"):
        engine.ensure()


def test_without_disk_it_says_where_and_how_much(monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2**40, 2**40, 2**30))
    with pytest.raises(BedError, match=r"1\.0 GiB free, the test bed needs 6"):
        engine.ensure()


def test_an_engine_that_answers_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "answers", lambda: True)
    monkeypatch.setattr(engine, "start", lambda: pytest.fail("started a second engine"))
    monkeypatch.setattr(engine, "install", lambda *names: pytest.fail(f"installed {names}"))
    engine.ensure()


DEB822 = """Types: deb
# a comment
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
"""


def test_the_machines_own_mirror_serves_other_releases_too():
    keyring = f"[signed-by={image.KEYRING}]"
    assert image.sources_from(DEB822, "bookworm", "trixie") == [
        f"deb {keyring} http://mirror.invalid/debian trixie main",
        f"deb {keyring} http://mirror.invalid/debian trixie-updates main",
        f"deb {keyring} http://mirror.invalid/debian-security trixie-security main",
    ]
    old_style = (
        "deb [arch=amd64] http://mirror.invalid/debian bookworm main contrib\n# deb http://x.invalid y z\n"
    )
    assert image.sources_from(old_style, "bookworm", "bookworm") == [
        f"deb {keyring} http://mirror.invalid/debian bookworm main"
    ]


def test_a_machine_without_debians_mirror_is_refused():
    with pytest.raises(BedError, match="no Debian mirror in this machine's apt settings"):
        image.sources_from("deb http://mirror.invalid/ubuntu jammy main\n", "bookworm", "bookworm")


def test_only_capabilities_that_the_machine_has_are_asked_for():
    asked = node.capabilities()
    bounding = int(
        next(
            line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in line
        ),
        16,
    )
    assert ("--cap-add=SYS_RESOURCE" in asked) == bool(bounding >> 24 & 1)
    assert "--cap-add=CHOWN" in asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "x", "--model", "H900"], "unknown GPU model 'H900': one of H100"),
        (["up", "x", "--gpus", "17"], "17 GPUs asked for: this stand-in plays 16 at most"),
        (["up", "UPPER_case"], "node name 'UPPER_case'"),
        (["down"], "down: name the nodes, or say --all"),
        (["ssh", "nobody-here"], "no running node nobody-here"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], said: str):
    done = subprocess.run([sys.executable, TESTBED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("testbed: ") and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
