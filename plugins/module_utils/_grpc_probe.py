# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One unary gRPC call over a unix socket, on the standard library alone: is anybody there, and what does it say.

A connect proves nothing: the system accepts it for a process that hangs. An HTTP/2 answer does. Frames and header
literals are RFC 9113 and RFC 7541 (no indexing, no Huffman), messages are Protocol Buffers' wire format.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Dict, Iterator, List, Optional, Tuple, Union

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_BIG = 0x7FFF0000

ALIVE = "alive"
DEAD = "dead"
HUNG = "hung"
MISSING = "missing"


class CallError(Exception):
    """The call gave no message: refused, unimplemented, not in time."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    def word(text: str) -> bytes:
        raw = text.encode("ascii")
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, head = len(raw) - 127, bytearray([127])
        while rest >= 128:
            head.append(rest % 128 + 128)
            rest //= 128
        return bytes(head) + bytes([rest]) + raw

    return b"\x00" + word(name) + word(value)


def _request(path: str, message: bytes) -> bytes:
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    settings = struct.pack(">HI", 4, _BIG)  # SETTINGS_INITIAL_WINDOW_SIZE
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW, 0, 0, struct.pack(">I", _BIG - 65535)),
            _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*header) for header in headers)),
            _frame(_DATA, _END_STREAM, 1, body),
        )
    )


class _Connection:
    def __init__(self, path: str, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise socket.timeout("no answer in time")
            self.socket.settimeout(left)
            chunk = self.socket.recv(count - len(found))
            if not chunk:
                raise ConnectionResetError("closed without an answer")
            found += chunk
        return found

    def frame(self) -> Tuple[int, int, bytes]:
        head = self._exactly(9)
        length = int.from_bytes(head[:3], "big")
        return head[3], head[4], self._exactly(length)


def call(path: str, method: str, message: bytes = b"", timeout: float = 2.0) -> bytes:
    """The answer of a unary method (``/v1beta1.DevicePlugin/GetDevicePluginOptions``) on a unix socket.

    ``timeout`` in seconds over all. Raises CallError when the server answers without a message (an error, an
    unimplemented method), OSError (socket.timeout too) when nobody answers.
    """
    connection = _Connection(path, timeout)
    with connection.socket as stream:
        stream.sendall(_request(method, message))
        body = b""
        while True:
            kind, flags, payload = connection.frame()
            if kind == _SETTINGS and not flags & _ACK:
                stream.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                stream.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _DATA:
                body += payload
            elif kind in (_RST, _GOAWAY):
                raise CallError(f"{method}: the server refused the call")
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                break
    if len(body) < 5:
        raise CallError(f"{method}: answered with an error")
    return body[5:]


def state_of(path: str, timeout: float = 2.0) -> str:
    """``alive`` when a gRPC server answers on the socket, ``hung`` when it does not in time, ``dead``, ``missing``."""
    try:
        connection = _Connection(path, timeout)
    except FileNotFoundError:
        return MISSING
    except socket.timeout:
        return HUNG
    except OSError:
        return DEAD
    with connection.socket as stream:
        try:
            stream.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
            connection.frame()
        except socket.timeout:
            return HUNG
        except OSError:
            return DEAD
    return ALIVE


# --- Protocol Buffers ---------------------------------------------------------------------------------------------

Value = Union[int, bytes]


def _varint(raw: bytes, at: int) -> Tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7


def fields(raw: bytes) -> Iterator[Tuple[int, Value]]:
    """(number, value) of a message; varints as int, everything else as bytes. Raises ValueError when it is broken."""
    at = 0
    try:
        while at < len(raw):
            key, at = _varint(raw, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _varint(raw, at)
                yield number, value
                continue
            if kind == 2:
                size, at = _varint(raw, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"wire type {kind}")
            if at + size > len(raw):
                raise ValueError("cut short")
            yield number, raw[at : at + size]
            at += size
    except IndexError as error:
        raise ValueError("cut short") from error


def allocatable_devices(socket_path: str, timeout: float = 2.0) -> Optional[Dict[str, List[str]]]:
    """Resource -> healthy device ids by the kubelet's live word (K27); None where it does not say (before 1.23)."""
    try:
        answer = call(socket_path, "/v1.PodResourcesLister/GetAllocatableResources", b"", timeout)
        found: Dict[str, List[str]] = {}
        for number, value in fields(answer):
            if number != 1 or not isinstance(value, bytes):
                continue
            name, ids = "", []
            for inner, part in fields(value):
                if inner == 1 and isinstance(part, bytes):
                    name = part.decode("utf-8", "replace")
                elif inner == 2 and isinstance(part, bytes):
                    ids.append(part.decode("utf-8", "replace"))
            found.setdefault(name, []).extend(ids)
        return found
    except (CallError, OSError, ValueError):
        return None
