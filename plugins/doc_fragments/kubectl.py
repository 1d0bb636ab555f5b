# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of every module that calls kubectl (module_utils/_kubectl.py has their arguments)."""

    DOCUMENTATION = r"""
options:
  kubectl:
    description:
      - The kubectl to run, a name or a path. May be several words, such as V(k3s kubectl).
    type: str
    default: kubectl
  kubeconfig:
    description:
      - The kubeconfig file to use.
      - When not given, kubectl's own search applies (E(KUBECONFIG), then C(~/.kube/config)). Where that finds
        nothing, the file is taken that kubeadm, k3s or rke2 leave on a control-plane host.
    type: path
  context:
    description:
      - The context of the kubeconfig to use, when not its current one.
    type: str
"""
