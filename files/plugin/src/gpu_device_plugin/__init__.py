"""A Kubernetes device plugin for NVIDIA GPUs, MIG slices and other device files."""

__version__ = "0.1.0"
