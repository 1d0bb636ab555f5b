"""What is wrong with which GPU: judged from events and probes, without touching any; :mod:`xids` has the table,
:mod:`troubles` the shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from .config import HealthSettings
from .troubles import (
    FOUND,
    NO_INSTANCE,
    PASSING,
    Event,
    Probe,
    Trouble,
    found_by,
    wants_reset,
    was_reset,
)
from .xids import FATAL, IGNORE, PENDING, TRANSIENT, UNKNOWN, XIDS, checks_disabled, kind_of, xids_only

__all__ = ["Event", "HealthBook", "Probe", "Trouble", "load_book"]

K = TypeVar("K")
V = TypeVar("V")

MAX_QUIET_SECONDS = 3600.0
"""Where the doubling of the quiet time ends."""
FORGIVE_AFTER = 10.0
"""Quiet times without a new fault after which the doubling starts anew."""
RECHECK_SECONDS = 5.0
"""How long after an unclean probe a GPU whose quiet time is over is looked at again."""


_NEXT_STEP = {
    TRANSIENT: "it comes back by itself when it stays quiet",
    FATAL: "reset the GPU (nvidia-smi --gpu-reset) or reboot the node; if it returns, replace the GPU",
}


@dataclass(frozen=True, slots=True)
class _Strikes:
    """The back-off's memory of one GPU or slice."""

    count: int
    last: float
    """Monotonic, seconds."""
    quiet: float
    """The quiet time that was asked last, seconds."""


Place = tuple[str | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class HealthBook:
    """All that is known of the GPUs' health; every change gives a new book."""

    settings: HealthSettings = field(default_factory=HealthSettings)
    boot_id: str = ""
    troubles: tuple[Trouble, ...] = ()
    strikes: tuple[tuple[Place, _Strikes], ...] = ()
    marks: tuple[tuple[str, Probe], ...] = ()
    """The last probe of each GPU that answered: what a later one is held against to see a reset."""
    asked: tuple[str, ...] = ()
    """GPUs that want a probe at once."""

    @property
    def watch_events(self) -> bool:
        """False where DP_DISABLE_HEALTHCHECKS turns every check off."""
        return not checks_disabled(self.settings)

    def with_settings(self, settings: HealthSettings) -> HealthBook:
        """The book under edited settings: what is known stays, but for what is ignored now."""
        every, some = not checks_disabled(settings), not xids_only(settings)

        def stays(trouble: Trouble) -> bool:
            xid = _xid_of(trouble.code)
            if trouble.code in PASSING:
                return trouble.code != "monitor" or every
            return every and (some if xid is None else kind_of(xid, settings) != IGNORE)

        return replace(self, settings=settings, troubles=tuple(filter(stays, self.troubles)))

    def observe(self, event: Event, now: float, wall: float = 0.0) -> HealthBook:
        """After an event. ``now`` is monotonic, ``wall`` the clock, both seconds."""
        if not self.watch_events or event.kind not in ("xid", "ecc-double"):
            return self
        if event.gpu_uuid is None and self.marks:
            book = self
            for uuid, _mark in self.marks:
                book = book.observe(replace(event, gpu_uuid=uuid), now, wall)
            return book
        if event.kind == "ecc-double":
            if xids_only(self.settings):
                return self
            return self._with(
                Trouble(event.gpu_uuid, "ecc-double", FATAL, "double-bit ECC error", since=wall)
            )
        kind, row = kind_of(event.xid, self.settings), XIDS.get(event.xid, UNKNOWN)
        if kind == IGNORE:
            return self
        book = self
        if kind == PENDING:
            last = dict(self.marks).get(event.gpu_uuid or "")
            kind = FATAL if last is not None and wants_reset(last) else TRANSIENT
            if event.gpu_uuid is not None:
                book = replace(book, asked=tuple(sorted({*book.asked, event.gpu_uuid})))
        gpu_instance = None if row.whole_gpu else _instance(event.gpu_instance)
        compute_instance = None if gpu_instance is None else _instance(event.compute_instance)
        trouble = Trouble(
            event.gpu_uuid,
            f"xid-{event.xid}",
            kind,
            f"XID {event.xid} ({row.text})",
            gpu_instance,
            compute_instance,
            wall,
        )
        if kind == TRANSIENT:
            place = (event.gpu_uuid, gpu_instance, compute_instance)
            strikes = book._struck(place, now)
            book = replace(book, strikes=_put(book.strikes, place, strikes))
            trouble = replace(trouble, quiet_until=now + strikes.quiet)
        return book._with(trouble)

    def _struck(self, place: Place, now: float) -> _Strikes:
        before = dict(self.strikes).get(place)
        count = 1 if before is None or _forgiven(before, now) else before.count + 1
        quiet = min(self.settings.quiet_seconds * 2 ** min(count - 1, 30), MAX_QUIET_SECONDS)
        return _Strikes(count, now, max(quiet, min(self.settings.quiet_seconds, MAX_QUIET_SECONDS)))

    def _with(self, trouble: Trouble) -> HealthBook:
        """Added, or put in the place of the same one: since the first, quiet until the last; fatal stays fatal."""
        troubles = []
        for known in self.troubles:
            if known.key == trouble.key:
                worse = FATAL if FATAL in (known.kind, trouble.kind) else trouble.kind
                trouble = replace(trouble, kind=worse, since=known.since or trouble.since)
            else:
                troubles.append(known)
        return replace(self, troubles=tuple(sorted((*troubles, trouble), key=_sort_key)))

    def probe(self, results: Iterable[Probe], now: float, wall: float = 0.0) -> HealthBook:
        """After a look at some GPUs: finds ECC, remap and lost troubles; a clean look ends transient ones whose quiet
        time is over, and shows resets that end fatal ones."""
        looks = tuple(results)
        book = self._each_gpu({*(look.gpu_uuid for look in looks), *(uuid for uuid, _mark in self.marks)})
        for look in looks:
            book = book._probed(look, now, wall)
        return book

    def _probed(self, look: Probe, now: float, wall: float) -> HealthBook:
        uuid = look.gpu_uuid
        book = replace(self, asked=tuple(gpu for gpu in self.asked if gpu != uuid))
        if look.answers:
            before = dict(self.marks).get(uuid)
            if before is not None and was_reset(before, look):
                book = book._without(uuid, lambda trouble: True)
            book = replace(book, marks=_put(book.marks, uuid, look))
            found = [] if not book.watch_events or xids_only(book.settings) else found_by(look, wall)
        else:
            code = "lost" if look.lost else "unreadable"
            text = "GPU is lost" if look.lost else f"GPU can't be read ({look.unreadable})"
            found = [Trouble(uuid, code, TRANSIENT, text, since=wall)]
        codes = {trouble.code for trouble in found}
        over = {"lost", "unreadable"} - codes if not look.answers else {"lost", "unreadable", *FOUND} - codes
        book = book._without(uuid, lambda trouble: trouble.code in over)
        if codes:
            book = book._postponed(uuid, now + RECHECK_SECONDS)
        else:
            book = book._without(
                uuid, lambda trouble: trouble.kind == TRANSIENT and trouble.quiet_until <= now
            )
        for trouble in found:
            book = book._with(trouble)
        return book._now_fatal(uuid) if look.answers and wants_reset(look) else book

    def _now_fatal(self, uuid: str) -> HealthBook:
        """XIDs 63 and 64 are fatal once it is clear that a reset is pending."""
        book = self
        for trouble in self.troubles:
            xid = _xid_of(trouble.code)
            if xid is not None and trouble.gpu_uuid == uuid and kind_of(xid, self.settings) == PENDING:
                book = book._with(replace(trouble, kind=FATAL))
        return book

    def _without(self, uuid: str, over: Callable[[Trouble], bool]) -> HealthBook:
        kept = tuple(trouble for trouble in self.troubles if trouble.gpu_uuid != uuid or not over(trouble))
        return replace(self, troubles=kept)

    def _postponed(self, uuid: str, until: float) -> HealthBook:
        """No clean probe now: the GPU's transient troubles wait longer."""
        return replace(
            self,
            troubles=tuple(
                replace(trouble, quiet_until=until)
                if trouble.gpu_uuid == uuid and _waits(trouble) and trouble.quiet_until < until
                else trouble
                for trouble in self.troubles
            ),
        )

    def _each_gpu(self, uuids: Iterable[str]) -> HealthBook:
        """Turns troubles of "all GPUs" into one for each of these, so that each can end by itself."""
        everyone = [
            trouble for trouble in self.troubles if trouble.gpu_uuid is None and trouble.code != "monitor"
        ]
        book = replace(self, troubles=tuple(trouble for trouble in self.troubles if trouble not in everyone))
        for trouble in everyone:
            for uuid in uuids:
                book = book._with(replace(trouble, gpu_uuid=uuid))
        return book

    def tick(self, now: float) -> HealthBook:
        """Time passes: forgives old strikes (the back-off's memory)."""
        strikes = tuple((place, struck) for place, struck in self.strikes if not _forgiven(struck, now))
        return self if len(strikes) == len(self.strikes) else replace(self, strikes=strikes)

    def _dues(self) -> dict[str, float]:
        dues = dict.fromkeys(self.asked, 0.0)
        for trouble in self.troubles:
            if trouble.gpu_uuid is not None and _waits(trouble):
                at = min(trouble.quiet_until, dues.get(trouble.gpu_uuid, trouble.quiet_until))
                dues[trouble.gpu_uuid] = at
        return dues

    def due(self, now: float) -> tuple[str, ...]:
        """UUIDs that a probe could heal or should look at right now."""
        return tuple(sorted(uuid for uuid, at in self._dues().items() if at <= now))

    def next_due(self) -> float | None:
        """Monotonic time of the next :meth:`due` (0 for at once), None when nothing waits."""
        return min(self._dues().values(), default=None)

    def monitor_failed(self, reason: str, wall: float = 0.0) -> HealthBook:
        """The event monitor can't start or died: every GPU is Unhealthy, not silently Healthy."""
        if not self.watch_events:
            return self
        return self._with(
            Trouble(None, "monitor", TRANSIENT, f"health can't be watched ({reason})", since=wall)
        )

    def monitor_works(self) -> HealthBook:
        """It runs (again)."""
        return replace(self, troubles=tuple(t for t in self.troubles if t.code != "monitor"))

    def forget(self, gpu_uuid: str) -> HealthBook:
        """Everything of one GPU: an administrator says that it was reset or replaced."""
        return replace(
            self,
            troubles=tuple(t for t in self.troubles if t.gpu_uuid != gpu_uuid),
            strikes=tuple((place, struck) for place, struck in self.strikes if place[0] != gpu_uuid),
            marks=tuple((uuid, mark) for uuid, mark in self.marks if uuid != gpu_uuid),
            asked=tuple(uuid for uuid in self.asked if uuid != gpu_uuid),
        )

    def of(
        self, gpu_uuid: str, gpu_instance: int | None = None, compute_instance: int | None = None
    ) -> tuple[Trouble, ...]:
        """Every trouble that this GPU or slice has, fatal ones first."""
        hits = [t for t in self.troubles if t.hits(gpu_uuid, gpu_instance, compute_instance)]
        return tuple(sorted(hits, key=lambda trouble: trouble.kind != FATAL))

    def reason(
        self, gpu_uuid: str, gpu_instance: int | None = None, compute_instance: int | None = None
    ) -> str | None:
        """Why this GPU or slice is Unhealthy, None when it isn't. A whole GPU has its slices' troubles too."""
        troubles = self.of(gpu_uuid, gpu_instance, compute_instance)
        if not troubles:
            return None
        texts = "; ".join(dict.fromkeys(trouble.text for trouble in troubles))
        passing = all(trouble.code in PASSING for trouble in troubles)
        return texts if passing else f"{texts}: {_NEXT_STEP[troubles[0].kind]}"

    def to_json(self, now: float) -> str:
        """What must outlive restarts (``health.json`` in state_dir): fatal and transient troubles, and the marks by
        which a reset is seen. Monotonic times become seconds that are left."""
        kept = [t for t in self.troubles if t.code not in PASSING]
        return json.dumps(
            {
                "version": 1,
                "boot_id": self.boot_id,
                "troubles": [{**asdict(t), "quiet_until": max(0.0, t.quiet_until - now)} for t in kept],
                "marks": [asdict(mark) for _uuid, mark in self.marks],
            },
            indent=1,
            sort_keys=True,
        )


def _forgiven(struck: _Strikes, now: float) -> bool:
    return now - struck.last > struck.quiet * FORGIVE_AFTER


def _instance(number: int | None) -> int | None:
    return None if number is None or number == NO_INSTANCE else number


def _waits(trouble: Trouble) -> bool:
    """Whether a clean probe after its quiet time is what it waits for."""
    return trouble.kind == TRANSIENT and trouble.code not in PASSING


def _xid_of(code: str) -> int | None:
    number = code.removeprefix("xid-")
    return int(number) if number != code and number.isascii() and number.isdigit() else None


def _sort_key(trouble: Trouble) -> tuple[str, str, int, int]:
    gpu_instance = -1 if trouble.gpu_instance is None else trouble.gpu_instance
    compute_instance = -1 if trouble.compute_instance is None else trouble.compute_instance
    return trouble.gpu_uuid or "", trouble.code, gpu_instance, compute_instance


def _put(pairs: tuple[tuple[K, V], ...], key: K, value: V) -> tuple[tuple[K, V], ...]:
    return (*(pair for pair in pairs if pair[0] != key), (key, value))


def load_book(text: str | None, settings: HealthSettings, boot_id: str, now: float) -> HealthBook:
    """The book as saved, empty when ``text`` is None, broken, or from another boot. Never raises."""
    try:
        saved = json.loads(text or "")
        if saved["version"] != 1 or saved["boot_id"] != boot_id:
            return HealthBook(settings, boot_id)
        troubles = [_revived(Trouble, item) for item in saved["troubles"]]
        marks = [_revived(Probe, item) for item in saved["marks"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return HealthBook(settings, boot_id)
    book = HealthBook(
        settings,
        boot_id,
        tuple(replace(trouble, quiet_until=now + trouble.quiet_until) for trouble in troubles),
        marks=tuple((mark.gpu_uuid, mark) for mark in marks),
    )
    return book.with_settings(settings)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
}


def _revived(kind: type[K], item: dict[str, Any]) -> K:
    """A dataclass from its JSON. Raises TypeError where a field is missing, unknown or of another type."""
    for part in fields(kind):  # type: ignore[arg-type]
        if not isinstance(item[part.name], _TYPES[str(part.type)]):
            raise TypeError(f"{part.name} is {item[part.name]!r}")
    if not all(math.isfinite(value) for value in item.values() if isinstance(value, float)):
        raise ValueError("not a finite number")
    return kind(**item)
