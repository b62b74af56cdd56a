"""A headless Chromium, driven over a pipe by its DevTools protocol: no driver, no port, no package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The browser of this machine; None without one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one tab. `said` are its console's messages, `errors` its exceptions and refusals (of the content
    security policy, too), `asked` the URLs that it requested."""

    def __init__(self, folder: Path, *, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> None:
        self.said: list[str] = []
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._answers: Queue[dict[str, Any]] = Queue()
        self._numbers = itertools.count(1)
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        words = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
            f"--window-size={size[0]},{size[1]}",
        ]

        def pipes() -> None:  # the browser reads from descriptor 3 and writes to 4
            ends = [os.dup(their_in), os.dup(their_out)]
            for end, number in zip(ends, (3, 4), strict=True):
                os.dup2(end, number)
                os.set_inheritable(number, True)

        self._process = subprocess.Popen(
            [str(executable()), *words, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=pipes,
        )
        os.close(their_in)
        os.close(their_out)
        threading.Thread(target=self._listen, daemon=True).start()
        target = next(each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )
        if dark:
            self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._in, 1 << 20):
            *whole, rest = (rest + data).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self._note(message["method"], message.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(each.get("value", "")) for each in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._call(method, self._session, **params)

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self._answers.get(timeout=60)
            except Empty:
                raise AssertionError(f"{method}: the browser does not answer") from None
            if answer["id"] == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    # --- what tests do

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, expression: str, timeout: float = 30) -> Any:
        """Poll until the expression is true, and give its value."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if found := self.value(expression):
                    return found
            except AssertionError:  # between two documents
                pass
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout:.0f} s: {expression}; errors: {self.errors}")

    def key(self, key: str) -> None:
        """One key press: a character, or the name of a key (Tab, Enter)."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {"Tab": 9, "Enter": 13, "Home": 36}
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, 0), **given)

    def click(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button from one place to another."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        for kind, (x, y), held in (
            *(("mouseMoved", start, 0), ("mousePressed", start, 1), ("mouseMoved", middle, 1)),
            *(("mouseMoved", end, 1), ("mouseReleased", end, 0)),
        ):
            button = {"button": "none" if kind == "mouseMoved" and not held else "left", "buttons": held}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1, **button)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._call("Browser.close")
        self._process.wait(timeout=20)
        for end in (self._in, self._out):
            os.close(end)
