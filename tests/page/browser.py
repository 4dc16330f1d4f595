"""A real Chromium without a window, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_ANSWER_SECONDS = 60.0
_KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "ArrowRight": (39, ""),
    "Space": (32, " "),
    "End": (35, ""),
}
SHIFT = 8
CONTROL = 2


def chromium() -> str | None:
    """Return the browser of this machine, None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One Chromium with a profile of its own; pages are separate browser contexts."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._write = _high_pipe()
        self._read, answers = _high_pipe()
        places = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4)]
        places += [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        arguments = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(program, arguments, dict(os.environ), file_actions=places, setpgroup=0)
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._number = 0
        self._events: dict[str, list[dict[str, Any]]] = {}

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call one method of the protocol and return its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._next(deadline - time.monotonic())
            assert answer is not None, f"the browser did not answer {method}"
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def events_of(self, session: str) -> list[dict[str, Any]]:
        """Return what one page has told so far."""
        while self._next(0.0) is not None:
            pass
        return self._events.get(session, [])

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message, None if none comes; events are kept under their page."""
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(seconds, 0.0))[0]:
                return None
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        raw, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self._events.setdefault(message.get("sessionId", ""), []).append(message)
        return message

    def page(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open an empty page in a context of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, (width, height), dark)

    def close(self) -> None:
        """End the browser and all its processes."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose ends lie above the two numbers that the browser wants."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]


class Page:
    """One page: what a person does with it, and what it asked for and complained about."""

    def __init__(
        self, browser: Browser, session: str, context: str, size: tuple[int, int], dark: bool
    ) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.forgiven: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(*size)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def allow_clipboard(self, origin: str) -> None:
        self._browser.call(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
            origin=origin,
            browserContextId=self._context,
        )

    def open(self, url: str) -> Page:
        """Go to an address and wait until the page serves somebody."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('#model option')")
        return self

    def js(self, expression: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> None:
        """Poll until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.js(f"Boolean({expression})"):
            said = f"{expression} did not come true; {self.complaints()}; {self.text('body')[:1500]}"
            assert time.monotonic() < deadline, said
            time.sleep(0.03)

    def wait_text(self, selector: str, wanted: str, seconds: float = 30.0) -> None:
        """Wait until an element shows a text."""
        self.wait(f"document.querySelector({selector!r})?.innerText.includes({json.dumps(wanted)})", seconds)

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({selector!r})?.innerText ?? ''")

    def shown(self, selector: str) -> bool:
        return self.js(f"Boolean(document.querySelector({selector!r})?.checkVisibility())")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        self.wait(f"document.querySelector({selector!r})?.checkVisibility()")
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({selector!r});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0, commands: tuple[str, ...] = ()) -> None:
        """Press and release a key, with the text that it types."""
        code, text = _KEYS.get(key, (ord(key[0].upper()), ""))
        base = {"key": " " if key == "Space" else key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers & CONTROL else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **base, **typed, commands=list(commands))
        self.call("Input.dispatchKeyEvent", type="keyUp", **base)

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file of the machine onto an element and let go."""
        x, y = self.js(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + Math.min(b.height / 2, 200)]; })()"
        )
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def focused(self) -> str:
        """Return the id of what has the focus, else its text."""
        return self.js("document.activeElement.id || document.activeElement.innerText || ''")

    def tab_to(self, reached: Callable[[str], bool], most: int = 60) -> None:
        """Press Tab until what has the focus is what is wanted."""
        for _ in range(most):
            if reached(self.focused()):
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not lead there; it ended at {self.focused()!r}")

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def told(self, method: str) -> list[dict[str, Any]]:
        events = self._browser.events_of(self._session)
        return [event["params"] for event in events if event["method"] == method]

    def asked_for(self) -> list[str]:
        """Return every address that this page asked for."""
        return [event["request"]["url"] for event in self.told("Network.requestWillBeSent")]

    def received_bytes(self) -> dict[str, int]:
        """Return what every finished request brought, headers included."""
        urls = {
            event["requestId"]: event["request"]["url"] for event in self.told("Network.requestWillBeSent")
        }
        finished = self.told("Network.loadingFinished")
        return {urls[event["requestId"]]: int(event["encodedDataLength"]) for event in finished}

    def complaints(self) -> list[str]:
        """Return exceptions, console errors and refused resources, but for what is forgiven."""
        found = [str(event["exceptionDetails"]) for event in self.told("Runtime.exceptionThrown")]
        said = self.told("Runtime.consoleAPICalled")
        found += [str(each["args"]) for each in said if each["type"] in ("error", "warning", "assert")]
        entries = [event["entry"] for event in self.told("Log.entryAdded")]
        loud = [entry for entry in entries if entry["level"] in ("error", "warning")]
        found += [f"{entry['text']} {entry.get('url', '')}" for entry in loud]
        return [text for text in found if not any(part in text for part in self.forgiven)]
