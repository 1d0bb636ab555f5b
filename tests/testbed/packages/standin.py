"""What NVIDIA's container runtime does to a container, without a GPU: device nodes, library, nvidia-smi.

standin.py inject BUNDLE     change BUNDLE/config.json by NVIDIA_VISIBLE_DEVICES, volume mounts, CDI annotations
standin.py hook prestart     the prestart hook: the container's state on standard input
standin.py cdi generate|list a CDI specification of this machine
"""

import json
import os
import re
import stat
import subprocess
import sys

STATE = "/run/nvml-standin/state.json"
CONFIG = os.environ.get("XDG_CONFIG_HOME", "/etc") + "/nvidia-container-runtime/config.toml"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
VOLUMES = "/var/run/nvidia-container-devices"
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")


def fail(text):
    """Say why in the log that the engine reads (runc's --log), so that `docker run` shows it."""
    log = os.environ.get("STANDIN_LOG")
    if log:
        with open(log, "a") as target:
            target.write(
                json.dumps(
                    {
                        "level": "error",
                        "msg": "could not apply required modification to OCI specification: " + text,
                    }
                )
                + "\n"
            )
    sys.stderr.write("nvidia-container-runtime: %s\n" % text)
    sys.exit(1)


def setting(name, default):
    """A top-level boolean of config.toml; commented out means the default."""
    try:
        with open(CONFIG) as config:
            for line in config:
                if line.startswith("["):
                    break
                found = re.match(r"\s*%s\s*=\s*(true|false)" % re.escape(name), line)
                if found:
                    return found.group(1) == "true"
    except OSError:
        pass
    return default


def machine():
    try:
        with open(STATE) as state:
            return json.load(state)
    except (OSError, ValueError):
        fail("initialization error: nvml error: driver not loaded")


def mig_minor(gpu, gi, ci=None):
    return 3 + gpu * 135 + gi * 9 + (0 if ci is None else 1 + ci)


def chosen(names):
    """Device paths of these GPUs or MIG devices: by UUID, index, "0:1", all; none and void choose nothing."""
    gpus = machine()["gpus"]
    paths = []
    for name in names:
        hit = False
        for index, gpu in enumerate(gpus):
            node = "/dev/nvidia%d" % gpu["minor"]
            if name in ("all", str(index), gpu["uuid"]):
                hit = True
                paths.append(node)
            for mig in gpu["mig"]["devices"]:
                if name in (mig["uuid"], "%d:%d" % (index, mig["index"])) or (
                    name == "all" and gpu["mig"]["enabled"]
                ):
                    hit = True
                    paths.append(node)
                    for minor in (
                        mig_minor(gpu["minor"], mig["gi"]),
                        mig_minor(gpu["minor"], mig["gi"], mig["ci"]),
                    ):
                        paths.append("/dev/nvidia-caps/nvidia-cap%d" % minor)
        if not hit and name != "all":
            fail("device error: %s: unknown device" % name)
    if paths or "all" in names:
        paths += ["/dev/" + name for name in CONTROL]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def environment(spec):
    return dict(entry.split("=", 1) for entry in spec.get("process", {}).get("env") or [] if "=" in entry)


def privileged(spec):
    return "CAP_SYS_ADMIN" in (spec.get("process", {}).get("capabilities") or {}).get("bounding", [])


def asked(spec):
    """What the container asks for, as a list of names; None: nothing (an image that knows no GPUs)."""
    wanted = environment(spec).get("NVIDIA_VISIBLE_DEVICES")
    if setting("accept-nvidia-visible-devices-as-volume-mounts", False):
        mounted = [
            mount["destination"][len(VOLUMES) + 1 :]
            for mount in spec.get("mounts") or []
            if mount["destination"].startswith(VOLUMES + "/") and mount.get("source") == "/dev/null"
        ]
        if mounted:
            return mounted
    if wanted is None or wanted in ("", "void", "none", VOLUMES):
        return None
    if not setting("accept-nvidia-visible-devices-envvar-when-unprivileged", True) and not privileged(spec):
        return None
    return [name for name in wanted.split(",") if name]


def add_device(spec, path):
    """The node in the container, and leave to use it."""
    try:
        about = os.stat(path)
    except OSError:
        fail("device error: %s: no such device" % path)
    major, minor = os.major(about.st_rdev), os.minor(about.st_rdev)
    linux = spec.setdefault("linux", {})
    devices = linux.setdefault("devices", [])
    if not any(device["path"] == path for device in devices):
        devices.append(
            {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}
        )
    allowed = linux.setdefault("resources", {}).setdefault("devices", [])
    allowed.append({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"})


def add_mount(spec, source, destination=None, options=("ro", "nosuid", "nodev", "rbind", "rprivate")):
    destination = destination or source
    mounts = spec.setdefault("mounts", [])
    if os.path.exists(source) and not any(mount["destination"] == destination for mount in mounts):
        mounts.append(
            {"source": source, "destination": destination, "type": "bind", "options": list(options)}
        )


def add_driver(spec):
    add_mount(spec, LIBRARY)
    add_mount(spec, "/usr/bin/nvidia-smi")
    add_mount(spec, os.path.dirname(STATE))


def cdi_names(spec):
    prefix = "cdi.k8s.io/"
    names = []
    for key, value in sorted((spec.get("annotations") or {}).items()):
        if key.startswith(prefix):
            names += [name for name in value.split(",") if name]
    wanted = environment(spec).get("NVIDIA_VISIBLE_DEVICES", "")
    names += [name for name in wanted.split(",") if "=" in name and "/" in name]
    return names


def cdi_specs():
    for directory in CDI_DIRECTORIES:
        try:
            files = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in files:
            if not name.endswith((".json", ".yaml")):
                continue
            with open(os.path.join(directory, name)) as source:
                try:
                    yield json.load(source)
                except ValueError:
                    fail(
                        "%s/%s: not JSON (this stand-in reads CDI specifications in JSON)" % (directory, name)
                    )


def apply_cdi(spec, names):
    edits = []
    for name in names:
        kind, _, device = name.partition("=")
        for one in cdi_specs():
            if one.get("kind") != kind:
                continue
            for entry in one.get("devices", []):
                if entry["name"] == device:
                    edits += [one.get("containerEdits") or {}, entry.get("containerEdits") or {}]
        if not edits:
            fail("unresolvable CDI devices %s" % name)
    for edit in edits:
        for variable in edit.get("env") or []:
            if variable not in spec["process"].setdefault("env", []):
                spec["process"]["env"].append(variable)
        for node in edit.get("deviceNodes") or []:
            add_device(spec, node["path"])
        for mount in edit.get("mounts") or []:
            add_mount(
                spec, mount["hostPath"], mount["containerPath"], mount.get("options") or ("ro", "rbind")
            )


def show_kernel(spec, bundle):
    """A container has its own /proc and /sys; the kernel's view of the (pretended) hardware shows in each."""
    root = os.path.join(bundle, spec.get("root", {}).get("path", "rootfs"))
    hooks = spec.setdefault("hooks", {}).setdefault("createContainer", [])
    for path in ("/proc/driver", "/sys/bus/pci/devices", "/proc/sys/kernel/random/boot_id"):
        if os.path.exists(path):
            hooks.append({"path": "/bin/mount", "args": ["mount", "--bind", "-o", "ro", path, root + path]})


def inject(bundle):
    path = os.path.join(bundle, "config.json")
    with open(path) as source:
        spec = json.load(source)
    before = json.dumps(spec)
    names = cdi_names(spec)
    if names:
        apply_cdi(spec, names)
    else:
        wanted = asked(spec)
        if wanted is not None:
            for device in chosen(wanted):
                add_device(spec, device)
            add_driver(spec)
    show_kernel(spec, bundle)
    if json.dumps(spec) != before:
        with open(path + ".new", "w") as target:
            json.dump(spec, target)
        os.rename(path + ".new", path)


def hook():
    """Works inside the container's mount namespace, before its root becomes /."""
    state = json.load(sys.stdin)
    bundle = state.get("bundle") or state.get("bundlePath")
    with open(os.path.join(bundle, "config.json")) as source:
        spec = json.load(source)
    wanted = asked(spec)
    if wanted is None:
        return
    root = os.path.join(bundle, spec.get("root", {}).get("path", "rootfs"))
    script = []
    for device in chosen(wanted):
        about = os.stat(device)
        goal = root + device
        script.append("mkdir -p %s" % os.path.dirname(goal))
        script.append(
            "[ -e %s ] || mknod -m 666 %s c %d %d"
            % (goal, goal, os.major(about.st_rdev), os.minor(about.st_rdev))
        )
    # The runtime, where it is the container's own, has mounted them already.
    for source in (LIBRARY, "/usr/bin/nvidia-smi"):
        goal = root + source
        script.append(
            "[ -s %s ] || { mkdir -p %s; touch %s; mount --bind -o ro %s %s; }"
            % (goal, os.path.dirname(goal), goal, source, goal)
        )
    source, goal = os.path.dirname(STATE), root + os.path.dirname(STATE)
    script.append(
        "[ -e %s/state.json ] || { mkdir -p %s; mount --bind -o ro %s %s; }" % (goal, goal, source, goal)
    )
    command = ["nsenter", "--mount=/proc/%d/ns/mnt" % state["pid"], "--", "sh", "-ec", "\n".join(script)]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        fail("hook: %s" % done.stderr.decode(errors="replace").strip())


def cdi(arguments):
    if arguments[:1] == ["list"]:
        for one in cdi_specs():
            for device in one.get("devices", []):
                print("%s=%s" % (one["kind"], device["name"]))
        return
    if arguments[:1] != ["generate"]:
        fail("cdi: generate or list")
    output = None
    for index, word in enumerate(arguments):
        if word.startswith("--output="):
            output = word.split("=", 1)[1]
        elif word == "--output":
            output = arguments[index + 1]
    gpus = machine()["gpus"]
    devices = []
    for index, gpu in enumerate(gpus):
        nodes = [{"path": "/dev/nvidia%d" % gpu["minor"]}]
        devices += [
            {"name": name, "containerEdits": {"deviceNodes": nodes}} for name in (str(index), gpu["uuid"])
        ]
    everything = [{"path": "/dev/nvidia%d" % gpu["minor"]} for gpu in gpus]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": everything}})
    mounts = [
        {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]}
        for path in (LIBRARY, "/usr/bin/nvidia-smi", os.path.dirname(STATE))
    ]
    control = [{"path": "/dev/" + name} for name in CONTROL if os.path.exists("/dev/" + name)]
    text = json.dumps(
        {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": devices,
            "containerEdits": {
                "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                "deviceNodes": control,
                "mounts": mounts,
            },
        },
        indent=2,
    )
    if output:
        os.makedirs(os.path.dirname(output), exist_ok=True)
        with open(output, "w") as target:
            target.write(text + "\n")
        os.chmod(output, stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)
    else:
        print(text)


if __name__ == "__main__":
    verb, rest = sys.argv[1], sys.argv[2:]
    if verb == "inject":
        inject(rest[0])
    elif verb == "hook":
        hook()
    elif verb == "cdi":
        cdi(rest)
    else:
        fail("unknown verb %s" % verb)
