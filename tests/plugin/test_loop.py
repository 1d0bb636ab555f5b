"""The small machinery below: loop, timers, inotify, the file watch, logs, counters, sd_notify."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from gpu_device_plugin import inotify, logs, sdnotify
from gpu_device_plugin.counters import Counters
from gpu_device_plugin.logs import quote
from gpu_device_plugin.loop import Loop
from gpu_device_plugin.watch import FileWatch
from kit import wait_until


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    yield one
    one.stop()
    thread.join(5)
    one.close()


def test_calls_from_other_threads_run_in_order(loop):
    got: list[int] = []
    for number in range(1000):
        loop.call(lambda number=number: got.append(number))
    wait_until(lambda: len(got) == 1000)
    assert got == sorted(got)


def test_timers_run_when_due_and_not_when_cancelled(loop):
    got: list[str] = []
    began = time.monotonic()
    loop.call(lambda: loop.after(0.05, lambda: got.append("late")))
    loop.call(lambda: loop.after(0.02, lambda: got.append("early")))
    loop.call(lambda: loop.after(0.01, lambda: got.append("never")).cancel())
    wait_until(lambda: len(got) == 2)
    assert got == ["early", "late"]
    assert time.monotonic() - began >= 0.05


def test_a_fault_in_one_callback_is_logged_and_the_loop_goes_on(loop, capsys):
    logs.setup()
    got: list[str] = []

    def broken() -> None:
        raise ValueError("bug")

    loop.call(broken)
    loop.call(lambda: got.append("alive"))
    wait_until(lambda: got)
    assert "bug" in capsys.readouterr().err


def test_every_comes_again_even_after_a_fault(loop):
    got: list[int] = []

    def tick() -> None:
        got.append(1)
        if len(got) == 1:
            raise ValueError("once")

    loop.call(lambda: loop.every(0.01, tick))
    wait_until(lambda: len(got) >= 3)


def test_inotify_tells_what_comes_and_goes(place):
    one = inotify.Inotify()
    watch = one.watch(str(place), inotify.ENTRIES | inotify.SELF)
    (place / "a").touch()
    (place / "a").unlink()
    events = one.read()
    assert [(event.watch, event.name) for event in events] == [(watch, "a"), (watch, "a")]
    assert events[0].mask & inotify.CREATE and events[1].mask & inotify.DELETE
    assert one.read() == []
    one.forget(watch)
    assert one.read()[0].mask & inotify.IGNORED
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        one.watch(str(place / "nothing-here"), inotify.ENTRIES)
    one.close()


class Watched:
    def __init__(self, loop: Loop, path) -> None:
        self.changes = 0
        done = threading.Event()

        def make() -> None:
            self.watch = FileWatch(loop, str(path), self.changed)
            done.set()

        loop.call(make)
        done.wait(5)

    def changed(self) -> None:
        self.changes += 1

    def after(self, changes: int) -> None:
        wait_until(lambda: self.changes >= changes, 2, f"change {changes}")


def test_a_file_edited_replaced_removed_and_made_is_seen_each_time(loop, place):
    path = place / "config.yaml"
    path.write_text("one")
    watched = Watched(loop, path)
    path.write_text("two")
    watched.after(1)
    (place / "new").write_text("three")
    (place / "new").rename(path)
    watched.after(2)
    path.unlink()
    watched.after(3)
    path.write_text("four")
    watched.after(4)
    assert watched.changes == 4


def test_an_equal_file_is_no_change(loop, place):
    path = place / "config.yaml"
    path.write_text("one")
    watched = Watched(loop, path)
    path.write_text("one")
    (place / "config.yaml.tmp").write_text("one")
    (place / "config.yaml.tmp").rename(path)
    path.write_text("two")
    watched.after(1)
    assert watched.changes == 1


def test_the_file_behind_a_link_elsewhere_is_watched_too(loop, place):
    (place / "real").mkdir()
    (place / "real/config.yaml").write_text("one")
    (place / "config.yaml").symlink_to("real/config.yaml")
    watched = Watched(loop, place / "config.yaml")
    (place / "real/config.yaml").write_text("two")
    watched.after(1)


def test_a_directory_that_is_replaced_is_watched_again(loop, place):
    (place / "etc").mkdir()
    (place / "etc/config.yaml").write_text("one")
    watched = Watched(loop, place / "etc/config.yaml")
    (place / "etc").rename(place / "old")
    (place / "etc").mkdir()
    (place / "etc/config.yaml").write_text("two")
    watched.after(1)
    (place / "etc/config.yaml").write_text("three")
    watched.after(2)


def test_a_log_line_is_key_value_or_json(capsys):
    logs.setup("kv", "info")
    log = logs.Log("test")
    log.info("registered", resource="nvidia.com/gpu", ids=["a", "b"], text='say "hi"', ok=True, ms=1.23456789)
    log.debug("not shown")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "level=info event=registered resource=nvidia.com/gpu ids=a,b" in line
    assert 'text="say \\"hi\\"" ok=true ms=1.23457' in line
    logs.setup("json", "debug")
    log.debug("shown", n=1)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["event"], entry["n"]) == ("debug", "shown", 1)


def test_what_grpc_logs_comes_out_as_a_line_too(capsys):
    logs.setup("json", "info")
    logging.getLogger("grpc._server").error("Exception calling application")
    assert json.loads(capsys.readouterr().err)["event"] == "Exception calling application"


@pytest.mark.parametrize(
    ("value", "text"),
    [("", '""'), ("a b", '"a b"'), ("a=b", '"a=b"'), ("ünï", '"ünï"'), (3, "3"), ("\n", '"\\n"')],
)
def test_values_stay_on_their_line(value, text):
    assert quote(value) == text


def test_counters_add_up_over_threads():
    counters = Counters()

    def work() -> None:
        for _ in range(1000):
            counters.lists.add("r")
            counters.rpc_seconds.add("r", "Allocate", seconds=0.0002)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(counters.lists.items()) == [(("r",), 4000)]
    ((labels, buckets, total),) = counters.rpc_seconds.items()
    assert labels == ("r", "Allocate") and abs(total - 0.8) < 1e-6
    assert dict(buckets)["0.0001"] == 0 and dict(buckets)["0.00025"] == 4000 and dict(buckets)["+Inf"] == 4000


def test_sd_notify_speaks_only_where_systemd_listens(place):
    sdnotify.notify({}, "READY=1")
    sdnotify.notify({"NOTIFY_SOCKET": str(place / "nobody")}, "READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place / "n"))
        sdnotify.notify({"NOTIFY_SOCKET": str(place / "n")}, "READY=1")
        assert systemd.recv(100) == b"READY=1"
    assert sdnotify.watchdog_seconds({"WATCHDOG_USEC": "3000000"}) == 3
    assert sdnotify.watchdog_seconds({}) is None
    assert sdnotify.watchdog_seconds({"WATCHDOG_USEC": "x"}) is None
