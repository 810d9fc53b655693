"""A Hub of folders on this machine: what the client asks over HTTP, and no more."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves {hub id: folder}; `asked` keeps every path that was asked for."""

    def __init__(self, repositories: dict[str, Path], licence: str | None = "mit") -> None:
        """Begin to serve in a thread."""
        hub, self.repositories, self.licence, self.asked = self, repositories, licence, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def be_the_hub(self, monkeypatch, cache: Path) -> None:
        """Have huggingface_hub ask here, within a test, and keep what it gets in `cache`."""
        from huggingface_hub import constants

        from mlpmem.loading import hub

        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(hub, "POLL_SECONDS", 0.001)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = urlsplit(request.path).path
        self.asked.append(f"{request.command} {path}")
        for hub_id, folder in self.repositories.items():
            if path.startswith(f"/api/models/{hub_id}"):
                tree = f"/api/models/{hub_id}/tree/" in path
                return send_json(request, _tree(folder) if tree else self._info(hub_id, folder))
            if path.startswith(f"/{hub_id}/resolve/"):
                return _file(request, folder / path.split("/resolve/")[1].partition("/")[2])
        send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, hub_id: str, folder: Path) -> dict:
        card = {"license": self.licence} if self.licence else {}
        files = [{"rfilename": row["path"], "size": row["size"]} for row in _tree(folder)]
        return {"id": hub_id, "sha": COMMIT, "siblings": files, "cardData": card}


def _tree(folder: Path) -> list[dict]:
    return [
        {"type": "file", "path": path.relative_to(folder).as_posix(),
         "size": path.stat().st_size, "oid": _oid(path)}
        for path in sorted(folder.rglob("*")) if path.is_file()
    ]  # fmt: skip


def _oid(path: Path) -> str:
    """Return git's own name of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _file(request: BaseHTTPRequestHandler, path: Path) -> None:
    if not path.is_file():
        return send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
    send(request, 200, path.read_bytes(), {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT})


def send(request: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict) -> None:
    request.send_response(code)
    for name, value in (headers | {"Content-Length": str(len(data))}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
