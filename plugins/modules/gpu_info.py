#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Count the NVIDIA GPUs of a node and say which view of them is wrong
version_added: 0.1.0
description:
  - Looks at the GPUs from four sides, which are the PCI bus, the kernel driver, NVML and the device nodes, and
    compares the counts.
  - Names the first link of this chain that is broken, with the next step.
  - NVML is asked through its C library in a child process, so that a driver that hangs or crashes does not take the
    play with it.
    C(nvidia-smi -q -x) is the fallback. Nothing but Python is needed on the node, and no GPU is taken.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.info_module
options:
  expect:
    description:
      - How many GPUs there have to be. With it the module fails when any link is broken.
    type: int
  strict:
    description:
      - Whether to fail when any link is broken, with no number expected.
    type: bool
    default: false
  processes:
    description:
      - Whether to list the processes on each GPU.
    type: bool
    default: false
  mig_strategy:
    description:
      - The MIG strategy for the label C(nvidia.com/mig.strategy).
    type: str
    choices: [none, single, mixed]
    default: none
  sysfs_root:
    description:
      - Where sysfs is mounted.
    type: path
    default: /sys
  proc_root:
    description:
      - Where procfs is mounted.
    type: path
    default: /proc
  dev_root:
    description:
      - The directory of the device nodes.
    type: path
    default: /dev
  nvml_library:
    description:
      - The NVML library, as a path or as a name the dynamic linker finds.
    type: str
    default: libnvidia-ml.so.1
  nvidia_smi:
    description:
      - The program to ask when NVML's library can not be loaded.
    type: str
    default: nvidia-smi
  timeout:
    description:
      - Seconds NVML and C(nvidia-smi) each have to answer.
    type: int
    default: 15
seealso:
  - module: gpuops.k8s.device_plugin_info
  - module: gpuops.k8s.gpu_visibility_info
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Look at the GPUs
  gpuops.k8s.gpu_info:
  register: gpus

- name: Fail on a node that has not got its eight GPUs in good order
  gpuops.k8s.gpu_info:
    expect: 8
"""

RETURN = r"""
gpus:
  description: The GPUs as NVML shows them, by index.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: NVML's index.
      type: int
      sample: 0
    uuid:
      description: The UUID. None when the GPU does not answer.
      type: str
      sample: GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c
    name:
      description: The model.
      type: str
      sample: NVIDIA H100 80GB HBM3
    minor:
      description: N of /dev/nvidiaN.
      type: int
      sample: 0
    pci_bus_id:
      description: The PCI address as in sysfs.
      type: str
      sample: "0000:18:00.0"
    numa_node:
      description: NUMA node of the PCI device. None when it has none.
      type: int
      sample: 0
    memory_bytes:
      description: Memory in bytes.
      type: int
      sample: 85520809984
    compute_capability:
      description: CUDA compute capability. Only from NVML.
      type: str
      sample: "9.0"
    mig_enabled:
      description: Whether MIG is on.
      type: bool
      sample: false
    mig_devices:
      description: MIG devices with index, uuid and profile.
      type: list
      elements: dict
      sample: []
    processes:
      description: Processes with pid and memory_bytes, if O(processes=true).
      type: list
      elements: dict
      sample: []
    fault:
      description: Why the GPU can not be used. None when it can.
      type: str
      sample:
count:
  description: How many GPUs NVML shows.
  returned: always
  type: int
  sample: 8
healthy:
  description: How many of them answer.
  returned: always
  type: int
  sample: 8
pci_count:
  description: How many NVIDIA GPUs are on the PCI bus.
  returned: always
  type: int
  sample: 8
driver_version:
  description: Version of the driver.
  returned: always
  type: str
  sample: 550.54.15
kernel_driver_version:
  description: Version of the loaded kernel module. None when it is not loaded.
  returned: always
  type: str
  sample: 550.54.15
cuda_version:
  description: Newest CUDA version the driver supports.
  returned: always
  type: str
  sample: "12.4"
source:
  description: Where V(gpus) comes from, V(nvml), V(nvidia-smi) or V(none).
  returned: always
  type: str
  sample: nvml
device_nodes:
  description: Device nodes that have to be there, and whether they are.
  returned: always
  type: dict
  sample: {"/dev/nvidiactl": true}
labels:
  description: Node labels a scheduler can use.
  returned: always
  type: dict
  sample: {"nvidia.com/gpu.count": "8"}
links:
  description: Every link of the chain with link, ok, detail and next_step.
  returned: always
  type: list
  elements: dict
  sample: [{"link": "pci", "ok": true, "detail": "8 NVIDIA GPUs on the PCI bus", "next_step": "check seating and
    power"}]
problems:
  description: Every broken link in words.
  returned: always
  type: list
  elements: str
  sample: ["uvm: missing: /dev/nvidia-uvm"]
broken_link:
  description:
    - The first broken link. One of V(pci), V(driver), V(device_nodes), V(uvm), V(driver_library), V(nvml), V(gpus)
      and V(gpu_health).
    - None when nothing is broken.
  returned: always
  type: str
  sample: "nvml"
reason:
  description: What is wrong with it.
  returned: always
  type: str
  sample: "NVML does not answer: Driver/library version mismatch"
next_step:
  description: What to do.
  returned: always
  type: str
  sample: "reboot the node, or reload the kernel module, so that both are of one version"
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import _gpus, _links, _nvml

ARGUMENTS = {
    "expect": {"type": "int"},
    "strict": {"type": "bool", "default": False},
    "processes": {"type": "bool", "default": False},
    "mig_strategy": {"type": "str", "choices": ["none", "single", "mixed"], "default": "none"},
    "sysfs_root": {"type": "path", "default": "/sys"},
    "proc_root": {"type": "path", "default": "/proc"},
    "dev_root": {"type": "path", "default": "/dev"},
    "nvml_library": {"type": "str", "default": "libnvidia-ml.so.1"},
    "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
    "timeout": {"type": "int", "default": 15},
}


def ask_nvidia_smi(program, timeout):
    """nvidia-smi's answer in NVML's shape, or None when there is none in time."""
    try:
        # Not run_command: it knows no time limit, and these programs may hang.
        answer = subprocess.run([program, "-q", "-x"], capture_output=True, timeout=timeout, check=False)  # pylint: disable=ansible-bad-function
        return (
            _gpus.parse_nvidia_smi(answer.stdout.decode("utf-8", "replace"))
            if answer.returncode == 0
            else None
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


def ask(params):
    """(source, answer, why NVML failed, NVML's code)."""
    try:
        answer = _nvml.ask(params["nvml_library"], params["timeout"], params["processes"])
        return "nvml", answer, "", None
    except _nvml.NvmlError as error:
        answer = ask_nvidia_smi(params["nvidia_smi"], params["timeout"]) if error.code is None else None
        return ("nvidia-smi" if answer else "none"), answer, str(error), error.code


def gather(params):
    """(result, links) without an opinion on whether to fail."""
    pci = _gpus.scan_pci(params["sysfs_root"])
    source, answer, error, code = ask(params)
    gpus = answer["gpus"] if answer else []
    minors = _gpus.minors_from_proc(params["proc_root"])
    numa = {gpu.bus_id: gpu.numa_node for gpu in pci}
    for gpu in gpus:
        if gpu.get("minor") is None:
            gpu["minor"] = minors.get(gpu.get("pci_bus_id"))
        gpu["numa_node"] = numa.get(gpu.get("pci_bus_id"))
    wanted = sorted({gpu["minor"] for gpu in gpus if gpu["minor"] is not None} | set(minors.values()))
    kernel = _gpus.kernel_driver_version(params["proc_root"])
    nodes = _gpus.device_nodes(params["dev_root"], wanted)
    links = _gpus.judge(_gpus.Views(pci, kernel, answer, error, code, nodes, params["expect"]))
    result = {
        "changed": False,
        "gpus": gpus,
        "count": len(gpus),
        "healthy": sum(1 for gpu in gpus if not gpu.get("fault")),
        "pci_count": len(pci),
        "driver_version": (answer or {}).get("driver_version") or kernel,
        "kernel_driver_version": kernel,
        "cuda_version": (answer or {}).get("cuda_version"),
        "source": source,
        "device_nodes": nodes,
        "labels": _gpus.labels(answer or {}, params["mig_strategy"]),
        "problems": [f"{link.link}: {link.detail}" for link in links if link.ok is False],
    }
    result.update(_links.summary(links))
    return result, links


def main():
    """Entry point."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    result, links = gather(module.params)
    problem = _links.message(links)
    if problem and (module.params["strict"] or module.params["expect"] is not None):
        module.fail_json(msg=problem, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
