# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fingerprints of OpenPGP keys, without gpg: neither nodes nor control hosts need to have it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: key_fingerprints
short_description: Fingerprints of the primary keys in an armored OpenPGP key file
version_added: 0.1.0
author:
  - The gpuops developers (@gpuops)
description:
  - Returns the fingerprint of each primary key in the text, as upper case hexadecimal digits.
  - Text that holds no OpenPGP public key gives an empty list.
options:
  _input:
    description: The text of an armored public key file.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: The key is the one we trust
  ansible.builtin.assert:
    that: >-
      'C95B321B61E88C1809C4F759DDCAE044F796ECB0' in
      (lookup('ansible.builtin.file', 'gpgkey') | gpuops.k8s.key_fingerprints)
"""

RETURN = r"""
_value:
  description: Fingerprints, 40 digits for keys of version 4, 64 for version 6.
  type: list
  elements: str
"""

import base64
import binascii
import hashlib
import re
from typing import Any, Iterator

_BLOCK = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_PUBLIC_KEY = 6  # packet tag, RFC 9580 section 5


def _dearmor(text: str) -> Iterator[bytes]:
    for block in _BLOCK.findall(text.replace("\r\n", "\n")):
        # Armor headers end at an empty line (RFC 9580, section 6.2); mostly there are none.
        headers, _blank, body = ("\n" + block).partition("\n\n")
        if not body:
            body = headers
        lines = [line for line in body.split("\n") if line and not line.startswith("=")]
        try:
            yield base64.b64decode("".join(lines), validate=True)
        except (ValueError, binascii.Error):
            continue


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each packet, old and new framing (RFC 9580, section 4.2); stops at what it can't follow."""
    at = 0
    while at + 1 < len(data) and data[at] & 0x80:
        head = data[at]
        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, data[at]
            if first < 192:
                length, at = first, at + 1
            elif first < 224:
                length, at = ((first - 192) << 8) + data[at + 1] + 192, at + 2
            elif first == 255:
                length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
            else:
                return
        else:
            tag, size = (head & 0x3C) >> 2, {0: 1, 1: 2, 2: 4}.get(head & 3, 0)
            if not size:
                return
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        yield tag, data[at : at + length]
        at += length


def _fingerprint(body: bytes) -> str:
    """RFC 9580, section 5.5.4: SHA-1 for version 4, SHA-256 for version 6; "" for others."""
    if body[:1] == b"\x04":
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()  # noqa: S324 - the format's
    if body[:1] == b"\x06":
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    return ""


def key_fingerprints(text: str) -> list[str]:
    """Fingerprints of all primary keys in the text, in their order."""
    found: list[str] = []
    for data in _dearmor(str(text)):
        try:
            found += [_fingerprint(body) for tag, body in _packets(data) if tag == _PUBLIC_KEY]
        except IndexError:
            continue
    return [fingerprint for fingerprint in found if fingerprint]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"key_fingerprints": key_fingerprints}
