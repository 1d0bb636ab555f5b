"""Makes a fresh node what /etc/testbed/node.json says, before docker and the kubelet start. Runs at every boot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/opt/testbed/nvml")
import world

NODE = json.loads(Path("/etc/testbed/node.json").read_text(encoding="utf-8"))
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
CAP_SYS_RESOURCE = 24
DAEMON_JSON = (
    '{"log-driver": "json-file", "features": {"buildkit": true}, "insecure-registries": ["127.0.0.0/8"]}\n'
)


def write(path: str, text: str, mode: int = 0o644) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    Path(path).chmod(mode)


def mounted(place: str) -> bool:
    return any(
        line.split()[1] == place for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    )


def hardware() -> None:
    """GPUs on the PCI bus; with a driver also its library, device nodes and /proc files."""
    for place in ("/sys/bus/pci/devices", "/proc/driver"):
        if not mounted(place):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "testbed", place], check=True)
    machine = world.here()
    if NODE["driver"] and NODE["gpus"]:
        if not machine.state.exists():
            machine.start(NODE["models"], NODE["name"], NODE["numa_nodes"])
        shutil.copy("/opt/testbed/nvml/libnvidia-ml.so.1", LIBRARY)
        shutil.copy("/opt/testbed/nvml/nvidia-smi", "/usr/bin/nvidia-smi")
    else:
        machine.pci_only(NODE["models"], NODE["name"], NODE["numa_nodes"])


def lacks_sys_resource() -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    bounding = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd"))
    return not int(bounding, 16) >> CAP_SYS_RESOURCE & 1


def engines() -> None:
    if NODE["engine"] != "none" and lacks_sys_resource():
        shutil.copy("/opt/testbed/runc-wrapper", "/usr/local/sbin/runc")
    if not NODE["first_boot"]:
        return
    if NODE["engine"] == "docker":
        write("/etc/docker/daemon.json", DAEMON_JSON)
        return
    remove_packages("docker.io", "docker-cli", "docker-buildx")
    if NODE["engine"] == "containerd":
        write("/etc/containerd/config.toml", Path("/opt/testbed/containerd.toml").read_text(encoding="utf-8"))
    else:
        remove_packages("containerd", "runc")


def remove_packages(*names: str) -> None:
    """As if they had never been installed, and in milliseconds: dpkg would take seconds."""
    status = Path("/var/lib/dpkg/status")
    stanzas = status.read_text(encoding="utf-8").split("\n\n")
    status.write_text("\n\n".join(s for s in stanzas if s.split("\n")[0][9:] not in names), encoding="utf-8")
    for name in names:
        for record in Path("/var/lib/dpkg/info").glob(f"{name}.*"):
            if record.suffix == ".list":
                for line in record.read_text(encoding="utf-8").splitlines():
                    if not Path(line).is_dir():  # /lib is listed too, and is a link
                        Path(line).unlink(missing_ok=True)
            record.unlink()
    for link in Path("/etc/systemd/system").glob("*.wants/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def access() -> None:
    write("/root/.ssh/authorized_keys", NODE["public_key"], 0o600)
    os.chmod("/root/.ssh", 0o700)
    if not Path("/etc/ssh/ssh_host_ed25519_key").exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key"], check=True
        )


def kubelet() -> None:
    """Files in kubeadm's form; the program itself was copied by `testbed up`."""
    if NODE["kubelet"] == "none" or not NODE["first_boot"]:
        return
    docker = NODE["engine"] == "docker"
    flags = ["--pod-infra-container-image=gpuops/pause:1", f"--hostname-override={NODE['name']}"]
    if docker:
        flags.append("--network-plugin=cni")
        # The embedded one may play a version that reaches docker through cri-dockerd alone.
        if NODE["kubelet"] == "embedded":
            flags.append("--container-runtime-endpoint=unix:///run/cri-dockerd.sock")
    else:
        flags += [
            "--container-runtime=remote",
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        ]
    write("/var/lib/kubelet/kubeadm-flags.env", f'KUBELET_KUBEADM_ARGS="{" ".join(flags)}"\n')
    write(
        "/etc/default/kubelet",
        f"KUBELET_EXTRA_ARGS={'--feature-gates=DevicePlugins=false' if NODE['gate_off'] else ''}\n",
    )
    write(
        "/var/lib/kubelet/config.yaml", Path("/opt/testbed/kubelet-config.yaml").read_text(encoding="utf-8")
    )
    for place in ("/etc/kubernetes/manifests", "/var/lib/kubelet/device-plugins", "/opt/cni/bin"):
        Path(place).mkdir(parents=True, exist_ok=True)
    write(
        "/etc/cni/net.d/10-loopback.conflist",
        '{"cniVersion": "0.3.1", "name": "loopback", "plugins": [{"type": "loopback"}]}\n',
    )


if __name__ == "__main__":
    hardware()
    engines()
    access()
    kubelet()
    NODE["first_boot"] = False
    write("/etc/testbed/node.json", json.dumps(NODE, indent=1))
