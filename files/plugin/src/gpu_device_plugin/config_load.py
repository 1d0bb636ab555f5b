"""From command line, environment and file to :class:`Settings`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .config import Settings


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; ``where`` is ``file:line:column``, a flag, or an environment variable."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class ConfigError(Exception):
    """The settings can't be used; ``faults`` holds every reason, in the order they were met."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], str | bytes],
) -> Settings:
    """All settings, checked: command line, then environment, then file, then default.

    ``argv`` holds flags only (no program name, no command such as ``run``). ``read_file`` is called once with the config
    file's path, if there is one, and may raise OSError. Raises :class:`ConfigError` with every fault at once; never
    another exception. Call it again after an edit of the file.
    """
    raise NotImplementedError


def help_text(program: str = "gpu-device-plugin") -> str:
    """What ``--help`` prints: every flag with its environment variable, file key and default."""
    raise NotImplementedError
