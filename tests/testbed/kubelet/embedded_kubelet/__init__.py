"""A kubelet for tests and for the demo: the device manager's contract to the letter (KUBELET.md), and nothing else.

In a test: ``EmbeddedKubelet(Settings(plugin_dir=..., root_dir=..., version="1.36"))`` with start, stop, kill, restart,
lists, wait_for, admit. As a program: ``python -m embedded_kubelet kubelet`` and ``... pod run|ls|rm|node``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .allocation import AdmissionError, KubeletPanicError
    from .kubelet import EmbeddedKubelet
    from .settings import Faults, Settings

__all__ = ["AdmissionError", "EmbeddedKubelet", "Faults", "KubeletPanicError", "Settings"]

_HOMES = {
    "AdmissionError": "allocation",
    "EmbeddedKubelet": "kubelet",
    "Faults": "settings",
    "KubeletPanicError": "allocation",
    "Settings": "settings",
}


def __getattr__(name: str) -> Any:
    """Loaded when asked for: ``kubelet --version`` and ``kubelet-pod`` need no gRPC."""
    if name not in _HOMES:
        raise AttributeError(name)
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
