"""One cluster for all tests of three nodes; the logs of its components where a test fails.

It is bare at first: a sabotaged rollout is its beginning, what nodes live through its middle, the plugin's next version
its end. Each file runs alone too, with a cluster of its own. test_role_choices.py has another one, and comes first, so
that there is never more than one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import Lab, wait_until

ORDER = ("test_role_choices.py", "test_sabotaged_rollout.py", "test_life.py", "test_upgrade.py")


def pytest_collection_modifyitems(items):
    here = Path(__file__).resolve().parent
    ours = [item for item in items if item.path.parent == here]
    ours.sort(key=lambda item: (*ORDER, item.path.name).index(item.path.name))
    places = [n for n, item in enumerate(items) if item.path.parent == here]
    for place, item in zip(places, ours):
        items[place] = item


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    lab = item.funcargs.get("lab") or item.funcargs.get("bare_lab")
    if report.when == "call" and report.failed and lab is not None:
        report.sections.append(("the cluster's logs", lab.logs()))


@pytest.fixture(scope="session")
def bare_lab(tmp_path_factory):
    """Three Ready nodes that know nothing of GPUs. GPUOPS_LAB_NAME: another cluster's name, for two runs at once."""
    lab = Lab(os.environ.get("GPUOPS_LAB_NAME", "test"), tmp_path_factory.mktemp("lab"))
    lab.up()
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def lab(request, tmp_path_factory):
    """Three provisioned nodes, 8 GPUs each. GPUOPS_LAB=NAME takes a cluster that is up and provisioned, as it is."""
    running = os.environ.get("GPUOPS_LAB")
    if running:
        found = Lab(running, tmp_path_factory.mktemp("lab"))
        found.write_inventory()
        found.expected = found.offered()
        return found
    bare_lab = request.getfixturevalue("bare_lab")
    done = bare_lab.play("provision")
    assert done.returncode == 0, done.stdout[-4000:]
    wait_until(bare_lab.all_offered, "24 GPUs on offer")
    return bare_lab
