"""The bill of materials says what lies in the image: valid CycloneDX, every package with its licence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "files/plugin/tools"))

import sbom

PACKAGES = {
    "gpu-device-plugin": "Version: 0.1.0",
    "prometheus_client": "Version: 0.26.0\nLicense-Expression: Apache-2.0 AND BSD-2-Clause",
    "nvidia-ml-py": "Version: 13.1\nLicense: BSD",
    "old": "Version: 1\nLicense: Many\n        lines of text\nClassifier: License :: OSI Approved :: MIT License",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, about in PACKAGES.items():
        info = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{about}\n")
    return tmp_path


def test_it_is_valid_and_the_same_image_gives_the_same_bytes(site: Path) -> None:
    text = sbom.render(sbom.describe(site, "registry:5000/gpu:1", "python:3.11"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert sbom.render(sbom.describe(site, "registry:5000/gpu:1", "python:3.11")) == text
    assert sbom.render(sbom.describe(site, "registry:5000/gpu:1", "python:3.12")) != text


def test_every_package_is_named_with_version_licence_and_address(site: Path) -> None:
    bom = json.loads(sbom.render(sbom.describe(site, "registry:5000/gpu", "python:3.11")))
    assert (bom["metadata"]["component"]["name"], bom["metadata"]["component"].get("version")) == (
        "registry:5000/gpu",
        None,
    )
    found = {one["name"]: one for one in bom["components"]}
    assert set(found) == {*PACKAGES, "python"}
    assert found["prometheus_client"]["purl"] == "pkg:pypi/prometheus-client@0.26.0"
    licences = {name: found[name]["licenses"][0] for name in PACKAGES}
    assert licences["gpu-device-plugin"] == {"license": {"id": "GPL-3.0-or-later"}}
    assert licences["prometheus_client"] == {"expression": "Apache-2.0 AND BSD-2-Clause"}
    assert licences["nvidia-ml-py"] == {"license": {"name": "BSD"}}
    assert licences["old"] == {"license": {"name": "MIT License"}}


def test_the_image_depends_on_its_base_and_on_the_plugin_which_needs_the_rest(site: Path) -> None:
    bom = json.loads(sbom.render(sbom.describe(site, "gpu:1", "python:3.11")))
    needs = {one["ref"]: one.get("dependsOn", []) for one in bom["dependencies"]}
    assert needs["gpu:1"] == ["base-image", "gpu-device-plugin==0.1.0"]
    assert needs["gpu-device-plugin==0.1.0"] == ["nvidia-ml-py==13.1", "old==1", "prometheus_client==0.26.0"]
