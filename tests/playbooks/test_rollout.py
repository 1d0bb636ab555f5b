"""provision.yml's rollout, with roles that only write a file: batches, the way back, the ramp's stop, the summary.

The hosts are folders of this machine, the API server is a program that keeps nodes in a JSON file. The real thing, with
kubelets and an API server, is molecule/cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
PREFLIGHT = [
    {"ansible.builtin.assert": {"that": "sabotage | default('') != 'preflight'", "fail_msg": "no GPU here"}}
]
# From here on nothing answers: a closed port of this machine.
LOSE = {
    "name": "Lose the node",
    "ansible.builtin.set_fact": {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
        "ansible_ssh_common_args": "-o ControlMaster=no",
    },
    "when": "sabotage | default('') == 'lost'",
}
RUNTIME = [
    {
        "name": "Configure",
        "ansible.builtin.copy": {"content": "new", "dest": "{{ base }}/daemon.json", "mode": "0644"},
        "notify": "restart engine",
    },
    LOSE,
]
HANDLERS = [
    {
        "name": "restart engine",
        "ansible.builtin.command": "{{ 'false' if sabotage | default('') == 'handler' else 'true' }}",
    }
]
PLUGIN = [
    # A host service's release, and packages, as the roles register them.
    {
        "name": "Look at what is installed",
        "ansible.builtin.stat": {"path": "{{ base }}/opt/current"},
        "register": "__device_plugin_current",
    },
    {
        "name": "Let it be the current release",
        "ansible.builtin.file": {
            "src": "{{ release }}",
            "dest": "{{ base }}/opt/current",
            "state": "link",
            "follow": False,
            "force": True,
        },
        "register": "__device_plugin_release",
        "when": "release is defined",
    },
    {
        "name": "Upgrade",
        "ansible.builtin.command": "true",
        "register": "__nvidia_docker_installed",
        "when": "nvidia_docker_version is defined",
    },
    {
        "name": "Add a drop-in",
        "ansible.builtin.copy": {"content": "new", "dest": "{{ base }}/conf.d/99.toml", "mode": "0600"},
    },
    {
        "name": "Apply for all",
        "ansible.builtin.command": "{{ 'false' if once is defined else 'true' }}",
        "changed_when": False,
        "run_once": True,
    },
]
VERIFY = [
    {
        "name": "Count",
        "ansible.builtin.assert": {
            "that": "sabotage | default('') != 'verify'",
            "fail_msg": "expected 8 GPUs, found 7",
        },
    },
    {"name": "Judge", "ansible.builtin.set_fact": {"device_plugin_verified": {"ok": True}}},
]

AWAY = {**LOSE, "when": "sabotage | default('') == 'away'"}
REMEMBER = [
    AWAY,
    {"name": "Remember", "ansible.builtin.set_fact": {"__device_plugin_before": {"stdout": ""}}},
]
ROLL_BACK = [
    {
        "name": "Old pod",
        "ansible.builtin.copy": {"content": "", "dest": "{{ base }}/old-pod", "mode": "0600"},
    }
]

# kubectl as far as the rollout needs it: get, server-side apply with owners, drain. Keeps nodes.json beside itself.
KUBECTL = """#!{python}
import fcntl, json, pathlib, sys
store = pathlib.Path(__file__).with_name("nodes.json")
fcntl.flock(lock := store.with_name("lock").open("w"), fcntl.LOCK_EX)
nodes = json.loads(store.read_text())
words = [w for w in sys.argv[1:] if w != "--show-managed-fields"]
with store.with_name("calls").open("a") as log:
    log.write(" ".join(words) + "\\n")
if words[0] == "drain":
    if words[1] == "b" and "pdb" in nodes["b"].get("metadata", {{}}).get("labels", {{}}):
        sys.exit("error when evicting pods: Cannot evict pod as it would violate the pod's disruption budget.")
    sys.exit(0)
item = json.load(sys.stdin)["items"][0]
name = item["metadata"]["name"]
node = nodes[name]
if words[0] == "apply" and "forbidden" in node["metadata"]["labels"]:
    sys.exit(f'Error from server (Forbidden): nodes "{{name}}" is forbidden')
if words[0] == "apply":
    node = json.loads(json.dumps(node))
    wants = bool(item.get("spec", {{}}).get("unschedulable"))
    owners = {{e["manager"] for e in node["metadata"].get("managedFields", [])}}
    owners = owners | {{"gpuops.k8s.rollout"}} if wants else owners - {{"gpuops.k8s.rollout"}}
    node["metadata"]["managedFields"] = [{{"manager": o, "operation": "Apply"}} for o in sorted(owners)]
    node["spec"] = {{"unschedulable": True}} if owners else {{}}
    if "--dry-run=server" not in words:
        nodes[name] = node
        store.write_text(json.dumps(nodes))
print(json.dumps(node))
"""


class Fleet:
    """Hosts a, b, c as folders, and a control host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.collections = folder / "collections"
        root = self.collections / "ansible_collections" / "gpuops" / "k8s"
        for role, tasks in {"nvidia_docker": RUNTIME, "device_plugin": PLUGIN}.items():
            for name, content in {
                "tasks/main.yml": tasks,
                "tasks/preflight.yml": PREFLIGHT,
                "tasks/verify.yml": VERIFY,
                "tasks/remember.yml": REMEMBER,
                "tasks/roll_back.yml": ROLL_BACK,
                "handlers/main.yml": HANDLERS,
            }.items():
                path = root / "roles" / role / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(yaml.safe_dump(content))
        for name in ("plugins", "galaxy.yml", "meta"):
            (root / name).symlink_to(CHECKOUT / name)
        shutil.copytree(CHECKOUT / "playbooks", root / "playbooks")
        for host in "abc":
            (folder / host / "conf.d").mkdir(parents=True)
            (folder / host / "opt").mkdir()
            (folder / host / "daemon.json").write_text("old")
        self.kubectl = folder / "kubectl"
        self.kubectl.write_text(KUBECTL.format(python=sys.executable))
        self.kubectl.chmod(0o755)
        self.set_nodes({host: {} for host in "abc"})

    def set_nodes(self, specs: dict[str, dict], labels: dict[str, dict] | None = None) -> None:
        nodes = {
            name: {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": (labels or {}).get(name, {})},
                "spec": spec,
            }
            for name, spec in specs.items()
        }
        (self.folder / "nodes.json").write_text(json.dumps(nodes))

    def provision(self, *arguments: str, sabotage: str = "", cluster: bool = True, **variables: object):
        """Run the playbook; ``sabotage`` is what goes wrong on host b."""
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "base": f"{self.folder}/{{{{ inventory_hostname }}}}",
            "rollout_snapshot": f"{self.folder}/snapshot-{{{{ inventory_hostname }}}}",
            "rollout_files": [
                {"path": "{{ base }}/daemon.json", "unit": "", "state": ""},
                {"path": "{{ base }}/conf.d", "unit": "", "state": ""},
                {"path": "{{ base }}/opt/current", "unit": "", "state": ""},
            ],
        }
        if cluster:
            common.update(
                device_plugin_control_host="control",
                device_plugin_kubectl=str(self.kubectl),
                device_plugin_node_name="{{ inventory_hostname }}",
            )
        hosts = {host: {} for host in "abc"}
        hosts["b"] = {"sabotage": sabotage}
        inventory = {
            "all": {"hosts": {"control": {}}, "vars": {**common, **variables}},
            "gpu_nodes": {"hosts": hosts},
        }
        (self.folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.folder / "ansible"),
        }
        return subprocess.run(
            [str(ANSIBLE), "gpuops.k8s.provision", "-i", str(self.folder / "inventory.yml"), *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def new(self) -> str:
        """Names of the hosts that have the new configuration."""
        return "".join(host for host in "abc" if (self.folder / host / "daemon.json").read_text() == "new")

    def cordoned(self) -> str:
        nodes = json.loads((self.folder / "nodes.json").read_text())
        return "".join(name for name, node in nodes.items() if node["spec"].get("unschedulable"))

    def drop_ins(self) -> str:
        return "".join(host for host in "abc" if (self.folder / host / "conf.d" / "99.toml").exists())


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def summary(done) -> dict[str, str]:
    """Host -> its line of the summary."""
    text = done.stdout[done.stdout.index("TASK [Summary]") :]
    lines = [line.split(None, 1) for line in text.splitlines() if line.startswith("        ")]
    return {words[0]: words[1].strip() for words in lines if len(words) == 2 and words[0] in "abc"}


def test_all_nodes_are_provisioned_and_a_second_run_changes_nothing(fleet):
    first = fleet.provision()
    assert first.returncode == 0, first.stdout
    assert summary(first) == dict.fromkeys("abc", "provisioned, 2 files changed")
    assert fleet.new() == "abc" and fleet.cordoned() == ""

    second = fleet.provision()
    assert summary(second) == dict.fromkeys("abc", "unchanged")
    assert second.stdout.count("changed=0") == 3, second.stdout


@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [("handler", "restart engine: non-zero return code"), ("verify", "Count: expected 8 GPUs, found 7")],
)
def test_a_node_that_fails_is_put_back_cordoned_and_stops_the_ramp(fleet, sabotage, reason):
    done = fleet.provision(sabotage=sabotage)
    assert done.returncode != 0
    assert summary(done)["a"] == "provisioned, 2 files changed"
    assert summary(done)["b"] == "rolled back, cordoned, 2 files put back" or sabotage == "handler"
    assert summary(done)["b"].startswith("rolled back, cordoned")
    assert summary(done)["c"] == "untouched"
    assert fleet.new() == "a" and fleet.cordoned() == "b" and fleet.drop_ins() == "a"
    assert reason in "\n".join(done.stdout.splitlines()[-10:])


def test_the_next_run_takes_a_mended_node_back(fleet):
    fleet.provision(sabotage="verify")
    done = fleet.provision()
    assert done.returncode == 0 and fleet.cordoned() == ""
    assert summary(done) == {
        "a": "unchanged",
        "b": "provisioned, 2 files changed",
        "c": "provisioned, 2 files changed",
    }


def test_no_node_is_touched_when_one_fails_its_preflight(fleet):
    done = fleet.provision(sabotage="preflight")
    assert done.returncode != 0 and fleet.new() == "" and "no GPU here" in done.stdout


def test_the_others_of_the_same_batch_are_finished_not_cut_off(fleet):
    done = fleet.provision("-e", "rollout_serial=100%", sabotage="verify")
    assert done.returncode != 0
    assert fleet.new() == "ac" and fleet.cordoned() == "b"


def test_an_api_server_that_refuses_the_cordon_keeps_no_node_from_going_back(fleet):
    fleet.set_nodes({host: {} for host in "abc"}, labels={"b": {"forbidden": "yes"}})
    done = fleet.provision(sabotage="verify")
    assert done.returncode != 0
    assert summary(done)["b"] == "rolled back, NOT cordoned, 2 files put back"
    assert fleet.new() == "a" and fleet.drop_ins() == "a" and fleet.cordoned() == ""
    end = " ".join("\n".join(done.stdout.splitlines()[-10:]).split())
    assert "Count: expected 8 GPUs, found 7. Cordon the node:" in end and '"b" is forbidden' in end
    assert "new pods still come to the node: kubectl cordon b" in end
    assert not (fleet.folder / "snapshot-b").exists()


def test_all_of_a_batch_go_back_where_a_step_that_is_done_once_for_it_fails(fleet):
    done = fleet.provision("-e", "rollout_serial=100%", once=True)
    assert done.returncode != 0
    assert summary(done) == dict.fromkeys("abc", "rolled back, cordoned, 2 files put back")
    assert fleet.new() == "" and fleet.drop_ins() == "" and fleet.cordoned() == "abc"
    told = " ".join(done.stdout[done.stdout.index("TASK [Failed]") :].split())
    reasons = {host: told.split(f"fatal: [{host}]: ")[1].split("fatal: [")[0] for host in "abc"}
    assert "Apply for all: non-zero return code" in reasons["a"]
    for host in "bc":
        assert "a step that is done once for the batch failed on another host" in reasons[host]


def test_a_failed_node_stays_cordoned_until_it_is_verified(fleet):
    fleet.provision(sabotage="verify")
    done = fleet.provision("--limit", "b", "--tags", "runtime", sabotage="verify")
    assert done.returncode == 0 and fleet.new() == "ab" and fleet.cordoned() == "b"
    done = fleet.provision("--limit", "b", "--tags", "runtime", rollout_cordon=True)
    assert done.returncode == 0 and fleet.cordoned() == "b", "that cordon was there before this run"
    done = fleet.provision("--limit", "a", "--tags", "runtime", rollout_cordon=True)
    assert done.returncode == 0 and fleet.cordoned() == "b", "and this one was not"


def test_check_mode_does_not_claim_a_cordon(fleet):
    done = fleet.provision("--check", sabotage="verify")
    assert summary(done)["b"] == "not changed" and fleet.cordoned() == ""


def test_the_ramp_goes_on_while_fewer_fail_than_allowed(fleet):
    done = fleet.provision(sabotage="verify", rollout_max_fail_percentage=34)
    assert done.returncode != 0, "a failed node fails the run even where it does not stop the ramp"
    assert fleet.new() == "ac" and fleet.cordoned() == "b"


def test_a_new_release_of_the_host_service_is_named_and_put_back_where_it_fails(fleet):
    fleet.provision()
    for host in "abc":
        (fleet.folder / host / "opt" / "current").symlink_to("0.1.0-0123-py3.11")
    done = fleet.provision(sabotage="verify", release="0.1.1-4567-py3.11")
    assert summary(done) == {
        "a": "provisioned, 1 files changed, plugin 0.1.0-0123 -> 0.1.1-4567",
        "b": "rolled back, cordoned, 1 files put back",
        "c": "untouched",
    }
    now = {host: os.readlink(fleet.folder / host / "opt" / "current") for host in "abc"}
    assert now == {"a": "0.1.1-4567-py3.11", "b": "0.1.0-0123-py3.11", "c": "0.1.0-0123-py3.11"}


def test_an_upgrade_of_packages_alone_is_no_unchanged_node_and_said_to_stay(fleet):
    fleet.provision()
    done = fleet.provision(sabotage="verify", nvidia_docker_version="1.18.0-1")
    assert summary(done) == {
        "a": "provisioned, toolkit none -> 1.18.0-1",
        "b": "rolled back, cordoned, toolkit none -> 1.18.0-1 stays",
        "c": "untouched",
    }


def test_what_is_remembered_follows_the_roles_variables_and_where_the_gate_was_found(fleet):
    paths = {
        "nvidia_docker_docker_config": "/srv/docker/daemon.json",
        "nvidia_docker_containerd_dropin": "/srv/containerd/nvidia.toml",
        "device_plugin_install_dir": "/srv/plugin",
        "device_plugin_static_pod_dir": "/srv/pods",
        "device_plugin_config_dir": "/srv/settings",
        "device_plugin_kubelet_files": ["/srv/kubelet.args"],
        "__device_plugin_gate": {"service": "k3s-agent", "files": ["/etc/rancher/k3s/config.yaml"]},
        "__nvidia_docker_look": {"stdout_lines": ["old_sources=/etc/apt/sources.list.d/nvidia-docker.list"]},
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(CHECKOUT / "playbooks/vars/rollout.yml")],
        "vars": paths,
        "tasks": [
            {
                "ansible.builtin.copy": {
                    "content": "{{ _rollout_files | to_json }}",
                    "dest": f"{fleet.folder}/all",
                }
            }
        ],
    }
    (fleet.folder / "play.yml").write_text(yaml.safe_dump([play]))
    python = f"ansible_python_interpreter={sys.executable}"
    subprocess.run(
        [ANSIBLE, "-i", "localhost,", "-c", "local", "-e", python, fleet.folder / "play.yml"], check=True
    )
    units = {item["path"]: item["unit"] for item in json.loads((fleet.folder / "all").read_text())}
    assert units["/srv/docker/daemon.json"] == "docker.service"
    assert units["/srv/containerd/nvidia.toml"] == "containerd.service"
    assert units["/srv/plugin/current"] == units["/srv/settings"] == "gpu-device-plugin.service"
    assert units["/srv/pods/gpu-device-plugin.yaml"] == ""
    assert units["/srv/kubelet.args"] == units["/etc/rancher/k3s/config.yaml"] == "k3s-agent.service"
    assert units["/etc/apt/sources.list.d/nvidia-docker.list"] == ""
    assert "/etc/docker/daemon.json" not in units


def test_a_node_that_is_lost_in_its_turn_counts_as_failed_and_stops_the_ramp(fleet):
    done = fleet.provision("-e", '{"rollout_serial": [2, 1]}', sabotage="lost")
    assert done.returncode != 0
    assert summary(done) == {
        "a": "provisioned, 2 files changed",
        "b": "lost in its turn, cordoned",
        "c": "untouched",
    }
    assert fleet.cordoned() == "b" and fleet.drop_ins() == "a"
    end = " ".join("\n".join(done.stdout.splitlines()[-10:]).split())
    assert "lost in its turn, cordoned: it could not be reached" in end
    assert f"is kept in {fleet.folder}/snapshot-b" in end

    # It is back, half-changed. What it was before the lost turn is still what a failure goes back to.
    assert fleet.new() == "ab"
    done = fleet.provision("--limit", "b", sabotage="verify")
    assert "a run of 20" in done.stdout and "has not come to its end here" in " ".join(done.stdout.split())
    assert summary(done)["b"] == "rolled back, cordoned, 2 files put back"
    assert fleet.new() == "a"
    assert not (fleet.folder / "snapshot-b").exists()


def test_the_summary_is_printed_when_all_of_a_batch_are_lost(fleet):
    done = fleet.provision(sabotage="lost")
    assert done.returncode != 0
    end = done.stdout[done.stdout.index("SUMMARY") :].splitlines()
    assert [line.split(None, 1) for line in end if line.startswith("        ")] == [
        ["a", "provisioned, 2 files changed"],
        ["b", "lost in its turn"],
        ["c", "untouched"],
        ["The", "ramp stopped."],
    ]
    assert "Connection refused" in end[-3]
    assert f"{fleet.folder}/snapshot-b" in end[-2]
    assert end[-1].endswith("kubectl cordon b")


def test_a_node_that_is_away_when_its_turn_comes_is_left_as_it_was(fleet):
    done = fleet.provision(sabotage="away")
    assert done.returncode != 0
    assert summary(done) == {
        "a": "provisioned, 2 files changed",
        "b": "not changed, cordoned",
        "c": "untouched",
    }
    assert fleet.new() == "a" and fleet.cordoned() == "b"
    assert "Connection refused" in " ".join("\n".join(done.stdout.splitlines()[-10:]).split())


def test_a_node_that_can_not_be_remembered_is_left_as_it_was(fleet):
    path = "{{ 'relative' if inventory_hostname == 'b' else base ~ '/more' }}"
    done = fleet.provision(rollout_extra_files=[{"path": path, "unit": "", "state": ""}])
    assert done.returncode != 0
    assert summary(done)["b"] == "not changed, cordoned" and summary(done)["c"] == "untouched"
    assert "paths must be absolute: relative" in " ".join("\n".join(done.stdout.splitlines()[-10:]).split())
    assert fleet.new() == "a"


def test_the_copy_of_before_stays_when_the_way_back_fails(fleet):
    done = fleet.provision(
        sabotage="verify",
        rollout_extra_files=[
            {"path": "{{ base }}/daemon.json", "unit": "no-such-unit", "state": "restarted"}
        ],
    )
    assert done.returncode != 0
    assert summary(done)["b"].startswith("ROLLBACK FAILED")
    end = " ".join("\n".join(done.stdout.splitlines()[-10:]).split())
    words = end.split("Have the programs read their old configuration: ")[1]
    assert not words.startswith("One or more items failed"), "not what systemd said of the unit"
    assert f"is kept in {fleet.folder}/snapshot-b" in end
    assert (fleet.folder / "snapshot-b" / "manifest.json").exists()
    assert not (fleet.folder / "snapshot-a").exists()


def test_without_a_control_host_nothing_is_cordoned(fleet):
    done = fleet.provision(sabotage="verify", cluster=False)
    assert summary(done)["b"] == "rolled back, 2 files put back"
    assert not (fleet.folder / "calls").exists()


def test_nodes_are_drained_by_choice_and_come_back(fleet):
    done = fleet.provision(rollout_drain=True)
    assert done.returncode == 0, done.stdout
    calls = (fleet.folder / "calls").read_text()
    drains = [line for line in calls.splitlines() if line.startswith("drain")]
    assert [line.split()[1] for line in drains] == ["a", "b", "c"]
    assert "--ignore-daemonsets" in drains[0] and "--force" not in drains[0]
    assert fleet.cordoned() == ""


@pytest.mark.parametrize("choice", ["rollout_drain", "rollout_cordon"])
def test_cordon_and_drain_are_refused_before_any_change_where_there_is_no_control_host(fleet, choice):
    done = fleet.provision("-e", f"{choice}=true", cluster=False)
    assert done.returncode != 0 and fleet.new() == ""
    said = " ".join(done.stdout.split())
    assert f"a: {choice} is on, and device_plugin_control_host is empty" in said
    assert "set it to a host with kubectl" in said
    assert fleet.provision("-e", f"{choice}=false", cluster=False).returncode == 0


def test_a_disruption_budget_that_forbids_the_drain_leaves_the_node_as_it_was(fleet):
    fleet.set_nodes({host: {} for host in "abc"}, labels={"b": {"pdb": "1"}})
    done = fleet.provision(rollout_drain=True)
    assert done.returncode != 0 and fleet.new() == "a"
    assert "disruption budget" in "\n".join(done.stdout.splitlines()[-14:])
    assert summary(done)["b"].startswith("not changed")


def test_a_node_that_an_administrator_cordoned_stays_so(fleet):
    fleet.set_nodes({"a": {}, "b": {"unschedulable": True}, "c": {}})
    nodes = json.loads((fleet.folder / "nodes.json").read_text())
    nodes["b"]["metadata"]["managedFields"] = [{"manager": "kubectl", "operation": "Update"}]
    (fleet.folder / "nodes.json").write_text(json.dumps(nodes))
    done = fleet.provision(rollout_cordon=True)
    assert done.returncode == 0, done.stdout
    assert fleet.new() == "abc" and fleet.cordoned() == "b"


def test_check_mode_changes_nothing_and_says_so(fleet):
    done = fleet.provision("--check", rollout_cordon=True)
    assert done.returncode == 0, done.stdout
    assert fleet.new() == "" and fleet.cordoned() == ""
    assert summary(done) == dict.fromkeys("abc", "checked")


def test_limit_and_tags_choose_hosts_and_parts(fleet):
    limited = fleet.provision("--limit", "b")
    assert limited.returncode == 0 and fleet.new() == "b"
    assert summary(limited) == {"b": "provisioned, 2 files changed"}
    tagged = fleet.provision("--tags", "plugin")
    assert tagged.returncode == 0
    assert fleet.drop_ins() == "abc" and fleet.new() == "b"
