"""The bill of materials of the plugin's image, as CycloneDX JSON.

    python3 files/plugin/tools/sbom.py --image NAME:TAG --base NAME:TAG --output FILE [--python 3.11] [--arch x86_64]

Made from the metadata of the packages that bundle.py unpacks for the image, not from a list of what was asked for.
Names the base image, and says nothing about what is in it: ask its maker for that. The same image gives the same bytes.
Needs the package cyclonedx-python-lib beside pip.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bundle

try:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL
except ImportError as error:
    sys.exit(f"sbom: {sys.executable}: {error}; pip install cyclonedx-python-lib")

PLUGIN = "gpu-device-plugin"
LICENCE = "GPL-3.0-or-later"


def describe(site: Path, image: str, base: str) -> Bom:
    """The image ``image`` on ``base``: the plugin, and every package whose metadata lies in ``site``."""
    name, tag = name_and_tag(image)
    whole = Component(name=name, version=tag, type=ComponentType.CONTAINER, bom_ref=image)
    name, tag = name_and_tag(base)
    below = Component(
        name=name,
        version=tag,
        type=ComponentType.CONTAINER,
        bom_ref="base-image",
        properties=[Property(name="gpuops:contents", value="not listed here")],
    )
    found = {
        dist.metadata["Name"].lower(): dist for dist in importlib.metadata.distributions(path=[str(site)])
    }
    packages = {name: package(dist) for name, dist in sorted(found.items())}
    bom = Bom(components=[below, *packages.values()])
    bom.metadata.component = whole
    plugin = packages.pop(PLUGIN)
    bom.register_dependency(whole, [below, plugin])
    bom.register_dependency(plugin, packages.values())
    identity = "\n".join([image, base, *(f"{one.name}=={one.version}" for one in packages.values())])
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, identity)
    return bom


def name_and_tag(image: str) -> tuple[str, str | None]:
    """``registry:5000/a/b:1`` as ``registry:5000/a/b`` and ``1``; None where no tag is given."""
    name, _colon, tag = image.rpartition(":")
    return (name, tag) if name and "/" not in tag else (image, None)


def package(dist: importlib.metadata.Distribution) -> Component:
    """One package by its metadata: name, version, licence, address as a package URL."""
    name, version = dist.metadata["Name"], dist.version
    ours = name == PLUGIN
    text = LICENCE if ours else licence_of(dist.metadata)
    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION if ours else ComponentType.LIBRARY,
        description=dist.metadata.get("Summary"),
        licenses=[LicenseFactory().make_from_string(text)] if text else [],
        purl=None if ours else PackageURL("pypi", None, name.lower().replace("_", "-"), version),
        bom_ref=f"{name}=={version}",
    )


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """The licence in one line: the SPDX expression where there is one, else the name that the package gives."""
    text = metadata.get("License-Expression") or metadata.get("License")
    if text and len(text.strip().splitlines()) == 1:
        return str(text).strip()
    kinds = [one for one in metadata.get_all("Classifier") or [] if one.startswith("License :: ")]
    return kinds[0].rpartition(" :: ")[2] if kinds else None


def render(bom: Bom) -> str:
    """CycloneDX 1.6 as JSON, without the time of writing: the same image, the same bytes."""
    value = json.loads(JsonV1Dot6(bom).output_as_string())
    value["metadata"].pop("timestamp", None)
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def main() -> int:
    """The command line; 0, or 1 with one message."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--image", required=True, help="name and tag of the image")
    parser.add_argument("--base", required=True, help="name and tag of the image it is built on")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    parser.add_argument("--python", default="3.11", choices=bundle.PYTHONS, help="CPython of the image")
    parser.add_argument("--arch", default="x86_64", choices=bundle.ARCHITECTURES, help="machine of the image")
    parser.add_argument("--offline", type=Path, help="folder with the wheels; nothing is fetched")
    words = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="sbom-") as work:
            site = bundle.bundle(words.python, words.arch, Path(work), words.offline, compiled=False)
            bom = describe(site, words.image, words.base)
        words.output.parent.mkdir(parents=True, exist_ok=True)
        words.output.write_text(render(bom))
        print(f"{words.output}: {len(bom.components)} components")
    except (bundle.BundleError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
