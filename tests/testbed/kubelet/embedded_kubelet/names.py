"""Which resource names a kubelet takes (K4)."""

from __future__ import annotations

import re

_NAME = re.compile(r"(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def is_qualified_name(value: str) -> bool:
    """``prefix/name``: a DNS subdomain of at most 253 characters, and a name of at most 63."""
    prefix, slash, name = value.rpartition("/")
    if slash and (not prefix or len(prefix) > 253 or _DNS.fullmatch(prefix) is None):
        return False
    return len(name) <= 63 and _NAME.fullmatch(name) is not None


def is_extended_resource(name: str) -> bool:
    """Whether a plugin may offer this: no native resource, no ``requests.`` prefix, and a qualified name."""
    if "/" not in name or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    return is_qualified_name(f"requests.{name}")
