#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_visibility_info
short_description: Say which GPUs a container sees that asks for some, and one that asks for none
version_added: 0.1.0
description:
  - Starts one short container that asks for GPUs through C(NVIDIA_VISIBLE_DEVICES) and one that asks for nothing,
    and compares what each has in its C(/dev).
  - The containers are looked at from outside, so that any image does, the pause image of the kubelet included. No
    image is pulled.
  - No GPU is taken. Nothing opens a device, and the kubelet is not asked for one.
  - In check mode only the engine and its runtimes are looked at, and no container is started.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.info_module
options:
  engine:
    description:
      - The container engine. V(auto) takes docker where its socket is, else containerd.
    type: str
    choices: [auto, docker, containerd]
    default: auto
  runtime:
    description:
      - The runtime to use. The engine's default if it is not given, as the kubelet uses it.
    type: str
  require_default:
    description:
      - The runtime that has to be the engine's default. An empty string does not require one.
    type: str
    default: nvidia
  image:
    description:
      - An image on the node that stays alive by itself or with O(command). A pause image on the node if it is not
        given.
    type: str
  command:
    description:
      - The command for the image. If the image does not stay alive without one, C(sleep) is tried.
    type: list
    elements: str
    default: []
  gpus:
    description:
      - GPUs to ask for, as a list of UUIDs or indices, or a number, which means the first ones by index.
        With V(0), only the container that asks for none is started.
    type: raw
    default: 0
  expect:
    description:
      - How many GPUs the asking container has to see. The number of O(gpus) if it is not given.
    type: int
  expect_nodes:
    description:
      - Exactly the device nodes that the asking container has to see.
    type: list
    elements: str
  strict:
    description:
      - Whether to fail when a link is broken.
    type: bool
    default: false
  timeout:
    description:
      - Seconds each call of the engine may take.
    type: int
    default: 30
seealso:
  - module: gpuops.k8s.container_runtime
  - module: gpuops.k8s.gpu_info
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: See what containers see
  gpuops.k8s.gpu_visibility_info:
    gpus: 2
  register: seen

- name: Fail unless containers that ask for nothing see nothing
  gpuops.k8s.gpu_visibility_info:
    strict: true
"""

RETURN = r"""
visible:
  description: GPU device nodes in the container that asked. None when none was started.
  returned: always
  type: list
  elements: str
  sample: [/dev/nvidia0, /dev/nvidia1]
count:
  description: How many these are.
  returned: always
  type: int
  sample: 2
unasked:
  description: GPU device nodes in the container that asked for none. None when none was started.
  returned: always
  type: list
  elements: str
  sample: []
isolated:
  description: Whether the container that asked for none saw none. None when none was started.
  returned: always
  type: bool
  sample: true
engine:
  description: The engine.
  returned: always
  type: str
  sample: docker
default_runtime:
  description: The engine's default runtime.
  returned: always
  type: str
  sample: nvidia
runtimes:
  description: All runtimes of the engine.
  returned: always
  type: list
  elements: str
  sample: [nvidia, runc]
image:
  description: The image that was started.
  returned: always
  type: str
  sample: registry.k8s.io/pause:3.9
links:
  description: Every link of the chain with link, ok, detail and next_step.
  returned: always
  type: list
  elements: dict
  sample: [{"link": "isolation", "ok": true, "detail": "a container that asks for none sees none", "next_step": ""}]
broken_link:
  description:
    - The first broken link. One of V(engine), V(runtime), V(image), V(isolation) and V(request).
    - None when nothing is broken.
  returned: always
  type: str
  sample: "isolation"
reason:
  description: What is wrong with it.
  returned: always
  type: str
  sample: "a container that asked for no GPU sees 8"
next_step:
  description: What to do.
  returned: always
  type: str
  sample: "set nvidia_docker_hardening to true"
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import _links, _visibility

ARGUMENTS = {
    "engine": {"type": "str", "choices": ["auto", "docker", "containerd"], "default": "auto"},
    "runtime": {"type": "str"},
    "require_default": {"type": "str", "default": "nvidia"},
    "image": {"type": "str"},
    "command": {"type": "list", "elements": "str", "default": []},
    "gpus": {"type": "raw", "default": 0},
    "expect": {"type": "int"},
    "expect_nodes": {"type": "list", "elements": "str"},
    "strict": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 30},
}


def asked_for(gpus):
    """The ids to ask for, from a number, a text or a list. Raises ValueError."""
    if isinstance(gpus, (list, tuple)):
        return [str(gpu) for gpu in gpus]
    if isinstance(gpus, int) or str(gpus).strip().isdigit():
        return [str(index) for index in range(int(gpus))]
    return [gpu.strip() for gpu in str(gpus).split(",") if gpu.strip()]


def seen_by(engine, image, env, command):
    """GPU device nodes a container with this environment has."""
    try:
        return _visibility.gpu_nodes(engine.start(image, env, command))
    except _visibility.EndedError:
        if command:
            raise
        return _visibility.gpu_nodes(engine.start(image, env, ["sleep", "60"]))
    finally:
        engine.stop()


def runtime_link(params, default, runtimes):
    """Whether the runtime that counts is there."""
    step = "run the role nvidia_docker, or the module container_runtime"
    if params["runtime"] and params["runtime"] not in runtimes:
        return _links.Link("runtime", False, f"{params['engine']} has no runtime {params['runtime']}", step)
    wanted = params["require_default"]
    if wanted and not params["runtime"] and default != wanted:
        return _links.Link(
            "runtime", False, f"the default runtime is {default or 'unset'}, not {wanted}", step
        )
    return _links.Link("runtime", True, f"default runtime {default}")


def request_link(params, visible):
    """Whether the asking container saw what it asked for."""
    asked = ", ".join(params["gpus"])
    expected = len(params["gpus"]) if params["expect"] is None else params["expect"]
    step = (
        "look at the runtime's log (/var/log/nvidia-container-runtime.log) and at `nvidia-container-cli info`"
    )
    if params["expect_nodes"] is not None and sorted(visible) != sorted(params["expect_nodes"]):
        text = f"a container that asked for {asked} sees {', '.join(visible) or 'none'}"
        return _links.Link("request", False, f"{text}, not {', '.join(params['expect_nodes'])}", step)
    if len(visible) != expected:
        text = f"a container that asked for {asked} sees {len(visible)} GPUs, {expected} expected"
        return _links.Link("request", False, text, step)
    return _links.Link(
        "request", True, f"a container that asked for {len(params['gpus'])} sees {len(visible)}"
    )


def isolation_link(unasked):
    """Whether the container that asked for none saw none."""
    if not unasked:
        return _links.Link("isolation", True, "a container that asks for none sees none")
    return _links.Link(
        "isolation",
        False,
        f"a container that asked for no GPU sees {', '.join(unasked)}",
        "the image sets NVIDIA_VISIBLE_DEVICES, or the runtime injects without being asked: see docs/verify.md",
    )


def gather(params, check_mode):
    """(result, links)."""
    result = {
        "changed": False,
        "visible": None,
        "count": 0,
        "unasked": None,
        "isolated": None,
        "engine": params["engine"],
        "default_runtime": None,
        "runtimes": [],
        "image": params["image"],
    }
    links = []
    if params["engine"] == "auto":
        result["engine"] = params["engine"] = (
            "docker" if os.path.exists("/var/run/docker.sock") else "containerd"
        )
    make = _visibility.Docker if params["engine"] == "docker" else _visibility.Containerd
    engine = make(params["timeout"], params["runtime"])
    try:
        result["default_runtime"], result["runtimes"] = engine.default_runtime()
        links.append(_links.Link("engine", True, f"{params['engine']} answers"))
        links.append(runtime_link(params, result["default_runtime"], result["runtimes"]))
        if check_mode or links[-1].ok is False:
            return result, links
        result["image"] = params["image"] or _visibility.pick_image(engine.images())
        if result["image"] is None:
            step = "give image, or wait until the kubelet has pulled its pause image"
            links.append(_links.Link("image", None, f"no image to start; {step}"))
            return result, links
        unasked = seen_by(engine, result["image"], {}, params["command"])
        result.update(unasked=unasked, isolated=not unasked)
        links.append(isolation_link(unasked))
        if params["gpus"]:
            env = {"NVIDIA_VISIBLE_DEVICES": ",".join(params["gpus"])}
            visible = seen_by(engine, result["image"], env, params["command"])
            result.update(visible=visible, count=len(visible))
            links.append(request_link(params, visible))
    except _visibility.EngineError as error:
        links.append(_links.Link(error.link, False, str(error), error.next_step))
    return result, links


def main():
    """Entry point."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.params["gpus"] = asked_for(module.params["gpus"])
    result, links = gather(module.params, module.check_mode)
    result.update(_links.summary(links))
    problem = _links.message(links)
    if problem and (module.params["strict"] or module.params["expect"] is not None):
        module.fail_json(msg=problem, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
