# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gate in kubeadm's ConfigMap, which `kubeadm upgrade` writes to the nodes: read and patched by kubectl."""

from __future__ import annotations

import json
from typing import Any

from . import _gate_places as places_of
from . import _gate_table as table
from . import _gate_text as text_of
from ._gate_plan import diff_of, plan_edits, report


def run(module: Any) -> None:
    """Ends the module kubelet_feature_gate, as fail_json and exit_json do."""
    params = module.params
    name = params["config_map"]
    command = params["kubectl"].split() + (
        ["--kubeconfig", params["kubeconfig"]] if params["kubeconfig"] else []
    )
    command += ["--namespace", "kube-system"]
    rc, out, err = module.run_command(command + ["get", "configmap", name, "--output", "json"])
    missing = rc != 0 and "NotFound" in err
    if rc != 0 and not missing:
        module.fail_json(
            msg=f"kubectl can not read ConfigMap kube-system/{name}: {err.strip()}; check kubectl and kubeconfig"
        )
    text = "" if missing else (json.loads(out).get("data") or {}).get("kubelet", "")
    path = f"ConfigMap kube-system/{name}"
    place = places_of.Place(path, text_of.CONFIG, 0)
    mentions = [(place, entry) for entry in text_of.find(text, params["name"], text_of.CONFIG)]
    effective = mentions[-1][1].value if mentions else None
    version = table.parse_version(params["kubelet_version"])
    target = table.parse_version(params["target_version"]) if params["target_version"] else None
    decision = table.decide(version, bool(mentions), effective, target, params["state"], params["name"])
    edits = (
        {} if missing else plan_edits(decision, params["name"], (place,), {path: text}, mentions, "kubeadm")
    )
    result = report(decision, version, effective, mentions, edits, {path: text} if edits else {}, "kubelet")
    result["restart_required"] = False
    if module._diff:
        result["diff"] = diff_of(result)
    if edits and not module.check_mode:
        patch = json.dumps({"data": {"kubelet": edits[path]}})
        rc, _unused, err = module.run_command(
            command + ["patch", "configmap", name, "--type", "merge", "--patch", patch]
        )
        if rc != 0:
            module.fail_json(
                msg=f"kubectl can not write {path}: {err.strip()}", **dict(result, changed=False)
            )
    module.exit_json(**result)
