# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which command line a daemon is started with, and in which file each flag stands.

Sources, in the order of systemd.unit(5) and systemd.service(5): the unit file of the first directory that has
it, its drop-ins by name, the environment files they name; then the running process. A running daemon whose
files were edited since has flags of its own, so both are looked at.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from dataclasses import dataclass
from typing import Optional

UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True)
class Word:
    """One word of a command line and where it was found (``file:line`` or ``running dockerd (pid 7)``)."""

    text: str
    place: str


@dataclass(frozen=True)
class Flag:
    """One flag as the daemon sees it: its name without dashes, its value (None for a bare one), its place."""

    name: str
    value: Optional[str]
    place: str

    def __str__(self) -> str:
        dashes = "-" if len(self.name) == 1 else "--"
        return f"{dashes}{self.name}" + ("" if self.value is None else f"={self.value}")


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with continuations joined: (number of the first line, text). Comments are dropped."""
    lines: list[tuple[int, str]] = []
    pending: Optional[tuple[int, str]] = None
    for number, raw in enumerate(text.splitlines(), start=1):
        stripped = raw.strip()
        if stripped.startswith(("#", ";")):
            continue
        start, head = pending or (number, "")
        if raw.rstrip().endswith("\\"):
            pending = (start, head + raw.rstrip()[:-1] + " ")
            continue
        pending = None
        if (head + stripped).strip():
            lines.append((start, (head + stripped).strip()))
    if pending is not None:
        lines.append(pending)
    return lines


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def unit_files(unit: str, directories: tuple[str, ...] = UNIT_DIRECTORIES) -> list[str]:
    """The unit's file and its drop-ins in the order in which systemd reads them; [] when there is no unit."""
    fragment = next(
        (path for path in (os.path.join(d, unit) for d in directories) if os.path.isfile(path)), None
    )
    drop_ins: dict[str, str] = {}
    for directory in reversed(
        directories
    ):  # an earlier directory hides a file of the same name in a later one
        for path in glob.glob(os.path.join(directory, f"{unit}.d", "*.conf")):
            drop_ins[os.path.basename(path)] = path
    return ([fragment] if fragment else []) + [drop_ins[name] for name in sorted(drop_ins)]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def unit_command(unit: str, directories: tuple[str, ...] = UNIT_DIRECTORIES) -> list[Word]:
    """The words of the unit's last ExecStart with its variables put in, each with its file and line."""
    command: list[Word] = []
    variables: dict[str, Word] = {}
    section = ""
    for path in unit_files(unit, directories):
        for number, line in _logical_lines(_read(path) or ""):
            if line.startswith("["):
                section = line
                continue
            key, _equals, value = (part.strip() for part in line.partition("="))
            place = f"{path}:{number}"
            if section != "[Service]":
                continue
            if key == "ExecStart":
                # An empty one clears the list; of several the last is the daemon we look at.
                words = _split(value.lstrip("@-:+!"))
                command = [Word(word, place) for word in words]
            elif key == "Environment":
                for pair in _split(value):
                    name, _is, content = pair.partition("=")
                    variables[name] = Word(content, place)
            elif key == "EnvironmentFile" and value:
                variables.update(_environment_file(value.lstrip("-")))
    return _expand(command, variables)


def _environment_file(pattern: str) -> dict[str, Word]:
    variables: dict[str, Word] = {}
    for path in sorted(glob.glob(pattern)):
        for number, line in _logical_lines(_read(path) or ""):
            name, is_there, value = line.partition("=")
            if is_there:
                text = value.strip()
                if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
                    text = text[1:-1]
                variables[name.strip()] = Word(text, f"{path}:{number}")
    return variables


def _expand(command: list[Word], variables: dict[str, Word]) -> list[Word]:
    """systemd.service(5): ``$NAME`` as a word of its own is split at blanks, ``${NAME}`` is one word's part."""
    words: list[Word] = []
    for word in command:
        alone = re.fullmatch(r"\$(\w+)", word.text)
        if alone:
            found = variables.get(alone.group(1))
            if found:
                words.extend(Word(part, found.place) for part in _split(found.text))
            continue
        place = word.place
        text = word.text
        for match in _VARIABLE.finditer(word.text):
            found = variables.get(match.group(1) or match.group(2))
            place = found.place if found else place
            text = text.replace(match.group(), found.text if found else "")
        words.append(Word(text, place))
    return words


def process_command(
    names: tuple[str, ...], proc: str = "/proc", not_with: str = ""
) -> tuple[Optional[int], list[Word]]:
    """Pid and words of the oldest process of this pid namespace whose program has one of these names.

    A process with a word that ends in ``not_with`` is another one's: dockerd starts a containerd of its own.
    """
    own = _namespace(proc, "self")
    found: list[tuple[int, int, list[Word]]] = []
    for entry in os.listdir(proc) if os.path.isdir(proc) else []:
        if not entry.isdigit():
            continue
        try:
            with open(os.path.join(proc, entry, "cmdline"), "rb") as stream:
                words = [word.decode("utf-8", "replace") for word in stream.read().split(b"\0")[:-1]]
        except OSError:
            continue
        if not_with and any(word.endswith(not_with) for word in words):
            continue
        # Words of the daemons of nested containers are seen from the host as well: other namespace, not ours.
        if not words or os.path.basename(words[0]) not in names or _namespace(proc, entry) != own:
            continue
        started = start_ticks(int(entry), proc)
        if started is not None:
            place = f"running {os.path.basename(words[0])} (pid {entry})"
            found.append((started, int(entry), [Word(word, place) for word in words]))
    if not found:
        return None, []
    _started, pid, command = min(found, key=lambda item: item[:2])
    return pid, command


def _namespace(proc: str, entry: str) -> str:
    try:
        return os.readlink(os.path.join(proc, entry, "ns", "pid"))
    except OSError:
        return ""


def start_ticks(pid: int, proc: str = "/proc") -> Optional[int]:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); None when it is gone."""
    text = _read(os.path.join(proc, str(pid), "stat"))
    if not text:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def flags(words: list[Word]) -> list[Flag]:
    """The flags in a command line: ``--name=value``, ``--name value``, ``-n value``; the program is skipped.

    Without a table of a daemon's flags a word after a bare flag is taken as its value; for the flags that are
    looked for here that is so.
    """
    found: list[Flag] = []
    for index, word in enumerate(words[1:], start=1):
        if not word.text.startswith("-") or word.text in ("-", "--"):
            continue
        name, has_value, value = word.text.lstrip("-").partition("=")
        following = words[index + 1] if index + 1 < len(words) else None
        if has_value:
            found.append(Flag(name, value.strip("\"'"), word.place))
        elif following is not None and not following.text.startswith("-"):
            found.append(Flag(name, following.text, word.place))
        else:
            found.append(Flag(name, None, word.place))
    return found


def daemon_flags(
    unit: str,
    programs: tuple[str, ...],
    directories: tuple[str, ...] = UNIT_DIRECTORIES,
    proc: str = "/proc",
    not_with: str = "",
) -> tuple[Optional[int], list[Flag]]:
    """Pid of the running daemon (or None) and its flags; one given by a file is named by that file alone."""
    from_files = flags(unit_command(unit, directories))
    pid, words = process_command(programs, proc, not_with)
    known = {(flag.name, flag.value) for flag in from_files}
    return pid, from_files + [flag for flag in flags(words) if (flag.name, flag.value) not in known]
