"""Health: what is heeded, for how long, and whom it hits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from gpu_device_plugin.config import HealthSettings
from gpu_device_plugin.health import MAX_QUIET_SECONDS, RECHECK_SECONDS, Event, HealthBook, Probe, load_book
from gpu_device_plugin.troubles import NO_INSTANCE
from gpu_device_plugin.xids import FATAL, IGNORE, PENDING, TRANSIENT, XIDS, checks_disabled, kind_of
from hypothesis import given, settings
from hypothesis import strategies as st

A, B = "GPU-a", "GPU-b"
CLEAN = (Probe(A), Probe(B))


def book(**changes: object) -> HealthBook:
    return HealthBook(HealthSettings(**changes), "boot-1")  # type: ignore[arg-type]


def xid(number: int, gpu: str | None = A, gi: int | None = None, ci: int | None = None) -> Event:
    return Event(gpu, "xid", number, gi, ci)


@pytest.mark.parametrize("number", [13, 31, 43, 45, 68, 109])
def test_application_faults_are_ignored(number: int) -> None:
    assert book().observe(xid(number), 0) == book()


@pytest.mark.parametrize("number", [48, 74, 79, 94, 95, 119, 120])
def test_fatal_xids_stay_however_clean_and_quiet_it_is(number: int) -> None:
    found = book().observe(xid(number), 0)
    for hour in range(48):
        found = found.probe(CLEAN, hour * 3600).tick(hour * 3600)
    reason = found.reason(A) or ""
    assert reason.startswith(f"XID {number} (")
    assert "reset the GPU" in reason
    assert found.reason(B) is None
    assert found.next_due() is None


def test_a_transient_xid_is_over_with_the_first_clean_probe_after_the_quiet_time() -> None:
    found = book().observe(xid(32), 100, wall=1e9)
    assert (
        found.reason(A)
        == "XID 32 (invalid or corrupted push buffer stream): it comes back by itself when it stays quiet"
    )
    assert (found.troubles[0].since, found.next_due()) == (1e9, 160.0)
    assert found.due(159) == ()
    assert found.due(160) == (A,)
    assert found.probe(CLEAN, 159.9).reason(A) is not None
    assert found.probe([Probe(B)], 200).reason(A) is not None
    healed = found.probe(CLEAN, 160)
    assert healed.reason(A) is None
    assert healed.next_due() is None


def test_xids_that_no_table_knows_are_transient() -> None:
    assert book().observe(xid(999), 0).troubles[0].kind == TRANSIENT
    assert "XID 999 (not in the table)" in (book().observe(xid(999), 0).reason(A) or "")


def test_the_quiet_time_doubles_at_each_return_up_to_an_hour_and_is_forgiven() -> None:
    found, now, quiet = book(), 0.0, []
    for _ in range(9):
        found = found.observe(xid(32), now)
        until = found.next_due()
        assert until is not None
        quiet.append(until - now)
        now = until
        found = found.probe(CLEAN, now).tick(now)
        assert found.troubles == ()
    assert quiet == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert found.tick(now + 9 * MAX_QUIET_SECONDS).strikes
    later = now + 10 * MAX_QUIET_SECONDS + 1
    assert found.tick(later).strikes == ()
    assert found.observe(xid(32), later).next_due() == later + 60


def test_the_same_xid_again_starts_the_quiet_time_anew_and_keeps_its_first_date() -> None:
    found = book().observe(xid(32), 0, wall=5).observe(xid(32), 50, wall=55)
    assert len(found.troubles) == 1
    assert (found.troubles[0].since, found.next_due()) == (5, 50 + 120)


def test_the_back_off_counts_each_gpu_by_itself() -> None:
    found = book().observe(xid(32), 0).observe(xid(32, B), 0)
    assert {trouble.quiet_until for trouble in found.troubles} == {60.0}


def test_a_quiet_time_of_nothing_still_waits_for_a_clean_probe() -> None:
    found = book(quiet_seconds=0.0).observe(xid(32), 7)
    assert found.reason(A)
    assert found.due(7) == (A,)
    assert found.probe([Probe(A)], 7).reason(A) is None


def test_a_quiet_time_longer_than_the_end_of_doubling_is_kept_to_that() -> None:
    assert book(quiet_seconds=9000.0).observe(xid(32), 0).next_due() == MAX_QUIET_SECONDS


def test_a_fault_of_a_slice_hits_that_slice_and_the_gpu_as_a_whole_but_no_other_slice() -> None:
    found = book().observe(xid(94, A, 3, 0), 0)
    assert found.reason(A, 3, 0)
    assert found.reason(A, 3, 1) is None
    assert found.reason(A, 4, 0) is None
    assert found.reason(A)
    assert found.reason(B, 3, 0) is None
    wider = book().observe(xid(94, A, 3, NO_INSTANCE), 0)
    assert wider.reason(A, 3, 0)
    assert wider.reason(A, 3, 5)
    assert wider.reason(A, 4, 0) is None


def test_a_fault_of_the_gpu_hits_every_slice() -> None:
    for event in (xid(94), xid(94, A, NO_INSTANCE, NO_INSTANCE), xid(95, A, 3, 0), xid(79, A, 3, 0)):
        found = book().observe(event, 0)
        assert found.reason(A, 3, 0)
        assert found.reason(A, 9, 1)
        assert found.reason(A)


def test_an_event_of_no_known_gpu_hits_all_and_each_recovers_by_itself() -> None:
    found = book().observe(xid(32, None), 0)
    assert found.reason(A)
    assert found.reason("GPU-never-seen")
    seen = book().probe(CLEAN, 0).observe(xid(32, None), 0)
    assert seen.reason(A)
    assert seen.reason(B)
    for each in (found, seen):
        split = each.probe([Probe(A), Probe(B, lost=True)], 60)
        assert split.reason(A) is None
        assert "XID 32" in (split.reason(B) or "")


@pytest.mark.parametrize("number", [63, 64, 154, 156])
def test_xids_of_retirement_are_fatal_only_where_a_reset_is_pending(number: int) -> None:
    found = book().probe(CLEAN, 0).observe(xid(number), 10)
    assert found.troubles[0].kind == TRANSIENT
    assert found.due(10) == (A,)
    assert found.next_due() == 0
    harmless = found.probe(CLEAN, 10.1)
    assert harmless.due(10.2) == ()
    assert harmless.probe(CLEAN, 70).reason(A) is None
    pending = found.probe([Probe(A, remap_pending=True), Probe(B)], 10.1)
    assert {trouble.kind for trouble in pending.troubles} == {FATAL}
    known = book().probe([Probe(A, remap_failed=True)], 0).observe(xid(number), 1)
    assert all(trouble.kind == FATAL for trouble in known.troubles)


def test_a_pending_reset_of_one_gpu_makes_nothing_of_another_or_of_other_xids_fatal() -> None:
    found = book().observe(xid(63, B), 0).observe(xid(32), 0).probe([Probe(A, remap_pending=True)], 1)
    assert {trouble.code: trouble.kind for trouble in found.troubles} == {
        "remap-pending": FATAL,
        "xid-32": TRANSIENT,
        "xid-63": TRANSIENT,
    }


def test_troubles_are_kept_in_one_order_however_they_came() -> None:
    events = [xid(94, A, 4, 0), xid(94), xid(32, B), xid(94, A, 3, 1), xid(94, A, 3, 0), xid(94, A, 3)]
    there, back = book(), book()
    for event in events:
        there = there.observe(event, 0)
    for event in reversed(events):
        back = back.observe(event, 0)
    assert there.troubles == back.troubles
    assert [(t.gpu_uuid, t.gpu_instance, t.compute_instance) for t in there.troubles] == [
        (A, None, None),
        (A, 3, None),
        (A, 3, 0),
        (A, 3, 1),
        (A, 4, 0),
        (B, None, None),
    ]


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (Probe(A, ecc_double_bit=2), "2 double-bit ECC errors since the driver was loaded"),
        (Probe(A, remap_pending=True), "row remapping or page retirement is pending"),
        (Probe(A, remap_failed=True), "row remapping failed"),
        (Probe(A, recovery_action="reset"), "the driver asks for recovery: reset"),
    ],
)
def test_what_a_probe_finds_makes_a_gpu_unhealthy_as_long_as_it_is_found(look: Probe, words: str) -> None:
    found = book().probe([look, Probe(B)], 0, wall=9)
    reason = found.reason(A, 3, 0) or ""
    assert reason.startswith(words)
    assert "reset the GPU" in reason
    assert found.troubles[0].since == 9
    assert found.reason(B) is None
    assert found.probe([look], 5, wall=11).troubles == found.troubles
    assert found.probe(CLEAN, 9).reason(A) is None


def test_probes_without_words_are_clean() -> None:
    look = Probe(A, ecc_double_bit=0, recovery_action="none", generation="1")
    assert book().probe([look], 0).troubles == ()


def test_lost_and_unreadable_gpus_are_unhealthy_until_they_answer_again() -> None:
    found = book().probe([Probe(A, lost=True), Probe(B, unreadable="Timeout")], 0)
    assert found.reason(A) == "GPU is lost"
    assert found.reason(B) == "GPU can't be read (Timeout)"
    assert found.next_due() is None
    changed = found.probe([Probe(A, unreadable="Unknown Error")], 1)
    assert changed.reason(A) == "GPU can't be read (Unknown Error)"
    back = found.probe(CLEAN, 2)
    assert (back.reason(A), back.reason(B)) == (None, None)


def test_a_gpu_that_comes_back_after_xid_79_stays_unhealthy() -> None:
    found = book().observe(xid(79), 0).probe([Probe(A, lost=True)], 1)
    assert (found.reason(A) or "").startswith("XID 79 (GPU has fallen off the bus); GPU is lost: ")
    assert (found.probe([Probe(A)], 2).reason(A) or "").startswith("XID 79 (GPU has fallen off the bus): ")


def test_a_probe_that_is_not_clean_puts_recovery_off() -> None:
    found = book().observe(xid(32), 0).probe([Probe(A, lost=True)], 60)
    assert found.due(60) == ()
    assert found.next_due() == 60 + RECHECK_SECONDS
    assert found.probe([Probe(A)], 61).reason(A) is not None
    assert found.probe([Probe(A)], 66).reason(A) is None


def test_a_double_bit_ecc_event_is_fatal_and_a_single_bit_one_nothing() -> None:
    found = book().observe(Event(A, "ecc-double"), 0)
    assert (found.reason(A) or "").startswith("double-bit ECC error: reset")
    assert found.probe(CLEAN, 1e6).reason(A)
    assert book().observe(Event(A, "ecc-single"), 0) == book()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Probe(A, ecc_double_bit=3), Probe(A, ecc_double_bit=0)),
        (Probe(A, remap_pending=True), Probe(A)),
        (Probe(A, recovery_action="reset"), Probe(A, recovery_action="none")),
        (Probe(A, recovery_action="drain"), Probe(A, recovery_action="none")),
        (Probe(A, generation="1"), Probe(A, generation="2")),
    ],
)
def test_a_reset_that_a_probe_shows_ends_what_is_fatal(before: Probe, after: Probe) -> None:
    found = book().probe([before, Probe(B)], 0).observe(xid(95), 1).observe(xid(95, B), 1)
    assert found.probe([before], 2).reason(A)
    healed = found.probe([after, Probe(B)], 3)
    assert healed.reason(A) is None
    assert healed.reason(B)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Probe(A, ecc_double_bit=3), Probe(A, ecc_double_bit=4)),
        (Probe(A, ecc_double_bit=3), Probe(A)),
        (Probe(A), Probe(A, remap_pending=True)),
        (Probe(A, recovery_action="reset"), Probe(A)),
        (Probe(A, recovery_action="none"), Probe(A, recovery_action="none")),
        (Probe(A, generation="1"), Probe(A)),
        (Probe(A, generation="1"), Probe(A, generation="1")),
        (Probe(A, ecc_double_bit=3), Probe(A, lost=True, ecc_double_bit=0)),
    ],
)
def test_nothing_else_passes_for_a_reset(before: Probe, after: Probe) -> None:
    assert book().probe([before], 0).observe(xid(95), 1).probe([after], 3).reason(A)


def test_a_reset_while_the_gpu_was_gone_is_seen_when_it_is_back() -> None:
    found = book().probe([Probe(A, ecc_double_bit=3)], 0).observe(xid(95), 1).probe([Probe(A, lost=True)], 2)
    assert found.probe([Probe(A, ecc_double_bit=0)], 3).reason(A) is None


def test_what_an_administrator_says_was_reset_is_forgotten() -> None:
    found = (
        book().probe([Probe(A, recovery_action="reset"), Probe(B)], 0).observe(xid(32), 0).observe(xid(63), 0)
    )
    assert found.forget(A) == book().probe([Probe(B)], 0)


def test_a_monitor_that_cannot_start_makes_every_gpu_unhealthy_until_it_works() -> None:
    found = book().monitor_failed("no events: Not Supported")
    assert (
        found.reason(A)
        == found.reason("GPU-any", 3, 0)
        == "health can't be watched (no events: Not Supported)"
    )
    assert found.probe(CLEAN, 1e6).reason(A)
    assert found.next_due() is None
    again = found.monitor_failed("other")
    assert again.reason(A) == "health can't be watched (other)"
    assert found.monitor_works() == book()


def test_reasons_are_joined_fatal_ones_first() -> None:
    found = book().observe(xid(32), 0).observe(xid(79), 0).observe(xid(79, A, 3, 0), 0)
    reason = found.reason(A) or ""
    assert reason.startswith("XID 79 (GPU has fallen off the bus); XID 32 (")
    assert reason.count("XID 79") == 1
    assert reason.endswith("replace the GPU")
    assert [trouble.kind for trouble in found.of(A)] == [FATAL, TRANSIENT]


@pytest.mark.parametrize(
    ("disable", "enable", "expected"),
    [
        ("", "", {13: IGNORE, 32: TRANSIENT, 79: FATAL, 63: PENDING, 999: TRANSIENT}),
        ("79, 32", "", {13: IGNORE, 32: IGNORE, 79: IGNORE, 999: TRANSIENT}),
        ("all", "", {13: IGNORE, 32: IGNORE, 79: IGNORE, 999: IGNORE}),
        ("XIDS", "", {79: IGNORE, 999: IGNORE}),
        ("31,xids", "", {79: IGNORE, 999: IGNORE}),
        ("all", "79,31", {79: FATAL, 31: TRANSIENT, 48: IGNORE, 999: IGNORE}),
        ("", "31", {31: TRANSIENT, 13: IGNORE, 79: FATAL}),
        ("79", "79", {79: FATAL}),
        ("all", "all", {13: TRANSIENT, 79: FATAL, 999: TRANSIENT}),
        ("79", "all", {79: FATAL, 31: TRANSIENT, 999: TRANSIENT}),
        ("nonsense, ,7x", "?", {13: IGNORE, 79: FATAL, 999: TRANSIENT}),
        ("\u0667", "", {7: TRANSIENT}),
    ],
)
def test_the_two_lists_of_the_peer_keep_their_meaning(
    disable: str, enable: str, expected: dict[int, str]
) -> None:
    chosen = HealthSettings(disable=disable, enable=enable)
    assert {number: kind_of(number, chosen) for number in expected} == expected


def test_our_own_table_changes_classes_and_the_peers_lists_win_over_it() -> None:
    own = ((13, "fatal"), (79, "ignore"), (999, "fatal"))
    assert kind_of(13, HealthSettings(xids=own)) == FATAL
    assert kind_of(79, HealthSettings(xids=own)) == IGNORE
    assert kind_of(999, HealthSettings(xids=own)) == FATAL
    assert kind_of(13, HealthSettings(xids=own, disable="13")) == IGNORE
    assert kind_of(79, HealthSettings(xids=own, enable="79")) == TRANSIENT
    assert kind_of(999, HealthSettings(xids=own, disable="all", enable="all")) == FATAL


@pytest.mark.parametrize(
    ("disable", "enable", "off"),
    [
        ("all", "", True),
        ("xids", "", True),
        ("79", "", False),
        ("all", "79", False),
        ("all", "?", True),
        ("", "", False),
    ],
)
def test_all_without_exceptions_turns_every_check_off(disable: str, enable: str, off: bool) -> None:
    chosen = HealthSettings(disable=disable, enable=enable)
    assert checks_disabled(chosen) is off
    blind = HealthBook(chosen)
    assert blind.watch_events is not off
    if off:
        ill = [Probe(A, remap_pending=True, ecc_double_bit=1)]
        assert blind.observe(xid(79), 0).observe(Event(A, "ecc-double"), 0).monitor_failed("x").troubles == ()
        assert blind.probe(ill, 0).reason(A) is None
        assert blind.probe([Probe(A, lost=True)], 0).reason(A) == "GPU is lost"


def test_all_with_exceptions_heeds_only_those() -> None:
    some = book(disable="all", enable="79")
    assert some.observe(xid(48), 0).observe(Event(A, "ecc-double"), 0).troubles == ()
    assert some.probe([Probe(A, remap_pending=True)], 0).reason(A) is None
    assert some.observe(xid(79), 0).reason(A)
    assert some.monitor_failed("x").reason(A)


def test_edited_settings_take_back_what_is_ignored_now_and_keep_the_rest() -> None:
    found = (
        book().observe(xid(79), 0).observe(xid(32), 0).observe(Event(A, "ecc-double"), 0).monitor_failed("m")
    )
    found = found.probe([Probe(B, lost=True)], 0)

    def codes(chosen: HealthSettings) -> list[str]:
        return [trouble.code for trouble in found.with_settings(chosen).troubles]

    assert codes(HealthSettings()) == ["monitor", "ecc-double", "xid-32", "xid-79", "lost"]
    assert codes(HealthSettings(disable="32")) == ["monitor", "ecc-double", "xid-79", "lost"]
    assert codes(HealthSettings(disable="all", enable="32")) == ["monitor", "xid-32", "lost"]
    assert codes(HealthSettings(disable="all")) == ["lost"]
    assert found.with_settings(HealthSettings(disable="32")).settings.disable == "32"


def test_what_is_fatal_outlives_a_restart_and_what_is_passing_does_not() -> None:
    found = book().probe([Probe(A, ecc_double_bit=3)], 0, wall=4).observe(xid(79, A, 3, 0), 5, wall=50)
    found = found.observe(xid(32, B), 40, wall=60).monitor_failed("m").probe([Probe(B, lost=True)], 41)
    text = found.to_json(now=70)
    again = load_book(text, HealthSettings(), "boot-1", now=1000)
    assert [trouble.code for trouble in again.troubles] == ["ecc-double-count", "xid-79", "xid-32"]
    assert (again.reason(A, 9, 9) or "").startswith(
        "3 double-bit ECC errors since the driver was loaded; XID 79"
    )
    assert again.troubles[1].since == 50
    assert again.next_due() == 1000 + 100 - 70
    assert again.probe([Probe(A, ecc_double_bit=0)], 1001).reason(A) is None, (
        "the reset is seen over the restart"
    )
    assert json.loads(text)["boot_id"] == "boot-1"


def test_another_boot_forgets_everything() -> None:
    text = book().observe(xid(79), 0).to_json(0)
    assert load_book(text, HealthSettings(), "boot-2", 0) == HealthBook(HealthSettings(), "boot-2")


def test_a_loaded_book_obeys_the_settings_of_now() -> None:
    text = book().observe(xid(79), 0).to_json(0)
    assert load_book(text, HealthSettings(disable="79"), "boot-1", 0).troubles == ()


GOOD = json.loads(book().observe(xid(79), 0).probe(CLEAN, 0).to_json(0))


@pytest.mark.parametrize(
    "text",
    [
        None, "", "x", "[]", "{}", "null", "1", '{"version": 2, "boot_id": "boot-1"}', "[" * 100_000,
        json.dumps({**GOOD, "troubles": [{"gpu_uuid": 3}]}),
        json.dumps({**GOOD, "troubles": [{**GOOD["troubles"][0], "code": None}]}),
        json.dumps({**GOOD, "troubles": [{**GOOD["troubles"][0], "more": 1}]}),
        json.dumps({**GOOD, "troubles": [{**GOOD["troubles"][0], "quiet_until": float("nan")}]}),
        json.dumps({**GOOD, "marks": [{**GOOD["marks"][0], "lost": "no"}]}),
        json.dumps({**GOOD, "marks": 7}),
    ],
)  # fmt: skip
def test_a_broken_memory_is_an_empty_one(text: str | None) -> None:
    assert load_book(text, HealthSettings(), "boot-1", 0) == HealthBook(HealthSettings(), "boot-1")
    assert load_book(json.dumps(GOOD), HealthSettings(), "boot-1", 0).reason(A)


def test_codes_that_are_no_xid_of_ours_do_not_break_a_loaded_book() -> None:
    strange = {
        **GOOD,
        "troubles": [{**GOOD["troubles"][0], "code": "xid-"}, {**GOOD["troubles"][0], "code": "xid-x"}],
    }
    found = load_book(json.dumps(strange), HealthSettings(), "boot-1", 0)
    assert found.probe([Probe(A, remap_pending=True)], 1).reason(A)


EVENTS = st.builds(
    Event,
    st.sampled_from([A, B, None]),
    st.sampled_from(["xid", "ecc-double", "ecc-single", "other"]),
    st.sampled_from([*XIDS, 0, 7, 999, 2**40]),
    st.sampled_from([None, 0, 3, NO_INSTANCE]),
    st.sampled_from([None, 0, NO_INSTANCE]),
)
PROBES = st.builds(
    Probe,
    st.sampled_from([A, B]),
    st.booleans(),
    st.sampled_from([None, None, "Timeout"]),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "none", "reset"]),
    st.sampled_from([None, "1"]),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(EVENTS | PROBES, max_size=12),
    st.sampled_from(["", "all", "79"]),
    st.sampled_from(["", "79", "all"]),
)
def test_any_history_keeps_the_book_small_loadable_and_curable_by_a_reboot(
    history: list[Event | Probe], disable: str, enable: str
) -> None:
    found = book(disable=disable, enable=enable)
    for now, what in enumerate(history):
        found = found.observe(what, now) if isinstance(what, Event) else found.probe([what], now)
        found = found.tick(now)
        keys = [trouble.key for trouble in found.troubles]
        assert len(keys) == len(set(keys))
        assert [uuid for uuid, _mark in found.marks] == list(
            dict.fromkeys(uuid for uuid, _mark in found.marks)
        )
        due = found.next_due()
        assert due is None or found.due(due)
    saved = load_book(found.to_json(99), found.settings, "boot-1", 99)
    assert {t.key for t in saved.troubles} == {
        t.key for t in found.troubles if t.code not in ("lost", "unreadable", "monitor")
    }
    assert load_book(found.to_json(99), found.settings, "boot-2", 99).troubles == ()
    fatal = [trouble for trouble in found.troubles if trouble.kind == FATAL]
    later = found.probe([Probe(A), Probe(B)], 1e9)
    assert all(trouble.kind == FATAL for trouble in later.troubles)
    assert {trouble.key for trouble in later.troubles} <= {
        replace(trouble, gpu_uuid=uuid).key
        for trouble in fatal
        for uuid in ((A, B) if trouble.gpu_uuid is None else (trouble.gpu_uuid,))
    }
