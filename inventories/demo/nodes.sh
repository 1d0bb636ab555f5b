#!/usr/bin/env bash
# Ansible's inventory script for the node of `make demo`: asks the test bed where its ssh listens.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/tests/testbed/testbed" inventory "${GPUOPS_DEMO_NODE:-demo}" | "$root/.venv/bin/python" -c '
import json, sys, yaml

hosts = (tree := yaml.safe_load(sys.stdin)["all"])["children"]["gpu_nodes"]["hosts"]
print(json.dumps({
    "gpu_nodes": {"hosts": list(hosts)},
    "all": {"vars": tree["vars"]},
    "_meta": {"hostvars": hosts},
}, indent=2))'
