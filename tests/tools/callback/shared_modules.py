# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays of the tests share the modules that Ansible has put together: a third of a play's CPU time on the control host.

Ansible zips a module with what it imports once a play, into a folder of that play. The layers of tests start some 300
plays with the same modules. Folders here are named by what goes into them: Ansible, Python, and the collection's files.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from ansible import constants
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
