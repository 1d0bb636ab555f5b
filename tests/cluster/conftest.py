"""One provisioned cluster for all tests that share it; the logs of its components where a test fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import Lab, wait_until


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    lab = item.funcargs.get("lab") or item.funcargs.get("bare_lab")
    if report.when == "call" and report.failed and lab is not None:
        report.sections.append(("the cluster's logs", lab.logs()))


@pytest.fixture(scope="module")
def bare_lab(tmp_path_factory):
    """Three Ready nodes that know nothing of GPUs. GPUOPS_LAB_NAME: another cluster's name, for two runs at once."""
    lab = Lab(os.environ.get("GPUOPS_LAB_NAME", "test"), tmp_path_factory.mktemp("lab"))
    lab.up()
    yield lab
    lab.down()


@pytest.fixture(scope="module")
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
