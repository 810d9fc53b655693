"""WebKit by WebDriver, as much as live.py needs: open a page, run a script in it.

It takes Debian's webkit2gtk-driver, which brings MiniBrowser, and xvfb.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

PATIENCE = 600  # seconds of a script
SCRIPT = """const done = arguments[arguments.length - 1];
Promise.resolve(({function})({argument})).then((value) => done({ value: JSON.stringify(value) }),
  (error) => done({ error: String(error) }));"""


class WebKit:
    """MiniBrowser on a screen of its own, with one page."""

    def __init__(self, program: str) -> None:
        """Start the screen, the driver and the browser, whose program is given."""
        read, write = os.pipe()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        screen = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x860x24"]
        self.screen = subprocess.Popen(screen, pass_fds=[write], **quiet)
        os.close(write)
        with os.fdopen(read) as file:
            display = f":{file.readline().strip()}"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = ["WebKitWebDriver", f"--port={port}"]
        env = {**os.environ, "DISPLAY": display}
        self.process = subprocess.Popen(command, env=env, **quiet)
        self.base = f"http://127.0.0.1:{port}/session"
        options = {"binary": program, "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                self.base += "/" + self.call("", {"capabilities": wanted})["sessionId"]
                break
            time.sleep(0.2)
        self.call("/timeouts", {"script": 1000 * PATIENCE, "pageLoad": 1000 * PATIENCE})

    def call(self, path: str, body: dict | None, method: str = "POST") -> Any:
        """Return a command's value."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def goto(self, url: str) -> None:
        """Open a page."""
        self.call("/url", {"url": url})

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Return what a function of one argument returns in the page."""
        script = SCRIPT.replace("{argument}", json.dumps(argument)).replace("{function}", function)
        result = self.call("/execute/async", {"script": script, "args": []})
        if "error" in result:
            raise RuntimeError(result["error"])
        value = result.get("value")
        return None if value is None else json.loads(value)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(RuntimeError, OSError):
            self.call("", None, "DELETE")
        for process in (self.process, self.screen):
            process.terminate()
            process.wait()
