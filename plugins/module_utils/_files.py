# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and replacing configuration files: whole or not at all, mode and owner kept, old text saved.

The only place of the configuration modules that writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any, Optional


class FileError(Exception):
    """A file can't be read or written; the text names it and says what to do."""


def read_text(path: str) -> Optional[str]:
    """The file's text with its line ends as they are, None when there is no file. Raises FileError."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: byte {error.start} is not UTF-8; file left untouched. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}; nothing changed. Make it a readable file.") from error


def backup(path: str, directory: Optional[str] = None) -> str:
    """Copies a file to ``NAME.YYYYMMDDTHHMMSSZ~`` (UTC) beside it or in ``directory``; returns the copy's path.

    Mode, owner and times are kept. The name ends in ``~`` so that no engine takes it for a drop-in.
    """
    real = os.path.realpath(path)
    where = directory or os.path.dirname(real)
    stem = os.path.join(where, f"{os.path.basename(path)}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    target, number = stem + "~", 1
    while os.path.lexists(target):
        number += 1
        target = f"{stem}.{number}~"
    temporary = f"{target}.part"
    shutil.copy2(real, temporary)
    state = os.stat(real)
    os.chown(temporary, state.st_uid, state.st_gid)
    os.replace(temporary, target)
    return target


def replace(module: Any, path: str, text: str, mode: int = 0o644, errors: str = "strict") -> None:
    """Puts ``text`` at ``path`` by a rename, so that a reader sees the old file or the new one, never half.

    A link is followed. Mode, owner and SELinux context of the old file stay (AnsibleModule.atomic_move); a new
    file gets ``mode``. ``errors``: as of open(), for text that was read with the same. Raises FileError.
    """
    real = os.path.realpath(path)
    directory = os.path.dirname(real)
    temporary = ""
    try:
        make_directory(directory)
        # A dot in front and no suffix: no engine's glob takes it for configuration if we die here.
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(real)}.", dir=directory)
        with os.fdopen(handle, "w", encoding="utf-8", errors=errors, newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        module.atomic_move(temporary, real)
        sync_directory(directory)
    except OSError as error:
        raise FileError(
            f"{path}: {error.strerror}; nothing changed. Check the file system and its space."
        ) from error
    finally:
        if temporary and os.path.lexists(temporary):
            os.unlink(temporary)


def replace_all(
    module: Any, texts: dict[str, str], before: dict[str, Optional[str]], errors: str = "strict"
) -> None:
    """:func:`replace` for each path, or for none: when one fails, those written are put back. Raises FileError."""
    done: dict[str, Optional[str]] = {}
    try:
        for path, text in texts.items():
            replace(module, path, text, errors=errors)
            done[path] = before[path]
    except FileError:
        put_back(module, done, errors)
        raise


def put_back(module: Any, before: dict[str, Optional[str]], errors: str = "strict") -> None:
    """Gives each path the text it had; None: there was no such file. Raises FileError."""
    for path, text in before.items():
        if text is None:
            remove(path)
        else:
            replace(module, path, text, errors=errors)


def remove(path: str) -> None:
    """Deletes a file; no error when it is gone already. Raises FileError."""
    try:
        os.unlink(path)
        sync_directory(os.path.dirname(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}; it was to be removed. Remove it by hand.") from error


def make_directory(path: str, mode: int = 0o755) -> None:
    """Makes a directory and its parents where they are missing."""
    if not os.path.isdir(path):
        os.makedirs(path, mode=mode, exist_ok=True)


def sync_directory(path: str) -> None:
    """Makes a rename or removal in a directory last across a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
