# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays of the tests share the modules that Ansible has put together, and nodes need not compile them. It saves CPU.

Ansible zips a module with what it imports once a play, into a folder of that play. The layers of tests start some 300
plays with the same modules. Folders here are named by what goes into them: Ansible, Python, and the collection's files.

A node compiles all of a module's sources each time that it runs it, for a task or for each round of a loop. Beside the
sources these zips hold their bytecode; a node with another Python than the control host passes over it (PEP 552, 3147).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import io
import marshal
import sys
import zipfile
from pathlib import Path

from ansible import constants
from ansible.executor import module_common
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__

DOCUMENTATION = """
name: shared_modules
type: aggregate
short_description: Plays share the modules that Ansible has put together
description:
  - Only for tests. Ansible itself locks each file in the folder, so plays at the same time do each other no harm.
"""

SHARED = Path(__file__).resolve().parents[3] / "build/shared-modules"


def key(collections: list[str]) -> str:
    """A name that changes with Ansible, Python, and the plugins of the collection in these folders."""
    digest = hashlib.sha256(f"{__version__} {sys.version} {sys.prefix}".encode())
    for folder in collections:
        root = Path(folder, "ansible_collections/gpuops/k8s/plugins")
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def bytecode(source: bytes, name: str) -> bytes:
    """The content of a .pyc file, of the kind that is not checked against its source."""
    unchecked = (1).to_bytes(4, "little")
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source) + code


def with_bytecode(zip_data: bytes) -> bytes:
    """`zip_data`, a zip in base64, with the bytecode of each Python source in it."""
    packed = io.BytesIO(base64.b64decode(zip_data))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                archive.writestr(f"{name}c", bytecode(archive.read(name), name))
    return base64.b64encode(packed.getvalue())


KEEP = module_common._CachedModule.dump


def keep(module: module_common._CachedModule, path: str) -> None:
    """Writes a module that Ansible has put together into the play's folder, as KEEP does, with bytecode."""
    KEEP(dataclasses.replace(module, zip_data=with_bytecode(module.zip_data)), path)


class CallbackModule(CallbackBase):
    """Does its work when it is loaded, before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "shared_modules"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        folder = SHARED / key(constants.COLLECTIONS_PATHS)
        folder.mkdir(parents=True, exist_ok=True)
        # The play's own folder, which Ansible removes with this link at its end.
        Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(folder)
        module_common._CachedModule.dump = keep
        # Seconds between two looks for a worker's result; Ansible's 0.001 takes CPU from the workers.
        constants.DEFAULT_INTERNAL_POLL_INTERVAL = 0.01
