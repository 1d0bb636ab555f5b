"""Makes `ansible_collections.gpuops.k8s` importable in a plain checkout, without writing a link into it.

ansible-test brings its own loader and never needs this; plain pytest gets Ansible's finder over a temporary
directory that holds nothing but a link to this checkout.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

with contextlib.suppress(ImportError):
    import hypothesis

    # A busy machine is no failure: nothing here is a timed test.
    hypothesis.settings.register_profile("gpuops", deadline=None)
    hypothesis.settings.load_profile("gpuops")

CHECKOUT = Path(__file__).resolve().parent.parent


def _collection_is_importable() -> bool:
    try:
        return importlib.util.find_spec("ansible_collections.gpuops.k8s") is not None
    except (ImportError, ValueError):
        return False


def _install_finder() -> None:
    from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder  # noqa: PLC0415

    root = Path(tempfile.mkdtemp(prefix="gpuops-collections-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    namespace = root / "ansible_collections" / "gpuops"
    namespace.mkdir(parents=True)
    (namespace / "k8s").symlink_to(CHECKOUT)
    _AnsibleCollectionFinder(paths=[str(root)])._install()


if importlib.util.find_spec("ansible") is not None and not _collection_is_importable():
    _install_finder()

# The plugin and the stand-ins are used from the tree, not installed.
for folder in ("files/plugin/src", "tests/testbed/nvml", "tests/testbed/kubelet", "tests/testbed"):
    sys.path.insert(0, str(CHECKOUT / folder))
