"""Every module's examples: valid YAML, options that the module has, values that it takes; and they do what they say.

Those of modules that change something run in check mode, then for real, then once more, each at its real paths in a
machine of its own (example_worlds.py); those of the info modules answer on this one.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import example_worlds
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
MODULES = sorted((PLUGINS / "modules").glob("[a-z]*.py"))
SPEC_KEYS = ("type", "choices", "required", "elements", "aliases", "default")


def texts(module: Path) -> dict[str, str]:
    """DOCUMENTATION, EXAMPLES and RETURN of a module or a documentation fragment, without importing it."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    }  # fmt: skip


def documented_options(module: Path) -> dict[str, Any]:
    """The options of a module's DOCUMENTATION and of the collection's fragments that it extends."""
    documentation = yaml.safe_load(texts(module)["DOCUMENTATION"])
    options = dict(documentation.get("options", {}))
    for name in documentation.get("extends_documentation_fragment", []):
        fragment = PLUGINS / "doc_fragments" / f"{name.split('.')[2]}.py"
        options.update(yaml.safe_load(texts(fragment)["DOCUMENTATION"]).get("options", {}))
    return options


def spec(options: dict[str, Any]) -> dict[str, Any]:
    """An argument spec from documented options (sanity's validate-modules holds the two together)."""
    made: dict[str, Any] = {}
    for name, option in options.items():
        made[name] = {key: option[key] for key in SPEC_KEYS if key in option}
        if "suboptions" in option:
            made[name]["options"] = spec(option["suboptions"])
    return made


def tasks(module: Path) -> list[dict[str, Any]]:
    """The tasks of EXAMPLES, out of plays and blocks too."""
    found: list[dict[str, Any]] = []

    def walk(entries: list[Any]) -> None:
        for entry in entries:
            for key in ("tasks", "block", "handlers", "pre_tasks"):
                walk(entry.get(key, []))
            found.extend([entry] if any(key.startswith("gpuops.k8s.") for key in entry) else [])

    walk(yaml.safe_load(texts(module)["EXAMPLES"]))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_examples_use_options_that_exist_with_values_that_are_taken(module: Path) -> None:
    fqcn = f"gpuops.k8s.{module.stem}"
    examples = [task for task in tasks(module) if fqcn in task]
    assert examples, f"{module.name} has no example of its own"
    validator = ArgumentSpecValidator(spec(documented_options(module)))
    for task in examples:
        assert task.get("name"), "an example says what it does"
        # What is templated is known only in a play: leave those options to it.
        given = {
            key: value
            for key, value in (task[fqcn] or {}).items()
            if not (isinstance(value, str) and re.search(r"{{.*}}", value))
        }
        templated = set(task[fqcn] or {}) - set(given)
        errors = [
            text for text in validator.validate(given).error_messages
            if not any(name in text for name in templated)
        ]  # fmt: skip
        assert not errors, f"{task['name']}: {errors}"


@pytest.mark.parametrize(
    "module", [path for path in MODULES if path.stem.endswith("_info")], ids=lambda path: path.stem
)
def test_the_examples_of_info_modules_run_and_answer_in_check_mode(module: Path, tmp_path: Path) -> None:
    fqcn = f"gpuops.k8s.{module.stem}"
    for number, task in enumerate(task for task in tasks(module) if fqcn in task):
        arguments = {key: value for key, value in (task[fqcn] or {}).items() if "{{" not in str(value)}
        # No waiting, and nothing to be true: this machine is no GPU node; the answer is what counts.
        arguments = {
            key: value for key, value in arguments.items() if key not in ("expect", "timeout", "delegate_to")
        }
        arguments["_ansible_check_mode"] = True
        name = f"ansible_collections.gpuops.k8s.plugins.modules.{module.stem}"
        program = tmp_path / f"{number}.json"
        program.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(fqcn=name), program],
            check=False, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert "changed" in answer, f"{task['name']}: {answer}"
        assert not answer["changed"]
        if answer.get("failed"):  # a refusal in words, not a traceback
            assert "Traceback" not in answer["msg"] + str(answer.get("exception", "")), answer


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Leave to make namespaces, or a skip that says so."""
    if subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no leave to make namespaces (unshare): run as root")


def every_task(module: Path) -> list[dict[str, Any]]:
    """The tasks of a changing module's EXAMPLES, those of other modules too: they are one list, no plays."""
    found: list[dict[str, Any]] = yaml.safe_load(texts(module)["EXAMPLES"])
    return found


def play_of(module: Path, scratch: Path) -> list[dict[str, Any]]:
    """A play that takes each example in its world through check mode, for real, and again; writes down every result."""
    fqcn, tasks_of_play = f"gpuops.k8s.{module.stem}", []

    def note(number: int, step: str, variable: str) -> None:
        target = f"{scratch}/{number}-{step}"
        keep = f"cat >{target}\n{example_worlds.print_of(scratch)} >{target}-print"
        tasks_of_play.append(shell(keep, stdin="{{ %s | to_json }}" % variable))

    for number, task in enumerate(every_task(module)):
        world = example_worlds.WORLDS[module.stem][task["name"]]
        proof = world.proof.format(store=scratch / "store.json", log=scratch / "systemctl.log")
        tasks_of_play.append(shell(example_worlds.shell_of(world, scratch)))
        tasks_of_play.extend(world.prepare)
        if proof:
            tasks_of_play.append({**shell(f"! {{ {proof}; }}"), "name": f"Not yet so: {task['name']}"})
        note(number, "before", "{}")
        own = task.get("register", "__result")
        if fqcn in task:
            tasks_of_play.append({**task, "check_mode": True, "diff": True, "register": "__result"})
            note(number, "check", "__result")
        tasks_of_play.append({**task, "register": own})
        note(number, "real", own)
        if proof:
            tasks_of_play.append({**shell(proof), "name": f"So: {task['name']}"})
        if fqcn in task:
            tasks_of_play.append({**task, "register": "__result"})
            note(number, "again", "__result")
    handlers = [
        {"name": name, "ansible.builtin.debug": {}} for task in every_task(module)
        if (name := task.get("notify"))
    ]  # fmt: skip
    return [{"hosts": "node", "gather_facts": False, "tasks": tasks_of_play, "handlers": handlers}]


def shell(text: str, **more: str) -> dict[str, Any]:
    return {
        "ansible.builtin.shell": {"cmd": "{% raw %}" + text + "{% endraw %}", **more},
        "changed_when": False,
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "module", [path for path in MODULES if not path.stem.endswith("_info")], ids=lambda path: path.stem
)
def test_the_examples_of_changing_modules_foretell_do_and_then_leave_it(
    module: Path, tmp_path: Path, namespaces: None
) -> None:
    names = [task["name"] for task in every_task(module)]
    worlds = example_worlds.WORLDS[module.stem]
    assert list(worlds) == names, "every example has its world in example_worlds.py"
    example_worlds.build(tmp_path, sys.executable, tmp_path / "templates")
    collection = tmp_path / "collections/ansible_collections/gpuops"
    collection.mkdir(parents=True)
    (collection / "k8s").symlink_to(PLUGINS.parent)
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump(play_of(module, tmp_path), sort_keys=False))
    environment = dict(
        os.environ, PATH=f"{tmp_path}/bin:{os.environ['PATH']}", HOME=str(tmp_path), ANSIBLE_HOME=str(tmp_path),
        ANSIBLE_COLLECTIONS_PATH=str(tmp_path / "collections"), ANSIBLE_NOCOLOR="1", ANSIBLE_LOCALHOST_WARNING="0",
    )  # fmt: skip
    environment.pop("KUBECONFIG", None)
    inventory = tmp_path / "inventory"
    inventory.write_text(
        "node\ncontrol-plane-1\n"
        f"[all:vars]\nansible_connection=local\nansible_python_interpreter={sys.executable}\n"
    )
    done = subprocess.run(
        [*NAMESPACES, tmp_path / "enter.sh", tmp_path, sys.executable, ANSIBLE, "-i", inventory, playbook],
        check=False, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for number, task in enumerate(every_task(module)):
        steps = {
            step: json.loads(path.read_text())
            for step in ("before", "check", "real", "again") if (path := tmp_path / f"{number}-{step}").exists()
        }  # fmt: skip
        prints = {step: (tmp_path / f"{number}-{step}-print").read_text() for step in steps}
        changes = {step: result.get("changed") for step, result in steps.items()}
        if "check" not in steps:  # not ours: it has run, and its proof held
            assert changes["real"] is True
            continue
        assert prints["check"] == prints["before"], f"{task['name']}: check mode wrote something"
        assert prints["again"] == prints["real"], f"{task['name']}: the second run wrote something"
        if task.get("check_mode"):
            assert prints["real"] == prints["before"]
            continue
        expected = worlds[task["name"]].changes
        assert (changes["check"], changes["real"]) == (expected, expected), task["name"]
        assert changes["again"] is False, f"{task['name']}: {steps['again']}"


RUN = """
import conftest, runpy, sys
runpy.run_module("{fqcn}", run_name="__main__", alter_sys=False)
"""
