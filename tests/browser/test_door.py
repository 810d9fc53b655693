"""The door of a running page: no client harms another, and a clean exit."""

import json
import os
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import HERE, PATIENCE, Server
from marks import slow

BOUNDS = {
    "MLPMEM_TRUST_PROXY": "1",
    "MLPMEM_BODY_SECONDS": "2",
    "MLPMEM_LISTEN_SECONDS": "3",
    "MLPMEM_CLIENT_UPLOADS": "3",
}
PROMPT = "Question: What is the capital of Peru? Answer:"


def serve(folder: Path, **environment: str) -> Server:
    """Return a server of the fake model with its uploads below the folder."""
    variables = {"GRADIO_TEMP_DIR": str(folder / "uploads"), "MLPMEM_PATIENCE": "60", **environment}
    command = (str(HERE / "serve.py"), str(folder / "fake"), "{port}", "0.1")
    return Server(folder / "log", *command, **variables)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = serve(tmp_path_factory.mktemp("door"), **BOUNDS).wait()
    yield started
    started.stop()


@pytest.fixture
def client(server):
    """Return client(address) -> a Client with that address."""
    clients = []

    def connect(address: str) -> "Client":
        clients.append(Client(server, address))
        return clients[-1]

    yield connect
    for one in clients:
        one.http.close()


class Client:
    """A client whose address is in X-Forwarded-For."""

    def __init__(self, server: Server, address: str):
        self.http = httpx.Client(
            base_url=server.url, timeout=30, headers={"x-forwarded-for": address}
        )
        config = self.http.get("config").json()
        ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.session = uuid.uuid4().hex
        self.named = {d["api_name"]: d["id"] for d in config["dependencies"]}
        self.of = {tuple(t): d["id"] for d in config["dependencies"] for t in d["targets"]}
        self.generate = self.of[ids["generate"], "click"]
        self.chat = self.of[ids["chat"], "ask"]
        props = {c["id"]: c["props"] for c in config["components"]}
        self.values = {
            d["id"]: [props[i].get("value") for i in d["inputs"]] for d in config["dependencies"]
        }
        self.make = self.of[ids["own-make"], "click"]

    def post(self, path: str, **body) -> httpx.Response:
        return self.http.post(f"gradio_api/{path}", json=body)

    def join(
        self, prompt: str = PROMPT, session: str | None = None, number: int | None = None
    ) -> httpx.Response:
        """Queue a job of a handler, by default that of Generate; its first input is the prompt."""
        number = self.generate if number is None else number
        data = [prompt, *self.values[number][1:]]
        session = session or self.session
        return self.post("queue/join", data=data, fn_index=number, session_hash=session)

    def ask(self, question: str) -> httpx.Response:
        """Queue a question of the chat to the decoder."""
        column = {"system": "lm", "before": [], "forced": [], "kept": 0}
        data = {"run": "r", "question": question, "columns": [column]}
        return self.post(
            "queue/join", data=self.values[self.chat], event_data=data, fn_index=self.chat,
            session_hash=self.session,
        )  # fmt: skip

    def read(self) -> list[dict]:
        """Return the messages of this session until they end."""
        path = f"gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", path) as stream:
            return [json.loads(line[5:]) for line in stream.iter_lines() if line[:5] == "data:"]

    def poll(self, session: str) -> httpx.Response:
        return self.post("run/predict", data=[], fn_index=self.named["poll"], session_hash=session)


def test_unused_routes_do_not_exist(client, server):
    http = client("203.0.113.1").http
    path = http.post("gradio_api/upload", files={"files": ("a.txt", b"private")}).json()[0]
    assert Path(path).read_bytes() == b"private"
    urls = f"file={path}", f"file/{path}", "file=http://127.0.0.1:1/x", "proxy=http://x"
    for url in (*urls, "component_server", "process_recording", "queue/status", "openapi.json"):
        for answer in (http.get(f"gradio_api/{url}"), http.post(f"gradio_api/{url}", json={})):
            assert answer.status_code == 404 and "About" in answer.json()["detail"]
    assert http.get("monitoring").status_code == http.get("docs").status_code == 404


def test_every_response_has_the_security_headers(client, server):
    http = client("203.0.113.2").http
    for path in ("", "config", "theme.css", "gradio_api/info", "nowhere", "health"):
        headers = http.get(path).headers
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    evil = {"origin": "https://evil.example"}
    assert http.post("gradio_api/reset", json={"event_id": "a"}, headers=evil).status_code == 403


def test_the_page_is_rendered_once_with_the_address_of_each_request(client, server):
    http = client("203.0.113.3").http
    begin = time.perf_counter()
    pages = {http.get("").text for _ in range(15)}
    assert len(pages) == 1 and time.perf_counter() - begin < 5
    assert f'"root":"{server.url.rstrip("/")}"' in pages.pop()
    https = {"x-forwarded-proto": "https", "host": "page.example"}
    for path in ("", "config"):
        assert '"root":"https://page.example"' in http.get(path, headers=https).text
    assert "page.example" not in http.get("config").text
    assert '"b<c>' not in http.get("config", headers={"host": 'a"b<c>'}).text


def test_health_reports_the_state_and_nothing_about_a_visitor(client, server):
    visitor = client("203.0.113.4")
    visitor.join("a secret of mine")
    health = visitor.http.get("health").json()
    assert health["model"]["ready"] is True and health["status"] == "ok"
    assert health["queue"]["most"] == 64 and health["memory"]["bytes"] > 1e7
    assert health["disk"]["free_bytes"] > 0
    for private in ("secret", visitor.session, "203.0.113.4"):
        assert private not in json.dumps(health)
    visitor.read()


def test_a_client_above_its_rate_is_refused_and_another_is_answered(client, server):
    greedy, polite = client("203.0.113.5"), client("203.0.113.6")
    answers = [greedy.http.get("health") for _ in range(80)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) > 10 and "requests per second" in refused[0].json()["detail"]
    assert polite.http.get("health").status_code == 200
    with httpx.Client() as direct:
        local = [direct.get(f"{server.url}health").status_code for _ in range(80)]
    assert 429 in local, "the limit also holds without a proxy"


def test_jobs_without_a_listener_delay_no_other_client(client, server):
    polite = client("203.0.113.7")
    for i in range(4):
        greedy = client(f"203.0.113.{10 + i}")
        answers = [greedy.join("slow", uuid.uuid4().hex) for _ in range(22)]
        # two may wait; on a slow machine a few jobs end while the others come
        assert [a.status_code for a in answers].count(429) >= 15
        assert "waiting already" in answers[-1].json()["detail"]
    begin = time.monotonic()
    assert polite.join().status_code == 200
    messages = polite.read()
    assert messages[-1]["msg"] == "close_stream" and messages[-2]["success"]
    assert time.monotonic() - begin < 15
    assert polite.http.get("health").json()["queue"]["waiting"] <= 8


def test_many_sessions_of_one_client_evict_no_other_clients_text(client, server):
    polite, greedy = client("203.0.113.20"), client("203.0.113.21")
    polite.post("queue/join", data=["some text of mine", None], fn_index=polite.make,
                session_hash=polite.session)  # fmt: skip
    assert '\\"ready\\"' in json.dumps(polite.read())
    seen = [greedy.poll(uuid.uuid4().hex).status_code for _ in range(200)]
    assert seen.count(200) >= 20
    stored = polite.post("run/predict", data=[None], fn_index=polite.named["stop"],
                       session_hash=polite.session).json()  # fmt: skip
    assert '"kind":"ready"' in stored["data"][0]["json"]
    assert polite.http.get("health").json()["sessions"]["kept"] < 80


def test_long_names_and_large_bodies_are_refused_without_using_memory(client, server):
    visitor = client("203.0.113.22")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for _ in range(3):
        answer = visitor.join("x", "s" * 6_000_000)
        assert answer.status_code == 422 and "1 to 64" in answer.json()["detail"]
    more = [visitor.join("x", "s" * 6_000_000).status_code for _ in range(9)]
    assert more.count(429) >= 5, "bytes have a rate too"
    assert visitor.join("x" * 15_000_000).status_code == 413
    name = "u" * 60_000
    upload = visitor.http.post(f"gradio_api/upload?upload_id={name}",
                              files={"files": ("a.txt", b"x")})  # fmt: skip
    assert upload.status_code in (414, 400)
    assert process.memory_info().rss - before < 150e6


def test_excess_uploads_delete_the_clients_own_and_incomplete_ones_leave_nothing(client, server):
    polite, greedy = client("203.0.113.23"), client("203.0.113.24")

    def upload(client, content):
        files = {"files": ("a.txt", content)}
        return Path(client.http.post("gradio_api/upload", files=files).json()[0])

    theirs = upload(polite, b"theirs")
    own = [upload(greedy, f"text {i}".encode()) for i in range(10)]
    ends = time.monotonic() + 5  # deletion follows the answer
    while own[6].exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert [path.exists() for path in own] == [False] * 7 + [True] * 3 and theirs.exists()
    folder = theirs.parent.parent
    before = {path for path in folder.iterdir() if path.is_file()}
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n"
                     b"content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")  # fmt: skip
        half.settimeout(20)
        answer = half.recv(4096)
        assert b" 408 " in answer.splitlines()[0], "a slow body is closed"
        while more := half.recv(4096):
            answer += more
    assert b"too slow" in answer
    assert {path for path in folder.iterdir() if path.is_file()} == before
    odd = greedy.http.post(
        "gradio_api/upload", files=[("files", ("a", b"1")), ("files", ("b", b""))]
    )
    assert odd.status_code == 422


@pytest.mark.slow
def test_slow_headers_are_closed_and_a_polling_connection_stays(client, server):
    head = b"GET /health HTTP/1.1\r\nhost: x\r\n"
    visitor, slow = client("203.0.113.30"), []
    for sent in (b"", head, head + b"x-a: 1\r\n\r\n" + head):
        slow.append(socket.create_connection(("127.0.0.1", server.port)))
        slow[-1].sendall(sent)
        slow[-1].settimeout(20)
    begin, kept = time.monotonic(), None
    while time.monotonic() - begin < 5:
        with visitor.http.stream("GET", "health") as answer:
            answer.read()
            local = answer.extensions["network_stream"].get_extra_info("client_addr")
        assert kept in (None, local), "its headers are in time, so it stays open"
        kept = local
        with suppress(OSError):  # it was closed
            slow[1].sendall(b"x-b: 2\r\n")
        time.sleep(0.3)
    for one in slow:
        received = b""
        with suppress(ConnectionResetError):
            while more := one.recv(4096):
                received += more
        assert received.count(b"HTTP/1.1 200") == (one is slow[2]), "only a whole request"
        one.close()
    assert time.monotonic() - begin < 12


@pytest.mark.parametrize("data", [[1], "x", 0, {"index": [1]}, {"index": None}, {"text": {"a": 1}}])
def test_invalid_event_data_is_answered_with_a_message(client, server, data):
    visitor = client("203.0.113.25")
    for name in ("pick", "show", "open_document"):
        answer = visitor.post("run/predict", data=[], fn_index=visitor.named[name],
                             session_hash=visitor.session, event_data=data)  # fmt: skip
        assert answer.status_code in (200, 422)
        if name == "open_document" and answer.status_code == 200:
            continue  # document 0 is shown
        assert "detail" in answer.json() or '\\"kind\\":\\"message\\"' in answer.text, answer.text
    time.sleep(0.3)


def test_invalid_values_are_answered_with_a_message(client, server):
    visitor = client("203.0.113.26")
    searched = visitor.named["search"]
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for number, data in ((searched, [file]), (searched, [file["path"], 1]),
                         (searched, []), (10_000, [])):  # fmt: skip
        answer = visitor.post("run/predict", data=data, fn_index=number,
                             session_hash=visitor.session)  # fmt: skip
        payload = answer.json()
        assert answer.status_code == 422 and (payload.get("detail") or payload["error"])


def test_unknown_sessions_and_events_get_an_answer(client, server):
    http = client("203.0.113.27").http
    for _ in range(10):
        lost = http.get("gradio_api/queue/data?session_hash=nobody")
        assert json.loads(lost.text[5:])["session_not_found"] is True
        assert http.get("gradio_api/call/generate/nothing").status_code == 404
    for odd in ("", "?session_hash=", f"?session_hash={'a' * 65}"):
        assert http.get(f"gradio_api/queue/data{odd}").status_code == 422


def test_a_program_may_omit_trailing_values_but_not_required_ones(client):
    http = client("203.0.113.28").http
    for data, status in ((["x"], 200), (["x", None, 0.5], 200), ([], 422), (["x"] * 40, 422)):
        answer = http.post("gradio_api/call/generate", json={"data": data})
        assert answer.status_code == status
    assert "prompt" in answer.json()["detail"]
    http = client("203.0.113.29").http
    for body, status in (({"prompt": "x"}, 200), ({"promt": "x"}, 422), ({}, 422)):
        assert http.post("gradio_api/call/v2/generate", json=body).status_code == status


def test_the_log_has_no_traceback(client, server):
    """It runs last, after all requests above."""
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_looping_chat_template_delays_no_other_visitor(tmp_path):
    import tiny

    decoder = tiny.decoder()
    decoder.tokenizer.chat_template = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    decoder.model.save_pretrained(tmp_path / "decoder")
    decoder.tokenizer.save_pretrained(tmp_path / "decoder")
    command = ("app.py", "--decoder", str(tmp_path / "decoder"), "--port", "{port}")
    server = Server(tmp_path / "log", *command, MLPMEM_TRUST_PROXY="1").wait()
    try:
        hostile, other = Client(server, "203.0.113.1"), Client(server, "203.0.113.2")
        ends = time.monotonic() + PATIENCE
        while not other.http.get("health").json()["model"]["ready"] and time.monotonic() < ends:
            time.sleep(0.2)
        assert other.join().status_code == 200 and other.read()[-2]["success"], "it is warm"
        with ThreadPoolExecutor(1) as thread:
            assert hostile.ask("Hi").status_code == 200
            refused = thread.submit(hostile.read)
            time.sleep(0.2)
            begin = time.monotonic()
            assert other.http.get("").status_code == other.poll(other.session).status_code == 200
            assert time.monotonic() - begin < 1 and not refused.done(), (
                "quick requests are not held"
            )
            assert other.join().status_code == 200
            answered = other.read()
            assert time.monotonic() - begin < 2 + 1  # a busy machine's
        assert answered[-2]["success"] and '\\"done\\"' in json.dumps(answered)
        assert "chat template cannot be used (it takes over 1 s" in json.dumps(refused.result())
        for one in (hostile, other):
            one.http.close()
    finally:
        server.stop()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), *slow(("SIGINT", 0), ("SIGHUP", 129))]
)
def test_a_signal_ends_the_page_and_deletes_its_folder(tmp_path, name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so would the page
    try:
        server = serve(tmp_path).wait()
    finally:
        signal.signal(number, before)
    try:
        visitor = Client(server, "203.0.113.1")
        visitor.join("slow")
        visitor.http.post("gradio_api/upload", files={"files": ("a.txt", b"x" * 1000)})
        visitor.http.close()
        assert list((tmp_path / "uploads").rglob("a.txt"))
        server.process.send_signal(number)
        assert server.process.wait(20) == code
    finally:
        server.stop()
    assert list((tmp_path / "uploads").iterdir()) == []
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_an_ipv6_host_is_served_and_an_invalid_host_is_an_error(tmp_path):
    import tiny

    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    bundle = tmp_path / "bundle"
    tiny.bundle(bundle, traces=[])
    command = ("app.py", "--bundle", str(bundle), "--port", "{port}", "--host")
    server = Server(tmp_path / "log", *command, "::1")
    server.url = f"http://[::1]:{server.port}/"
    try:
        assert httpx.get(f"{server.wait().url}health").status_code == 200
        ends = time.monotonic() + 10  # it is written after the first answer
        while not (written := server.log.read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
        assert server.url.rstrip("/") in written
    finally:
        server.stop()
    odd = Server(tmp_path / "odd", *command, "not a host")
    try:
        assert odd.process.wait(120) == 2
    finally:
        odd.stop()
    log = odd.log.read_text()
    assert "--host" in log and "Traceback" not in log
