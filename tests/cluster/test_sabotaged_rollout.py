"""A rollout whose second node can't start with its new configuration."""

from __future__ import annotations

import pytest
from lab import wait_until

pytestmark = [pytest.mark.node, pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]

GATE_OFF = """
echo 'KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false' > /etc/default/kubelet
systemctl restart kubelet
"""
# A kubelet that refuses every configuration but the old one.
SABOTAGE = """
mv /usr/bin/kubelet /usr/bin/kubelet.real
cat > /usr/bin/kubelet <<'END'
#!/bin/sh
case "$*" in *--version* | *DevicePlugins=false*) exec /usr/bin/kubelet.real "$@" ;; esac
echo "F1123 failed to run Kubelet: sabotaged: this node can't start with its new configuration" >&2
exit 1
END
chmod 755 /usr/bin/kubelet
"""
FILES = "cat /etc/default/kubelet /etc/containerd/config.toml; ls /etc/containerd/conf.d 2>/dev/null || true"


def test_first_is_provisioned_second_rolled_back_and_cordoned_third_untouched(bare_lab):
    first, second, third = bare_lab.nodes
    for node in bare_lab.nodes:
        bare_lab.inside(node, GATE_OFF)
    bare_lab.inside(second, SABOTAGE)
    before = {node: bare_lab.inside(node, FILES) for node in (second, third)}

    done = bare_lab.play("provision")

    assert done.returncode != 0
    summary = done.stdout[done.stdout.index("TASK [Summary]") :]
    lines = {
        line.split()[0]: line for line in summary.splitlines() if line.startswith(f"        {bare_lab.name}-")
    }
    assert "provisioned" in lines[first]
    assert "rolled back, cordoned" in lines[second]
    assert "untouched" in lines[third]
    assert "sabotaged" in "\n".join(done.stdout.splitlines()[-10:])
    assert bare_lab.cordoned() == [second]
    assert {node: bare_lab.inside(node, FILES) for node in (second, third)} == before
    wait_until(
        lambda: bare_lab.inside(second, "curl -sf -m 2 http://127.0.0.1:10248/healthz", check=False) == "ok",
        "the second node's kubelet runs again, with its old configuration",
    )
    assert bare_lab.offered()[first] == 8 and bare_lab.offered()[third] == 0
