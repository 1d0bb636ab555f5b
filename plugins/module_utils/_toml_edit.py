# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write TOML tables, and edit root arrays of strings in the text, where comments and order have to stay."""

from __future__ import annotations

from typing import Any

from ._toml_read import Document, Moment, Path, TomlError, basic_string, dotted_name, parse

__all__ = [
    "Document",
    "Moment",
    "Path",
    "TomlError",
    "add_to_root_array",
    "basic_string",
    "dumps",
    "parse",
    "remove_from_root_array",
]


def _scalar(value: Any) -> str:  # noqa: PLR0911 - one line a type
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Moment):
        return str(value)
    if isinstance(value, str):
        return basic_string(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{dotted_name((key,))} = {_scalar(item)}" for key, item in value.items()) + "}"
        )
    return str(value)


def dumps(value: dict[str, Any], prefix: Path = (), indent: str = "") -> str:
    """TOML text of nested tables in the order of the dictionary: plain keys first, then one [table] each.

    A table's header is written only where it holds keys of its own or is empty.
    """
    lines = [
        f"{indent}{dotted_name((key,))} = {_scalar(item)}\n"
        for key, item in value.items()
        if not isinstance(item, dict)
    ]
    for key, item in value.items():
        if not isinstance(item, dict):
            continue
        path = (*prefix, key)
        own = any(not isinstance(inner, dict) for inner in item.values())
        if own or not item:
            lines.append(f"\n{indent}[{dotted_name(path)}]\n")
        lines.append(dumps(item, path, indent + "  " if own else indent))
    return "".join(lines)


def add_to_root_array(text: str, key: str, item: str) -> str:
    """The text with a string added to the root array ``key``; a missing array is put behind ``version``.

    Every byte outside the one line stays. Raises TomlError, and TypeError when ``key`` is no array.
    """
    document = parse(text)
    path = (key,)
    if path not in document.spans:
        line = f"{key} = [{basic_string(item)}]"
        newline = "\r\n" if "\r\n" in text else "\n"
        if ("version",) in document.spans:
            at = text.find("\n", document.spans[("version",)][1])
            return (
                f"{text}{newline}{line}{newline}"
                if at < 0
                else f"{text[: at + 1]}{line}{newline}{text[at + 1 :]}"
            )
        first = min([document.root_end, *(document.keys[p] for p in document.keys if len(p) >= 1)])
        at = text.rfind("\n", 0, first) + 1 if first < len(text) else len(text)
        lead = newline if at == len(text) and text and not text.endswith("\n") else ""
        return f"{text[:at]}{lead}{line}{newline}{text[at:]}"
    if path not in document.items:
        raise TypeError(key)
    items = document.items[path]
    if items:
        end = items[-1][1]
        between = text[items[-2][1] : items[-1][0]] if len(items) > 1 else ", "
        if "#" in between:
            between = ", "
        if len(items) == 1 and "\n" in text[document.spans[path][0] : items[0][0]]:
            lead = text[document.spans[path][0] + 1 : items[0][0]]
            between = "," + (lead if "#" not in lead else " ")
        return f"{text[:end]}{between}{basic_string(item)}{text[end:]}"
    start = document.spans[path][0]
    return f"{text[: start + 1]}{basic_string(item)}{text[start + 1 :]}"


def remove_from_root_array(text: str, key: str, item: str, whole_line: bool = False) -> str:
    """The text without the string in the root array ``key``: the inverse of :func:`add_to_root_array`.

    ``whole_line`` also takes the array's line away when nothing is left in it. Raises TomlError.
    """
    document = parse(text)
    path = (key,)
    values = document.value.get(key)
    if not isinstance(values, list) or item not in values:
        return text
    items, index = document.items[path], values.index(item)
    if len(items) == 1:
        _start, end = document.spans[path]
        if whole_line:
            line_start = text.rfind("\n", 0, document.keys[path]) + 1
            line_end = text.find("\n", end)
            return text[:line_start] + ("" if line_end < 0 else text[line_end + 1 :])
        return text[: items[0][0]] + text[items[0][1] :]
    if index:
        return text[: items[index - 1][1]] + text[items[index][1] :]
    return text[: items[0][0]] + text[items[1][0] :]
