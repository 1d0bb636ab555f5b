# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find, set and remove one feature gate in the text of a file, and leave every other byte alone. Pure.

Two syntaxes: a flag (``--feature-gates=A=true,B=false``: units, environment files, args files, ``kubelet-arg`` lists)
and a map (``featureGates:`` of a KubeletConfiguration: YAML block, YAML flow, JSON). Text is edited, not parsed and
dumped, because order and comments are the administrator's and because nodes need not have a YAML library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

ENV = "env"  # KEY="... flags ..." lines
UNIT = "unit"  # systemd unit or drop-in
ARGS = "args"  # microk8s: one flag a line
KUBELET_ARG = "kubelet-arg"  # k3s and rke2 config.yaml
CONFIG = "config"  # KubeletConfiguration, or a k0s configuration that holds one
FLAG_KINDS = (ENV, UNIT, ARGS, KUBELET_ARG)

_TRUE = {"1", "t", "T", "true", "TRUE", "True", "yes", "Yes", "YES", "on", "On", "ON"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False", "no", "No", "NO", "off", "Off", "OFF"}

_FLAG = re.compile(
    r"(?P<prefix>--kubelet-arg['\"]?(?:=|[\s\\]+)['\"]?(?:--)?|--kubelet-extra-args=|(?<![\w-])--)?"
    r"(?<![\w.])(?:--)?feature-gates(?:=|[ \t]+)(?P<quote>[\"']?)(?P<value>[A-Za-z0-9_.,=]+)(?P=quote)"
)
_LIST_ITEM = re.compile(
    r"(?P<quote0>[\"']?)(?:--)?feature-gates=(?P<quote>[\"']?)(?P<value>[A-Za-z0-9_.,=]+)(?P=quote)(?P=quote0)"
)
_FLOW = re.compile(r"(?P<key>[\"']?\bfeatureGates[\"']?[ \t]*:\s*)\{(?P<body>[^{}]*)\}")
_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)(?P<dash>- )?(?P<quote>[\"']?)featureGates(?P=quote)[ \t]*:[ \t]*(?:null|~)?[ \t]*(?:#.*)?$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Named:
    """One mention of the gate."""

    line: int
    """From 1."""
    value: Optional[bool]
    """None for ``null`` (a drop-in that deletes the key) or an unreadable value."""
    raw: str
    """The value as written."""
    start: int
    end: int
    """Where the value stands in the text."""


def to_bool(word: str) -> Optional[bool]:
    """Go's ParseBool and YAML's words; None for anything else."""
    word = word.strip().strip("\"'")
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    return None


def line_of(text: str, offset: int) -> int:
    """Line number, from 1, of a character offset."""
    return text.count("\n", 0, offset) + 1


def _in_comment(text: str, offset: int, kind: str) -> bool:
    before = text[text.rfind("\n", 0, offset) + 1 : offset]
    if before.lstrip().startswith("#") or (kind in (ENV, UNIT) and before.lstrip().startswith(";")):
        return True
    return kind in (CONFIG, KUBELET_ARG) and re.search(r"(^|\s)#", before) is not None


# --- flags --------------------------------------------------------------------------------------------------------


def _foreign_component(before: str) -> bool:
    """Whether what precedes hands the flag to another component (``--kube-apiserver-arg feature-gates=...``)."""
    match = re.search(r"--([\w-]+-arg)['\"]?(?:=|[\s\\]+)['\"]?(?:--)?$", before)
    return match is not None and match.group(1) != "kubelet-arg"


def _kubelet_arg_spans(text: str) -> Iterator[Tuple[int, int]]:
    """Where the values of ``kubelet-arg`` stand in a k3s or rke2 configuration."""
    start: Optional[int] = None
    offset = 0
    for line in text.splitlines(True):
        key = re.match(r"[\"']?([\w-]+\+?)[\"']?[ \t]*:", line)
        if key is not None:
            if start is not None:
                yield start, offset
            start = offset + key.end() if key.group(1).rstrip("+") == "kubelet-arg" else None
        offset += len(line)
    if start is not None:
        yield start, offset


def _flag_matches(text: str, kind: str) -> Iterator["re.Match[str]"]:
    if kind == KUBELET_ARG:
        for start, end in _kubelet_arg_spans(text):
            for match in _LIST_ITEM.finditer(text, start, end):
                if not _in_comment(text, match.start(), kind):
                    yield match
        return
    for match in _FLAG.finditer(text):
        bare = match.group("prefix") is None and not match.group(0).startswith("--")
        if bare or _in_comment(text, match.start(), kind):
            continue
        if not _foreign_component(text[: match.start()]):
            yield match


def _flag_entries(text: str, gate: str, kind: str) -> Iterator[Tuple["re.Match[str]", Named]]:
    for match in _flag_matches(text, kind):
        offset = match.start("value")
        for part in match.group("value").split(","):
            name, _unused, raw = part.partition("=")
            if name == gate:
                start = offset + len(name) + 1
                yield match, Named(line_of(text, start), to_bool(raw), raw, start, offset + len(part))
            offset += len(part) + 1


def _cut(text: str, start: int, end: int) -> str:
    """The text without a flag that has become empty, and without the blanks and line ends only it needed."""
    if start and end < len(text) and text[start - 1] in "\"'" and text[end] == text[start - 1]:
        whole = start == 1 or text[start - 2] in " \t\n[,"
        if whole:
            start, end = start - 1, end + 1
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    before, after = text[line_start:start], text[end:line_end]
    if not before.strip() and after.strip() in ("", "\\"):
        if not after.strip() and text[:line_start].rstrip(" \t\n").endswith("\\"):
            head = text[:line_start].rstrip(" \t\n")[:-1].rstrip(" \t")  # it was the last of a continued line
            return head + text[line_end:]
        return text[:line_start] + text[line_end + 1 :]
    if before.endswith((" ", "\t")) and (not after or after[0] in " \t\"'"):
        start -= 1
    elif after[:1] in (" ", "\t"):
        end += 1
    return text[:start] + text[end:]


def _cut_list_item(text: str, start: int, end: int) -> str:
    """A ``kubelet-arg`` list without one item, and without the key when that was its last."""
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end + 1
    before, after = text[line_start:start], text[end:line_end]
    if re.match(r"^[\"']?kubelet-arg\+?[\"']?[ \t]*:[ \t]*$", before):  # one string instead of a list
        return text[:line_start] + text[line_end:]
    if before.strip() == "-":
        head, tail = text[:line_start], text[line_end:]
        owner = re.search(r"(?:^|\n)[\"']?kubelet-arg\+?[\"']?[ \t]*:[ \t]*\n$", head)
        if owner is not None and not re.match(r"[ \t]*(?:#.*\n[ \t]*)*- ", tail):
            cut = owner.start() + (1 if head[owner.start()] == "\n" else 0)
            return head[:cut] + tail
        return head + tail
    if re.match(r"[ \t]*,[ \t]*", after):  # flow list
        return text[:start] + re.sub(r"^[ \t]*,[ \t]*", "", text[end:], count=1)
    return re.sub(r"[ \t]*,[ \t]*$", "", text[:start]) + text[end:]


def _remove_flag(text: str, gate: str, kind: str) -> str:
    while True:
        found = next(_flag_entries(text, gate, kind), None)
        if found is None:
            return text
        match = found[0]
        rest = [p for p in match.group("value").split(",") if p and p.partition("=")[0] != gate]
        if rest:
            text = text[: match.start("value")] + ",".join(rest) + text[match.end("value") :]
        elif kind == KUBELET_ARG:
            text = _cut_list_item(text, match.start(), match.end())
        else:
            text = _cut(text, match.start(), match.end())


# --- maps ---------------------------------------------------------------------------------------------------------


def _children(text: str, header: "re.Match[str]") -> List[Tuple[int, str]]:
    """(offset, line) of everything below a block's header, comments included, blank lines at the end left out."""
    indent = len(header.group("indent")) + len(header.group("dash") or "")
    found: List[Tuple[int, str]] = []
    offset = header.end() + 1
    for line in text[offset:].splitlines(True):
        body = line.strip()
        depth = len(line) - len(line.lstrip())
        if body and depth <= indent and not body.startswith("#"):
            break
        if body.startswith("#") and depth <= indent:
            break
        found.append((offset, line))
        offset += len(line)
    while found and not found[-1][1].strip():
        found.pop()
    return found


def _map_entries(text: str, gate: str) -> Iterator[Tuple[str, "re.Match[str]", Named, int, int]]:
    """(style, container match, entry, start and end of ``name: value``)."""
    name = r"(?P<quote>[\"']?)" + re.escape(gate) + r"(?P=quote)[ \t]*:[ \t]*(?P<value>[\"']?[\w~]*[\"']?)"
    for match in _FLOW.finditer(text):
        if _in_comment(text, match.start(), CONFIG):
            continue
        for entry in re.finditer(r"(?<![\w\"'])" + name, match.group("body")):
            base = match.start("body")
            start, end = base + entry.start("value"), base + entry.end("value")
            raw = entry.group("value")
            named = Named(line_of(text, start), to_bool(raw), raw, start, end)
            yield "flow", match, named, base + entry.start(), base + entry.end()
    for match in _BLOCK.finditer(text):
        for offset, line in _children(text, match):
            found = re.match(r"[ \t]*" + name + r"[ \t]*(?:#.*)?$", line.rstrip("\n"))
            if found is not None:
                start, end = offset + found.start("value"), offset + found.end("value")
                raw = found.group("value")
                yield (
                    "block",
                    match,
                    Named(line_of(text, start), to_bool(raw), raw, start, end),
                    offset,
                    offset + len(line),
                )


def _remove_map(text: str, gate: str) -> str:
    while True:
        found = next(_map_entries(text, gate), None)
        if found is None:
            return text
        style, container, _unused, start, end = found
        if style == "flow":
            low, high = container.start("body"), container.end("body")
            after = re.match(r"\s*,[ \t]*", text[end:high])
            before = re.search(r",\s*$", text[low:start])
            if before is not None:
                start = low + before.start()
            elif after is not None:
                end += after.end()
            elif not text[low:start].strip() and not text[end:high].strip():
                start, end = low, high
            text = text[:start] + text[end:]
            continue
        children = _children(text, container)
        others = [line for offset, line in children if offset != start and not line.strip().startswith("#")]
        comments = [line for _unused, line in children if line.strip().startswith("#")]
        if any(line.strip() for line in others):
            text = text[:start] + text[end:]
        elif comments or container.group("dash"):
            key = text[container.start() : text.index(":", container.start())]
            text = text[: container.start()] + key + ": {}" + text[container.end() : start] + text[end:]
        else:
            text = text[: container.start()] + text[container.end() + 1 : start] + text[end:]


def _add_map(text: str, gate: str) -> str:
    flow = next((m for m in _FLOW.finditer(text) if not _in_comment(text, m.start(), CONFIG)), None)
    json_like = text.lstrip().startswith("{")
    if flow is not None:
        quote = '"' if json_like else ""
        entry = "{0}{1}{0}: true".format(quote, gate)
        rest = flow.group("body")
        if rest.strip():
            lead = re.match(r"\s*", rest)
            pad = lead.group(0) if lead is not None else ""
            entry = pad + entry + "," + (rest if pad else " " + rest)
        return text[: flow.start("body")] + entry + text[flow.end("body") :]
    block = _BLOCK.search(text)
    if block is not None and not json_like:
        children = [line for _unused, line in _children(text, block) if line.strip()]
        outer = len(block.group("indent")) + len(block.group("dash") or "")
        pad = re.match(r"[ \t]*", children[0]).group(0) if children else " " * (outer + 2)  # type: ignore[union-attr]
        header = re.sub(r":[ \t]*(?:null|~)", ":", text[block.start() : block.end()])
        tail = text[block.end() :]
        return text[: block.start()] + header + "\n" + pad + gate + ": true" + (tail or "\n")
    if json_like:
        brace = text.index("{") + 1
        rest = text[brace:]
        pad_match = re.match(r"\s*", rest)
        pad = pad_match.group(0) if pad_match is not None else ""
        comma = "" if rest.lstrip().startswith("}") else ","
        return text[:brace] + pad + '"featureGates": {{"{0}": true}}'.format(gate) + comma + (rest or "")
    joint = "" if not text or text.endswith("\n") else "\n"
    return text + joint + "featureGates:\n  {0}: true\n".format(gate)


# --- what callers use ---------------------------------------------------------------------------------------------


def find(text: str, gate: str, kind: str) -> Tuple[Named, ...]:
    """Every mention of the gate that the kubelet would read, in the order of the text."""
    if kind == CONFIG:
        entries = [entry for _unused, _unused2, entry, _unused3, _unused4 in _map_entries(text, gate)]
        # A k0s configuration or a kubelet wrapped in a unit may carry flags as well.
        return tuple(sorted(entries, key=lambda entry: entry.start))
    return tuple(entry for _unused, entry in _flag_entries(text, gate, kind))


def set_true(text: str, gate: str, kind: str) -> str:
    """The text with every mention of the gate that is not true made true; nothing is added."""
    for entry in reversed(find(text, gate, kind)):
        if entry.value is not True:
            text = (
                text[: entry.start]
                + (" true" if text[entry.start - 1] == ":" else "true")
                + text[entry.end :]
            )
    return text


def remove(text: str, gate: str, kind: str) -> str:
    """The text without the gate; a flag or map that held nothing else goes with it."""
    return _remove_map(text, gate) if kind == CONFIG else _remove_flag(text, gate, kind)


def add(text: str, gate: str, kind: str, key: str = "KUBELET_EXTRA_ARGS") -> str:
    """The text with the gate named true: joined to an existing flag or map, else written anew.

    ``key`` is the variable of an environment file that takes a new flag.
    """
    if kind == CONFIG:
        return _add_map(text, gate)
    match = next(iter(_flag_matches(text, kind)), None)
    if match is not None:
        end = match.end("value")
        return text[:end] + ",{0}=true".format(gate) + text[end:]
    joint = "" if not text or text.endswith("\n") else "\n"
    if kind == ARGS:
        return text + joint + "--feature-gates={0}=true\n".format(gate)
    if kind == KUBELET_ARG:
        return _add_list_item(text, joint, gate)
    variable = re.search(
        r"^(?P<head>(?:export[ \t]+)?"
        + re.escape(key)
        + r"=)(?P<quote>[\"']?)(?P<body>.*?)(?P=quote)[ \t]*$",
        text,
        re.MULTILINE,
    )
    flag = "--feature-gates={0}=true".format(gate)
    if variable is None:
        return text + joint + '{0}="{1}"\n'.format(key, flag)
    body = variable.group("body")
    quote = variable.group("quote") or '"'
    return (
        text[: variable.start()]
        + variable.group("head")
        + quote
        + (body + " " + flag if body else flag)
        + quote
        + text[variable.end() :]
    )


def _add_list_item(text: str, joint: str, gate: str) -> str:
    item = '"feature-gates={0}=true"'.format(gate)
    header = re.search(r"^[\"']?kubelet-arg\+?[\"']?[ \t]*:[ \t]*(?P<rest>.*)$", text, re.MULTILINE)
    if header is None:
        return text + joint + "kubelet-arg:\n  - {0}\n".format(item)
    rest = header.group("rest").strip()
    if rest.startswith("["):
        low = header.start("rest") + header.group("rest").index("[") + 1
        comma = "" if text[low:].lstrip().startswith("]") else ", "
        return text[:low] + item + comma + text[low:]
    if not rest or rest.startswith("#"):
        pad = re.match(r"\n([ \t]*)- ", text[header.end() :])
        indent = pad.group(1) if pad is not None else "  "
        return text[: header.end()] + "\n" + indent + "- " + item + text[header.end() :]
    low = header.start("rest")
    return text[:low].rstrip() + "\n  - " + item + "\n  - " + text[low:]
