"""What Allocate answers, as plain values; :mod:`service` turns them into messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .config import Settings
from .devices import ResourcePlan

INVALID_ARGUMENT = "INVALID_ARGUMENT"
FAILED_PRECONDITION = "FAILED_PRECONDITION"


class RequestError(Exception):
    """A request that can't be met; ``code`` is a gRPC status name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Mount:
    container_path: str
    host_path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    container_path: str
    host_path: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Answer:
    """One ContainerAllocateResponse."""

    envs: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    cdi_devices: tuple[str, ...] = ()


class Responder:
    """What one resource's answers need, made once a plan so that an answer only looks things up (K22)."""

    def __init__(
        self,
        resource: ResourcePlan,
        settings: Settings,
        control_paths: Sequence[str] = (),
        cdi_names: Collection[str] = (),
    ) -> None:
        """``cdi_names``: device names in the CDI spec as it was written (:func:`cdi.names`)."""
        raise NotImplementedError

    def respond(self, ids: Sequence[str], answer_id: str) -> Answer:
        """``answer_id`` makes the CDI annotation's key unique (a random UUID). Raises :class:`RequestError`."""
        raise NotImplementedError
