"""An image registry on the cluster's own network: Debian's docker-registry in the control plane's container."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("GPUOPS_CACHE", Path.home() / ".cache/gpuops"))
PORT = 5000
CONFIG = f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: /var/lib/registry}}}}
http: {{addr: ":{PORT}"}}
"""


def program() -> Path:
    """The registry's program, unpacked from the Debian package into the cache."""
    found = CACHE / "docker-registry" / "docker-registry"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as work:
            subprocess.run(
                ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "docker-registry"],
                cwd=work, check=True, capture_output=True,
            )  # fmt: skip
            package = next(Path(work).glob("*.deb"))
            subprocess.run(["dpkg", "-x", package, work], check=True)
            (Path(work) / "usr/bin/docker-registry").replace(found)
    return found


def start(container: str) -> str:
    """Starts it in a node container, and returns ``address:port`` as other nodes reach it."""
    subprocess.run(
        ["docker", "cp", str(program()), f"{container}:/usr/local/bin/"], check=True, capture_output=True
    )
    script = f"""
    cat > /etc/registry.yml <<'END'{CONFIG}END
    systemctl is-active --quiet registry ||
      systemd-run --quiet --unit=registry /usr/local/bin/docker-registry serve /etc/registry.yml
    timeout 20 sh -c 'until curl -sf http://127.0.0.1:{PORT}/v2/ >/dev/null; do sleep 0.1; done'
    hostname -I
    """
    done = subprocess.run(
        ["docker", "exec", "-i", container, "sh", "-es"],
        input=script,
        check=True,
        capture_output=True,
        text=True,
    )
    return f"{done.stdout.split()[0]}:{PORT}"
