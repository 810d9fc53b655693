"""A Hub that takes what is pushed to it: repositories with branches, commits and large files.

It answers the client's create_repo, create_branch and create_commit, and serves each commit.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fake_hub import FakeHub, send, send_json

TOKEN = "hf_may_write"
LARGE = (".safetensors", ".npy")
Files = dict[str, bytes]


class PushedHub(FakeHub):
    """Keeps {hub id: {branch: [commits]}}; `bytes_out` counts what was downloaded."""

    def __init__(self) -> None:
        """Begin to serve, without any repository."""
        self.commits: dict[str, dict[str, Files]] = {}  # by hub id and commit
        self.refs: dict[str, dict[str, str]] = {}  # commit by hub id and branch
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # by sha256
        super().__init__({})

    def be_the_hub(self, monkeypatch, cache: Path) -> None:
        """Have huggingface_hub ask and push here; large files go over HTTP, not through Xet."""
        from huggingface_hub import constants

        super().be_the_hub(monkeypatch, cache)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def alter(self, hub_id: str, name: str, data: bytes) -> None:
        """Replace a file of the main branch's last commit, whose name stays."""
        self.commits[hub_id][self.refs[hub_id]["main"]][name] = data

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        body = _body(request)
        if path.startswith("/large/"):
            return self._store(request, path.rpartition("/")[2], body)
        if request.command == "POST":
            return self._post(request, path, body)
        for hub_id in self.commits:
            allowed = hub_id not in self.private or _may_write(request)
            if allowed and path.startswith((f"/api/models/{hub_id}", f"/{hub_id}/resolve/")):
                return self._get(request, hub_id, path)
        _refuse(request, 404, "RepoNotFound")

    def _post(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if not _may_write(request):
            return _refuse(request, 401)
        if path == "/api/validate-yaml":
            return send_json(request, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        for hub_id in self.commits:
            if path == f"/{hub_id}.git/info/lfs/objects/batch":
                return self._batch(request, json.loads(body))
            if path.startswith(f"/api/models/{hub_id}/"):
                kind, _, name = path.removeprefix(f"/api/models/{hub_id}/").partition("/")
                if kind == "branch":
                    return self._branch(request, hub_id, name)
                if kind == "preupload":
                    return self._modes(request, self._files(hub_id, name) or {}, json.loads(body))
                if kind == "commit":
                    return self._commit(request, hub_id, name, body)
        _refuse(request, 404, "RepoNotFound")

    def _create(self, request: BaseHTTPRequestHandler, row: dict) -> None:
        hub_id = f"{row['organization']}/{row['name']}"
        if row["organization"] != "someone":
            return _refuse(request, 403)
        url = {"url": f"{self.url}/{hub_id}"}
        if hub_id in self.commits:
            return send(request, 409, json.dumps(url | {"error": "it exists"}).encode(), {})
        if row.get("visibility") == "private":
            self.private.add(hub_id)
        self.commits[hub_id], self.refs[hub_id] = {}, {}
        self._add(hub_id, "main", {".gitattributes": b"*.npy filter=lfs\n"})
        send_json(request, url)

    def _branch(self, request: BaseHTTPRequestHandler, hub_id: str, name: str) -> None:
        if name in self.refs[hub_id]:
            return _refuse(request, 409)
        self.refs[hub_id][name] = self.refs[hub_id]["main"]
        send_json(request, {})

    def _modes(self, request: BaseHTTPRequestHandler, files: Files, row: dict) -> None:
        """Answer which files are large, and what the branch has of each."""
        rows = [
            {"path": file["path"], "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
             "shouldIgnore": False, "oid": _oid(file["path"], files)}
            for file in row["files"]
        ]  # fmt: skip
        send_json(request, {"files": rows})

    def _batch(self, request: BaseHTTPRequestHandler, row: dict) -> None:
        """Answer where large files go, those that are here already excepted."""
        objects = []
        for file in row["objects"]:
            actions = {"upload": {"href": f"{self.url}/large/{file['oid']}"}}
            there = file["oid"] in self.large
            objects.append(file | ({} if there else {"actions": actions}))
        send_json(request, {"transfer": "basic", "objects": objects})

    def _store(self, request: BaseHTTPRequestHandler, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return _refuse(request, 400)
        self.large[oid] = body
        send(request, 200, b"", {})

    def _commit(
        self, request: BaseHTTPRequestHandler, hub_id: str, branch: str, body: bytes
    ) -> None:
        files = dict(self._files(hub_id, branch))
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        commit = self._add(hub_id, branch, files)
        url = f"{self.url}/{hub_id}/commit/{commit}"
        send_json(request, {"commitUrl": url, "commitOid": commit})

    def _add(self, hub_id: str, branch: str, files: Files) -> str:
        """Add a commit to a branch and return its name."""
        content = repr((hub_id, len(self.commits[hub_id]), sorted(files.items())))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[hub_id][commit], self.refs[hub_id][branch] = files, commit
        return commit

    def _files(self, hub_id: str, revision: str) -> Files | None:
        commit = self.refs[hub_id].get(revision, revision)
        return self.commits[hub_id].get(commit)

    def _get(self, request: BaseHTTPRequestHandler, hub_id: str, path: str) -> None:
        """Answer with a repository's description, the list of its files, or one file."""
        if path.startswith(f"/{hub_id}/resolve/"):
            revision, _, name = path.removeprefix(f"/{hub_id}/resolve/").partition("/")
            kind = "resolve"
        else:
            kind, _, revision = path.removeprefix(f"/api/models/{hub_id}").strip("/").partition("/")
        commit = self.refs[hub_id].get(revision or "main", revision)
        files = self.commits[hub_id].get(commit)
        if files is None:
            return _refuse(request, 404, "RevisionNotFound")
        if kind == "resolve":
            return _send_file(request, files, name, commit)
        rows = [_row(name, files) for name in sorted(files)]
        if kind == "tree":
            return send_json(request, rows)
        siblings = [{"rfilename": row["path"], "size": row["size"]} for row in rows]
        info = {"id": hub_id, "sha": commit, "siblings": siblings, "cardData": _front(files)}
        send_json(request, info | {"private": hub_id in self.private})


def _front(files: Files) -> dict:
    """Return the fields of a card's front matter, which are JSON."""
    text = files.get("README.md", b"---\n---\n").decode()
    lines = text.split("---\n")[1].splitlines()
    return {name: json.loads(value) for name, _, value in (line.partition(": ") for line in lines)}


def _is_large(name: str) -> bool:
    return name.endswith(LARGE)


def _oid(name: str, files: Files) -> str | None:
    """Return a file's sha256 if it is large, else git's name of it; None without the file."""
    if name not in files:
        return None
    data = files[name]
    if _is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _row(name: str, files: Files) -> dict:
    oid, size = _oid(name, files), len(files[name])
    row = {
        "type": "file",
        "path": name,
        "size": size,
        "oid": hashlib.sha1(oid.encode()).hexdigest(),
    }
    large = {"lfs": {"oid": oid, "size": size, "pointerSize": 130}}
    return row | (large if _is_large(name) else {"oid": oid})


def _send_file(request: BaseHTTPRequestHandler, files: Files, name: str, commit: str) -> None:
    if name not in files:
        return _refuse(request, 404, "EntryNotFound")
    headers = {"ETag": f'"{_oid(name, files)}"', "X-Repo-Commit": commit}
    if _is_large(name):
        size = str(len(files[name]))
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": size}
    send(request, 200, files[name], headers)


def _may_write(request: BaseHTTPRequestHandler) -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"


def _refuse(request: BaseHTTPRequestHandler, code: int, name: str = "") -> None:
    headers = {"X-Error-Code": name} if name else {}
    send(request, code, b'{"error": "refused"}', headers)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """Return what a request carries, also in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)
