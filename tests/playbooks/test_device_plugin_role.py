"""The role's variables are documented once and the same everywhere; the plain manifests are what the templates say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/device_plugin"
DEPLOY = ROOT / "files/plugin/deploy"


def specs():
    return yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]


def defaults():
    return yaml.safe_load((ROLE / "defaults/main.yml").read_text())


def test_every_variable_has_a_specification_with_the_same_default():
    options = specs()["main"]["options"]
    assert set(options) == set(defaults())
    for name, value in defaults().items():
        if "{{" not in str(value):
            assert str(options[name]["default"]) == str(value), name


def test_every_entry_point_is_specified():
    assert {name for name in specs() if (ROLE / f"tasks/{name}.yml").exists()} == {
        "main",
        "preflight",
        "verify",
        "remove",
    }


def test_every_variable_is_in_the_readme():
    text = (ROLE / "README.md").read_text()
    assert [name for name in defaults() if f"| `{name}` |" not in text] == []


def test_the_plain_manifests_are_rendered_from_the_templates(tmp_path):
    playbook = ROOT / "tests/tools/render-deploy.yml"
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        "localhost,",
        playbook,
        "-e",
        f"target={tmp_path}",
    ]
    environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    for name in ("daemonset.yaml", "static-pod.yaml"):
        assert (tmp_path / name).read_text() == (DEPLOY / name).read_text(), f"render {name} anew"


def pod(name):
    documents = [
        one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one["kind"] in ("DaemonSet", "Pod")
    ]
    return documents[0]["spec"].get("template", documents[0])["spec"]


def test_the_plugin_knows_every_variable_that_its_pod_sets():
    """A name that it does not know is no error to it, so the setting would be lost (NVIDIA_*: the runtime's)."""
    text = (ROLE / "templates/pod.j2").read_text()
    names = {name for name in re.findall(r"- { name: ([A-Z_]+),", text) if not name.startswith("NVIDIA_")}
    assert "KUBERNETES_EVENTS" in names
    show = "from gpu_device_plugin.options import OPTIONS; print(*[name for one in OPTIONS for name in one.env])"
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "files/plugin/src"))
    known = subprocess.run(
        [sys.executable, "-c", show], check=True, capture_output=True, text=True, env=environment
    )
    assert names - set(known.stdout.split()) == set()


def test_the_pods_are_hardened():
    for name in ("daemonset.yaml", "static-pod.yaml"):
        security = pod(name)["containers"][0]["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
        assert pod(name)["automountServiceAccountToken"] is False
        assert pod(name)["priorityClassName"] == "system-node-critical"
        assert {"livenessProbe", "readinessProbe"} <= set(pod(name)["containers"][0])
