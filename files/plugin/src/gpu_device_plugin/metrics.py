"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP; started only where an address is set (8 MB with its
libraries).

docs/metrics.md lists every metric. GPU readings are taken at the scrape, in its thread; a driver that hangs
costs the scrape those lines and nothing else.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .lean import without_tls

with without_tls():
    import http.server
    import socketserver

    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

from . import __version__, logs
from .devices import Device

if TYPE_CHECKING:
    from .daemon import Daemon

log = logs.Log("metrics")

PREFIX = "gpu_device_plugin_"
LOCK_SECONDS = 1.0
"""How long a scrape waits for NVML when a scan holds it."""
_GPU_LABELS = ("gpu", "uuid", "model")
_READINGS = (
    ("gpu_utilization_ratio", "Share of time in which a kernel ran, 0 to 1."),
    ("gpu_memory_used_bytes", "Memory in use."),
    ("gpu_memory_total_bytes", "Memory of the GPU."),
    ("gpu_temperature_celsius", "Temperature of the GPU."),
    ("gpu_power_watts", "Power drawn now."),
    ("gpu_ecc_double_bit_errors", "Uncorrected ECC errors since the driver was loaded or the GPU reset."),
)


class Collector:
    """Makes all metric families from what the daemon knows at this moment."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterator[Any]:
        """As prometheus-client asks for it."""
        yield from self._own()
        yield from self._devices()
        yield from self._gpus()
        for counter in self._daemon.counters.all_counters():
            family = CounterMetricFamily(PREFIX + counter.name, counter.help_text, labels=counter.labels)
            for labels, value in counter.items():
                family.add_metric(labels, value)
            yield family
        histogram = self._daemon.counters.rpc_seconds
        durations = HistogramMetricFamily(
            PREFIX + histogram.name, histogram.help_text, labels=histogram.labels
        )
        for labels, buckets, total in histogram.items():
            durations.add_metric(labels, buckets, total)
        yield durations

    def _own(self) -> Iterator[Any]:
        daemon = self._daemon
        info = GaugeMetricFamily(
            PREFIX + "info", "Always 1; who is asked.", labels=("version", "driver_version", "cuda_version")
        )
        snapshot = daemon.state.world.snapshot
        info.add_metric((__version__, snapshot.driver_version or "", snapshot.cuda_version or ""), 1)
        yield info
        ready, _reason = daemon.readiness()
        yield GaugeMetricFamily(
            PREFIX + "ready", "1 when every resource is registered and listed.", int(ready)
        )
        yield GaugeMetricFamily(
            PREFIX + "nvml_up",
            "1 when NVML could be read at the last scan.",
            int(daemon.engine.nvml_problem is None),
        )
        yield GaugeMetricFamily(
            PREFIX + "config_generation", "Config files applied since start.", daemon.config_generation
        )
        yield GaugeMetricFamily(
            PREFIX + "config_valid", "0 when the newest edit was refused.", int(daemon.config_problem is None)
        )
        yield GaugeMetricFamily(
            PREFIX + "start_time_seconds", "Start of the process.", daemon.counters.started
        )

    def _devices(self) -> Iterator[Any]:
        daemon = self._daemon
        devices = GaugeMetricFamily(
            PREFIX + "devices", "Devices in the list, by health.", labels=("resource", "health")
        )
        unhealthy = GaugeMetricFamily(
            PREFIX + "device_unhealthy",
            "1 for each GPU, slice or host device that is listed as Unhealthy, with the reason.",
            labels=("resource", "index", "uuid", "reason"),
        )
        registered = GaugeMetricFamily(
            PREFIX + "registered", "1 when the kubelet has taken a list.", labels=("resource",)
        )
        listed = GaugeMetricFamily(
            PREFIX + "last_list_time_seconds", "When the newest list was sent.", labels=("resource",)
        )
        streams = GaugeMetricFamily(PREFIX + "streams", "Open ListAndWatch streams.", labels=("resource",))
        held = GaugeMetricFamily(
            PREFIX + "device_held",
            "1 for each device that a container holds, replicas one by one.",
            labels=("resource", "id", "index", "uuid", "namespace", "pod", "container"),
        )
        holders, problem = daemon.pod_resources().holders()
        for name, offer in sorted(daemon.state.world.offers.items()):
            seen: dict[str, Device] = {}
            healthy = 0
            for device in offer.plan.devices:
                healthy += device.healthy
                if not device.healthy:
                    seen.setdefault(device.uuid, device)
                holder = holders.get((name, device.id))
                if holder is not None:
                    held.add_metric(
                        (
                            name,
                            device.id,
                            device.index,
                            device.uuid,
                            holder.namespace,
                            holder.pod,
                            holder.container,
                        ),
                        1,
                    )
            devices.add_metric((name, "Healthy"), healthy)
            devices.add_metric((name, "Unhealthy"), len(offer.plan.devices) - healthy)
            for device in seen.values():
                unhealthy.add_metric((name, device.index, device.uuid, device.fault or ""), 1)
            registration = daemon.link.registrations.get(name) if daemon.link is not None else None
            registered.add_metric((name,), int(registration is not None and registration.phase == "listed"))
            if registration is not None and registration.listed_at is not None:
                listed.add_metric((name,), registration.listed_at)
            service = registration.service if registration is not None else None
            streams.add_metric((name,), service.streams if service is not None else 0)
        yield GaugeMetricFamily(
            PREFIX + "pod_resources_up", "1 when the kubelet says who holds what.", int(problem is None)
        )
        yield from (devices, unhealthy, registered, listed, streams, held)

    def _gpus(self) -> Iterator[Any]:
        nvml = self._daemon.nvml
        families = {
            name: GaugeMetricFamily(PREFIX + name, help_text, labels=_GPU_LABELS)
            for name, help_text in _READINGS
        }
        if nvml.lock.acquire(timeout=LOCK_SECONDS):
            try:
                api = nvml.library.api
                handles = nvml.handles()
                for gpu in self._daemon.state.world.snapshot.gpus:
                    if api is None or gpu.uuid not in handles:
                        continue
                    for name, value in readings(api, handles[gpu.uuid]).items():
                        families[name].add_metric((str(gpu.index), gpu.uuid, gpu.name), value)
            finally:
                nvml.lock.release()
        yield from families.values()


def readings(api: Any, handle: Any) -> dict[str, float]:
    """What one GPU says of itself now, by metric name; what it does not say is left out."""
    result: dict[str, float] = {}

    def take(name: str, call: Any, *arguments: Any, scale: float = 1.0) -> None:
        try:
            result[name] = float(call(*arguments)) * scale
        except api.NVMLError:
            return

    take("gpu_utilization_ratio", lambda: api.nvmlDeviceGetUtilizationRates(handle).gpu, scale=0.01)
    try:
        memory = api.nvmlDeviceGetMemoryInfo(handle)
        result["gpu_memory_used_bytes"] = float(memory.used)
        result["gpu_memory_total_bytes"] = float(memory.total)
    except api.NVMLError:
        pass
    take("gpu_temperature_celsius", api.nvmlDeviceGetTemperature, handle, 0)
    take("gpu_power_watts", api.nvmlDeviceGetPowerUsage, handle, scale=0.001)
    take("gpu_ecc_double_bit_errors", api.nvmlDeviceGetTotalEccErrors, handle, 1, 0)
    return result


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        """Without the reverse look-up of the host's name that http.server does: it can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]


class MetricsServer:
    """Serves until :meth:`close`."""

    def __init__(self, address: str, daemon: Daemon) -> None:
        """``address`` is ``host:port``, the host may be missing or a bracketed IPv6 one. Raises OSError naming it."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(daemon))
        host, _unused, port = address.rpartition(":")
        host = host.strip("[]")

        class Handler(http.server.BaseHTTPRequestHandler):
            server_version = f"gpu-device-plugin/{__version__}"
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._send(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    alive, reason = daemon.liveness()
                    self._send(200 if alive else 503, (reason or "ok").encode() + b"\n")
                elif path == "/readyz":
                    ready, reason = daemon.readiness()
                    if ready and daemon.config_problem:
                        reason = (
                            f"ok, but the newest edit of the settings is not in use: {daemon.config_problem}"
                        )
                    self._send(200 if ready else 503, (reason or "ok").encode() + b"\n")
                else:
                    self._send(404, b"there are /metrics, /healthz and /readyz\n")

            def _send(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: a scrape is no event."""

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET

        try:
            self._server = self._bind(Server, host or "::", int(port), Handler)
        except OSError as error:
            raise OSError(error.errno, f"can't serve metrics on {address}: {error.strerror}") from error
        self.address = self._server.server_address
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics served", address=address)

    @staticmethod
    def _bind(server: type[_Server], host: str, port: int, handler: Any) -> _Server:
        """Both families where the host has IPv6, else IPv4 alone."""
        try:
            return server((host, port), handler)
        except OSError:
            if host != "::":
                raise
            server.address_family = socket.AF_INET
            return server(("", port), handler)

    def close(self) -> None:
        """Ends within half a second; a scrape under way may be cut."""
        threading.Thread(target=self._server.shutdown, daemon=True).start()
        self._thread.join(0.6)
        self._server.server_close()
