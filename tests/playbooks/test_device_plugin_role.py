"""The role's variables are documented once and the same everywhere; the plain manifests are what the templates say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
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


def rendered(target, **variables):
    """The two manifests by the templates, with these variables over the defaults."""
    command = [
        Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", ROOT / "tests/tools/render-deploy.yml",
        "-e", f"target={target}", "-e", json.dumps(variables),
    ]  # fmt: skip
    environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    return yaml.safe_load((target / "static-pod.yaml").read_text())["spec"]


def mounts(spec):
    """Path in the container -> path on the node."""
    volumes = {one["name"]: one["hostPath"]["path"] for one in spec["volumes"]}
    return {one["mountPath"]: volumes[one["name"]] for one in spec["containers"][0]["volumeMounts"]}


def test_a_pod_that_shares_by_mps_has_what_the_daemon_needs(tmp_path):
    sharing = {"mps": {"resources": [{"name": "nvidia.com/gpu", "replicas": 2}]}}
    spec = rendered(tmp_path, device_plugin_config={"sharing": sharing, "flags": {"mpsRoot": "/run/m"}})
    assert spec["hostPID"] is True
    assert mounts(spec).items() >= {"/mps": "/run/m", "/dev/shm": "/run/m/shm"}.items()
    container = spec["containers"][0]
    assert container["securityContext"]["privileged"] is True
    assert spec["terminationGracePeriodSeconds"] == 30, "the plugin puts the GPUs' compute mode back"
    assert {one["name"]: one.get("value") for one in container["env"]}["NVIDIA_DRIVER_CAPABILITIES"] == (
        "compute,utility"
    )


def test_what_mps_has_left_is_ended_and_only_then_forgotten(tmp_path):
    """By remove's script; the programs of the driver note how they are called."""
    root, programs, calls = tmp_path / "mps", tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    fails = f"[ ! -e {tmp_path}/fails ] || {{ echo Insufficient Permissions; exit 4; }}"
    smi = f"#!/bin/sh\n{fails}\necho smi $* >>{calls}\n"
    control = f"#!/bin/sh\necho $CUDA_MPS_PIPE_DIRECTORY $(cat) >>{calls}\n"
    for name, text in (("nvidia-smi", smi), ("nvidia-cuda-mps-control", control)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    ours, foreign = root / "nvidia.com/gpu", root / "nvidia.com/other"
    for directory in (ours / "pipe", foreign):
        directory.mkdir(parents=True)
    (foreign / "file").touch()
    (ours / "exclusive").write_text("GPU-a\nGPU-b\n")
    (root / "shm").symlink_to("/dev/shm")
    environment = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}")

    def run(action):
        command = ["sh", ROLE / "files/end-mps.sh", root, action]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    assert run("list").stdout == "nvidia.com/gpu\n" and not calls.exists()
    (tmp_path / "fails").touch()
    failed = run("end")
    assert failed.returncode == 1 and (ours / "exclusive").exists()
    assert "run `nvidia-smi -i GPU-b -c DEFAULT`" in failed.stderr and "Insufficient" in failed.stderr
    (tmp_path / "fails").unlink()
    calls.unlink()
    done = run("end")
    assert (done.returncode, done.stdout) == (0, "nvidia.com/gpu\n")
    quits = f"{ours}/pipe quit"
    assert calls.read_text().splitlines() == [quits, "smi -i GPU-a -c DEFAULT", "smi -i GPU-b -c DEFAULT"]
    assert not ours.exists() and not (root / "shm").is_symlink()
    assert (foreign / "file").exists(), "what is not ours stays"
    assert run("end").stdout == "", "the second run finds nothing"


def test_a_pod_that_hands_out_cdi_names_or_channels_sees_the_drivers_root(tmp_path):
    strategy = {"plugin": {"deviceListStrategy": "envvar,cdi-cri"}}
    for config in (strategy, {"flags": strategy}):
        assert mounts(rendered(tmp_path, device_plugin_config=config)).items() >= {
            "/var/run/cdi": "/var/run/cdi", "/driver-root": "/",
        }.items()  # fmt: skip
    found = mounts(rendered(tmp_path, device_plugin_config={"imex": {"channelIDs": [0]}}))
    assert found["/driver-root"] == "/"
    assert "/var/run/cdi" not in found


def test_the_pull_secrets_go_with_the_daemonset_and_without_them_none_is_named(tmp_path):
    rendered(tmp_path, device_plugin_image_pull_secrets=["site-registry", "mirror"])
    assert pod(tmp_path / "daemonset.yaml")["imagePullSecrets"] == [
        {"name": "site-registry"},
        {"name": "mirror"},
    ]
    # Secrets are objects of the API server; a static pod's kubelet can't read them.
    assert "imagePullSecrets" not in pod(tmp_path / "static-pod.yaml")
    assert "imagePullSecrets" not in pod("daemonset.yaml")


def refused(tmp_path, machines, **variables):
    """host -> what preflight's last word to it is, for hosts of these machines; "" where it lets them pass."""
    tasks = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text())
    (archs,) = [
        task for task in tasks if task["name"] == "Know which architectures an image would be pushed for"
    ]
    (judge,) = [task for task in tasks if task["name"] == "Refuse what can not work"]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "vars": {
            "__device_plugin_gate": {"kubelet_version": "1.30", "failed": False},
            "__device_plugin_gpus": {"count": 8, "links": []},
            "__device_plugin_info": {"sockets": [], "dra_drivers": []},
        },
        "tasks": [
            {
                "set_fact": {
                    "ansible_facts": {
                        "architecture": "{{ machine }}",
                        "python": {"version": {"major": 3, "minor": 11}},
                    }
                }
            },
            archs,
            {**judge, "register": "judged", "ignore_errors": True},
            {"copy": {"content": "{{ judged.msg }}", "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}"}},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    hosts = "".join(f"{name} machine={machine}\n" for name, machine in machines.items())
    python = f"ansible_python_interpreter={sys.executable}"
    (tmp_path / "hosts").write_text(f"{hosts}[all:vars]\nansible_connection=local\n{python}\n")
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        tmp_path / "hosts",
        tmp_path / "play.yml",
        "-e",
        json.dumps({f"device_plugin_{name}": value for name, value in variables.items()}),
    ]
    environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {name: (tmp_path / name).read_text() for name in machines}
    return {name: "" if text == "All assertions passed" else text for name, text in said.items()}


def test_an_image_for_two_architectures_is_pushed_under_no_tag(tmp_path):
    mixed = {"a": "x86_64", "b": "aarch64"}
    push = {"deployment": "static_pod", "image_source": "build", "image_push": True}
    for host, text in refused(tmp_path, mixed, **push).items():
        assert text.startswith(
            f"{host}: device_plugin_image_push would push the images of aarch64 and x86_64"
        )
        assert "push an image index yourself and set device_plugin_image_source: present" in text
    assert set(refused(tmp_path, {"a": "x86_64", "b": "x86_64"}, **push).values()) == {""}
    assert set(refused(tmp_path, mixed, **{**push, "image_push": False}).values()) == {""}


def unit(**facts):
    """The systemd unit's lines."""
    loader = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    loader.filters["dirname"] = os.path.dirname
    plain = {name: value for name, value in defaults().items() if "{{" not in str(value)}
    plain |= {
        "_device_plugin_kubelet_unit": "kubelet.service",
        "_device_plugin_mps": False,
        "ansible_managed": "",
    }
    plain |= facts
    text = (ROLE / "templates/gpu-device-plugin.service.j2").read_text()
    return loader.from_string(text).render(**plain).splitlines()


def test_a_service_that_shares_by_mps_may_do_what_the_daemon_needs_and_leaves_it_alive():
    plain, mps = unit(), unit(_device_plugin_mps=True, _device_plugin_mps_root="/run/m")
    assert {"CapabilityBoundingSet=", "UMask=0077"} <= set(plain)
    assert "KillMode=process" not in plain
    assert {"KillMode=process", "ReadWritePaths=-/run/m", "UMask=0022"} <= set(mps)
    assert "ExecStartPre=+/bin/mkdir -p -m 0755 /var/run/cdi /run/m" in mps
    assert "CapabilityBoundingSet=" not in mps


def test_the_plain_manifests_are_rendered_from_the_templates(tmp_path):
    rendered(tmp_path)
    for name in ("daemonset.yaml", "static-pod.yaml"):
        assert (tmp_path / name).read_text() == (DEPLOY / name).read_text(), f"render {name} anew"


def pod(name):
    """The pod of a manifest as it is rendered in the tree, or of a file."""
    documents = [
        one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one["kind"] in ("DaemonSet", "Pod")
    ]
    return documents[0]["spec"].get("template", documents[0])["spec"]


def test_the_plugin_knows_every_variable_that_its_pod_sets():
    """A name that it does not know is no error to it, so the setting would be lost (NVIDIA_*: the runtime's)."""
    text = (ROLE / "templates/pod.j2").read_text()
    names = {name for name in re.findall(r"- { name: ([A-Z_]+),", text) if not name.startswith("NVIDIA_")}
    assert "KUBERNETES_EVENTS" in names
    show = (
        "from gpu_device_plugin.options import OPTIONS; print(*[name for one in OPTIONS for name in one.env])"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "files/plugin/src"))
    known = subprocess.run(
        [sys.executable, "-c", show], check=True, capture_output=True, text=True, env=environment
    )
    assert names - set(known.stdout.split()) == set()


def test_kubelets_may_read_the_plugins_settings_and_nothing_else():
    """So that none is refused them because the API server does not know yet where the pod is (docs/rollout.md)."""
    documents = list(yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()))
    (role,) = [one for one in documents if one["kind"] == "Role"]
    (binding,) = [one for one in documents if one["kind"] == "RoleBinding"]
    (settings,) = [one for one in documents if one["kind"] == "ConfigMap"]
    (rule,) = role["rules"]
    assert (rule["apiGroups"], rule["resources"]) == ([""], ["configmaps"])
    assert rule["resourceNames"] == [settings["metadata"]["name"]]
    assert sorted(rule["verbs"]) == ["get", "list", "watch"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [one["name"] for one in binding["subjects"]] == ["system:nodes"]
    assert {one["metadata"]["namespace"] for one in (role, binding, settings)} == {"kube-system"}


def test_the_daemonset_names_its_account_always_and_a_static_pod_never():
    """Unnamed, an API server keeps the account of an earlier apply; a mirror pod that names one is not admitted."""
    assert pod("daemonset.yaml")["serviceAccountName"] == "default"
    assert "serviceAccountName" not in pod("static-pod.yaml")


def test_the_pod_asks_for_every_gpu_in_both_ways_so_that_a_hardened_runtime_gives_them_too():
    for name in ("daemonset.yaml", "static-pod.yaml"):
        container = pod(name)["containers"][0]
        assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
        (mount,) = [
            one for one in container["volumeMounts"] if "nvidia-container-devices" in one["mountPath"]
        ]
        assert mount["mountPath"] == "/var/run/nvidia-container-devices/all"
        (volume,) = [one for one in pod(name)["volumes"] if one["name"] == mount["name"]]
        assert volume["hostPath"] == {"path": "/dev/null", "type": "CharDevice"}


def test_the_pods_are_hardened():
    for name in ("daemonset.yaml", "static-pod.yaml"):
        security = pod(name)["containers"][0]["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
        assert pod(name)["automountServiceAccountToken"] is False
        assert pod(name)["priorityClassName"] == "system-node-critical"
        assert {"livenessProbe", "readinessProbe"} <= set(pod(name)["containers"][0])


BY_X, BY_Y = {"device_plugin_control_host": "x"}, {"device_plugin_control_host": "y"}


@pytest.mark.parametrize(
    ("ways", "refused"),
    [
        ({"a": BY_X, "b": BY_Y}, True),
        ({"a": BY_X | {"device_plugin_kubeconfig": "/k"}, "b": BY_X}, True),
        ({"a": BY_X, "b": dict(BY_X)}, False),
        ({"a": BY_X, "b": {}}, False),
    ],
)
def test_one_run_is_for_one_cluster(tmp_path, ways, refused):
    """The DaemonSet is one object for all hosts of a run."""
    inventory = {"all": {"vars": {"ansible_connection": "local"}, "hosts": ways}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.include_tasks": str(ROLE / "tasks/one_cluster.yml")}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [
        Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"
    ]  # fmt: skip
    environment = dict(os.environ, ANSIBLE_NOCOLOR="1")
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode != 0) == refused, done.stdout
    assert ("run for one cluster at a time" in " ".join(done.stdout.split())) == refused


def test_what_was_there_before_a_rollout_is_none_one_or_both_of_its_objects(tmp_path):
    """kubectl prints nothing, an object, or a List; and an empty dictionary has a method `items`."""
    daemonset, settings = {"kind": "DaemonSet"}, {"kind": "ConfigMap"}
    several = {"kind": "List", "items": [daemonset, settings]}
    cases = [("", []), (json.dumps(daemonset), [daemonset]), (json.dumps(several), [daemonset, settings])]
    tasks = [
        {
            "ansible.builtin.assert": {"that": "_device_plugin_before == wanted", "quiet": True},
            "vars": {"__device_plugin_before": {"stdout": text}, "wanted": wanted},
        }
        for text, wanted in cases
    ]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(ROLE / "vars/main.yml")],
        "tasks": tasks,
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", tmp_path / "play.yml"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=dict(os.environ, ANSIBLE_NOCOLOR="1")
    )
    assert done.returncode == 0, done.stdout
    assert "ok=3" in done.stdout
