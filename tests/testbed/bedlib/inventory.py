"""An Ansible inventory of nodes, with the role variables that point to the repository on each node."""

from __future__ import annotations

import json

from bedlib import node
from bedlib.common import docker

REPOSITORY = "http://127.0.0.1:8099"


def text(names: list[str]) -> str:
    """YAML (of the JSON kind where values are strings: quoted) for these nodes."""
    lines = ["all:", "  vars:"]
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(node.key()),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
        "-o ControlMaster=auto -o ControlPersist=60s",
        "ansible_python_interpreter": "/usr/bin/python3",
        "nvidia_docker_repository": f"{REPOSITORY}/deb",
        "nvidia_docker_repository_key": f"{REPOSITORY}/gpgkey",
        "nvidia_docker_verify_image": "gpuops/workload:1",
        "device_plugin_verify_image": "gpuops/workload:1",
        "device_plugin_base_image": "gpuops/python:1",
    }
    lines += [f"    {key}: {json.dumps(value)}" for key, value in variables.items()]
    lines += ["  children:", "    gpu_nodes:", "      hosts:"]
    for name in names:
        about = node.info(name)
        spec = json.loads(docker("exec", about["container"], "cat", "/etc/testbed/node.json"))
        fingerprint = docker("exec", about["container"], "cat", "/srv/nvidia-repo/fingerprint")
        lines += [
            f"        {about['name']}:",
            f"          ansible_host: {about['host']}",
            f"          ansible_port: {about['port']}",
            f'          nvidia_docker_repository_key_fingerprint: "{fingerprint}"',
        ]
        if spec["driver"]:
            lines.append(f"          device_plugin_expected_gpus: {spec['gpus']}")
    return "\n".join(lines) + "\n"
