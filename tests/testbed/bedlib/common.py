"""What every part needs: paths, running programs, saying what goes on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTBED = Path(__file__).resolve().parents[1]
PROJECT = TESTBED.parents[1]
sys.path.insert(0, str(TESTBED / "nvml"))


class BedError(Exception):
    """Something is missing or went wrong: the message says what, where, and what to do."""


def cache(*parts: str) -> Path:
    """A path in the project's cache ($GPUOPS_CACHE or ~/.cache/gpuops); its directory exists."""
    path = Path(os.environ.get("GPUOPS_CACHE") or Path.home() / ".cache/gpuops", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """A line of progress, on standard error: standard output is for results."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str, every: float = 10.0) -> Iterator[None]:
    """Says what starts, how long it has been going on every ten seconds, and how long it took."""
    say(f"{text} ...")
    started = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(every):
            say(f"  still at it: {text} ({time.monotonic() - started:.0f} s)")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
    took = time.monotonic() - started
    if took > 2:
        say(f"  done in {took:.0f} s")


def run(
    command: Sequence[object], *, check: bool = True, capture: bool = True, log: Path | None = None,
    data: bytes | None = None, env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run a program. With `log`, all it says goes there; a failure shows the last lines of what it said."""
    words = [str(word) for word in command]
    stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    try:
        if log:
            with log.open("ab") as sink:
                done = subprocess.run(
                    words, stdout=sink, stderr=subprocess.STDOUT, check=False, env=env, **stdin
                )
        else:
            done = subprocess.run(words, capture_output=capture, check=False, env=env, **stdin)
    except OSError as error:
        raise BedError(f"{words[0]} cannot be run: {error.strerror}") from error
    if check and done.returncode:
        said = log.read_bytes() if log else (done.stdout or b"") + (done.stderr or b"")
        tail = "\n".join(said.decode(errors="replace").strip().splitlines()[-15:])
        raise BedError(f"{' '.join(words)[:200]}: exit code {done.returncode}\n{tail}")
    return done


def out(command: Sequence[object], **options: object) -> str:
    """What a program prints, stripped."""
    return run(command, **options).stdout.decode().strip()


def docker(*words: object, **options: object) -> str:
    """What `docker ...` prints."""
    return out(["docker", *words], **options)


def wait_until(condition, what: str, timeout: float = 60.0, every: float = 0.1):
    """The first true answer of `condition`; BedError when none came in `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise BedError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One at a time on this machine: two commands that miss the same image build it once."""
    with cache("locks", name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest_of(*things: object) -> str:
    """Twelve hex digits that name these texts and the contents of these files and directories."""
    seen = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Path):
            files = sorted(p for p in thing.rglob("*") if p.is_file()) if thing.is_dir() else [thing]
            for file in files:
                if "__pycache__" in file.parts:
                    continue
                seen.update(
                    f"{file.relative_to(thing)}\0{file.stat().st_mode:o}\0".encode() + file.read_bytes()
                )
        else:
            seen.update(repr(thing).encode())
        seen.update(b"\0")
    return seen.hexdigest()[:12]
