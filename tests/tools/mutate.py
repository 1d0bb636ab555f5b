"""Do the tests notice when the plugin's pure modules are wrong? Changes one thing at a time and counts who is caught.

    python tests/tools/mutate.py [--sample 20] [--seed 1] [--report docs/mutation.md] [module ...]

The source is not touched: each mutant is compiled into a pytest process of its own. The sample is drawn by seed, so
that two runs try the same changes.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE = CHECKOUT / "files" / "plugin" / "src" / "gpu_device_plugin"
TESTS = {
    "cdi": "test_cdi",
    "config_check": "test_config_load",
    "config_file": "test_config_load",
    "config_load": "test_config_load",
    "faults": "test_config_load",
    "features": "test_features",
    "health": "test_health",
    "mps": "test_mps_limits",
    "names": "test_names",
    "prefer": "test_prefer",
    "resources": "test_resources",
    "respond": "test_respond",
    "roots": "test_features",
    "topology": "test_topology",
    "troubles": "test_health",
    "xids": "test_health",
    "yaml_document": "test_config_load",
}

LEAST = 95
"""Percent of lines; more is asked of every pure module."""

LOADER = """
import importlib.abc, importlib.machinery, os, sys
class Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    name = "gpu_device_plugin." + os.environ["MUTANT_MODULE"]
    def find_spec(self, fullname, path, target=None):
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.name else None
    def exec_module(self, module):
        with open(os.environ["MUTANT_SOURCE"]) as file:
            exec(compile(file.read(), module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Mutant())
"""

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def changes(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(node, what to do to it) for all that can be changed inside of functions."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        annotations = {id(part) for whole in annotated(function) for part in ast.walk(whole)}
        for node in ast.walk(function):
            if id(node) in annotations:
                continue
            if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
                yield node, "compare"
            elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
                yield node, "arithmetic"
            elif isinstance(node, ast.BoolOp):
                yield node, "and-or"
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                yield node, "not"
            elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
                yield node, "bool"
            elif isinstance(node, ast.Constant) and type(node.value) is int:
                yield node, "number"
            elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
                yield node, "return"
            elif isinstance(node, ast.If):
                yield node, "condition"
            elif isinstance(node, ast.Continue | ast.Break):
                yield node, "loop"


def annotated(function: ast.FunctionDef) -> Iterator[ast.AST]:
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        if argument.annotation is not None:
            yield argument.annotation
    if function.returns is not None:
        yield function.returns
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign):
            yield node.annotation


def mutated(source: str, number: int) -> tuple[str, int, str]:
    """The source with change ``number``, its line, and what was done."""
    tree = ast.parse(source)
    node, kind = list(unique(tree))[number]
    before = ast.unparse(node).splitlines()[0]
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARE[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = ARITHMETIC[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.If):
        node.test = ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))
    else:
        parents = {id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        parent = parents[id(node)]
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, [])
            if isinstance(block, list) and node in block:
                block[block.index(node)] = ast.copy_location(ast.Pass(), node)
    after = "pass" if kind == "loop" else ast.unparse(node).splitlines()[0]
    return ast.unparse(ast.fix_missing_locations(tree)), node.lineno, f"{kind}: `{before}` -> `{after}`"  # type: ignore[attr-defined]


def unique(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    seen = set()
    for node, kind in changes(tree):
        if id(node) not in seen:
            seen.add(id(node))
            yield node, kind


def survives(module: str, text: str, folder: Path) -> bool:
    source = folder / "mutant.py"
    source.write_text(text)
    (folder / "mutant_loader.py").write_text(LOADER)
    environ = os.environ | {
        "MUTANT_MODULE": module,
        "MUTANT_SOURCE": str(source),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    test = CHECKOUT / "tests" / "plugin" / f"{TESTS[module]}.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-qx",
        "-p",
        "mutant_loader",
        "-p",
        "no:cacheprovider",
        str(test),
    ]
    try:
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environ, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False  # a mutant that never ends is noticed too
    return done.returncode == 0


def covered(module: str, folder: Path) -> int:
    """Percent of the module's lines that its own tests run."""
    environ = os.environ | {"COVERAGE_FILE": str(folder / "coverage")}
    test = CHECKOUT / "tests" / "plugin" / f"{TESTS[module]}.py"
    include = f"--include={SOURCE / module}.py"
    run = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        include,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(test),
    ]
    subprocess.run(run, cwd=CHECKOUT, env=environ, check=True, capture_output=True)
    total = [sys.executable, "-m", "coverage", "report", include, "--format=total"]
    return int(subprocess.run(total, env=environ, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", default=sorted(TESTS), metavar="module")
    parser.add_argument("--sample", type=int, default=20, help="mutants a module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--coverage", action="store_true", help="only say what share of its lines each one's tests run"
    )
    parser.add_argument("--report", type=Path, help="write a page of Markdown")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no tests known of {', '.join(sorted(unknown))}")
    rows, left = [], []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if options.coverage:
            shares = {module: covered(module, Path(folder)) for module in options.modules}
            for module, share in shares.items():
                print(f"{module}: {share} %{'' if share > LEAST else ', too little'}", flush=True)
            return int(min(shares.values()) <= LEAST)
        for module in options.modules:
            source = (SOURCE / f"{module}.py").read_text()
            count = len(list(unique(ast.parse(source))))
            chosen = sorted(random.Random(options.seed).sample(range(count), min(options.sample, count)))
            alive = []
            for number in chosen:
                text, line, what = mutated(source, number)
                if survives(module, text, Path(folder)):
                    alive.append(f"{module}.py:{line}: {what}")
                    print(f"  alive: {alive[-1]}", flush=True)
            caught = len(chosen) - len(alive)
            rows.append((module, count, len(chosen), caught))
            left += alive
            print(f"{module}: {caught} of {len(chosen)} caught ({count} possible)", flush=True)
    if options.report:
        report(options.report, rows, left, options.sample, options.seed, time.monotonic() - start)
    return 0


def report(
    page: Path, rows: list[tuple[str, int, int, int]], left: list[str], sample: int, seed: int, took: float
) -> None:
    tried, caught = sum(row[2] for row in rows), sum(row[3] for row in rows)
    lines = [
        "# Would the tests notice if the plugin were wrong?",
        "",
        f"Of {tried} changes to its pure modules, made one at a time and at random, {caught} make a test fail "
        f"({100 * caught / tried:.0f} %).",
        "",
        f"`python tests/tools/mutate.py --sample {sample} --seed {seed} --report docs/mutation.md` wrote this page in "
        f"{took / 60:.0f} minutes. A change is a comparison, an operator, a condition, a number, a truth value or a "
        "returned value turned into another, inside of a function.",
        "",
        "| module | possible changes | tried | noticed |",
        "|---|---|---|---|",
        *(f"| {module} | {count} | {of} | {good} |" for module, count, of, good in rows),
        "",
        "## Not noticed",
        "",
        *(f"* {entry}" for entry in left or ["none"]),
        "",
    ]
    page.write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
