"""The command line: ``run`` (also without a word), ``status``, ``check``, ``--version``, ``--help``."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence

from . import __version__

COMMANDS = ("run", "status", "check")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command; returns its exit code (0 fine, 1 something is wrong, 2 wrong usage or settings)."""
    words = list(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    command = words.pop(0) if words and words[0] in COMMANDS else "run"
    if {"--version", "-version"} & set(words):
        print(f"gpu-device-plugin {__version__}")
        return 0
    if {"--help", "-help", "-h"} & set(words):
        from .config_load import help_text  # noqa: PLC0415

        print(help_text())
        return 0
    as_json = command != "run" and "--json" in words
    if as_json:
        words.remove("--json")
    if command == "status":
        return _status(words, environ, as_json)
    if command == "check":
        from .check import main as check  # noqa: PLC0415

        return check(words, environ, as_json)
    from .daemon import run  # noqa: PLC0415

    return run(words, environ)


def _status(words: Sequence[str], environ: Mapping[str, str], as_json: bool) -> int:
    """0 ready, 1 not ready or not running, 2 settings refused."""
    import json  # noqa: PLC0415

    from . import status  # noqa: PLC0415
    from .config_load import ConfigError, load  # noqa: PLC0415
    from .daemon import read_file  # noqa: PLC0415

    try:
        settings = load(words, environ, read_file)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        return 2
    try:
        answer = status.ask(settings.run_dir)
    except status.NotRunning as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if as_json else status.text(answer))
    return 0 if answer["ready"] else 1


def entry() -> None:
    """The console script. Starts without garbage collections, which would find nothing (a tenth of the start's CPU);
    ends without tearing the interpreter down, which threads inside NVML or grpc could hold up."""
    gc.disable()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
