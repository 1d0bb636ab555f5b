# ruff: noqa: E501 - shell stays on one line
"""Ways to break a provisioned node, each with the link that `gpuops.k8s.verify` has to name, and the way back.

Each is shell on the node, but for ``gpu`` verbs, which steer the stand-in GPUs. ``tests/nodes/test_sabotage.py`` runs
them all; by hand: ``python3 tests/testbed/sabotage.py NODE break|mend NAME``, or without a name for the list.
Needs a node with a kubelet before 1.26 (so that the gate can be off), docker, and the plugin as host service.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTBED = Path(__file__).resolve().parent / "testbed"
DIR = "/var/lib/kubelet/device-plugins"
PYTHON = "/opt/gpu-device-plugin/current/bin/python -I"
PLUGIN = "$(systemctl show gpu-device-plugin --property=MainPID --value)"
RESTART_PLUGIN = "systemctl unmask gpu-device-plugin; systemctl reset-failed gpu-device-plugin; systemctl restart gpu-device-plugin"
RESTART_KUBELET = "systemctl daemon-reload; systemctl reset-failed kubelet; systemctl restart kubelet"
# A gRPC server with no methods: all that another plugin or a DRA driver shows from outside.
SERVER = (
    "import grpc, time; from concurrent import futures; "
    "s = grpc.server(futures.ThreadPoolExecutor(1)); s.add_insecure_port('unix://{0}'); s.start(); time.sleep(600)"
)
DEFAULT_RUNTIME = 'sed -i \'s/"default-runtime": *"{0}"/"default-runtime": "{1}"/\' /etc/docker/daemon.json; systemctl reload docker'
# After mending: the kubelet is well and the plugin offers everything again.
SETTLED = (
    "timeout 60 sh -c 'until curl -sf 127.0.0.1:10248/healthz && "
    'gpu-device-plugin status | grep -q "^nvidia.com/gpu *8 *8 .*registered"; do sleep 0.2; done\''
)


@dataclass(frozen=True)
class Sabotage:
    """One way to break a node."""

    name: str
    link: str
    """What verify must name."""
    breaks: str = ""
    """Shell that breaks it."""
    mends: str = ""
    """Shell that puts everything back."""
    gpu_breaks: tuple[str, ...] = ()
    """Words of `testbed gpu NODE ...` instead."""
    gpu_mends: tuple[str, ...] = ()
    says: str = ""
    """What the reason has to mention."""
    extra: tuple[tuple[str, object], ...] = ()
    """Variables for the playbook."""


def background(unit: str, command: str) -> str:
    """Shell that runs a command as a unit of its own."""
    return f"systemd-run --quiet --collect --unit={unit} {command}"


def serve(unit: str, socket: str) -> str:
    """Shell that starts a gRPC server on a socket and waits until it is there."""
    code = SERVER.format(socket)
    wait = f"timeout 10 sh -c 'until test -S {socket}; do sleep 0.05; done'"
    return background(unit, f'{PYTHON} -c "{code}"') + f" && {wait}"


ALL = (
    # --- the twelve of the specification ---
    Sabotage(
        "no_device_nodes", "device_nodes",
        "mkdir /root/nodes && mv /dev/nvidia[0-9]* /root/nodes/", "mv /root/nodes/* /dev/ && rmdir /root/nodes",
        says="/dev/nvidia0",
    ),
    Sabotage(
        "no_uvm", "uvm",
        "mkdir /root/uvm && mv /dev/nvidia-uvm* /root/uvm/", "mv /root/uvm/* /dev/ && rmdir /root/uvm",
        says="/dev/nvidia-uvm",
    ),
    Sabotage("driver_and_library_differ", "driver_library", gpu_breaks=("init-fail", "18"), gpu_mends=("init-ok",)),
    Sabotage("nvml_fails", "nvml", gpu_breaks=("init-fail", "999"), gpu_mends=("init-ok",)),
    Sabotage("plugin_stopped", "plugin", "systemctl stop gpu-device-plugin", RESTART_PLUGIN, says="no plugin has a socket"),
    Sabotage(
        "plugin_socket_deleted", "plugin",
        # Stopped, since a running plugin makes its socket anew at once; and systemd's watchdog would help it.
        f"systemctl service-watchdogs no; kill -STOP {PLUGIN}; rm {DIR}/gpuops-*.sock", f"systemctl service-watchdogs yes; kill -CONT {PLUGIN}; {RESTART_PLUGIN}", says="checkpoint still names",
    ),
    Sabotage(
        "gate_off_on_a_used_node", "gate",
        f"cp -p /etc/default/kubelet /root/kubelet.env 2>/dev/null; echo 'KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false' >> /etc/default/kubelet; {RESTART_KUBELET}",
        f"rm -f /etc/default/kubelet; mv /root/kubelet.env /etc/default/kubelet 2>/dev/null; {RESTART_KUBELET}",
        says="/etc/default/kubelet:",
    ),
    Sabotage("kubelet_down", "kubelet", "systemctl stop kubelet", "systemctl start kubelet"),
    Sabotage(
        "runtime_not_default", "runtime", DEFAULT_RUNTIME.format("nvidia", "runc"), DEFAULT_RUNTIME.format("runc", "nvidia"),
        says="runc",
    ),
    Sabotage("gpu_lost", "gpu_health", gpu_breaks=("lose", "3"), gpu_mends=("restore", "3"), says="GPU 3"),
    Sabotage(
        "two_plugins", "one_owner",
        background(
            "second-plugin",
            f"{PYTHON} -m gpu_device_plugin run --run-dir=/run/second --state-dir=/var/lib/second",
        )
        + f" && timeout 10 sh -c 'until test $(ls {DIR}/gpuops-*.sock | wc -l) = 2; do sleep 0.05; done'",
        f"systemctl stop second-plugin; {RESTART_PLUGIN}",
        says="2 plugins",
    ),
    Sabotage(
        "container_sees_what_it_did_not_ask_for", "isolation",
        "docker rm -f greedy; docker create --name greedy gpuops/pause:1 && docker commit --change 'ENV NVIDIA_VISIBLE_DEVICES=all' greedy greedy:1",
        "docker rm -f greedy; docker rmi greedy:1",
        says="/dev/nvidia0", extra=(("device_plugin_verify_image", "greedy:1"),),
    ),
    # --- and more ---
    Sabotage("gpu_fell_off_the_bus", "pci", gpu_breaks=("remove", "7"), gpu_mends=("add",), says="8 expected"),
    Sabotage(
        "driver_not_loaded", "driver",
        "mv /proc/driver/nvidia/version /proc/driver/nvidia/version.away",
        "mv /proc/driver/nvidia/version.away /proc/driver/nvidia/version",
    ),
    Sabotage(
        "driver_updated_without_reboot", "driver_library",
        "cp /proc/driver/nvidia/version /root/version; sed -i 's/[0-9][0-9][0-9]\\.[0-9.]*/999.1.2/' /proc/driver/nvidia/version",
        "cp /root/version /proc/driver/nvidia/version", says="999.1.2",
    ),
    Sabotage(
        "plugin_hangs", "plugin",
        f"systemctl service-watchdogs no; kill -STOP {PLUGIN}",
        f"systemctl service-watchdogs yes; kill -CONT {PLUGIN}; {RESTART_PLUGIN}", says="hangs",
    ),
    Sabotage(
        "plugin_killed_and_not_restarted", "plugin",
        f"systemctl mask --runtime --quiet gpu-device-plugin; kill -KILL {PLUGIN}; sleep 0.5; systemctl stop gpu-device-plugin",
        RESTART_PLUGIN,
    ),
    Sabotage("xid_79", "healthy", gpu_breaks=("xid", "3", "79"), gpu_mends=("show",), mends=f"systemctl stop gpu-device-plugin; rm -rf /var/lib/gpu-device-plugin/*; {RESTART_PLUGIN}", says="79"),
    Sabotage(
        "gate_mended_on_disk_and_no_restart", "gate",
        f"cp -p /etc/default/kubelet /root/kubelet.env 2>/dev/null; echo 'KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false' >> /etc/default/kubelet; {RESTART_KUBELET}; "
        "timeout 20 sh -c 'until curl -sf 127.0.0.1:10248/healthz; do sleep 0.1; done'; sed -i '$d' /etc/default/kubelet",
        f"rm -f /root/kubelet.env; {RESTART_KUBELET}", says="K16",
    ),
    Sabotage(
        "gate_mended_in_the_configuration_and_no_restart", "gate",
        "cp -p /var/lib/kubelet/config.yaml /root/config.yaml; printf 'featureGates:\n  DevicePlugins: false\n' >> /var/lib/kubelet/config.yaml; "
        f"{RESTART_KUBELET}; timeout 20 sh -c 'until curl -sf 127.0.0.1:10248/healthz; do sleep 0.1; done'; "
        "cp /root/config.yaml /var/lib/kubelet/config.yaml; touch -d '+5 seconds' /var/lib/kubelet/config.yaml",
        f"mv /root/config.yaml /var/lib/kubelet/config.yaml; {RESTART_KUBELET}", says="config.yaml changed after the kubelet",
    ),
    Sabotage(
        "device_plugin_directory_replaced", "kubelet_socket",
        f"systemctl stop gpu-device-plugin; mv {DIR} {DIR}.old; mkdir {DIR}",
        f"rm -rf {DIR}; mv {DIR}.old {DIR}; {RESTART_KUBELET}; {RESTART_PLUGIN}", says="no kubelet.sock",
    ),
    Sabotage(
        "fewer_offered_than_there_are", "expected",
        "cp /etc/gpu-device-plugin/config.yaml /root/plugin.yaml; printf 'version: v1\\ndevices:\\n  exclude: [\"7\"]\\n' > /etc/gpu-device-plugin/config.yaml; "
        "timeout 20 sh -c 'until gpu-device-plugin status | grep -q \"^nvidia.com/gpu *7\"; do sleep 0.2; done'",
        "cp /root/plugin.yaml /etc/gpu-device-plugin/config.yaml; "
        "timeout 20 sh -c 'until gpu-device-plugin status | grep -q \"^nvidia.com/gpu *8\"; do sleep 0.2; done'",
        says="7 nvidia.com/gpu can be had, 8 expected",
    ),
    Sabotage(
        "runtime_injects_nothing", "request",
        "mv /usr/bin/nvidia-container-runtime /root/ncr; ln -s $(command -v runc) /usr/bin/nvidia-container-runtime",
        "rm /usr/bin/nvidia-container-runtime; mv /root/ncr /usr/bin/nvidia-container-runtime", says="sees none",
    ),
    Sabotage(
        "runtime_refuses_the_way_the_plugin_asks", "request",
        "cd /etc/nvidia-container-runtime && cp -p config.toml /root/runtime.toml; sed -i '1i accept-nvidia-visible-devices-envvar-when-unprivileged = false' config.toml",
        "cp -p /root/runtime.toml /etc/nvidia-container-runtime/config.toml", says="hands out GPUs by envvar",
    ),
    Sabotage(
        "engine_down", "engine", "systemctl stop docker.socket docker", "systemctl start docker",
        extra=(("device_plugin_engine", "docker"),),
    ),
    Sabotage(
        "checkpoint_broken", "registered",
        f"cp -p {DIR}/kubelet_internal_checkpoint /root/checkpoint; echo '{{' > {DIR}/kubelet_internal_checkpoint",
        f"cp -p /root/checkpoint {DIR}/kubelet_internal_checkpoint; {RESTART_KUBELET}",
    ),
    Sabotage(
        "gate_off_in_the_configuration", "gate",
        f"cp -p /var/lib/kubelet/config.yaml /root/config.yaml; printf 'featureGates:\\n  DevicePlugins: false\\n' >> /var/lib/kubelet/config.yaml; {RESTART_KUBELET}",
        f"cp -p /root/config.yaml /var/lib/kubelet/config.yaml; {RESTART_KUBELET}", says="/var/lib/kubelet/config.yaml:",
    ),
    Sabotage(
        "uvm_is_no_device", "uvm",
        "mv /dev/nvidia-uvm /root/uvm.node && touch /dev/nvidia-uvm", "rm /dev/nvidia-uvm; mv /root/uvm.node /dev/nvidia-uvm",
    ),
    Sabotage(
        "dra_driver_beside", "one_owner",
        "mkdir -p /var/lib/kubelet/plugins/gpu.nvidia.com && " + serve("dra", "/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock"),
        "systemctl stop dra; rm -rf /var/lib/kubelet/plugins/gpu.nvidia.com", says="DRA",
    ),
    Sabotage(
        "nvidias_plugin_beside", "one_owner", serve("peer", f"{DIR}/nvidia-gpu.sock"),
        f"systemctl stop peer; rm -f {DIR}/nvidia-gpu.sock", says="nvidia-gpu.sock",
    ),
)  # fmt: skip

BY_NAME = {one.name: one for one in ALL}


def act(node: str, shell: str, verb: tuple[str, ...]) -> None:
    """Runs one side of a sabotage on a node. Raises CalledProcessError when the GPUs can't be steered."""
    if verb:
        subprocess.run([TESTBED, "gpu", node, *verb], check=True, stdout=subprocess.DEVNULL)
    if shell:
        subprocess.run(
            ["docker", "exec", f"gpuops-{node}", "sh", "-c", shell], check=False, stdout=subprocess.DEVNULL
        )


def break_node(node: str, one: Sabotage) -> None:
    """Breaks it."""
    act(node, one.breaks, one.gpu_breaks)


def mend_node(node: str, one: Sabotage) -> None:
    """Puts it back, and waits until the node is well again."""
    act(node, one.mends, one.gpu_mends)
    act(node, SETTLED, ())


def main() -> int:
    """The command line."""
    if len(sys.argv) == 4 and sys.argv[2] in ("break", "mend") and sys.argv[3] in BY_NAME:
        (break_node if sys.argv[2] == "break" else mend_node)(sys.argv[1], BY_NAME[sys.argv[3]])
        return 0
    for one in ALL:
        print(f"{one.name:40} {one.link}")
    return 2 if len(sys.argv) > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
