# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The DevicePlugins table, for every minor version from 1.7 to 1.37."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_table as table

ALL = range(7, 38)


def action(minor, effective, target=None, state="auto"):
    wanted = None if target is None else (1, target)
    return table.decide((1, minor), effective is not None, effective, wanted, state).action


@pytest.mark.parametrize("minor", ALL)
def test_a_kubelet_that_names_nothing_is_written_to_only_where_the_gate_is_needed(minor):
    assert action(minor, None) == (table.SET if minor in (8, 9) else table.KEEP)


@pytest.mark.parametrize("minor", ALL)
def test_true_stays_where_it_is_needed_or_harmless_and_goes_everywhere_else(minor):
    assert action(minor, True) == (table.KEEP if 8 <= minor <= 25 else table.REMOVE)


@pytest.mark.parametrize("minor", ALL)
def test_false_is_switched_on_where_it_switches_off_and_goes_where_it_stops_the_kubelet(minor):
    assert action(minor, False) == (table.SET if 8 <= minor <= 25 else table.REMOVE)


@pytest.mark.parametrize("minor", range(10, 26))
@pytest.mark.parametrize("target", [26, 27, 28, 37])
@pytest.mark.parametrize("value", [True, False])
def test_an_upgrade_that_would_break_takes_the_mention_away_beforehand(minor, target, value):
    assert action(minor, value, target) == table.REMOVE


@pytest.mark.parametrize("minor", range(10, 26))
def test_an_upgrade_within_the_harmless_range_changes_nothing(minor):
    assert action(minor, True, 25) == table.KEEP


@pytest.mark.parametrize("minor", ALL)
def test_what_was_done_is_not_done_again(minor):
    for effective in (None, True, False):
        after = {table.SET: True, table.REMOVE: None, table.KEEP: effective}[action(minor, effective)]
        assert action(minor, after) == table.KEEP


@pytest.mark.parametrize("minor", [7, *range(28, 38)])
def test_present_is_refused_where_it_would_stop_the_kubelet(minor):
    with pytest.raises(table.GateError, match=rf"1\.{minor} exits"):
        action(minor, None, state="present")


@pytest.mark.parametrize("minor", range(8, 28))
def test_present_writes_true_where_a_kubelet_takes_it(minor):
    assert action(minor, False, state="present") == table.SET
    assert action(minor, True, state="present") == table.KEEP


def test_absent_removes_whatever_the_version():
    assert action(9, True, state="absent") == table.REMOVE
    assert action(9, None, state="absent") == table.KEEP


def test_other_gates_have_no_table():
    with pytest.raises(table.GateError, match="DevicePlugins alone"):
        table.decide((1, 20), False, None, gate="CPUManager")
    assert table.decide((1, 20), False, None, state="present", gate="CPUManager").action == table.SET


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Kubernetes v1.20.2", (1, 20)),
        ("v1.28.3+k3s1", (1, 28)),
        ("1.9", (1, 9)),
        ("k3s version v1.30.1+k3s1 (80978b5b)\ngo version go1.22.2", (1, 30)),
    ],
)
def test_versions_are_read_as_kubelets_print_them(text, version):
    assert table.parse_version(text) == version


def test_a_text_without_version_is_refused():
    with pytest.raises(table.GateError, match="give kubelet_version"):
        table.parse_version("bash: kubelet: not found")


def test_before_1_8_there_are_no_device_plugins():
    assert not table.rule((1, 7)).offered
    assert "no device plugins" in table.decide((1, 7), False, None).reason
