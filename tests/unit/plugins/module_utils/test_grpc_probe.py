# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A living gRPC server is told from a dead, a hanging and a missing one, and its answers are read."""

from __future__ import annotations

import socket
from concurrent import futures

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _grpc_probe as probe

grpc = pytest.importorskip("grpc")

MANY = [f"GPU-{index:032d}" for index in range(4000)]  # more than HTTP/2's first window


def _field(number, raw):
    size, head = len(raw), b""
    while size >= 128:
        head += bytes([size % 128 + 128])
        size //= 128
    return bytes([number << 3 | 2]) + head + bytes([size]) + raw


class _Handler(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/v1.PodResourcesLister/GetAllocatableResources":
            devices = _field(1, b"nvidia.com/gpu") + b"".join(_field(2, uid.encode()) for uid in MANY)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: _field(1, devices) + _field(2, b"x")
            )
        if call.method == "/echo":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        return None


@pytest.fixture
def server(tmp_path):
    made = grpc.server(futures.ThreadPoolExecutor(2), handlers=(_Handler(),))
    path = str(tmp_path / "s.sock")
    made.add_insecure_port("unix://" + path)
    made.start()
    yield path
    made.stop(None)


def test_a_living_server_is_alive_and_echoes(server):
    assert probe.state_of(server) == probe.ALIVE
    assert probe.call(server, "/echo", b"\x08\x01" * 500) == b"\x08\x01" * 500


def test_a_list_larger_than_a_window_arrives_whole(server):
    assert probe.allocatable_devices(server) == {"nvidia.com/gpu": MANY}


def test_a_method_the_server_has_not_got_is_an_error(server):
    with pytest.raises(probe.CallError):
        probe.call(server, "/no/such")


def test_a_missing_socket_is_missing(tmp_path):
    assert probe.state_of(str(tmp_path / "none.sock")) == probe.MISSING
    assert probe.allocatable_devices(str(tmp_path / "none.sock")) is None


def test_a_socket_nobody_listens_on_is_dead(tmp_path):
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert probe.state_of(path) == probe.DEAD


def test_a_process_that_hangs_is_hung_though_the_system_accepts_the_connection(tmp_path):
    path = str(tmp_path / "hung.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        assert probe.state_of(path, timeout=0.2) == probe.HUNG


@pytest.mark.parametrize("raw", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\x80"])
def test_a_message_cut_short_is_refused(raw):
    with pytest.raises(ValueError, match=r"cut short|wire type"):
        list(probe.fields(raw))
