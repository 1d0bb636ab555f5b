"""Headless Chromium for tests: open a page, ask it, take its picture, print it.

Speaks the DevTools protocol through two pipes (`--remote-debugging-pipe`: JSON documents that end with a zero byte), so
that no port is opened. A driver library would bring a browser of its own, ten times the rest of the tools.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 30
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--mute-audio", "--force-color-profile=srgb", "--font-render-hinting=none",
    "--remote-debugging-pipe",
)  # fmt: skip


def found() -> str | None:
    """The browser of this machine; GPUOPS_CHROMIUM names another. None without one."""
    return os.environ.get("GPUOPS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser with one page. Raises RuntimeError when it does not answer within half a minute."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="gpuops-chromium-", ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser, from_browser)]

        def arrange() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        with Path(self._profile.name, "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=False,
                preexec_fn=arrange,  # noqa: PLW1509 (no threads here, and dup2 is all it does)
                env={**os.environ, "HOME": self._profile.name},
            )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)  # the end of its input ends the browser
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                log = Path(self._profile.name, "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"the browser {'ended' if ready else 'does not answer'}; its log ends:\n{log}"
                )
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._events.append(answer)

    def look(self, width: int, height: int, scheme: str = "light", media: str = "", scale: float = 1) -> None:
        """Take this size in CSS pixels, this colour scheme (light or dark) and medium ("" or print)."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.tell(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def open(self, page: Path) -> None:
        """Load a file and wait until it is there."""
        self._events.clear()
        self.tell("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + SECONDS
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message(deadline))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        said = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(str(said["exceptionDetails"]))
        return said["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that were asked for since `open`."""
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the browser had to say of the page since `open`: refused scripts, blocked requests, errors."""
        return [
            event["params"]["entry"]["text"]
            for event in self._events
            if event.get("method") == "Log.entryAdded"
        ]

    def picture(self, whole: bool = True) -> bytes:
        """PNG of the whole page, or of what the window shows."""
        said = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(said["data"])

    def pdf(self) -> bytes:
        """The page on A4 as it prints without background colours."""
        said = self.tell("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(said["data"])
