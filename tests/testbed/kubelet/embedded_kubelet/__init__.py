"""A kubelet for tests and for the demo: the device manager's contract to the letter (KUBELET.md), and nothing else.

In a test: ``EmbeddedKubelet(Settings(plugin_dir=..., root_dir=..., version="1.36"))`` with start, stop, kill, restart,
lists, wait_for, admit. As a program: ``python -m embedded_kubelet kubelet`` and ``... pod run|ls|rm|node``.
"""

from __future__ import annotations

from .kubelet import EmbeddedKubelet
from .manager import AdmissionError, KubeletPanicError
from .settings import Faults, Settings

__all__ = ["AdmissionError", "EmbeddedKubelet", "Faults", "KubeletPanicError", "Settings"]
