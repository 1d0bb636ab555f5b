"""The kubelet's wire formats: generated messages (``*_pb2``, made by tests/tools/protos) and service names.

No generated service stubs: a method is a path, a request class and a response class, and both ends say so in
one line (``channel.unary_unary``, ``grpc.method_handlers_generic_handler``).
"""

from __future__ import annotations

REGISTRATION = "v1beta1.Registration"
"""Served by the kubelet on kubelet.sock: Register."""
DEVICE_PLUGIN = "v1beta1.DevicePlugin"
"""Served by the plugin: options, ListAndWatch, GetPreferredAllocation, Allocate, PreStartContainer."""
POD_RESOURCES = "v1.PodResourcesLister"
"""Served by the kubelet: List, GetAllocatableResources, Get (K27)."""
PLUGIN_REGISTRATION = "pluginregistration.Registration"
"""Served by the plugin in plugins_registry: GetInfo, NotifyRegistrationStatus."""

API_VERSION = "v1beta1"
HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"
