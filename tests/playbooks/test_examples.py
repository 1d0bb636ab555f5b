"""Every module's examples: valid YAML, options that the module has, values that it takes; and they all start."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
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


RUN = """
import conftest, runpy, sys
runpy.run_module("{fqcn}", run_name="__main__", alter_sys=False)
"""
