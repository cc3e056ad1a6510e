"""A headless Chromium driven by its DevTools protocol over a pipe: pages opened at a phone's size, touched, and looked at."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

#: What the browser is called by those who package it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program():
    """The path of a browser, or None."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Chromium:
    """One browser with one page.

    ``folder``: a new one of its own for the profile and the log.
    """

    def __init__(self, folder: Path) -> None:
        """Start it."""
        theirs, mine = os.pipe(), os.pipe()
        # Far from 3 and 4, where the browser expects its two ends: neither is overwritten by the other's copy.
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs[0], mine[1]))
        os.close(theirs[0])
        os.close(mine[1])
        self.out, self.back = theirs[1], mine[0]
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars")
        options += ("--disable-extensions", "--disable-background-networking", "--disable-sync", "--remote-debugging-pipe")
        command = [program(), *options, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        log = (os.POSIX_SPAWN_OPEN, 2, folder / "chromium.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        actions = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4), log]
        environment = os.environ | {"HOME": str(folder)}
        self.process = os.posix_spawn(command[0], command, environment, file_actions=actions, setpgroup=0)
        os.close(read)
        os.close(write)
        self.folder, self.rest, self.count, self.session = folder, b"", 0, None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def close(self) -> None:
        """End it and all its processes."""
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.out)
        os.close(self.back)

    def _message(self, deadline):
        while b"\0" not in self.rest:
            ready = select.select([self.back], [], [], max(0.0, deadline - time.monotonic()))[0]
            part = os.read(self.back, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError(f"the browser does not answer: {(self.folder / 'chromium.log').read_text(errors='replace')[-500:]}")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        """One command of the protocol, and its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60.0
        while (answer := self._message(deadline)).get("id") != self.count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, height: int) -> None:
        """A page at a phone's size, which takes touches; drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.frame()

    def run(self, script):
        """The value of an expression in the page; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script) -> None:
        """Until an expression holds."""
        deadline = time.monotonic() + 30.0
        while not self.run(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def frame(self) -> None:
        """Until what is waiting for the next frame is drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def box(self, name):
        """Left, top, width and height of an element in the window."""
        return self.run(
            f"(({{left, top, width, height}}) => [left, top, width, height])(document.getElementById('{name}').getBoundingClientRect())"
        )

    def press(self, x: float, y: float) -> None:
        """A click of the mouse."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.frame()

    def drag(self, *places) -> None:
        """A finger that goes from place to place."""
        for i, (x, y) in enumerate(places):
            self.call("Input.dispatchTouchEvent", type="touchMove" if i else "touchStart", touchPoints=[{"x": x, "y": y}])
            self.frame()
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.frame()

    def key(self, name: str, shift: bool = False) -> None:
        """A key pressed and let go."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36}[name]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, modifiers=8 * shift)
        self.frame()

    def picture(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
