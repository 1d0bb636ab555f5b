# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which container engine the kubelet of a node talks to, by its own settings: the one place that decides it.

Only reads. ``root`` is the node's root directory, another one in tests.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_places as places_of
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_text as text_of

EMBEDDING = ("k3s", "rke2", "microk8s", "k0s")
"""Distributions that bring a containerd of their own, which they configure themselves."""
CONTAINERD = "unix:///run/containerd/containerd.sock"
"""The endpoint of kubelets from 1.24 on that are told none."""
_FLAG = r"--(container-runtime(?:-endpoint)?)(?:=|[ \t]+)[\"']?([^\s\"'\\]+)"
_LIST_ITEM = r"[\"']?(?:--)?(container-runtime-endpoint)[\"']?[ \t]*[=:][ \t]*[\"']?([^\s\"',\]#]+)"
_KEY = r"(?:^|[{,\s])[\"']?(containerRuntimeEndpoint)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"',}#]+)"
# Named by the endpoint's path; dockershim is Docker in the kubelet, cri-dockerd Docker beside it.
_ENGINES = (
    ("docker", r"dockershim|cri-dockerd|docker\.sock"),
    ("crio", r"crio"),
    ("containerd", r"containerd"),
)
_OWN = {"k3s": r"/run/k3s/", "microk8s": r"snap.*microk8s|\$\{?SNAP", "k0s": r"/run/k0s"}


@dataclass(frozen=True)
class Found:
    """The kubelet's engine, and how that is known."""

    engine: str
    """``docker``, ``containerd``, ``crio``; ``embedded`` for a distribution's own containerd; ``other`` for an endpoint
    that is none of these; empty without a kubelet."""
    endpoint: str
    """Empty for a kubelet that runs docker by itself (dockershim), and where it is not known."""
    distribution: str
    place: str
    """File that says so; empty where none does."""
    reason: str
    """In words, for messages."""


def _settings(text: str, kind: str) -> Iterator[Tuple[str, str]]:
    """(key, value) of each mention in a text, comments left out, in the order of the text."""
    pattern = {text_of.CONFIG: _KEY, text_of.KUBELET_ARG: _LIST_ITEM}.get(kind, _FLAG)
    kept = [line for line in text.splitlines() if not line.lstrip().startswith(("#", ";"))]
    for key, value in re.findall(pattern, "\n".join(kept), re.MULTILINE):
        yield key.replace("containerRuntimeEndpoint", "container-runtime-endpoint"), value
    if kind == text_of.KUBELET_ARG and re.search(r"(?m)^docker[ \t]*:[ \t]*true\b", text):
        yield "container-runtime", "docker"
    if kind == text_of.UNIT and re.search(
        r"(?m)^ExecStart=.*[ \t]--docker(?:[ \t]|=true|$)", "\n".join(kept)
    ):
        yield "container-runtime", "docker"


def _named(root: str, distribution: str) -> Tuple[str, str, str]:
    """(endpoint, value of --container-runtime, file) that win; the last flag wins over all files."""
    found = {"container-runtime-endpoint": ("", ""), "container-runtime": ("", "")}
    for place in sorted(places_of.find_places(root, distribution), key=lambda place: place.strength):
        if not place.used:
            continue
        text = places_of.read_text(root, place.path) or ""
        if place.kind == text_of.UNIT and re.search(r"(?m)^ExecStart=[ \t]*$", text):
            # A drop-in that starts the kubelet anew: the flags in the unit before it are no more.
            for key, (_unused, path) in list(found.items()):
                if "/systemd/system/" in path and "ExecStart" in (places_of.read_text(root, path) or ""):
                    found[key] = ("", "")
        for key, value in _settings(text, place.kind):
            found[key] = (value, place.path)
    endpoint, runtime = found["container-runtime-endpoint"], found["container-runtime"]
    return endpoint[0], runtime[0], endpoint[1] or runtime[1]


def engine_of(endpoint: str) -> str:
    """The engine behind an endpoint, by its path; empty when that says nothing."""
    return next((engine for engine, pattern in _ENGINES if re.search(pattern, endpoint)), "")


def _version(distribution: str, timeout: float) -> str:
    """What the kubelet says of itself, such as ``1.20.2``; empty without one."""
    for command in places_of.version_commands(distribution):
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function
                command, capture_output=True, timeout=timeout, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(r"v?(\d+\.\d+(?:\.\d+)?)", done.stdout.decode("utf-8", "replace"))
        if done.returncode == 0 and match:
            return match.group(1)
    return ""


def _older_than_1_24(version: str) -> bool:
    numbers: List[int] = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return tuple(numbers) < (1, 24)


def find(
    root: str = "/", distribution: str = "auto", version: Optional[str] = None, timeout: float = 10
) -> Found:
    """The engine of this node's kubelet. ``version``: the kubelet's, asked for only where no setting decides."""
    if distribution == "auto":
        distribution = places_of.detect(root)
    endpoint, runtime, place = _named(root, distribution)
    if runtime == "docker" and not endpoint:
        return Found("docker", "", distribution, place, f"{place} says docker")
    own = next((name for name, pattern in _OWN.items() if endpoint and re.search(pattern, endpoint)), "")
    if own or (distribution in EMBEDDING and not endpoint):
        name = distribution if distribution in EMBEDDING else own
        return Found("embedded", endpoint, name, place, f"{name} runs a containerd of its own")
    if endpoint:
        engine = engine_of(endpoint) or "other"
        return Found(engine, endpoint, distribution, place, f"{place} names {endpoint}")
    version = _version(distribution, timeout) if version is None else version
    if not version:
        return Found("", "", distribution, "", "there is no kubelet")
    if _older_than_1_24(version):
        return Found(
            "docker", "", distribution, "", f"kubelet {version} is told no endpoint and runs docker itself"
        )
    return Found(
        "containerd",
        CONTAINERD,
        distribution,
        "",
        f"kubelet {version} is told no endpoint; its own is {CONTAINERD}",
    )
