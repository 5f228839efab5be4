"""A headless Chromium, spoken to over its own DevTools protocol with a third-party WebSocket client."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--remote-debugging-port=0",
        "--window-size=1440,1000",
    ),
)


class Browser:
    """One page in one browser."""

    def __init__(self, url: str) -> None:
        assert PROGRAM is not None
        self.profile = tempfile.mkdtemp(prefix="imserver-chromium-")
        command = [PROGRAM, *QUIET, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self.profile) / "DevToolsActivePort"
        deadline = time.monotonic() + 30
        while not port_file.exists() or len(port_file.read_text().splitlines()) < 2:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("Chromium did not start")
        port, path = port_file.read_text().splitlines()[:2]
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, legacy=True)
        self._numbers = itertools.count(1)
        self._session = ""
        self.problems: list[str] = []
        """What the page's console complained of."""
        (target,) = [t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Page.navigate", url=url)

    def _ask(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(command | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(30))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(answer["params"]["exceptionDetails"]))
            elif answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.problems.append(str(answer["params"]["entry"]))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, timeout: float = 20.0) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.value(f"Boolean({expression})"):
                return
        raise AssertionError(f"not true within {timeout} s: {expression}")

    def write(self, element: str, words: str) -> None:
        """Click into an element and type, as a person would."""
        self.click(element)
        self._ask("Input.insertText", text=words)

    def click(self, element: str) -> None:
        """Click the middle of an element."""
        self.wait(f"{_by(element)} && !{_by(element)}.disabled")
        self.value(f"{_by(element)}.scrollIntoView({{block: 'nearest'}})")
        place = self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({_by(element)}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def screenshot(self, path: str) -> None:
        """The page as a PNG."""
        Path(path).write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End it and remove its profile."""
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.profile, ignore_errors=True)


def _by(element: str) -> str:
    return f"document.querySelector('#{element}')"
