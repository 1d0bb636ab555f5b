#!/usr/bin/python3
"""Stand-in for nvidia-ctk: `--version`, `config --in-place`, `cdi generate [--output FILE]`, `cdi list`."""

import json
import os
import runpy
import sys

VERSION = "@VERSION@"
CONFIG = """\
#accept-nvidia-visible-devices-as-volume-mounts = false
#accept-nvidia-visible-devices-envvar-when-unprivileged = true
disable-require = false
supported-driver-capabilities = "compat32,compute,display,graphics,ngx,utility,video"

[nvidia-container-cli]
environment = []
#ldcache = "/etc/ld.so.cache"
load-kmods = true
ldconfig = "@/sbin/ldconfig"

[nvidia-container-runtime]
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime-hook]
path = "nvidia-container-runtime-hook"
skip-mode-detection = false
"""


def option(arguments, name, default):
    """The value of --name VALUE or --name=VALUE."""
    for position, word in enumerate(arguments):
        if word == name:
            return arguments[position + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return default


def cdi_spec():
    """A CDI specification with every GPU by index and UUID, and `all`."""
    runtime = runpy.run_path("/usr/bin/nvidia-container-runtime")
    gpus = runtime["gpus"]()
    devices = []
    for gpu in gpus:
        edit = {"deviceNodes": [{"path": "/dev/nvidia%d" % gpu["minor"]}]}
        for name in (str(gpu["index"]), gpu["uuid"]):
            devices.append({"name": name, "containerEdits": edit})
    everything = [{"path": "/dev/nvidia%d" % gpu["minor"]} for gpu in gpus]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": everything}})
    control = [{"path": path} for path in runtime["CONTROL_NODES"] if os.path.exists(path)]
    mounts = [
        {
            "hostPath": source,
            "containerPath": target,
            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
        }
        for source, target in runtime["FILES"]
        if os.path.exists(source)
    ]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "deviceNodes": control, "mounts": mounts},
    }


def main():
    """The command line."""
    arguments = sys.argv[1:]
    words = [word for word in arguments if not word.startswith("-")]
    if "--version" in arguments or "-v" in arguments:
        print("NVIDIA Container Toolkit CLI version %s" % VERSION.partition("-")[0])
    elif words[:1] == ["config"]:
        path = option(arguments, "--config-file", "/etc/nvidia-container-runtime/config.toml")
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(CONFIG)
    elif words[:2] == ["cdi", "generate"]:
        text = json.dumps(cdi_spec(), indent=2)
        output = option(arguments, "--output", "")
        if output:
            os.makedirs(os.path.dirname(output), exist_ok=True)
            with open(output, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            print(text)
    elif words[:2] == ["cdi", "list"]:
        for device in cdi_spec()["devices"]:
            print("nvidia.com/gpu=%s" % device["name"])
    else:
        sys.stderr.write("nvidia-ctk (stand-in): unknown command %s\n" % " ".join(arguments))
        sys.exit(1)


if __name__ == "__main__":
    main()
