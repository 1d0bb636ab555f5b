# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role chooses per distribution: packages, files, refusals. These stand in for machines that CI hasn't got."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles/nvidia_docker"
if hasattr(__import__("ansible.template", fromlist=["trust_as_template"]), "trust_as_template"):
    from ansible.template import trust_as_template
else:  # pragma: no cover - ansible-core 2.18

    def trust_as_template(value: Any) -> Any:
        """Before 2.19 every string is a template."""
        return value


def trusted(value: Any) -> Any:
    """Strings below may hold templates, as when Ansible has read them from the role."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def role_vars(look: dict[str, str], **extra: Any) -> Templar:
    """A templar that knows the role's defaults and vars, and what the node said."""
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    variables: dict[str, Any] = {"role_path": str(ROLE), "inventory_hostname": "node", "omit": "OMITTED"}
    for name in ("defaults", "vars"):
        variables.update(trusted(yaml.safe_load((ROLE / name / "main.yml").read_text())))
    lines = [f"{key}={value}" for key, value in look.items()]
    variables["__nvidia_docker_look"] = {"stdout_lines": lines}
    variables["ansible_search_path"] = [str(ROLE)]
    variables.update(extra)
    return Templar(loader=loader, variables=variables)


def ask(templar: Templar, name: str) -> Any:
    return templar.template(trust_as_template("{{ " + name + " }}"))


GOOD = {
    "os_id": "debian", "os_version": "12", "os_name": "Debian 12", "architecture": "x86_64",
    "engines": " docker containerd", "gpus": "2", "driver": "570.1", "packages": "",
    "held": "", "links_missing": "0",
}  # fmt: skip
APT = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
YUM = "/etc/yum.repos.d/nvidia-container-toolkit.repo"
ZYPP = "/etc/zypp/repos.d/nvidia-container-toolkit.repo"


@pytest.mark.parametrize(
    ("os_id", "version", "family", "source"),
    [
        ("debian", "11", "apt", APT), ("debian", "12", "apt", APT), ("debian", "13", "apt", APT),
        ("ubuntu", "20.04", "apt", APT), ("ubuntu", "22.04", "apt", APT), ("ubuntu", "24.04", "apt", APT),
        ("ubuntu", "26.04", "apt", APT), ("rhel", "8.10", "dnf", YUM), ("rhel", "10.0", "dnf", YUM),
        ("rocky", "9.4", "dnf", YUM), ("almalinux", "8.9", "dnf", YUM), ("amzn", "2023", "dnf", YUM),
        ("sles", "15.6", "zypper", ZYPP),
    ],
)  # fmt: skip
def test_a_supported_distribution(os_id: str, version: str, family: str, source: str) -> None:
    templar = role_vars({**GOOD, "os_id": os_id, "os_version": version})
    assert ask(templar, "_nvidia_docker_supported") is True
    assert ask(templar, "_nvidia_docker_problems") == []
    assert ask(templar, "_nvidia_docker_family") == family
    assert ask(templar, "_nvidia_docker_source_file") == source
    assert (ROLE / f"tasks/install_{family}.yml").is_file()


@pytest.mark.parametrize(
    ("change", "reason", "step"),
    [
        ({"os_id": "debian", "os_version": "10"}, "Debian 12 on x86_64 is not supported", "use debian"),
        ({"os_id": "ubuntu", "os_version": "21.10"}, "not supported", "use debian"),
        ({"os_id": "arch", "os_version": ""}, "not supported", "use debian"),
        ({"architecture": "riscv64"}, "on riscv64 is not supported", "use debian"),
        ({"gpus": "0"}, "no NVIDIA GPU on the PCI bus", "nvidia_docker_require_gpu"),
        ({"driver": ""}, "no NVIDIA driver is loaded", "install it and reboot"),
        ({"engines": ""}, "no container engine (docker, containerd, cri-o) is not installed", "install it"),
    ],
)
def test_a_node_that_cannot_be_served(change: dict[str, str], reason: str, step: str) -> None:
    [problem] = ask(role_vars({**GOOD, **change}), "_nvidia_docker_problems")
    assert reason in problem
    assert step in problem
    assert "\n" not in problem


def kubelet(engine: str, reason: str = "") -> dict[str, Any]:
    """What the module kubelet_engine_info answered."""
    return {"engine": engine, "reason": reason}


@pytest.mark.parametrize(
    ("engines", "talks_to", "asked", "expected"),
    [
        (" docker containerd", "", "auto", ["docker"]),
        (" docker containerd", "docker", "auto", ["docker"]),
        (" docker containerd", "containerd", "auto", ["docker", "containerd"]),
        (" containerd", "", "auto", ["containerd"]),
        (" crio", "crio", "auto", ["crio"]),
        (" containerd crio", "crio", "auto", ["crio"]),
        (" docker containerd crio", "crio", "auto", ["docker", "crio"]),
        (" docker containerd", "containerd", "containerd", ["containerd"]),
        (" docker containerd", "", ["docker", "containerd"], ["docker", "containerd"]),
        (" docker containerd", "embedded", "none", []),
        ("", "embedded", "none", []),
    ],
)
def test_which_engines_are_configured(engines: str, talks_to: str, asked: Any, expected: list[str]) -> None:
    templar = role_vars(
        {**GOOD, "engines": engines}, nvidia_docker_engine=asked, __nvidia_docker_kubelet=kubelet(talks_to)
    )
    assert ask(templar, "_nvidia_docker_engines") == expected
    assert ask(templar, "_nvidia_docker_problems") == []


@pytest.mark.parametrize("engines", [" docker containerd", ""])
def test_a_kubelet_with_a_containerd_of_its_own_is_refused_with_the_way_out(engines: str) -> None:
    found = kubelet("embedded", "k3s runs a containerd of its own")
    look = {**GOOD, "engines": engines}
    [problem] = ask(role_vars(look, __nvidia_docker_kubelet=found), "_nvidia_docker_problems")
    assert problem.startswith(
        "k3s runs a containerd of its own, which it configures itself; set nvidia_docker_engine to none"
    )


FOUR = [
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
]


def test_the_four_packages_share_one_version_and_the_legacy_ones_have_their_own() -> None:
    templar = role_vars(GOOD, nvidia_docker_version="1.17.8-1")
    assert ask(templar, "_nvidia_docker_wanted") == [f"{name}=1.17.8-1" for name in FOUR]
    assert ask(templar, "_nvidia_docker_wanted_rpm") == [f"{name}-1.17.8-1" for name in FOUR]
    legacy = role_vars(GOOD, nvidia_docker_package_set="legacy")
    assert set(ask(legacy, "_nvidia_docker_wanted")) == {f"{name}=1.18.0-1" for name in FOUR} | {
        "nvidia-docker2=2.14.0-1", "nvidia-container-runtime=3.14.0-1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("present", "held", "hold", "packages_right", "holds_right"),
    [
        ([], [], True, False, False),
        ([f"{name}=1.18.0-1" for name in FOUR], FOUR, True, True, True),
        ([f"{name}=1.18.0-1" for name in FOUR], FOUR[:3], True, True, False),
        ([f"{name}=1.18.0-1" for name in FOUR], [], False, True, True),
        ([f"{name}=1.18.0-1" for name in FOUR], FOUR, False, True, False),
        ([f"{name}=1.17.8-1" for name in FOUR], FOUR, True, False, True),
        ([f"{name}=1.18.0-1" for name in FOUR[:3]] + [f"{FOUR[3]}=1.17.8-1"], FOUR, True, False, True),
    ],
)
def test_what_is_left_to_install(
    present: list[str], held: list[str], hold: bool, packages_right: bool, holds_right: bool
) -> None:
    look = {**GOOD, "packages": " ".join(present), "held": " ".join(held)}
    templar = role_vars(look, nvidia_docker_hold=hold)
    assert ask(templar, "_nvidia_docker_packages_right") is packages_right
    assert ask(templar, "_nvidia_docker_holds_right") is holds_right


@pytest.mark.parametrize(
    ("policy", "needed", "action"),
    [
        ("auto", "reload", "reload"), ("auto", "restart", "restart"), ("reload", "reload", "reload"),
        ("reload", "restart", "none"), ("restart", "reload", "restart"), ("none", "reload", "none"),
        ("none", "restart", "none"), ("restart", "none", "none"), ("auto", "none", "none"),
    ],
)  # fmt: skip
def test_how_a_change_is_applied_when_nothing_would_stop(policy: str, needed: str, action: str) -> None:
    templar = role_vars(GOOD, nvidia_docker_apply=policy)
    templar.available_variables["__nvidia_docker_change"] = {"item": "docker", "action_needed": needed}
    assert ask(templar, "_nvidia_docker_action") == action


def test_a_restart_that_would_stop_containers_has_to_be_asked_for() -> None:
    change = {"item": "docker", "action_needed": "restart", "restart_stops": 20}
    for policy, helps, action in (
        ("auto", False, "none"),
        ("auto", True, "reload"),
        ("restart", True, "restart"),
    ):
        templar = role_vars(GOOD, nvidia_docker_apply=policy)
        templar.available_variables["__nvidia_docker_change"] = {**change, "reload_helps": helps}
        assert ask(templar, "_nvidia_docker_action") == action


def test_links_are_right_only_with_both_files_as_they_are_here() -> None:
    sums = {
        "links_script_sha1": hashlib.sha1((ROLE / "files/nvidia-dev-char-links").read_bytes()).hexdigest(),
        "links_rule_sha1": hashlib.sha1((ROLE / "files/nvidia-dev-char.rules").read_bytes()).hexdigest(),
    }
    assert ask(role_vars({**GOOD, **sums}), "_nvidia_docker_links_right") is True
    assert ask(role_vars({**GOOD, **sums, "links_missing": "1"}), "_nvidia_docker_links_right") is False
    assert ask(role_vars({**GOOD, **sums, "links_rule_sha1": "x"}), "_nvidia_docker_links_right") is False


def test_the_key_on_the_node_is_what_the_look_sent() -> None:
    templar = role_vars({**GOOD, "key": base64.b64encode(b"-----BEGIN x\n").decode()})
    assert ask(templar, "_nvidia_docker_key_on_node") == "-----BEGIN x\n"


@pytest.mark.parametrize(
    ("files", "runs", "words"),
    [
        ([{"path": "/d.json", "backup": "x"}], True, "the old files are back and it runs with them."),
        ([{"path": "/d.json", "backup": "x"}], False, "the old files are back, and IT DOES NOT RUN (no start)."),
        ([], True, "no file was put back, since this run has changed none"),
        ([], False, "and IT DOES NOT RUN (no start). Look at journalctl -u docker."),
    ],
)  # fmt: skip
def test_what_is_said_after_an_engine_has_failed(files: list[Any], runs: bool, words: str) -> None:
    templar = role_vars(
        GOOD,
        __nvidia_docker_change={"item": "docker", "backup_files": files},
        __nvidia_docker_answer={"rc": 0 if runs else 1, "stderr": "no socket"},
        __nvidia_docker_old={"msg": "no\nstart"},
        __nvidia_docker_stuck="",
    )
    said = ask(templar, "_nvidia_docker_way_back")
    assert words in said
    assert ("IT DOES NOT RUN" in said) is not runs


RPM_NODE = """
command() { [ "$2" = rpm ]; }
rpm() { :; }
cat() { case " $* " in *versionlock*) printf '%s\\n' "$LOCKS" ;; *) /bin/cat "$@" ;; esac; }
"""


@pytest.mark.parametrize(
    ("locks", "held"),
    [
        ("nvidia-container-toolkit-base-0:1.18.0-1.*", ["nvidia-container-toolkit-base"]),
        ("0:nvidia-container-toolkit-1.18.0-1.*", ["nvidia-container-toolkit"]),
        ('name = "nvidia-container-toolkit"', ["nvidia-container-toolkit"]),
        ("solvable_name: nvidia-container-toolkit-base", ["nvidia-container-toolkit-base"]),
        ("\n".join(f"{name}-0:1.18.0-1.*" for name in FOUR), FOUR),
        ("", []),
    ],
)
def test_a_lock_of_an_rpm_package_is_no_lock_of_one_whose_name_it_begins_with(
    locks: str, held: list[str]
) -> None:
    done = subprocess.run(
        ["sh", "-s", "--", "none", "none", *FOUR],
        input=RPM_NODE + (ROLE / "files/look.sh").read_text(),
        env={"LOCKS": locks, "PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    [line] = [line for line in done.stdout.splitlines() if line.startswith("held=")]
    assert line.removeprefix("held=").split() == held


@pytest.mark.parametrize(
    ("engines", "talks_to", "taken"),
    [
        (["docker", "containerd"], "containerd", "containerd"), (["docker", "containerd"], "", "docker"),
        (["containerd"], "docker", "containerd"), (["crio"], "crio", ""),
    ],
)  # fmt: skip
def test_where_a_daemon_reload_is_looked_at(engines: list[str], talks_to: str, taken: str) -> None:
    templar = role_vars(
        {**GOOD, "engines": "docker containerd crio"}, nvidia_docker_engine=engines, nvidia_docker_verify_image="a:1",
        nvidia_docker_verify_daemon_reload=True, __nvidia_docker_kubelet=kubelet(talks_to),
    )  # fmt: skip
    assert ask(templar, "_nvidia_docker_reload_engine") == taken
    assert len(ask(templar, "_nvidia_docker_problems")) == (0 if taken else 1)


@pytest.mark.parametrize(
    ("asked", "full"),
    [("a:1", "docker.io/library/a:1"), ("b/a:1", "docker.io/b/a:1"), ("r.x/a:1", "r.x/a:1"), ("r:5/a", "r:5/a")],
)  # fmt: skip
def test_ctr_gets_an_image_with_its_registry(asked: str, full: str) -> None:
    assert ask(role_vars(GOOD, nvidia_docker_verify_image=asked), "_nvidia_docker_reload_image") == full


@pytest.mark.parametrize(
    ("look", "due"),
    [
        ({"cdi": "none"}, True),
        ({"cdi": "theirs"}, False),
        ({"cdi": "ours", "cdi_made_for": "driver 570.1, 2 GPUs"}, False),
        ({"cdi": "ours", "cdi_made_for": "driver 560.9, 2 GPUs"}, True),
        ({"cdi": "ours", "cdi_made_for": "driver 570.1, 1 GPUs"}, True),
    ],
)
def test_when_a_cdi_specification_is_made(look: dict[str, str], due: bool) -> None:
    assert ask(role_vars({**GOOD, **look}), "_nvidia_docker_cdi_due") is due
