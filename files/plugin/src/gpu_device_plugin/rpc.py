"""gRPC, lean: imported without its asyncio half, and served without a thread hand-over for unary calls.

Two measured reasons (2 cores, grpcio 1.85, CPython 3.11):

* ``import grpc`` pulls in asyncio and ssl for ``grpc.aio``, which nothing here uses: 19 ms and 7.5 MB.
* The default server moves each unary call to a pool thread and back: p50 0.24 ms and p99 0.82 ms for an echo,
  against 0.18 and 0.33 ms when the thread that reads the completion queue runs the handler itself. Handlers
  here answer from memory (K22), so they may run there.

Both lean on grpcio's insides, so both step aside by themselves when those look different: the import falls back to
the ordinary one, the executor to a thread a call. ``requirements.lock`` pins the version that was measured.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from collections.abc import Callable
from concurrent import futures
from typing import Any

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # core's own lines would break up ours; failures come as statuses
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


class _Absent(types.ModuleType):
    """Stands where asyncio would while grpc is imported; every name in it is an exception class."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


def _import_grpc() -> Any:
    if "grpc" in sys.modules or "asyncio" in sys.modules:
        import grpc  # noqa: PLC0415

        return grpc
    import inspect  # noqa: F401, PLC0415 - cygrpc expects it to be there, asyncio would have brought it

    sys.modules["asyncio"] = _Absent("asyncio")
    sys.modules["grpc.aio"] = _Absent("grpc.aio")
    try:
        import grpc  # noqa: PLC0415
    except Exception:  # noqa: BLE001 - whatever the stub upset, the ordinary import decides
        for name in [name for name in sys.modules if name == "grpc" or name.startswith("grpc.")]:
            del sys.modules[name]
        sys.modules.pop("asyncio", None)
        import grpc  # noqa: PLC0415
    finally:
        if isinstance(sys.modules.get("asyncio"), _Absent):
            del sys.modules["asyncio"]
        if isinstance(sys.modules.get("grpc.aio"), _Absent):
            del sys.modules["grpc.aio"]
    return grpc


grpc = _import_grpc()

try:
    from grpc import _server as _inside
    from grpc._cython import cygrpc as _cygrpc

    _UNARY: Any = _inside._unary_response_in_pool
    _RECEIVE: Any = _inside._receive_message
    _TOKEN: Any = _inside._RECEIVE_MESSAGE_TOKEN
    _OPERATION: Any = _cygrpc.ReceiveMessageOperation
except (ImportError, AttributeError):  # another grpcio: a thread a call then
    _UNARY = _RECEIVE = _TOKEN = _OPERATION = None

_UNARY_ARGUMENTS = 7


class InlineExecutor(futures.ThreadPoolExecutor):
    """Runs unary handlers in the serving thread, streams in a daemon thread each.

    A stream keeps its thread for its whole life; with one a stream no pool can run out and no dead stream can
    starve the next (the process could not exit while a pool's worker waited, either).
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # never used: submit() below starts none of its workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """As grpc calls it: ``fn`` is the call's context runner, ``args[0]`` what it is to run."""
        if _UNARY is not None and len(args) == _UNARY_ARGUMENTS and args[0] is _UNARY:
            return self._inline(fn, *args)
        return self._thread(fn, *args, **kwargs)

    @staticmethod
    def _thread(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> futures.Future[Any]:
        done: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                fn(*args, **kwargs)
            finally:
                done.set_result(None)

        threading.Thread(target=run, name="stream", daemon=True).start()
        return done

    @staticmethod
    def _inline(  # noqa: PLR0917 - as grpc hands them over
        fn: Callable[..., Any],
        body: Any,
        event: Any,
        state: Any,
        behavior: Any,
        _receive_and_wait: Any,
        deserializer: Any,
        serializer: Any,
    ) -> futures.Future[Any]:
        """Starts the read of the request and answers from its completion, where grpc's own thunk would wait for
        that completion in another thread."""
        done: futures.Future[Any] = futures.Future()
        receive = _RECEIVE(state, event.call, deserializer)

        def received(completion: Any) -> Any:
            try:
                result = receive(completion)
                with state.condition:
                    request, state.request = state.request, None
                if request is not None:
                    fn(body, event, state, behavior, lambda: request, deserializer, serializer)
                return result
            finally:
                done.set_result(None)

        with state.condition:
            event.call.start_server_batch((_OPERATION(0),), received)
            state.due.add(_TOKEN)
        return done


_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),  # the kubelet's limit counts (K18), and the plan keeps below it
    ("grpc.max_receive_message_length", 16 << 20),
)
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else a dial that failed before delays this one by its backoff
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.default_authority", "localhost"),  # Go's servers refuse a socket's path as authority
)


def server() -> Any:
    """A server that answers unary calls in its own thread."""
    return grpc.server(InlineExecutor(), options=_SERVER_OPTIONS)


def channel(socket: str) -> Any:
    """A fresh channel to a unix socket: no proxy, no shared state with channels that failed before."""
    return grpc.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)
