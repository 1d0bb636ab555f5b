# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file of a node that can carry a kubelet's feature gates, and the service that reads it.

Only reads. ``root`` is the node's root directory, another one in tests.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_text as text_of

DISTRIBUTIONS = ("kubeadm", "kubespray", "k3s", "rke2", "microk8s", "k0s")
UNIT_DIRS = ("/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system")
_VERSION_COMMANDS: Dict[str, Tuple[Tuple[str, ...], ...]] = {
    "kubeadm": (
        ("kubelet", "--version"),
        ("/usr/bin/kubelet", "--version"),
        ("/usr/local/bin/kubelet", "--version"),
    ),
    "kubespray": (("kubelet", "--version"), ("/usr/local/bin/kubelet", "--version")),
    "k3s": (("k3s", "--version"), ("/usr/local/bin/k3s", "--version")),
    "rke2": (("rke2", "--version"), ("/usr/local/bin/rke2", "--version")),
    "microk8s": (("/snap/microk8s/current/kubectl", "version", "--client"),),
    "k0s": (("k0s", "version"), ("/usr/local/bin/k0s", "version")),
}
MICROK8S_ARGS = "/var/snap/microk8s/current/args/kubelet"

_UNITS: Dict[str, Tuple[str, ...]] = {
    "kubeadm": ("kubelet",),
    "kubespray": ("kubelet",),
    "k3s": ("k3s", "k3s-agent"),
    "rke2": ("rke2-server", "rke2-agent"),
    "microk8s": ("snap.microk8s.daemon-kubelite", "snap.microk8s.daemon-kubelet"),
    "k0s": ("k0sworker", "k0scontroller"),
}
# Weakest first: a later file wins over an earlier one (KUBELET.md: KUBELET_EXTRA_ARGS wins).
_ENV_FILES: Dict[str, Tuple[str, ...]] = {
    "kubeadm": ("/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"),
    "kubespray": ("/etc/kubernetes/kubelet.env",),
    "k3s": (
        "/etc/systemd/system/k3s.service.env",
        "/etc/systemd/system/k3s-agent.service.env",
        "/etc/default/k3s",
        "/etc/sysconfig/k3s",
    ),
    "rke2": (
        "/etc/default/rke2-server",
        "/etc/default/rke2-agent",
        "/etc/sysconfig/rke2-server",
        "/etc/sysconfig/rke2-agent",
    ),
    "microk8s": (),
    "k0s": ("/etc/default/k0sworker", "/etc/sysconfig/k0sworker"),
}
_CONFIG_FILES: Dict[str, Tuple[str, ...]] = {
    "kubeadm": (
        "/var/lib/kubelet/config.yaml",
        "/etc/kubernetes/kubelet/kubelet-config.json",
        "/etc/kubernetes/kubelet/config.json",
    ),
    "kubespray": ("/etc/kubernetes/kubelet-config.yaml",),
    "k3s": (),
    "rke2": (),
    "microk8s": (),
    "k0s": ("/etc/k0s/k0s.yaml",),
}
# Files that something else writes anew: an edit lasts only until then.
REWRITTEN = {
    "/var/lib/kubelet/config.yaml": (
        "kubeadm upgrade rewrites it from the ConfigMap kube-system/kubelet-config; change that too"
    ),
    "/etc/k0s/k0s.yaml": "a worker profile reaches the workers through the controller",
}


@dataclass(frozen=True)
class Place:
    """One file, how it is written, and how strong it is."""

    path: str
    """As the node sees it, without the root."""
    kind: str
    """One of the kinds of :mod:`_gate_text`."""
    strength: int
    """A higher one wins: 0 configuration files, 1 their drop-ins, 2 and more flags."""
    used: bool = True
    """False for a configuration file while the kubelet's ``--config`` names another one."""


def _on(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/")) if root != "/" else path


def read_text(root: str, path: str) -> Optional[str]:
    """The file's text; None when there is no such file. Raises OSError when it can't be read."""
    try:
        with open(_on(root, path), encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(root: str, path: str) -> bool:
    """Whether the node has that path."""
    return os.path.exists(_on(root, path))


def _globbed(root: str, pattern: str) -> List[str]:
    found = sorted(glob.glob(_on(root, pattern)))
    return found if root == "/" else ["/" + os.path.relpath(path, root) for path in found]


def unit_files(root: str, unit: str) -> List[str]:
    """Fragment and drop-ins of a unit, weakest first, each real file once."""
    seen: Dict[str, str] = {}
    for directory in UNIT_DIRS:
        candidates = ["{0}/{1}.service".format(directory, unit)]
        candidates += _globbed(root, "{0}/{1}.service.d/*.conf".format(directory, unit))
        for path in candidates:
            full = _on(root, path)
            if os.path.isfile(full) and os.path.realpath(full) not in seen:
                seen[os.path.realpath(full)] = path
    return list(seen.values())


def detect(root: str = "/") -> str:
    """The distribution whose kubelet runs here; kubeadm's layout when nothing says otherwise."""
    if exists(root, MICROK8S_ARGS):
        return "microk8s"
    for distribution in ("k3s", "rke2", "k0s"):
        if any(unit_files(root, unit) for unit in _UNITS[distribution]):
            return distribution
    if exists(root, "/etc/kubernetes/kubelet.env"):
        return "kubespray"
    return "kubeadm"


def service(root: str, distribution: str) -> str:
    """The systemd service to restart after a change."""
    units = _UNITS[distribution]
    return next((unit for unit in units if unit_files(root, unit)), units[0])


def _unquoted(word: str) -> str:
    return word.strip().strip("\"'").lstrip("-")


def _flag_values(text: str, flag: str) -> List[str]:
    pattern = r"(?<![\w-])--" + flag + r"(?:=|[ \t]+)[\"']?([^\s\"'\\]+)"
    kept = [line for line in text.splitlines() if not line.lstrip().startswith(("#", ";"))]
    return re.findall(pattern, "\n".join(kept))


def find_places(  # noqa: PLR0912 - one branch a distribution
    root: str = "/", distribution: str = "auto", extra: Tuple[str, ...] = ()
) -> Tuple[Place, ...]:
    """Every existing file that can name a gate, weakest first.

    With ``auto`` the places of all distributions are looked through: a leftover of an earlier one counts too.
    """
    wanted = DISTRIBUTIONS if distribution == "auto" else (distribution,)
    flags: Dict[str, str] = {}
    configs: Dict[str, None] = {}
    texts: List[str] = []

    def add_flags(path: str, kind: str) -> None:
        found = read_text(root, path)
        if found is not None and path not in flags:
            flags[path] = kind
            texts.append(found)

    for name in wanted:
        configs.update(dict.fromkeys(_CONFIG_FILES[name]))
        for unit in _UNITS[name]:
            for path in unit_files(root, unit):
                add_flags(path, text_of.UNIT)
                for env in re.findall(r"(?m)^EnvironmentFile=(\S+)", read_text(root, path) or ""):
                    if "%" not in env and "$" not in env:
                        add_flags(_unquoted(env), text_of.ENV)
        for path in _ENV_FILES[name]:
            if path in flags:
                flags[path] = flags.pop(path)  # the strongest of them stands last
            add_flags(path, text_of.ENV)
        if name == "microk8s":
            add_flags(MICROK8S_ARGS, text_of.ARGS)
        if name in ("k3s", "rke2"):
            add_flags("/etc/rancher/{0}/config.yaml".format(name), text_of.KUBELET_ARG)
            for path in _globbed(root, "/etc/rancher/{0}/config.yaml.d/*.yaml".format(name)):
                add_flags(path, text_of.KUBELET_ARG)
    named = [value for text in texts for value in _flag_values(text, "config") if value.startswith("/")]
    drop_in_dirs = [
        value for text in texts for value in _flag_values(text, "config-dir") if value.startswith("/")
    ]
    configs.update(dict.fromkeys(named))
    places = [
        Place(path, text_of.CONFIG, 0, used=not named or path in named or path.startswith("/etc/k0s"))
        for path in configs
        if os.path.isfile(_on(root, path))
    ]
    for directory in dict.fromkeys(drop_in_dirs):
        places += [Place(path, text_of.CONFIG, 1) for path in _globbed(root, directory + "/*.conf")]
    places += [Place(path, kind, 2 + order) for order, (path, kind) in enumerate(flags.items())]
    known = {place.path for place in places}
    for path in extra:
        if path not in known and os.path.isfile(_on(root, path)):
            places.append(Place(path, kind_of(path, read_text(root, path) or ""), 100))
    return tuple(places)


def kind_of(path: str, text: str) -> str:
    """How an extra file is written, from its name and what is in it."""
    kind: str = text_of.ARGS
    if path.endswith((".service", ".conf")) and "[Service]" in text:
        kind = text_of.UNIT
    elif re.search(r"(?m)^[\"']?kubelet-arg", text):
        kind = text_of.KUBELET_ARG
    elif path.endswith((".yaml", ".yml", ".json")) or re.search(r"featureGates|KubeletConfiguration", text):
        kind = text_of.CONFIG
    elif re.search(r"(?m)^\s*(?:export\s+)?\w+=", text):
        kind = text_of.ENV
    return kind


def place_to_add(places: Tuple[Place, ...], texts: Dict[str, str], distribution: str) -> Place:
    """Where a gate that is named nowhere is written: beside other gates, else in the configuration, else as a flag."""
    for place in reversed(places):
        if place.kind in text_of.FLAG_KINDS and re.search(r"feature-gates[= ]", texts.get(place.path, "")):
            return place
    if distribution == "microk8s":
        return Place(MICROK8S_ARGS, text_of.ARGS, 2)
    if distribution in ("k3s", "rke2"):
        return Place("/etc/rancher/{0}/config.yaml".format(distribution), text_of.KUBELET_ARG, 2)
    for place in places:
        if place.kind == text_of.CONFIG and place.used and place.strength == 0:
            return place
    for place in reversed(places):
        if place.kind == text_of.ENV and place.path.startswith(
            ("/etc/default", "/etc/sysconfig", "/etc/kubernetes")
        ):
            return place
    read = [env for text in texts.values() for env in re.findall(r"(?m)^EnvironmentFile=-?(/etc/\S+)", text)]
    return Place(read[-1] if read else "/etc/default/kubelet", text_of.ENV, 50)


def version_commands(distribution: str) -> List[List[str]]:
    """Commands that print the kubelet's version, the likeliest first."""
    return [list(command) for command in _VERSION_COMMANDS[distribution]]


def survey(
    root: str, places: Tuple[Place, ...], gate: str
) -> Tuple[Dict[str, str], List[Tuple[Place, text_of.Named]], Optional[bool]]:
    """(texts by path, mentions of the gate, value that wins) over all places."""
    texts: Dict[str, str] = {}
    mentions: List[Tuple[Place, text_of.Named]] = []
    effective: Optional[bool] = None
    for place in sorted(places, key=lambda place: place.strength):
        texts[place.path] = read_text(root, place.path) or ""
        for entry in text_of.find(texts[place.path], gate, place.kind):
            mentions.append((place, entry))
            if place.used and entry.value is not None:
                effective = entry.value
            elif place.used and place.strength == 1:
                effective = None  # null in a drop-in deletes the key
    return texts, mentions, effective


def healthz_url(texts: Dict[str, str]) -> str:
    """The kubelet's address for probes, from healthzPort and healthzBindAddress where a configuration says them."""
    port, address = "10248", "127.0.0.1"
    for text in texts.values():
        found = re.search(r"(?m)^\s*[\"']?healthzPort[\"']?\s*:\s*(\d+)", text) or re.search(
            r"--healthz-port[= ](\d+)", text
        )
        port = found.group(1) if found else port
        found = re.search(r"(?m)^\s*[\"']?healthzBindAddress[\"']?\s*:\s*[\"']?([\d.]+)", text)
        address = found.group(1) if found and found.group(1) != "0.0.0.0" else address
    return f"http://{address}:{port}/healthz"
