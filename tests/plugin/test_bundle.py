"""Lean import of grpc, and what the bundle leaves out and keeps; the wheels' hashes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "files/plugin"
sys.path.insert(0, str(PLUGIN / "tools"))

import bundle  # noqa: E402


def test_grpc_is_imported_without_asyncio_and_asyncio_works_afterwards():
    code = (
        "import sys; from gpu_device_plugin import rpc; assert 'asyncio' not in sys.modules, 'brought along';"
        "import asyncio; asyncio.run(asyncio.sleep(0)); rpc.server(); rpc.channel('/nowhere').close()"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGIN / "src")}, check=True)


def test_the_daemon_imports_nothing_that_it_does_not_need_at_start():
    code = "import sys, gpu_device_plugin.daemon, gpu_device_plugin.kubelet; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PLUGIN / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert not loaded & {
        "prometheus_client",
        "http.server",
        "ssl",
        "asyncio",
        "yaml",
        "cattrs",
        "urllib.request",
    }


def test_every_locked_package_has_hashes_and_an_exact_version():
    lock = (PLUGIN / "requirements.lock").read_text()
    entries = [entry for entry in lock.split("\n") if entry and entry[0].isalpha()]
    assert len(entries) >= 6
    for entry in entries:
        assert re.match(r"[a-z-]+==[0-9.]+", entry), entry
        assert lock.split(entry)[1].lstrip(" \\\n").startswith("--hash=sha256:"), entry


def test_the_image_has_what_nvidias_manifests_expect_of_an_image(tmp_path):
    lines = (PLUGIN / "Dockerfile").read_text().splitlines()
    variables = dict(
        re.findall(r"([A-Z_]+)=(\S+)", " ".join(line for line in lines if line.startswith("ENV ")))
    )
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all", "the runtime shows the plugin every GPU"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    [run] = [line for line in lines if line.startswith("RUN ") and "nvidia-device-plugin" in line]
    command = json.loads(run.removeprefix("RUN "))
    code = command[-1].replace("/usr/bin", str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("gpu-device-plugin", "nvidia-device-plugin"):
        done = subprocess.run(
            [tmp_path / name, "--version"],
            env={"PYTHONPATH": str(PLUGIN / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("gpu-device-plugin ")


def wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_a_wheel_is_unpacked_without_what_nothing_imports(place):
    wheel(
        place,
        "grpcio",
        {"grpc/__init__.py": "x", "grpc/_cython/_credentials/roots.pem": "x", "grpc/a.pyi": "x"},
    )
    target = place / "site-packages"
    bundle.unpack(place, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "grpc/__init__.py"
    ]


def test_a_wheel_that_reaches_outside_is_refused(place):
    wheel(place, "evil", {"../evil.py": "x"})
    with pytest.raises(bundle.BundleError, match="refused"):
        bundle.unpack(place, place / "site-packages")


def test_the_same_tree_packs_to_the_same_bytes(place):
    archives = []
    for number in (1, 2):
        target = place / str(number) / "site-packages"
        target.mkdir(parents=True)
        bundle.add_plugin(target)
        bundle.settle(target)
        bundle.pack(target, place / f"{number}.tar")
        archives.append((place / f"{number}.tar").read_bytes())
    assert archives[0] == archives[1]


def test_an_offline_folder_without_the_wheels_is_an_error_that_names_it(place):
    with pytest.raises(bundle.BundleError, match=str(place)):
        bundle.fetch("3.11", "x86_64", place / "to", offline=place)


def test_metrics_bring_no_tls_and_the_api_server_still_gets_it():
    code = (
        "import sys; from gpu_device_plugin import metrics; assert not {'ssl', '_ssl', '_hashlib'} & set(sys.modules);"
        "from gpu_device_plugin import apiserver; import ssl, urllib.request, hashlib, http.client;"
        "assert ssl.create_default_context() and http.client.HTTPSConnection('localhost');"
        "assert urllib.request.HTTPSHandler(context=ssl.create_default_context()); hashlib.new('sha256');"
        "assert metrics.generate_latest(metrics.CollectorRegistry()) == b''"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGIN / "src")}, check=True)
    code = "from gpu_device_plugin import apiserver, metrics; import ssl; assert ssl.create_default_context()"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGIN / "src")}, check=True)
