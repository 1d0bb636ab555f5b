"""A Kubernetes device plugin for NVIDIA GPUs, MIG slices and other device files. ``python -m gpu_device_plugin --help``."""

__version__ = "0.1.0"
