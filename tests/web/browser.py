"""Chromium without a window, driven through the DevTools protocol on a pair of pipes.

Debian's package by its path, or another by the variable CHROMIUM; nothing but the standard library.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, in containers
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
WEBGPU = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--use-webgpu-adapter=swiftshader",
)


def missing() -> str:
    """Why there is no browser; "" where there is one."""
    return "" if shutil.which(CHROMIUM) else f"there is no {CHROMIUM} (apt-get install chromium)"


class Browser:
    """A page of a Chromium of its own, which ends with the `with` block."""

    def __init__(self, profile: Path, flags: Sequence[str] = ("--disable-gpu",)):
        self.count, self.rest, self.events = 0, b"", []
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        # Chromium reads from 3 and writes to 4.
        command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command]
        self.process = subprocess.Popen(
            shell, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read)
        os.close(self.write)

    def call(self, method: str, **params: Any) -> dict:
        """The result of a DevTools command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(600.0)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float) -> dict:
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], seconds)[0]:
                raise TimeoutError(f"Chromium said nothing for {seconds} s.")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended.")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise's when it is kept."""
        given = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float) -> Any:
        """The value of an expression as soon as it is true, looked at whenever the page changes."""
        watch = f"""new Promise((resolve, reject) => {{
          const look = () => {{ const value = {script}; if (value) end(resolve, value); }};
          const end = (settle, value) => {{
            watcher.disconnect(); clearTimeout(timer); settle(value);
          }};
          const watcher = new MutationObserver(look);
          watcher.observe(document, {{ subtree: true, childList: true, attributes: true,
            characterData: true }});
          const timer = setTimeout(() => end(reject, new Error(
            "waited in vain; the page says: " + document.getElementById("status")?.textContent
          )), {1000 * seconds});
          look();
        }})"""
        return self.evaluate(watch)

    def type(self, selector: str, text: str) -> None:
        """Types into a field, in place of what is there."""
        self.evaluate(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to an input for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector=selector)
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found["nodeId"])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """The mouse goes through points of the window, its button pressed."""
        kinds = ["mouseMoved", "mousePressed", *["mouseMoved"] * len(points), "mouseReleased"]
        for place, kind in enumerate(kinds):
            x, y = points[min(max(place - 2, 0), len(points) - 1)]
            more = {"button": "left", "clickCount": 1, "buttons": int(place > 0)}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
            self.evaluate("new Promise(requestAnimationFrame)")  # a page may look once a frame

    def requests(self) -> list[str]:
        """The addresses that the page has asked for since it was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def open(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive(deadline - time.monotonic()))

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """The page in a window of this size, as a PNG file."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
