# Copyright (c) 2026, The gpuops developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates and kubeconfigs of a test cluster: one authority, made with openssl, valid for a month."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

DAYS = "30"
CLUSTER_SERVICE = "10.96.0.1"  # the first address of the service range: the API server's own service

# file name: (subject, extension line). The subjects' groups and names are those that Kubernetes' own RBAC rules know.
CLIENTS = {
    "admin": "/O=system:masters/CN=kubernetes-admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "apiserver-kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
}


@dataclass(frozen=True)
class Authority:
    """A directory with ca.crt, ca.key and everything signed by it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """A fresh authority and the service account key pair in ``folder``, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", folder / "ca.key", "-out", folder / "ca.crt", "-subj", "/CN=gpuops test cluster"),
            *("-days", DAYS, "-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
        )
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / "sa.key")
        _openssl("ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
        return cls(folder)

    def sign(self, name: str, subject: str, extensions: str) -> None:
        """``name``.key and ``name``.crt for ``subject``, with X.509 extensions as openssl's -extfile takes them."""
        key, request, certificate = (self.folder / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
        settings = self.folder / f"{name}.ext"
        settings.write_text(extensions + "\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", subject),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-out", certificate, "-days", DAYS, "-extfile", settings),
            *("-CA", self.folder / "ca.crt", "-CAkey", self.folder / "ca.key", "-CAcreateserial"),
        )
        request.unlink()
        settings.unlink()

    def sign_server(self, addresses: list[str], names: list[str]) -> None:
        """The API server's certificate."""
        entries = [f"IP:{a}" for a in [*addresses, "127.0.0.1", CLUSTER_SERVICE]]
        entries += [f"DNS:{n}" for n in [*names, "localhost", "kubernetes", "kubernetes.default.svc"]]
        self.sign(
            "apiserver",
            "/CN=kube-apiserver",
            f"extendedKeyUsage=serverAuth\nsubjectAltName={','.join(entries)}",
        )

    def sign_clients(self) -> None:
        """One client certificate for each of CLIENTS."""
        for name, subject in CLIENTS.items():
            self.sign(name, subject, "extendedKeyUsage=clientAuth")

    def sign_node(self, node: str) -> None:
        """A kubelet's client certificate; the node authorizer reads the node's name from it."""
        self.sign(f"node-{node}", f"/O=system:nodes/CN=system:node:{node}", "extendedKeyUsage=clientAuth")

    def kubeconfig(self, name: str, server: str) -> str:
        """A kubeconfig (JSON is YAML) with the certificates inside, for the client ``name``."""

        def inside(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": server, "certificate-authority-data": inside("ca.crt")},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": inside(f"{name}.crt"),
                        "client-key-data": inside(f"{name}.key"),
                    },
                }
            ],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        return json.dumps(document, indent=1) + "\n"


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
