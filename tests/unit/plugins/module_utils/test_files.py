# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several files are written, or none is."""

from __future__ import annotations

import os

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _files


class Module:
    """Ansible's atomic_move, for files of one owner on one file system; fails for a path that is full."""

    full = ""

    def atomic_move(self, source, target):
        if target == self.full:
            raise OSError(28, "No space left on device")
        if os.path.exists(target):
            os.chmod(source, os.stat(target).st_mode)
        os.replace(source, target)


def test_when_one_file_can_not_be_written_those_before_it_are_put_back(tmp_path):
    first, new, last = (str(tmp_path / name) for name in ("first", "new", "last"))
    (tmp_path / "first").write_text("old")
    (tmp_path / "last").write_text("old")
    module = Module()
    module.full = last
    with pytest.raises(_files.FileError, match="last: No space left on device; nothing changed"):
        _files.replace_all(
            module, dict.fromkeys((first, new, last), "new"), {first: "old", new: None, last: "old"}
        )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "old", "last": "old"}


def test_a_link_is_followed_and_mode_and_foreign_bytes_stay(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    text = b"KUBELET_EXTRA_ARGS=\xff\r\n".decode(errors="surrogateescape")
    _files.replace_all(Module(), {str(link): text}, {str(link): "old"}, errors="surrogateescape")
    assert link.is_symlink()
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"KUBELET_EXTRA_ARGS=\xff\r\n", 0o600)
