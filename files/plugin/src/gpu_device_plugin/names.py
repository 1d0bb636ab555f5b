"""Resource names as the kubelet wants them (K4)."""

from __future__ import annotations

import re

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)

MAX_PREFIX = 253 - len("requests.")
"""The kubelet checks ``requests.<name>`` as a qualified name, whose prefix has at most 253 characters."""


def qualify(name: str, prefix: str) -> str:
    """``gpu`` -> ``nvidia.com/gpu``; names with a slash stay."""
    return name if "/" in name else f"{prefix}/{name}"


def bad_prefix(prefix: str) -> str | None:
    """Why this can't stand before the slash, None when it can."""
    if not _DOMAIN.fullmatch(prefix):
        return f"{prefix!r} is no domain name (lower case letters, digits, '-' and '.')"
    if len(prefix) > MAX_PREFIX:
        return f"{prefix[:40]!r}... is longer than {MAX_PREFIX} characters"
    if (prefix + "/").endswith("kubernetes.io/"):
        return f"{prefix!r}: kubernetes.io is kept for Kubernetes itself"
    if prefix.startswith("requests."):
        return f"{prefix!r}: a name must not begin with 'requests.'"
    return None


def bad_name(resource: str) -> str | None:
    """Why the kubelet would refuse this resource name, None when it wouldn't."""
    prefix, slash, name = resource.partition("/")
    if not slash:
        return f"{resource!r} has no '/': write it as example.com/{resource}"
    wrong = bad_prefix(prefix)
    if wrong:
        return wrong
    if not name:
        return f"{resource!r}: nothing after the '/'"
    if len(name) > 63:
        return f"{name[:40]!r}... is {len(name)} characters long; 63 is the most after the '/'"
    if not _NAME.fullmatch(name):
        return (
            f"{name!r} must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
        )
    return None
