# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of OpenPGP keys, against gpg where there is one."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpuops.k8s.plugins.filter.key_fingerprints import FilterModule, key_fingerprints
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_filter_is_found_by_its_name() -> None:
    assert FilterModule().filters() == {"key_fingerprints": key_fingerprints}


@pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg to make keys with")
@pytest.mark.parametrize("kind", ["rsa2048", "ed25519"])
def test_agrees_with_gpg(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    stop = ["gpgconf", "--homedir", str(tmp_path), "--kill", "all"]  # gpg leaves an agent behind
    request.addfinalizer(lambda: subprocess.run(stop, check=False, capture_output=True))
    gpg = ["gpg", "--homedir", str(tmp_path), "--batch", "--quiet", "--passphrase", ""]
    tmp_path.chmod(0o700)
    for name in ("one", "two"):
        subprocess.run(
            [*gpg, "--quick-generate-key", name, kind, "default", "never"], check=True, capture_output=True
        )
    armored = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
    listed = subprocess.run(
        [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
    ).stdout
    lines = [line.split(":") for line in listed.splitlines()]
    primary = [after[9] for line, after in zip(lines, lines[1:]) if line[0] == "pub" and after[0] == "fpr"]
    assert sorted(key_fingerprints(armored)) == sorted(primary)
    assert len(primary) == 2
    assert key_fingerprints(armored.replace("\n", "\r\n")) == key_fingerprints(armored)


@pytest.mark.parametrize(
    "text",
    ["", "Package: x\n", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END PGP PUBLIC KEY BLOCK-----\n"],
)
def test_text_that_is_no_key_has_none(text: str) -> None:
    assert key_fingerprints(text) == []


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_damaged_keys_raise_nothing(data: bytes) -> None:
    body = base64.b64encode(data).decode()
    assert isinstance(
        key_fingerprints(
            f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n-----END PGP PUBLIC KEY BLOCK-----"
        ),
        list,
    )
