#!/usr/bin/python3
"""Stand-in for nvidia-container-runtime: an OCI runtime that puts GPUs into the bundle and becomes runc.

Keeps what the real one does and tests depend on: NVIDIA_VISIBLE_DEVICES (all, none, void, indices, UUIDs, MIG UUIDs,
CDI names), device lists as volume mounts, CDI annotations, the two accept-* switches, the refusal of unknown devices.
"""

import glob
import json
import os
import re
import stat
import sys

CONFIG = "/etc/nvidia-container-runtime/config.toml"
STATE = "/run/nvml-standin/state.json"
MOUNT_ROOT = "/var/run/nvidia-container-devices"
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
CDI_PREFIX = "cdi.k8s.io/"
CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
FILES = (
    ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
    ("/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi"),
    ("/run/nvml-standin", "/run/nvml-standin"),
)


def die(text):
    """Fail as an OCI runtime does: a line on stderr, which ends up in the engine's error."""
    sys.stderr.write("nvidia-container-runtime: %s\n" % text)
    sys.exit(1)


def switches():
    """The accept-* switches of config.toml with the real defaults."""
    found = {
        "accept-nvidia-visible-devices-envvar-when-unprivileged": True,
        "accept-nvidia-visible-devices-as-volume-mounts": False,
    }
    try:
        with open(CONFIG, encoding="utf-8") as file:
            for line in file:
                match = re.match(r"\s*([a-z-]+)\s*=\s*(true|false)\b", line)
                if match and match.group(1) in found:
                    found[match.group(1)] = match.group(2) == "true"
    except OSError:
        pass
    return found


def gpus():
    """GPUs of the node in index order: [{index, uuid, minor, mig: [{uuid, gi, ci}]}]."""
    try:
        with open(STATE, encoding="utf-8") as file:
            state = json.load(file)
    except OSError as error:
        die("no GPU driver on this node: %s" % error)
    found = []
    for index, gpu in enumerate(state["gpus"]):
        slices = gpu["mig"]["devices"] if gpu["mig"]["enabled"] else []
        found.append({"index": index, "uuid": gpu["uuid"], "minor": gpu["minor"], "mig": slices})
    return found


def capability_paths(minor, gi, ci):
    """The two /dev/nvidia-caps nodes of a MIG device, by the driver's own table."""
    wanted = ("gpu%d/gi%d/access" % (minor, gi), "gpu%d/gi%d/ci%d/access" % (minor, gi, ci))
    with open("/proc/driver/nvidia-caps/mig-minors", encoding="utf-8") as file:
        table = dict(line.split() for line in file)
    return ["/dev/nvidia-caps/nvidia-cap%s" % table[name] for name in wanted]


def nodes_of(names):
    """Device nodes for what was asked for; dies on a name that no GPU has."""
    paths = []
    everything = gpus()
    for name in names:
        if name == "all":
            for gpu in everything:
                paths.append("/dev/nvidia%d" % gpu["minor"])
                for part in gpu["mig"]:
                    paths += capability_paths(gpu["minor"], part["gi"], part["ci"])
            continue
        for gpu in everything:
            if name in (str(gpu["index"]), gpu["uuid"]):
                paths.append("/dev/nvidia%d" % gpu["minor"])
                break
            part = [
                one for one in gpu["mig"] if name in (one["uuid"], "%d:%d" % (gpu["index"], one["index"]))
            ]
            if part:
                paths.append("/dev/nvidia%d" % gpu["minor"])
                paths += capability_paths(gpu["minor"], part[0]["gi"], part[0]["ci"])
                break
        else:
            die("unknown device %s: nvidia-smi -L lists those of this node" % name)
    return paths


def add_device(spec, path):
    """A device node of the host, with the cgroup rule that lets it be used."""
    info = os.stat(path)
    if not stat.S_ISCHR(info.st_mode):
        return
    linux = spec.setdefault("linux", {})
    devices = linux.setdefault("devices", [])
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    if not any(one["path"] == path for one in devices):
        devices.append(
            {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}
        )
        rules = linux.setdefault("resources", {}).setdefault("devices", [])
        rules.append({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"})


def add_mount(spec, source, target):
    """A read-only bind mount, unless something is mounted there already or the host lacks it."""
    mounts = spec.setdefault("mounts", [])
    if os.path.exists(source) and not any(one["destination"] == target for one in mounts):
        mounts.append(
            {
                "destination": target,
                "source": source,
                "type": "bind",
                "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
            }
        )


def inject(spec, paths):
    """Device nodes, the control nodes, library and tool."""
    for path in list(paths) + [path for path in CONTROL_NODES if os.path.exists(path)]:
        add_device(spec, path)
    for source, target in FILES:
        add_mount(spec, source, target)


def cdi_edits(spec, names):
    """Apply the container edits of CDI devices; dies on a name that no spec file has."""
    specs = []
    for directory in CDI_DIRECTORIES:
        for path in sorted(glob.glob(directory + "/*.json")):
            with open(path, encoding="utf-8") as file:
                specs.append(json.load(file))
    done = []
    for name in names:
        kind, _separator, device = name.partition("=")
        for one in specs:
            match = [
                entry for entry in one.get("devices", []) if one["kind"] == kind and entry["name"] == device
            ]
            if match:
                edits = [match[0].get("containerEdits", {})]
                if one["kind"] not in done:
                    edits.append(one.get("containerEdits", {}))
                    done.append(one["kind"])
                for edit in edits:
                    for node in edit.get("deviceNodes", []):
                        add_device(spec, node.get("hostPath") or node["path"])
                    for mount in edit.get("mounts", []):
                        add_mount(spec, mount["hostPath"], mount["containerPath"])
                    spec["process"].setdefault("env", []).extend(edit.get("env", []))
                break
        else:
            die("unresolvable CDI devices %s: no spec in %s has it" % (name, " or ".join(CDI_DIRECTORIES)))
    for source, target in FILES:
        add_mount(spec, source, target)


def requested(spec, accept):
    """(device names, CDI names) that this container asked for, by the real runtime's rules."""
    annotations = spec.get("annotations") or {}
    cdi = []
    for key in sorted(annotations):
        if key.startswith(CDI_PREFIX):
            cdi += [name for name in annotations[key].split(",") if name]
    if cdi:
        return [], cdi
    mounted = []
    if accept["accept-nvidia-visible-devices-as-volume-mounts"]:
        for mount in spec.get("mounts", []):
            target = os.path.normpath(mount["destination"])
            if target.startswith(MOUNT_ROOT + "/") and mount.get("source") == "/dev/null":
                mounted.append(target[len(MOUNT_ROOT) + 1 :])
    if mounted:
        names = mounted
    else:
        environment = dict(entry.partition("=")[::2] for entry in spec["process"].get("env", []))
        value = environment.get("NVIDIA_VISIBLE_DEVICES", "")
        capabilities = (spec["process"].get("capabilities") or {}).get("bounding") or []
        privileged = "CAP_SYS_ADMIN" in capabilities
        if not accept["accept-nvidia-visible-devices-envvar-when-unprivileged"] and not privileged:
            value = ""
        names = [name.strip() for name in value.split(",") if name.strip()]
    if names in ([], ["none"], ["void"]):
        return [], []
    cdi = [name for name in names if "=" in name]
    return [name for name in names if "=" not in name], cdi


def bundle_of(arguments):
    """The bundle directory of a create or run command; None for every other command."""
    if not any(word in ("create", "run") for word in arguments):
        return None
    for position, word in enumerate(arguments):
        if word in ("--bundle", "-b", "-bundle"):
            return arguments[position + 1]
        if word.startswith(("--bundle=", "-b=", "-bundle=")):
            return word.partition("=")[2]
    return os.getcwd()


def runc():
    """The runtime below: the first runc of PATH that is not this file."""
    for directory in os.environ.get("PATH", "/usr/sbin:/usr/bin").split(":") + ["/usr/sbin", "/usr/bin"]:
        path = os.path.join(directory, "runc")
        if os.access(path, os.X_OK):
            return path
    die("no runc in PATH")
    return None


def main():
    """Edit the bundle where it is about to be created, then become runc."""
    arguments = sys.argv[1:]
    bundle = bundle_of(arguments)
    if bundle is not None:
        path = os.path.join(bundle, "config.json")
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
        names, cdi = requested(spec, switches())
        if names or cdi:
            if names:
                inject(spec, nodes_of(names))
            if cdi:
                cdi_edits(spec, cdi)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(spec, file)
    os.execv(runc(), ["runc", *arguments])


if __name__ == "__main__":
    main()
