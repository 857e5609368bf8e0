"""A headless Chromium driven through a pair of pipes: no port, no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--remote-debugging-pipe", "about:blank"),
)
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
# Puts the pipes where the protocol wants them, at 3 and 4; a shell may know no descriptor above 9.
_EXECUTE = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for place, pipe in enumerate(pipes, 3):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab. What goes wrong in a page's script is kept in ``errors``."""

    def __init__(self, to: FileIO, come: FileIO) -> None:
        self._to, self._come = to, come
        self._rest, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        target = self.call("Target.getTargets")["targetInfos"][0]["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._come], [], [], 60)[0]:
                raise TimeoutError("the browser has said nothing for a minute")
            more = self._come.read(1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])
        return message

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it ends in."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        """Return once a condition holds."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"nothing came in {seconds} s; errors of the page: {self.errors}")
            time.sleep(0.02)

    def open(self, address: str) -> None:
        """Load a page anew, and wait for it."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait(lambda: self.evaluate("location.href !== 'about:blank' && document.readyState === 'complete'"))

    def resize(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Set the window's width and which colours the reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        """Press a named key, or type a character."""
        code = {"key": key, "windowsVirtualKeyCode": _KEYS.get(key, 0), "code": key}
        text = {"text": "\r"} if key == "Enter" else {} if key in _KEYS else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start one with an empty profile in ``folder``, and end it; without one that starts the test is skipped."""
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    theirs_in, to = os.pipe()
    come, theirs_out = os.pipe()
    command = [sys.executable, "-c", _EXECUTE, str(theirs_in), str(theirs_out)]
    command += [PROGRAM, f"--user-data-dir={folder}", *_FLAGS]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=quiet, stderr=quiet)
    os.close(theirs_in)
    os.close(theirs_out)
    with FileIO(to, "wb") as to_it, FileIO(come, "rb") as from_it:
        try:
            try:
                driven = Browser(to_it, from_it)
            except (OSError, RuntimeError, TimeoutError) as error:
                pytest.skip(f"{PROGRAM} does not start: {error}")
            yield driven
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
