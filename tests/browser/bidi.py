"""Firefox by WebDriver BiDi, as much as live.py needs: open a page, run a script in it."""

import base64
import json
import os
import socket
import struct
import subprocess
import tempfile
import time
from typing import Any


class Socket:
    """A client of one WebSocket, for whole text messages."""

    def __init__(self, port: int, path: str) -> None:
        """Shake hands with a server on this machine."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket"]
        lines += [f"Sec-WebSocket-Key: {key}", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        self.socket.sendall("\r\n".join((*lines, "", "")).encode())
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass

    def send(self, text: str) -> None:
        """Send a text as one masked frame."""
        data, mask = text.encode(), os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        if len(data) < 126:
            length = bytes([0x80 | len(data)])
        elif len(data) < 2**16:
            length = b"\xfe" + struct.pack(">H", len(data))
        else:
            length = b"\xff" + struct.pack(">Q", len(data))
        self.socket.sendall(b"\x81" + length + mask + masked)

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        self.socket.close()

    def receive(self) -> str:
        """Return the next whole text."""
        parts, final = [], False
        while not final:
            first, length = self.file.read(2)
            final, length = bool(first & 0x80), length & 0x7F
            if length > 125:
                size, kind = (2, ">H") if length == 126 else (8, ">Q")
                (length,) = struct.unpack(kind, self.file.read(size))
            data = self.file.read(length)
            if first & 0x0F < 3:
                parts.append(data)
            else:
                final = False  # a ping
        return b"".join(parts).decode()


class Firefox:
    """A headless Firefox with one page."""

    def __init__(self, program: str) -> None:
        """Start it with a profile of its own."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.profile = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [program, "--headless", "--no-remote", "--profile", self.profile.name,
             "--remote-debugging-port", str(port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(100):
            try:
                self.socket = Socket(port, "/session")
                break
            except OSError:
                time.sleep(0.2)
        self.count = 0
        self.call("session.new", capabilities={})
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **params: Any) -> dict:
        """Return a command's result."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (answer := json.loads(self.socket.receive())).get("id") != self.count:
            pass
        if answer["type"] == "error":
            raise RuntimeError(answer["message"])
        return answer["result"]

    def goto(self, url: str) -> None:
        """Open a page."""
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Return what a function of one argument returns in the page."""
        source = f"(async () => JSON.stringify(await ({function})({json.dumps(argument)})))()"
        target = {"context": self.context}
        result = self.call("script.evaluate", expression=source, target=target, awaitPromise=True)
        if result["type"] == "exception":
            raise RuntimeError(result["exceptionDetails"]["text"])
        value = result["result"].get("value")
        return None if value is None else json.loads(value)

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()
