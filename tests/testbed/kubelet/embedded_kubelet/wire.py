"""The kubelet's messages: the plugin's generated modules, from the tree or installed beside this package."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from gpu_device_plugin import api
except ModuleNotFoundError:  # straight from a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "files/plugin/src"))
    from gpu_device_plugin import api

from gpu_device_plugin.api import deviceplugin_v1beta1_pb2 as deviceplugin
from gpu_device_plugin.api import pluginregistration_v1_pb2 as pluginregistration
from gpu_device_plugin.api import podresources_v1_pb2 as podresources

CHANNEL_OPTIONS = (
    # Channels to one path must not share a connection: a plugin that comes back under its old name is another one.
    ("grpc.use_local_subchannel_pool", 1),
    # As grpc-go dials: again after 1 s, then 1.6 times as long.
    ("grpc.initial_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.default_authority", "localhost"),
)
"""What the kubelet's connections have; the 4 MiB limit on a received message (K18) is gRPC's default at both ends."""

__all__ = ["CHANNEL_OPTIONS", "api", "deviceplugin", "pluginregistration", "podresources"]
