"""What is served right now: one object, versioned, behind one Condition.

The loop publishes; streams wait for a version they have not sent; unary calls read :attr:`State.world`, which
is frozen, without a lock. There is no queue between health and stream, so no update can get lost or be eaten by
a dead one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .api import HEALTHY, UNHEALTHY
from .api.deviceplugin_v1beta1_pb2 import ListAndWatchResponse
from .config import Settings
from .devices import Device, Plan, ResourcePlan, Snapshot
from .prefer import Chooser
from .respond import Responder

LEAVING = "no longer offered; it leaves the list in a moment"
"""Why a device that vanished from the plan is shown Unhealthy before it goes."""

GRACE_SECONDS = 0.5
"""How long a vanished id stays listed as Unhealthy. The kubelet picks ids, calls Allocate, and books them with the
answer; dropping one meanwhile crashes 1.36 (K19). An Allocate that arrives after the mark is refused, so only one that
was answered before it can still be open, and the kubelet books within milliseconds of the answer."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What answers one resource's calls, made ready when the plan changes so that no call computes it (K22)."""

    responder: Responder
    chooser: Chooser
    answers: dict[bytes, bytes] = field(default_factory=dict, compare=False)
    """Allocate's requests answered before, as on the wire. Whatever changes an answer makes another desk."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One resource as its streams send it."""

    plan: ResourcePlan
    desk: Desk
    message: bytes
    """A serialised ListAndWatchResponse; the same for every stream."""
    version: int
    """The world's version in which ``message`` became this (K17: sent once each)."""
    since: float
    """Wall clock, when this message became the newest."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that an answer needs, of one moment."""

    settings: Settings = field(default_factory=Settings)
    snapshot: Snapshot = field(default_factory=Snapshot)
    offers: Mapping[str, Offer] = field(default_factory=dict)
    version: int = 0
    basis: object = None
    """What the desks were made from beside their plan; while it is equal, desks are kept."""


def list_message(plan: ResourcePlan) -> bytes:
    """The list of one resource on the wire. No topology where no NUMA node is known (K20)."""
    message = ListAndWatchResponse()
    for device in plan.devices:
        entry = message.devices.add(ID=device.id, health=HEALTHY if device.healthy else UNHEALTHY)
        if device.numa_node is not None and device.numa_node >= 0:
            entry.topology.nodes.add(ID=device.numa_node)
    return message.SerializeToString(deterministic=True)


class State:
    """Holds the newest :class:`World`."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.world = World()

    def publish(
        self,
        settings: Settings,
        snapshot: Snapshot,
        plan: Plan,
        desk: Callable[[ResourcePlan], Desk],
        basis: object = None,
    ) -> tuple[str, ...]:
        """Makes this the newest state, wakes every stream, and returns the resources whose list changed."""
        old = self.world
        offers: dict[str, Offer] = {}
        changed: list[str] = []
        for resource in plan.resources:
            before = old.offers.get(resource.name)
            if before is not None and before.plan == resource:
                offers[resource.name] = before if old.basis == basis else replace(before, desk=desk(resource))
                continue
            message = list_message(resource)
            if before is not None and before.message == message:
                offers[resource.name] = replace(before, plan=resource, desk=desk(resource))
                continue
            changed.append(resource.name)
            offers[resource.name] = Offer(resource, desk(resource), message, old.version + 1, time.time())
        with self.condition:
            self.world = World(settings, snapshot, offers, old.version + 1, basis)
            self.condition.notify_all()
        return (*changed, *(name for name in old.offers if name not in offers))

    def wake(self) -> None:
        """Lets every waiting stream look again at whether it has ended."""
        with self.condition:
            self.condition.notify_all()

    def newer(self, resource: str, seen: int, ended: Callable[[], bool]) -> Offer | None:
        """Blocks until the resource's list is another than version ``seen``; None once ``ended()`` or when the
        resource is no longer offered."""
        with self.condition:
            while True:
                if ended():
                    return None
                offer = self.world.offers.get(resource)
                if offer is None:
                    return None
                if offer.version != seen:
                    return offer
                self.condition.wait()


Leaving = Mapping[tuple[str, str], tuple[Device, float]]
"""(resource, id) -> the device as it was, and when (monotonic seconds) it may leave the list."""


EMPTY_SECONDS = 0.3
"""How long a resource that goes away shows an empty list before its streams end (K21)."""


def hold_back(
    served: Mapping[str, Offer], plan: Plan, leaving: Leaving, now: float
) -> tuple[Plan, Leaving, float | None]:
    """The plan as it may be served now (K19, K20, K21): devices that vanished stay as Unhealthy until their grace is
    over, ids that move to another resource wait until they have left the old one, and a resource that goes away stays
    with an empty list, so that the kubelet hears of it before the stream ends.

    Returns that plan, what is leaving, and in how many seconds to call again (None: not until something changes).
    """
    wanted = {resource.name: resource for resource in plan.resources}
    staying: dict[tuple[str, str], tuple[Device, float]] = {}
    for name, offer in served.items():
        ids = {device.id for device in wanted[name].devices} if name in wanted else frozenset[str]()
        for device in offer.plan.devices:
            if device.id in ids:
                continue
            _last, until = leaving.get((name, device.id), (device, now + GRACE_SECONDS))
            if now < until:
                staying[name, device.id] = (device, until)
    taken = {identity for _name, identity in staying}
    resources: dict[str, ResourcePlan] = {}
    for name, resource in wanted.items():
        devices = resource.devices
        if taken:
            devices = tuple(device for device in devices if device.id not in taken)
        resources[name] = resource if devices is resource.devices else replace(resource, devices=devices)
    for (name, _identity), (device, _until) in staying.items():
        base = resources.get(name) or replace(served[name].plan, devices=())
        gone = device if device.fault == LEAVING else replace(device, fault=LEAVING)
        resources[name] = replace(base, devices=(*base.devices, gone))
    again = [until - now for _device, until in staying.values()]
    for name, offer in served.items():
        if name not in resources and offer.plan.devices:
            resources[name] = replace(offer.plan, devices=())
            again.append(EMPTY_SECONDS)
    ordered = tuple(resources[name] for name in sorted(resources))
    return replace(plan, resources=ordered), staying, min(again, default=None)
