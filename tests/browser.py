"""A real browser for tests: Chromium without a window, driven over a pipe.

It needs nothing but the program `chromium` (tests/browser_environment.sh installs it): the DevTools
protocol is spoken over two file descriptors, with a null byte behind each message.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 60.0  # seconds for an answer
# Keys by what they are called: code and number of the key, and the text that it types.
KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "/": ("Slash", 191, "/"),
}


class Browser:
    """A page in Chromium.

    Attributes:
        complaints: What the console said that is no plain message: errors, warnings, refusals of
            the security policy; and every request that is not the page itself.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer, self._number, self._session = b"", 0, ""
        self._seen: list[dict[str, Any]] = []
        self._own = "file:"  # what a page may ask for begins with this
        self.complaints: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and waits for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def attach(self) -> None:
        """Opens a page of its own and listens to its console."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, file: Path) -> None:
        """Opens a page from the disk and waits until it has loaded."""
        self._navigate(file.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Opens a page of a server, which may ask that server for more, and waits for it."""
        self._own = url
        self._navigate(url)

    def upload(self, selector: str, file: Path) -> None:
        """Chooses a file in an `<input type="file">`."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def wait_for(self, expression: str, seconds: float = PATIENCE) -> None:
        """Waits until an expression of JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({expression})"):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.1)

    def _navigate(self, url: str) -> None:
        self._seen.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while not any(one["method"] == "Page.loadEventFired" for one in self._seen):
            self._note(self._next(end))

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Clicks in the middle of the first element that fits, with the mouse."""
        place = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center', inline: 'center'});"
            "const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def press(self, key: str) -> None:
        """Presses a key."""
        code, number, text = KEYS[key]
        facts: dict[str, Any] = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Changes the size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def scheme(self, name: str) -> None:
        """Switches between "light" and "dark", as the system's setting does."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Writes what is to be seen, or the whole page, as PNG."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(made["data"]))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._reader, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if "method" not in event:
            return
        self._seen.append(event)
        params, method = event.get("params", {}), event["method"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] not in ("log", "info"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if self._own != "file:":
                fine = url.startswith((self._own, "data:", "blob:"))
            else:
                known = params.get("type") in ("Document", "Image")
                fine = known and url.startswith(("file:", "data:"))
            if not fine:
                self.complaints.append(f"requests {url[:100]}")


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own.

    Args:
        folder: Where it keeps its profile.
    """
    # Numbers that are free and none of those that the browser expects.
    made = (*os.pipe(), *os.pipe())
    commands, ours, answers, theirs = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in made)
    for end in made:
        os.close(end)
    options = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"

    def descriptors() -> None:
        os.dup2(commands, 3)
        os.dup2(theirs, 4)

    process = subprocess.Popen(
        [str(PROGRAM), *options.split(), f"--user-data-dir={folder / 'profile'}"],
        preexec_fn=descriptors,  # the browser expects the pipes as 3 and 4
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(theirs)
    try:
        browser = Browser(answers, ours)
        browser.attach()
        yield browser
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(answers)
