"""The kubelet link: serve, register, wait, watch, for every resource (over 400 lines: one state machine, read as one).

Runs in the loop's thread, never blocks, and knows nothing of GPUs. A registration stands once the kubelet has taken a
list (K1), and falls by any of three signs (K10): kubelet.sock was made anew, the own socket is gone, the stream ended.
A slow poll looks for the same signs where an event was missed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from . import logs, rpc
from .api import API_VERSION, REGISTRATION
from .api import deviceplugin_v1beta1_pb2 as pb
from .config import KubeletSettings
from .counters import Counters
from .loop import Loop, Timer
from .plugindir import DirectoryWatch, dead_mount
from .registration import Identity, Registration, accepts, identity, socket_name
from .service import OPTIONS, Call, Service
from .state import State

log = logs.Log("kubelet")

REGISTER_SECONDS = 15.0
"""Deadline of Register; the kubelet itself may take 10 (K2)."""
FIRST_LIST_SECONDS = (2.0, 5.0, 10.0)
"""From Register's answer to the list, by tries: up to 1.23 the kubelet dials only then, and says nowhere that
it could not (K1)."""
STALE_SECONDS = 5.0
"""A dead socket of ours must be this old to be cleared away: bind comes before listen."""
SETTLE_SECONDS = 0.02
"""After a sign that a stopping kubelet gives too: wait for what comes next instead of registering with a dying one."""
DRAIN_SECONDS = 0.1
"""After ending a stream that the kubelet still held: it must have dropped the old endpoint before the new one
comes, or it drops the new one (K6)."""
SHORT_SECONDS = 1.0
"""A stream that ends sooner after its registration, again and again, is asked for less and less often: up to 5 s."""
POLL_SECONDS = 2.0
FRESH_SECONDS = 2.0
"""How long after kubelet.sock was made a refused dial is tried again at once: bind comes before listen."""
BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TELL_SECONDS = 0.01
"""Answered calls are told (logged) together so long after the first: the next calls find the interpreter free."""
REGISTRY_SECONDS = 30.0
"""plugins-registry: a socket that nobody asked about is made again after this."""


class KubeletLink:
    """Keeps every offered resource registered."""

    def __init__(
        self,
        loop: Loop,
        settings: KubeletSettings,
        state: State,
        counters: Counters,
        *,
        fatal: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        called: Callable[[Call], None] = lambda call: None,
        after: KubeletLink | None = None,
    ) -> None:
        """``fatal`` is told why the process must end (K11). ``changed``: readiness may be another. ``called``:
        an answered RPC; both run in the loop. ``after``: the link that this one takes over from; nothing is registered
        before that one is closed and its streams' end has settled (K6). Raises OSError without inotify."""
        self._loop = loop
        self._registry = settings.registration == "plugins-registry"
        self._directory = settings.plugins_registry_dir if self._registry else settings.plugin_dir
        self.socket = settings.socket or f"{settings.plugin_dir}/kubelet.sock"
        self._state = state
        self._counters = counters
        self._fatal = fatal
        self._changed = changed
        self._called = called
        self._registrations: dict[str, Registration] = {}
        self._channel: Any = None
        self._channel_for: Identity | None = None
        self._closed = False
        self._closed_at = 0.0
        self._before = after
        self._stopping: list[Any] = []
        self._untold: deque[Call] = deque()
        self._telling = False
        folders = {self._directory} if self._registry else {self._directory, os.path.dirname(self.socket)}
        self._watches = [
            DirectoryWatch(loop, folder, made=self._name_made, gone=self._name_gone, unsure=self._look)
            for folder in sorted(folders)
        ]
        self._poll_timer: Timer | None = None
        self._poll()

    # What others ask

    @property
    def registrations(self) -> Mapping[str, Registration]:
        """By resource; read only."""
        return self._registrations

    def all_listed(self) -> bool:
        """Whether the kubelet has taken a list of every resource."""
        return all(one.phase == "listed" for one in self._registrations.values())

    def offer(self, resources: Collection[str]) -> None:
        """Registers what is new among these; ends what is no longer among them (its empty list is out, K21)."""
        for name in [name for name in self._registrations if name not in resources]:
            registration = self._registrations.pop(name)
            registration.epoch += 1
            registration.later(None)
            self._end(registration)
            log.info("resource withdrawn", resource=name)
        for name in resources:
            if name not in self._registrations:
                self._registrations[name] = Registration(name)
                self._try(self._registrations[name])
        self._changed()

    def close(self, seconds: float = 0.6) -> None:
        """Ends all streams, removes the sockets, and waits a little for the servers to end."""
        if self._closed:
            return
        self._closed = True
        for registration in self._registrations.values():
            registration.epoch += 1
            registration.later(None)
            self._end(registration)
        self._closed_at = time.monotonic()
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        self._close_channel()
        for watch in self._watches:
            watch.close()
        until = time.monotonic() + seconds
        for event in self._stopping:
            event.wait(max(0.0, until - time.monotonic()))
        self._tell_calls()

    # Signs

    def _name_made(self, name: str) -> None:
        if name == os.path.basename(self.socket):
            self._kubelet_came()

    def _name_gone(self, name: str) -> None:
        for registration in self._registrations.values():
            service = registration.service
            if service is not None and service.path == f"{self._directory}/{name}" and not service.intact():
                self._fallen(registration, "own socket gone")

    def _poll(self) -> None:
        self._poll_timer = self._loop.after(POLL_SECONDS, self._poll)
        for watch in self._watches:
            watch.arm()
        self._look()

    def _look(self) -> None:
        """The slow way to see each sign."""
        if self._closed:
            return
        if dead_mount(self._directory):
            self._fatal(
                f"{self._directory} was removed on the host under this pod's mount; only a new pod gets the new one"
            )
            return
        for registration in list(self._registrations.values()):
            service = registration.service
            if registration.phase in ("down", "draining") or service is None:
                continue
            if not service.intact():
                self._fallen(registration, "own socket gone")
            elif registration.phase == "listed" and not service.streams:
                self._fallen(registration, "the stream ended")
        if not self._registry:
            self._kubelet_came()

    def _kubelet_came(self) -> None:
        """kubelet.sock was made, perhaps; only a socket that a registration was not made with counts (K12)."""
        if self._registry:
            return
        now = identity(self.socket)
        if now is None:
            return
        for registration in list(self._registrations.values()):
            if registration.phase == "draining":
                continue  # it comes back to itself when the old stream's end has settled (K6)
            idle = registration.phase == "down" and registration.timer is None
            if registration.kubelet != now or idle:
                if registration.kubelet is not None and registration.kubelet != now:
                    registration.attempts = 0
                    registration.short_lives = 0  # a restart ended the last stream, not a kubelet that lives
                    registration.problem = "kubelet.sock was made anew"
                registration.epoch += 1
                registration.phase = "down"
                self._try(registration)

    def _fallen(self, registration: Registration, why: str) -> None:
        """A registration no longer stands: start over, after a moment in which a restart would show itself."""
        if self._closed or registration.phase in ("draining", "down"):
            return
        was_listed = registration.phase == "listed"
        registration.epoch += 1
        registration.phase = "down"
        registration.problem = why
        log.info("registration fell", resource=registration.resource, why=why)
        if was_listed:
            registration.attempts = 0
        short = why.startswith("the stream") and time.monotonic() - registration.began < SHORT_SECONDS
        registration.short_lives = registration.short_lives + 1 if short else 0
        self._later(registration, SETTLE_SECONDS * 2 ** min(max(registration.short_lives - 1, 0), 8))
        self._changed()

    # The cycle

    def _later(self, registration: Registration, seconds: float) -> None:
        registration.later(self._loop.after(seconds, lambda: self._try(registration)))

    def _retry(self, registration: Registration, problem: str) -> None:
        registration.epoch += 1
        registration.phase = "down"
        registration.problem = problem
        seconds = BACKOFF_SECONDS[min(registration.attempts, len(BACKOFF_SECONDS) - 1)]
        registration.attempts += 1
        log.warning(
            "not registered", resource=registration.resource, problem=problem, again_in_seconds=seconds
        )
        self._later(registration, seconds)
        self._changed()

    def _try(self, registration: Registration) -> None:  # noqa: PLR0911 - each return waits for another thing
        """Serve, then register. Comes back to itself until the list is out."""
        registration.later(None)
        if self._closed or self._registrations.get(registration.resource) is not registration:
            return
        if self._takes_over(registration):
            return
        if (
            registration.phase == "draining"
        ):  # that is over; without a kubelet its return must find us waiting
            registration.phase = "down"
        kubelet: Identity | None = None
        if not self._registry:
            kubelet = identity(self.socket)
            if kubelet is None:
                registration.problem = f"no kubelet: {self.socket} is not there"
                return  # its creation wakes us
            if not accepts(self.socket):
                registration.problem = f"no kubelet listens on {self.socket}"
                if time.time_ns() - kubelet[2] < FRESH_SECONDS * 1e9:
                    self._later(registration, 0.001)
                return
        elif not Path(self._directory).is_dir():
            registration.problem = f"no kubelet: {self._directory} is not there"
            return
        service = registration.service
        if service is not None and service.streams:
            self._end(registration)
            if (
                kubelet == registration.kubelet
            ):  # another kubelet knows nothing of the old stream: no need to wait
                registration.phase = "draining"
                self._later(registration, DRAIN_SECONDS)
                return
        try:
            service = self._serve(registration)
        except OSError as error:
            self._retry(registration, str(error))
            return
        registration.epoch += 1
        registration.began = time.monotonic()
        registration.kubelet = kubelet
        registration.accepted = registration.got_list = False
        registration.phase = "registering"
        if self._registry:
            registration.phase = "waiting"
            registration.problem = "the kubelet's plugin watcher has not asked yet"
            registration.accepted = True
            registration.later(
                self._loop.after(REGISTRY_SECONDS, lambda: self._retry(registration, "nobody asked"))
            )
            return
        self._register(registration, service, kubelet)

    def _takes_over(self, registration: Registration) -> bool:
        """Whether the link before still has to settle; the registration is tried again then."""
        if self._before is None:
            return False
        settled = self._before._closed_at + DRAIN_SECONDS - time.monotonic()
        if settled > 0:
            self._later(registration, settled)
            return True
        self._before = None
        return False

    def _serve(self, registration: Registration) -> Service:
        service = registration.service
        if service is not None and service.intact() and not self._registry:
            return service
        self._end(registration)
        path = f"{self._directory}/{socket_name(registration.resource, self._directory)}"
        service = Service(registration.resource, path, self._state, self)
        try:
            service.start(registry=self._registry)
            if not accepts(path):
                raise OSError(f"{path} was made but does not accept")
        except OSError:  # a kubelet that starts deletes sockets, this one too between bind and look (K9)
            ended = service.stop()
            if ended is not None:
                self._stopping.append(ended)
            raise
        registration.service = service
        return service

    def _register(self, registration: Registration, service: Service, kubelet: Identity | None) -> None:
        if self._channel is None or self._channel_for != kubelet:
            self._close_channel()
            self._channel = rpc.channel(self.socket)
            self._channel_for = kubelet
        call = self._channel.unary_unary(
            f"/{REGISTRATION}/Register", pb.RegisterRequest.SerializeToString, pb.Empty.FromString
        )
        request = pb.RegisterRequest(
            version=API_VERSION,
            endpoint=os.path.basename(service.path),
            resource_name=registration.resource,
            options=OPTIONS,
        )
        epoch = registration.epoch
        future = call.future(request, timeout=REGISTER_SECONDS)
        future.add_done_callback(
            lambda done: self._loop.call(lambda: self._answered(registration, epoch, done))
        )

    def _answered(self, registration: Registration, epoch: int, done: Any) -> None:
        if self._closed or registration.epoch != epoch:
            return
        code = done.code()
        if code is not rpc.grpc.StatusCode.OK:
            self._counters.registrations.add(registration.resource, "refused")
            text = done.details() or code.name
            self._close_channel()
            if code is rpc.grpc.StatusCode.UNAVAILABLE and registration.attempts == 0:
                registration.attempts += 1
                registration.phase = "down"
                registration.problem = f"kubelet went away: {text}"
                self._later(registration, SETTLE_SECONDS)
                return
            self._retry(registration, f"the kubelet refused: {text}")
            return
        self._counters.registrations.add(registration.resource, "accepted")
        registration.accepted = True
        registration.registered_at = time.time()
        service = registration.service
        if registration.got_list and service is not None and service.streams:
            self._stands(registration)
            return
        registration.phase = "waiting"
        if registration.got_list:  # it came and went while Register was under way
            self._fallen(registration, "the stream ended while registering")
            return
        registration.problem = "registered; the kubelet has not asked for the list yet"
        seconds = FIRST_LIST_SECONDS[min(registration.attempts, len(FIRST_LIST_SECONDS) - 1)]
        registration.later(self._loop.after(seconds, lambda: self._never_asked(registration)))

    def _never_asked(self, registration: Registration) -> None:
        """The next try has a socket of its own: should the kubelet still dial this one, two streams would be
        open (K6)."""
        self._end(registration)
        self._retry(registration, "the kubelet took the registration but never asked for the list")

    def _stands(self, registration: Registration) -> None:
        registration.later(None)
        registration.phase = "listed"
        registration.problem = ""
        registration.attempts = 0
        offer = self._state.world.offers.get(registration.resource)
        log.info(
            "registered",
            resource=registration.resource,
            devices=len(offer.plan.devices) if offer else 0,
            milliseconds=(time.monotonic() - registration.began) * 1e3,
        )
        if all(one.phase != "registering" for one in self._registrations.values()):
            self._close_channel()
            self._clear_stale()
        self._changed()

    def _clear_stale(self) -> None:
        """Takes away sockets that killed processes of ours left behind; a kubelet does so only when it starts (K9)."""
        own = {one.service.path for one in self._registrations.values() if one.service is not None}
        for path in Path(self._directory).glob("gpuops-*.sock"):
            with contextlib.suppress(OSError):
                old = time.time() - path.lstat().st_mtime > STALE_SECONDS
                if old and str(path) not in own and not accepts(str(path)):
                    path.unlink()

    def _end(self, registration: Registration) -> None:
        if registration.service is not None:
            event = registration.service.stop()
            self._stopping = [one for one in self._stopping if not one.is_set()]
            if event is not None:
                self._stopping.append(event)
            registration.service = None

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = self._channel_for = None

    def _of(self, service: Service) -> Registration | None:
        registration = self._registrations.get(service.resource)
        return registration if registration is not None and registration.service is service else None

    # Listener, called in gRPC's threads

    def called(self, call: Call) -> None:
        """An RPC was answered: counted here, told in the loop."""
        self._counters.rpc_seconds.add(call.resource, call.method, seconds=call.seconds)
        if call.method == "Allocate":
            self._counters.allocations.add(call.resource, call.code)
            if call.code == "OK":
                self._counters.allocated_devices.add(call.resource, by=len(call.ids))
        if call.method == "Allocate" or call.code != "OK":
            self._untold.append(call)
            if not self._telling:
                self._telling = True
                self._loop.call(self._tell_calls_soon)

    def _tell_calls_soon(self) -> None:
        self._loop.after(TELL_SECONDS, self._tell_calls)

    def _tell_calls(self) -> None:
        self._telling = False  # first: a call that comes now either is told below or sets it again
        while self._untold:
            self._called(self._untold.popleft())

    def stream_opened(self, service: Service) -> None:
        """Counted."""
        self._counters.streams_opened.add(service.resource)

    def list_sent(self, service: Service, version: int) -> None:
        """The kubelet has a list."""
        self._counters.lists.add(service.resource)
        self._loop.call(lambda: self._list_sent(service))

    def stream_closed(self, service: Service) -> None:
        """The stream ended: K7."""
        self._counters.streams_closed.add(service.resource)
        self._loop.call(lambda: self._stream_closed(service))

    def registered(self, service: Service, ok: bool, text: str) -> None:
        """plugins-registry: the kubelet's verdict."""
        self._loop.call(lambda: self._verdict(service, ok, text))

    def _list_sent(self, service: Service) -> None:
        registration = self._of(service)
        if registration is None:
            return
        registration.listed_at = time.time()
        registration.got_list = True
        if registration.accepted and registration.phase in ("registering", "waiting"):
            self._stands(registration)

    def _stream_closed(self, service: Service) -> None:
        registration = self._of(service)
        if registration is None or service.streams or self._closed:
            return
        if registration.phase in ("waiting", "listed"):
            self._fallen(registration, "the stream ended")

    def _verdict(self, service: Service, ok: bool, text: str) -> None:
        registration = self._of(service)
        self._counters.registrations.add(service.resource, "accepted" if ok else "refused")
        if registration is None:
            return
        if ok:
            registration.registered_at = time.time()
        else:
            self._retry(registration, f"the kubelet refused: {text}")
