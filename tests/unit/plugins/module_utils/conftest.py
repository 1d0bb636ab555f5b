# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the tests of the helpers."""

from __future__ import annotations

import pytest


@pytest.fixture
def node(tmp_path):
    """`node({path: text})` makes files of a node below a root of its own; returns the root."""

    def make(files):
        for path, text in files.items():
            full = tmp_path / path.lstrip("/")
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_text(text)
        return str(tmp_path)

    return make
