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
  - Starts one short container that asks for GPUs and one that asks for nothing, and compares what each has in its
    C(/dev).
  - It asks as the node's configuration of NVIDIA's runtime accepts it, through C(NVIDIA_VISIBLE_DEVICES), or on a
    hardened node through volume mounts below C(/var/run/nvidia-container-devices). Where the variable is refused, a
    container that sets it must see nothing.
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
      - The container engine. V(auto) takes the one that the kubelet talks to, as M(gpuops.k8s.kubelet_engine_info)
        finds it. Without a kubelet, docker where its socket is, else containerd.
      - In CRI-O, and in the containerd that k3s, rke2, MicroK8s and k0s bring with them, no container is started. The
        links that need one are then not known, which breaks nothing.
    type: str
    choices: [auto, docker, containerd, crio]
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
  device_list_strategy:
    description:
      - How the node's device plugin hands out GPUs, as M(gpuops.k8s.device_plugin_info) returns it. The container
        then asks as a pod would, and the link V(request) is broken where the runtime does not accept that.
    type: list
    elements: str
    default: []
  runtime_config:
    description:
      - The configuration file of NVIDIA's runtime. Without that file, NVIDIA's defaults count.
    type: path
    default: /etc/nvidia-container-runtime/config.toml
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

- name: Ask as pods do that got a GPU from the device plugin
  gpuops.k8s.gpu_visibility_info:
    gpus: 1
    device_list_strategy: [volume-mounts]

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
named:
  description:
    - GPU device nodes in a container that named all GPUs by C(NVIDIA_VISIBLE_DEVICES), on a node that refuses it. None
      on other nodes, and when none was started.
  returned: always
  type: list
  elements: str
  sample: []
asked_by:
  description: How the GPUs were asked for, V(envvar) or V(volume-mounts). None when they were not.
  returned: always
  type: str
  sample: envvar
isolated:
  description: Whether containers that may see none saw none. None when none was started.
  returned: always
  type: bool
  sample: true
engine:
  description: The engine. V(embedded) and V(other) as in M(gpuops.k8s.kubelet_engine_info).
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
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubelet_engine, _links, _visibility

ARGUMENTS = {
    "engine": {"type": "str", "choices": ["auto", "docker", "containerd", "crio"], "default": "auto"},
    "runtime": {"type": "str"},
    "require_default": {"type": "str", "default": "nvidia"},
    "image": {"type": "str"},
    "command": {"type": "list", "elements": "str", "default": []},
    "gpus": {"type": "raw", "default": 0},
    "expect": {"type": "int"},
    "device_list_strategy": {"type": "list", "elements": "str", "default": []},
    "runtime_config": {"type": "path", "default": _visibility.RUNTIME_CONFIG},
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


def seen_by(engine, image, request, command):
    """GPU device nodes a container with this request has."""
    try:
        return _visibility.gpu_nodes(engine.start(image, request, command))
    except _visibility.EndedError:
        if command:
            raise
        return _visibility.gpu_nodes(engine.start(image, request, ["sleep", "60"]))
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
    named = f"runtime {params['runtime']} is there; " if params["runtime"] else ""
    return _links.Link("runtime", True, f"{named}default runtime {default}")


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


def isolation_link(unasked, named, config):
    """Whether the container that asked for none saw none, and where the variable is refused also one that sets it."""
    if unasked:
        return _links.Link(
            "isolation",
            False,
            f"a container that asked for no GPU sees {', '.join(unasked)}",
            "the image sets NVIDIA_VISIBLE_DEVICES, or the runtime injects without being asked: see docs/verify.md",
        )
    if named:
        return _links.Link(
            "isolation",
            False,
            f"{config} refuses NVIDIA_VISIBLE_DEVICES, yet a container that sets it sees {', '.join(named)}",
            "look whether the runtime reads another file, by XDG_CONFIG_HOME in the engine's environment",
        )
    both = (
        "" if named is None else ", nor does one that names all by NVIDIA_VISIBLE_DEVICES, which is refused"
    )
    return _links.Link("isolation", True, f"a container that asks for none sees none{both}")


def way_link(params, ways):
    """(how to ask, None), or (None, why it is not asked): as the plugin does, else as the runtime accepts."""
    config, plugin = params["runtime_config"], _visibility.way_of_the_plugin(params["device_list_strategy"])
    if plugin is not None and plugin not in ways:
        step = "set deviceListStrategy: [volume-mounts] in device_plugin_config"
        if plugin == _visibility.MOUNTS:
            step = "set nvidia_docker_hardening: true, or take volume-mounts out of deviceListStrategy"
        text = (
            f"the device plugin hands out GPUs by {plugin}, and {config} does not accept that: pods get none"
        )
        return None, _links.Link("request", False, text, step)
    if not ways:
        text = f"{config} accepts neither NVIDIA_VISIBLE_DEVICES nor volume mounts; by CDI alone is not looked at"
        return None, _links.Link("request", None, text)
    return plugin or (_visibility.VARIABLE if _visibility.VARIABLE in ways else ways[0]), None


def look(engine, params, result, ways):
    """Starts the containers one after the other, writes down what they saw, and yields the links."""

    def seen(request):
        return seen_by(engine, result["image"], request, params["command"])

    named = None
    unasked = seen(_visibility.NOTHING)
    if not unasked and _visibility.VARIABLE not in ways:
        try:
            named = seen(_visibility.ask(_visibility.VARIABLE, ["all"]))
        except _visibility.EngineError as error:
            if "insufficient privileges" not in str(error):  # older toolkits refuse the whole container
                raise
            named = []
    result.update(unasked=unasked, named=named, isolated=not unasked and not named)
    yield isolation_link(unasked, named, params["runtime_config"])
    way, refusal = way_link(params, ways)
    if refusal is not None:
        yield refusal
    elif params["gpus"]:
        visible = seen(_visibility.ask(way, params["gpus"]))
        result.update(visible=visible, count=len(visible), asked_by=way)
        yield request_link(params, visible)


def resolve(engine):
    """(engine, its endpoint, how it is known) for what was asked for."""
    if engine != "auto":
        return engine, "", ""
    found = _kubelet_engine.find()
    if found.engine:
        return found.engine, found.endpoint, found.reason
    return "docker" if os.path.exists("/var/run/docker.sock") else "containerd", "", found.reason


def gather(params, check_mode):
    """(result, links)."""
    result = {
        "changed": False,
        "visible": None,
        "count": 0,
        "unasked": None,
        "named": None,
        "asked_by": None,
        "isolated": None,
        "engine": params["engine"],
        "default_runtime": None,
        "runtimes": [],
        "image": params["image"],
    }
    links = []
    params["engine"], endpoint, reason = resolve(params["engine"])
    result["engine"] = params["engine"]
    if params["engine"] not in ("docker", "containerd"):
        return result, list(_visibility.unseen(params["engine"], endpoint, reason, params["timeout"]))
    make = _visibility.Docker if params["engine"] == "docker" else _visibility.Containerd
    engine = make(params["timeout"], params["runtime"])
    try:
        result["default_runtime"], result["runtimes"] = engine.default_runtime()
        links.append(_links.Link("engine", True, f"{params['engine']} answers"))
        ways = _visibility.read_accepted(params["runtime_config"])
        links.append(runtime_link(params, result["default_runtime"], result["runtimes"]))
        if check_mode or links[-1].ok is False:
            return result, links
        result["image"] = params["image"] or _visibility.pick_image(engine.images())
        if result["image"] is None:
            step = "give image, or wait until the kubelet has pulled its pause image"
            links.append(_links.Link("image", None, f"no image to start; {step}"))
            return result, links
        links.extend(look(engine, params, result, ways))
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
