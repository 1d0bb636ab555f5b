# Copyright (c) 2026, The gpuops developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The four programs of a control plane as systemd units, for one container made from the node image.

etcd's files lie on a tmpfs: a test cluster doesn't outlive its container, and a slow disk can't make it late.
"""

from __future__ import annotations

BIN = "/opt/kubernetes/bin"
PKI = "/etc/kubernetes/pki"
LOGS = "/var/log/kubernetes"
PORT = 6443
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ETCD = "http://127.0.0.1:2379"
PEERS = "http://127.0.0.1:2380"


def commands(address: str) -> dict[str, list[str]]:
    """The command line of each component; ``address`` is the container's."""
    return {
        "etcd": [
            f"{BIN}/etcd",
            "--data-dir=/run/etcd",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={PEERS}",
            f"--initial-advertise-peer-urls={PEERS}",
            f"--initial-cluster=default={PEERS}",
            "--logger=zap",
        ],
        "kube-apiserver": [
            f"{BIN}/kube-apiserver",
            f"--etcd-servers={ETCD}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={address}",
            f"--secure-port={PORT}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={PKI}/ca.crt",
            f"--tls-cert-file={PKI}/apiserver.crt",
            f"--tls-private-key-file={PKI}/apiserver.key",
            f"--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={PKI}/apiserver-kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={PKI}/sa.pub",
            f"--service-account-signing-key-file={PKI}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--event-ttl=1h",
        ],
        "kube-controller-manager": [
            f"{BIN}/kube-controller-manager",
            "--kubeconfig=/etc/kubernetes/controller-manager.conf",
            f"--service-account-private-key-file={PKI}/sa.key",
            f"--root-ca-file={PKI}/ca.crt",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            # A node that is away is noticed after 20 s instead of 40, which no test has the patience for.
            "--node-monitor-grace-period=20s",
        ],
        "kube-scheduler": [
            f"{BIN}/kube-scheduler",
            "--kubeconfig=/etc/kubernetes/scheduler.conf",
            "--leader-elect=false",
        ],
    }


def unit(component: str, command: list[str]) -> str:
    """A systemd unit that starts again for ever, so that the components need no order among them."""
    words = " \\\n  ".join(command)
    return f"""[Unit]
Description={component} of the gpuops test cluster
StartLimitIntervalSec=0

[Service]
ExecStart={words}
StandardOutput=append:{LOGS}/{component}.log
StandardError=inherit
Restart=always
RestartSec=300ms
# kube-apiserver would take a minute over its watches, in which it answers nobody.
TimeoutStopSec=2

[Install]
WantedBy=multi-user.target
"""


def files(address: str) -> dict[str, str]:
    """Path in the container -> text, for all units."""
    return {
        f"/etc/systemd/system/{name}.service": unit(name, line) for name, line in commands(address).items()
    }
