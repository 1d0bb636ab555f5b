# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our TOML reader against Python's own, and the edits of root arrays."""

from __future__ import annotations

import contextlib
import datetime
import sys
from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_edit as toml
from hypothesis import example, given, settings
from hypothesis import strategies as st

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = None

needs_tomllib = pytest.mark.skipif(
    tomllib is None, reason="Python before 3.11 has no tomllib to compare with"
)

CONTAINERD = """\
# by the administrator
version = 2
root = "/var/lib/containerd" # here
oom_score = -999
big = 1_000_000
hex = 0xff
ratio = 0.02
when = 1979-05-27T07:32:00Z
imports = [
  "/etc/containerd/a.toml", # first
  '/etc/containerd/b.toml',
]
literal = 'C:\\x'
long = \"\"\"
two \\
   words\"\"\"

[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    options = { SystemdCgroup = true, a.b = 1 }
[[proxy]]
name = "x"
[proxy.sub]
y = 1
[[proxy]]
[proxy.sub]
y = 2
"""
TRICKY = [
    "a=1\n[b]\nc.d=1\n[b.c]\n",
    "[a.b]\nc=1\n[a]\nb.d=1\n",
    "a={}\n[a.b]\n",
    "a=[]\n[[a]]\n",
    "[[a]]\n[a]\n",
    "a.b=1\na.c=2\n[a]\n",
    "x='''a''''\ny='''''b'''\n",
    'x = """a"""""\n',
    "[a]\nb.c=1\n[a.b.d]\n",
    "[a.b.c]\n[a]\n[a.b]\n",
    "a = [1, [2, 3], {x = 1}, ]\n",
    "a = 0x1g\n",
    "a = 01\n",
    "a = 1979-13-01\n",
    "a = 24:00:00\n",
    "a = nan\nb = -inf\n",
    'a = "\\ud800"\n',
    "a = {b = 1, }\n",
    "a = {b.c = 1, b.d = 2}\na.b.e = 3\n",
    "a = 1 b = 2\n",
    "= 1\n",
    "[a\n",
]


def plain(value: Any) -> Any:
    """Comparable: types kept apart, moments only by being one."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, (toml.Moment, datetime.date, datetime.time)):
        return "moment"
    return (type(value).__name__, repr(value))


def agree(text: str) -> None:
    """Both readers give the same, or both refuse."""
    try:
        expected = plain(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValueError):
        with pytest.raises(toml.TomlError):
            toml.parse(text)
    else:
        assert plain(toml.parse(text).value) == expected


@needs_tomllib
@pytest.mark.parametrize("text", [CONTAINERD, *TRICKY])
def test_reads_and_refuses_as_pythons_own_reader(text: str) -> None:
    agree(text)


@needs_tomllib
@given(st.data())
@settings(max_examples=500, deadline=None)
def test_reads_damaged_files_as_pythons_own_reader(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([CONTAINERD, *TRICKY]))
    for _round in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 3))
        put = data.draw(st.text(alphabet="[]{}=.\"'\\\n #,ab1-_:TZ+\r\te", max_size=3))
        text = text[:at] + put + text[at + cut :]
    with contextlib.suppress(RecursionError):
        agree(text)


KEYS = st.text(max_size=6)
SCALARS = (
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats()
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3), max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | SCALARS, max_size=3),
    max_leaves=6,
)


@given(TABLES)
@settings(deadline=None)
@example({"a": {"b": {}}})
def test_writes_what_it_reads_back(value: dict[str, Any]) -> None:
    text = toml.dumps(value)
    assert plain(toml.parse(text).value) == plain(value)
    if tomllib is not None:
        assert plain(tomllib.loads(text)) == plain(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 2\nimports = [\n", "2:11: this array is never closed"),
        ("a = 1\na = 2\n", "2:1: key a is given twice"),
        ("[x]\n[y]\n[x]\n", "3:1: table x is given twice"),
        ("a = runc\n", "1:5: this is no TOML value; a string needs quotes"),
        ('a = "x\n', "1:5: this string is never closed"),
        ("[plugins\n", "1:9: ']' is missing"),
        ("a\n", "1:2: '=' is missing after key a"),
        ("a =\n", "1:4: a value is missing here"),
    ],
)
def test_names_the_place_of_an_error(text: str, message: str) -> None:
    with pytest.raises(toml.TomlError) as caught:
        toml.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'imports = ["/x"]\n'),
        ("# mine\nversion = 2 # two\n[a]\n", '# mine\nversion = 2 # two\nimports = ["/x"]\n[a]\n'),
        ("version = 2", 'version = 2\nimports = ["/x"]\n'),
        ("# mine\n\n[a]\nb = 1\n", '# mine\n\nimports = ["/x"]\n[a]\nb = 1\n'),
        ("# only a comment", '# only a comment\nimports = ["/x"]\n'),
        ("a = 1\nversion = 2\r\n", 'a = 1\nversion = 2\r\nimports = ["/x"]\r\n'),
        ("imports = []\n", 'imports = ["/x"]\n'),
        ('imports = ["a"] # c\n', 'imports = ["a", "/x"] # c\n'),
        ('imports = [\n  "a",\n  "b", # c\n]\n', 'imports = [\n  "a",\n  "b",\n  "/x", # c\n]\n'),
        ('imports = [\n  "a"\n]\n', 'imports = [\n  "a",\n  "/x"\n]\n'),
        ("imports = [\n  'a', # c\n]\n", "imports = [\n  'a',\n  \"/x\", # c\n]\n"),
    ],
)
def test_adds_to_a_root_array_and_takes_it_away_again(before: str, after: str) -> None:
    had_one = "imports" in before
    assert toml.add_to_root_array(before, "imports", "/x") == after
    undone = toml.remove_from_root_array(after, "imports", "/x", whole_line=not had_one)
    # The one byte that may differ: a file without a line end has got one.
    assert undone.rstrip("\n") == before.rstrip("\n")


def test_a_root_array_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError):
        toml.add_to_root_array('imports = "x"\n', "imports", "/x")
