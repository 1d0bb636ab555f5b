# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hardening sets both keys, keeps every other byte, and gives back what stood there, whatever that was."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _hardening as hardening
from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_read
from hypothesis import given
from hypothesis import strategies as st

NONE = hardening.Record()
SHIPPED = (
    f"#{hardening.MOUNTS} = false\n#{hardening.VARIABLE} = true\ndisable-require = false\n\n"
    "[nvidia-container-cli]\n# mine\nload-kmods = true\n"
)
OWNERS = f"{hardening.VARIABLE} = false # the owner's\n{hardening.MOUNTS}=true\n{SHIPPED}"

lines = st.sampled_from(["", f"{hardening.MOUNTS} = true\n", f"{hardening.MOUNTS}=false  # x\n"]).flatmap(
    lambda first: st.sampled_from(
        ["", f"{hardening.VARIABLE} = false\r\n", f'"{hardening.VARIABLE}" = true\n', f"{hardening.VARIABLE} = 1\n"]
    ).map(lambda second: first + second)
)  # fmt: skip
texts = st.one_of(
    st.none(), st.builds("{}{}".format, lines, st.sampled_from(["", SHIPPED, "# end, no newline"]))
)
wishes = st.lists(st.sampled_from([hardening.HARDENED, hardening.DEFAULTS]), min_size=1, max_size=4)


def test_a_shipped_file_gets_two_lines_and_loses_them_again():
    text, record = hardening.set_to(SHIPPED, hardening.HARDENED, NONE)
    assert hardening.values(text) == hardening.HARDENED
    assert text is not None and text.endswith(SHIPPED)
    assert hardening.set_to(text, hardening.HARDENED, record) == (text, record)
    assert hardening.undo(text, record) == SHIPPED


def test_a_node_that_its_owner_has_hardened_is_not_touched_and_nothing_there_is_ours():
    assert hardening.set_to(OWNERS, hardening.HARDENED, NONE) == (OWNERS, NONE)
    text, record = hardening.set_to(OWNERS, hardening.DEFAULTS, NONE)
    assert hardening.values(text) == hardening.DEFAULTS
    assert text is not None and "# the owner's" in text
    assert hardening.undo(text, record) == OWNERS


@pytest.mark.parametrize("first", [hardening.MOUNTS, hardening.VARIABLE])
def test_a_file_where_only_one_of_both_was_written_is_mended_in_either_direction(first):
    half = f"{first} = {'true' if hardening.HARDENED[first] else 'false'}\n{SHIPPED}"
    for wish in (hardening.HARDENED, hardening.DEFAULTS):
        assert hardening.values(hardening.set_to(half, wish, NONE)[0]) == wish


def test_a_value_that_somebody_has_changed_since_is_theirs():
    text, record = hardening.set_to(SHIPPED, hardening.HARDENED, NONE)
    assert text is not None
    edited = text.replace(f"{hardening.MOUNTS} = true", f"{hardening.MOUNTS} = false # by hand")
    left = hardening.undo(edited, record)
    assert left is not None
    assert f"{hardening.MOUNTS} = false # by hand\n" in left
    assert f"\n{hardening.VARIABLE}" not in left


def test_a_record_that_is_none_of_ours_counts_as_none():
    for entry in ({}, {"prior": 1}, {"prior": {}, "ours": []}, {"prior": {"x": None}, "ours": {"x": "true"}}):
        assert hardening.Record.load(entry) == NONE


def test_text_that_is_no_toml_is_refused_with_its_place():
    with pytest.raises(_toml_read.TomlError, match=r"^2:"):
        hardening.set_to("a = 1\nno toml\n", hardening.HARDENED, NONE)


@given(texts, wishes)
def test_any_text_comes_back_byte_for_byte_after_any_wishes(text, wanted):
    new, record = text, NONE
    for wish in wanted:
        new, record = hardening.set_to(new, wish, hardening.Record.load(record.dump()))
        assert hardening.values(new) == wish
        assert hardening.set_to(new, wish, record) == (new, record)
    assert hardening.undo(new, record) == text
