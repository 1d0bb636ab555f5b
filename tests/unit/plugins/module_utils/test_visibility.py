# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the visibility check tells the engines."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _visibility


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox"),
        ("gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("docker.io/gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("registry:5000/a", "registry:5000/a"),
    ],
)
def test_containerd_is_given_the_name_with_its_registry(short, full):
    assert _visibility.full_name(short) == full
