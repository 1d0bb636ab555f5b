#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kubelet_engine_info
short_description: Say which container engine the node's kubelet talks to
version_added: 0.1.0
description:
  - Reads the kubelet's own settings, which are the flags in its unit, drop-ins and environment files, and
    C(containerRuntimeEndpoint) of its configuration. What is installed on the node does not count.
  - Where no setting names an endpoint, the kubelet's version decides. Before 1.24 it runs docker, from 1.24 on it talks
    to containerd.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.info_module
options:
  distribution:
    description:
      - How Kubernetes came onto the node, which says where settings are looked for.
    type: str
    choices: [auto, kubeadm, kubespray, k3s, rke2, microk8s, k0s]
    default: auto
  kubelet_version:
    description:
      - The kubelet's version. It is asked for if it is needed and not given.
    type: str
  timeout:
    description:
      - Seconds the kubelet has to tell its version.
    type: int
    default: 10
seealso:
  - module: gpuops.k8s.container_runtime
  - module: gpuops.k8s.gpu_visibility_info
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: See which engine has to know the NVIDIA runtime
  gpuops.k8s.kubelet_engine_info:
  register: kubelet
"""

RETURN = r"""
engine:
  description:
    - One of V(docker), V(containerd) and V(crio). V(embedded) for the containerd that k3s, rke2, MicroK8s and k0s bring
      with them and configure themselves, and V(other) for an endpoint that is none of these.
    - Empty without a kubelet.
  returned: always
  type: str
  sample: containerd
endpoint:
  description: The endpoint. Empty for a kubelet that runs docker by itself.
  returned: always
  type: str
  sample: unix:///run/containerd/containerd.sock
distribution:
  description: How Kubernetes came onto the node.
  returned: always
  type: str
  sample: kubeadm
place:
  description: The file that names the endpoint. Empty where none does.
  returned: always
  type: str
  sample: /var/lib/kubelet/kubeadm-flags.env
reason:
  description: How the engine is known.
  returned: always
  type: str
  sample: /var/lib/kubelet/kubeadm-flags.env names unix:///run/containerd/containerd.sock
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import (
    _gate_places,
    _kubelet_engine,
)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "distribution": {
                "type": "str",
                "choices": ["auto", *_gate_places.DISTRIBUTIONS],
                "default": "auto",
            },
            "kubelet_version": {"type": "str"},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    try:
        found = _kubelet_engine.find(
            "/", module.params["distribution"], module.params["kubelet_version"], module.params["timeout"]
        )
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename}: {error.strerror}; the kubelet's settings can't be read. Run as root."
        )
    module.exit_json(changed=False, **asdict(found))


if __name__ == "__main__":
    main()
