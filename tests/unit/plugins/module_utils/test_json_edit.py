# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading JSON with positions, and changing one member without touching the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _json_edit as edit
from hypothesis import given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)
STYLES = st.sampled_from([None, 1, 2, 4, "\t"])


def typed(value: Any) -> Any:
    """The value with its types, since True == 1 and 1 == 1.0."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return (type(value).__name__, value)


@given(VALUES, STYLES, st.booleans())
@settings(deadline=None)
def test_reads_what_pythons_own_reader_reads(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert typed(edit.parse(text).value) == typed(value)


@given(st.text(alphabet='{}[]",:01-.eE+ \ntrufalsn\\/"x', max_size=40))
@settings(max_examples=400, deadline=None)
def test_refuses_what_pythons_own_reader_refuses(text: str) -> None:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _value in found}) != len(found):
            raise ValueError("key given twice")
        return dict(found)

    def constant(word: str) -> None:
        raise ValueError(word)

    try:
        expected = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except ValueError:
        with pytest.raises(edit.JsonError):
            edit.parse(text)
    else:
        assert typed(edit.parse(text).value) == typed(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "a": 1,\n}', "2:9: trailing comma"),
        ('{\n  "runtimes": {\n    "x": {"path": "/x"},\n  }\n}', "3:24: trailing comma"),
        ('{\n  "a": 1\n  "b": 2\n}', "3:3: ',' is missing before this"),
        ('{"a": 1, "b": 2, "a": 3}', '1:18: key "a" is given twice (first at 1:2)'),
        ('{"a": [1, 2', "1:12: the file ends inside what was opened at 1:7"),
        ('{"a": {', "1:8: the file ends inside what was opened at 1:7"),
        ("// mine\n{}", "1:1: a comment; JSON has none"),
        ('{"a": 1} # x', "1:10: a comment; JSON has none"),
        ("{'a': 1}", "1:2: a key in double quotes is missing here"),
        ("{\"a\": 'b'}", "1:7: a string must stand in double quotes"),
        ('{"a" 1}', "1:6: ':' is missing after key \"a\""),
        ('{"a": "b\n"}', "1:7: this string is never closed"),
        ('{"a": "\\q"}', "1:7: a wrong escape inside this string"),
        ("", "1:1: the file ends where a value should stand"),
        ("{} {}", "1:4: text after the end of the document"),
        ('{"a": True}', "1:7: unexpected 'T'"),
    ],
)
def test_names_the_place_of_an_error(text: str, message: str) -> None:
    with pytest.raises(edit.JsonError) as caught:
        edit.parse(text)
    assert str(caught.value) == message


@given(DOCUMENTS, STYLES, VALUES)
@settings(deadline=None)
def test_sets_a_member_and_nothing_else(document: dict[str, Any], indent: Any, value: Any) -> None:
    text = json.dumps(document, indent=indent)
    after = edit.set_member(text, ("ours",), value)
    assert typed(edit.parse(after).value) == typed({**document, "ours": value})
    assert list(edit.parse(after).value) == list({**document, "ours": value})
    assert edit.set_member(after, ("ours",), value) == after


@given(DOCUMENTS.filter(lambda document: "ours" not in document), STYLES, VALUES)
@settings(deadline=None)
def test_deleting_what_was_added_gives_back_the_bytes(
    document: dict[str, Any], indent: Any, value: Any
) -> None:
    text = json.dumps(document, indent=indent)
    assert edit.delete_member(edit.set_member(text, ("ours", "deep"), value), ("ours",)) == text


def test_keeps_the_style_of_the_members_that_are_there() -> None:
    text = '{\n  "a": 1,\n  "runtimes": {\n    "kata": {"path": "/k"}\n  }\n}\n'
    assert edit.set_member(text, ("runtimes", "nvidia", "path"), "/n") == (
        '{\n  "a": 1,\n  "runtimes": {\n    "kata": {"path": "/k"},\n    "nvidia": {\n      "path": "/n"\n'
        "    }\n  }\n}\n"
    )


def test_keeps_tabs_and_the_line_ends_of_windows() -> None:
    text = '{\r\n\t"a": 1\r\n}\r\n'
    assert (
        edit.set_member(text, ("b",), {"c": 2}) == '{\r\n\t"a": 1,\r\n\t"b": {\r\n\t\t"c": 2\r\n\t}\r\n}\r\n'
    )


def test_one_line_stays_one_line() -> None:
    assert edit.set_member('{"a": 1}', ("b", "c"), True) == '{"a": 1, "b": {"c": true}}'


def test_says_what_is_not_an_object() -> None:
    with pytest.raises(TypeError, match="runtimes"):
        edit.set_member('{"runtimes": []}', ("runtimes", "nvidia"), 1)


def test_deletes_first_middle_last_and_only_member() -> None:
    text = '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}'
    assert edit.delete_member(text, ("a",)) == '{\n  "b": 2,\n  "c": 3\n}'
    assert edit.delete_member(text, ("b",)) == '{\n  "a": 1,\n  "c": 3\n}'
    assert edit.delete_member(text, ("c",)) == '{\n  "a": 1,\n  "b": 2\n}'
    assert edit.delete_member('{ "a": 1 }', ("a",)) == "{}"
    assert edit.delete_member(text, ("x", "y")) == text
