"""OpenAI's protocol at a running app: the library's numbers, streams, bounds, and clients gone."""

import json
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import tiny
from conftest import Server

import mlpmem

PROMPT = "The capital of Peru is"
FREE = {"MLPMEM_RATE": "1000", "MLPMEM_WAITING": "8"}  # a test is one client
LONG = {"model": "long", "prompt": PROMPT, "max_tokens": 3900, "n": 4, "temperature": 1.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny.bundle(tmp_path_factory.mktemp("openai") / "tiny", traces=[]).folder


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Return serve(arguments, environment) -> a client of a running app whose model is ready."""
    started = []

    def run(*arguments: str, **environment: str) -> httpx.Client:
        folder = tmp_path_factory.mktemp("served")
        where = {"MLPMEM_CACHE": str(folder / "c"), "GRADIO_TEMP_DIR": str(folder / "g")}
        command = ("app.py", *arguments, "--port", "{port}")
        server = Server(folder / "log", *command, **where, **environment)
        http = httpx.Client(base_url=server.url, timeout=60)
        started.append((server, http))
        server.wait()
        for _ in range(600):
            if http.get("health").json()["model"]["complete"]:
                return http
            time.sleep(0.1)
        pytest.fail(server.log.read_text())

    yield run
    for server, http in started:
        http.close()
        server.stop()


@pytest.fixture(scope="module")
def http(serve, bundle):
    return serve("--bundle", str(bundle), **FREE)


@pytest.fixture(scope="module")
def long(serve, tmp_path_factory):
    """Return a client of a decoder that writes thousands of tokens."""
    folder = tmp_path_factory.mktemp("decoders") / "long"
    decoder = tiny.decoder(max_position_embeddings=4096)
    decoder.model.generation_config.eos_token_id = decoder.model.config.eos_token_id = None
    decoder.tokenizer.eos_token = None  # nothing ends an answer early
    decoder.model.save_pretrained(folder)
    decoder.tokenizer.save_pretrained(folder)
    return serve("--decoder", str(folder), MLPMEM_NEW_TOKENS="4000", MLPMEM_RATE="1000")


@pytest.fixture(scope="module")
def model(bundle):
    return mlpmem.load(bundle)


def complete(http, **body) -> dict:
    answer = http.post("v1/completions", json={"temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http, path: str, body: dict) -> list[dict]:
    """Return the chunks of a stream, which must end with [DONE]."""
    with http.stream("POST", path, json={**body, "stream": True}) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in stream.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def refused(answer: httpx.Response) -> tuple[int, dict]:
    """Return the status and the error of an answer in the protocol's shape."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return answer.status_code, body["error"]


def test_models_are_listed_by_system(http):
    rows = http.get("v1/models").json()["data"]
    named = {row["id"]: row["system"] for row in rows}
    assert named["tiny"] == "memory" and {"tiny:lm", "tiny:memory", "tiny:knn"} < {*named}
    assert all(row["object"] == "model" and row["owned_by"] for row in rows)
    assert http.get("v1/models/tiny:knn").json()["id"] == "tiny:knn"
    assert http.get("v1/models/tiny%3Aknn").json()["system"] == "knn"
    status, error = refused(http.get("v1/models/gpt-4"))
    assert (status, error["code"]) == (404, "model_not_found") and "tiny:lm" in error["message"]
    assert "/v1/chat/completions" in http.get("").text, "About names the endpoints"


@pytest.mark.parametrize("system", ["lm", "memory", "knn"])
def test_answers_are_the_librarys(system, http, model):
    options = {"temperature": 0.9, "seed": 4, "lmbda": 0.3}
    answer = complete(http, model=f"tiny:{system}", prompt=PROMPT, max_tokens=9, **options)
    trace = model.generate(PROMPT, system, max_new_tokens=9, **options)
    assert answer["choices"][0]["text"] == trace.text and answer["lmbda"] == trace.lmbda
    messages = [{"role": "user", "content": "What is it?"}]
    chat = {"model": f"tiny:{system}", "messages": messages, "max_tokens": 5, "temperature": 0}
    answer = http.post("v1/chat/completions", json=chat).json()
    trace = model.chat(messages, system, max_new_tokens=5)
    assert answer["choices"][0]["message"]["content"] == trace.text


def test_log_probs_of_token_ids_are_the_scores(http, model):
    ids = model.decoder.encode("The capital of Peru is Lima.")
    answer = complete(http, model="tiny:memory", prompt=[ids, ids[:5]], echo=True, max_tokens=0,
                      logprobs=1)  # fmt: skip
    for choice, part in zip(answer["choices"], (ids, ids[:5]), strict=True):
        found = choice["logprobs"]["token_logprobs"]
        expected = -model.score(part).mixed("memory")
        assert found[0] is None and found[1:] == pytest.approx(expected.tolist(), abs=1e-5)
        assert choice["text"] == model.decoder.spelled(part)


def test_streams_equal_whole_answers(http):
    body = {"model": "tiny", "prompt": [PROMPT, "Peru is"], "n": 2, "seed": 1, "temperature": 1.1,
            "max_tokens": 10, "logprobs": 2, "echo": True, "stop": ["e"]}  # fmt: skip
    whole = complete(http, **body)
    chunks = events(http, "v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        tokens = [t for c in own if c["logprobs"] for t in c["logprobs"]["tokens"]]
        assert tokens == choice["logprobs"]["tokens"]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    whole = http.post("v1/chat/completions", json=chat).json()
    chunks = events(http, "v1/chat/completions", chat)
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert content == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_several_clients_at_once_get_their_own_answers(http, model):
    prompts = [f"{word} is" for word in ("Peru", "Gold", "Lima", "Vellmar", "The", "A", "Au", "I")]
    found: dict[str, str] = {}

    def ask(prompt):
        answer = complete(http, model="tiny:lm", prompt=prompt, max_tokens=20)
        found[prompt] = answer["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {p: model.generate(p, "lm", max_new_tokens=20).text for p in prompts}


def test_errors_have_the_protocols_shape(http):
    post = lambda path, **body: refused(http.post(f"v1/{path}", **body))  # noqa: E731
    ask = {"model": "tiny", "prompt": "x"}
    assert post("completions", content=b"{")[0] == 400
    assert post("completions", json=[])[0] == 400
    assert post("completions", json={**ask, "tools": [1]})[1]["param"] == "tools"
    status, error = post("completions", json={**ask, "max_tokens": 129})
    assert (status, error["param"]) == (400, "max_tokens") and "128" in error["message"]
    status, error = post("completions", json={**ask, "prompt": [[1, 10**9]]})
    assert status == 400 and "token ids" in error["message"]
    status, error = post("completions", json={**ask, "prompt": [[5] * 96]})
    assert (status, error["code"]) == (400, "context_length_exceeded")
    status, error = post("completions", json={**ask, "prompt": "x" * 70_000})
    assert (status, error["code"]) == (413, "request_too_large")
    assert post("completions", json={**ask, "model": "gpt-4"})[1]["code"] == "model_not_found"
    assert post("completions", json=ask, headers={"origin": "https://evil.example"})[0] == 403
    assert post("embeddings", json={})[0] == 404
    assert refused(http.get("v1/completions"))[0] == 405
    headers = http.get("v1/models").headers
    assert headers["x-content-type-options"] == "nosniff" and "content-security-policy" in headers


def test_the_queues_function_cannot_be_called_without_a_ticket(http):
    config = http.get("config").json()
    (function,) = [d["id"] for d in config["dependencies"] if d["api_name"] == "openai"]
    assert "/openai" not in http.get("gradio_api/info").json()["named_endpoints"]
    body = {"data": ["0" * 32], "fn_index": function, "session_hash": "abc"}
    assert http.post("gradio_api/queue/join", json=body).status_code == 200
    with http.stream("GET", "gradio_api/queue/data?session_hash=abc") as stream:
        text = "".join(stream.iter_text())
    assert '"success":false' in text.replace(" ", "") and '"success":true' not in text


@contextmanager
def begun(http, **body):
    """Open a long stream and yield it once it has sent something."""
    with http.stream("POST", "v1/completions", json={**LONG, **body, "stream": True}) as stream:
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()  # httpx closes a stream whose iterator is gone
        next(lines)
        yield lines


def running(http) -> dict:
    return http.get("health").json()["queue"]


def idle_after(http) -> float:
    """Return the seconds until nothing waits or runs."""
    begin = time.monotonic()
    while (now := running(http))["running"] or now["waiting"]:
        assert time.monotonic() - begin < 20
        time.sleep(0.05)
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_ends_the_work_within_a_second(stream, long):
    if stream:
        with begun(long):
            time.sleep(1.2)  # health is measured once a second
            assert running(long)["running"] == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            long.post("v1/completions", json=LONG, timeout=1.0)
    begin = time.monotonic()
    short = {**LONG, "n": 1, "max_tokens": 1}
    assert long.post("v1/completions", json=short).status_code == 200
    assert time.monotonic() - begin < 2.0, "a second, and the next answer of a busy machine"
    idle_after(long)


@pytest.mark.slow
def test_waiting_requests_of_a_client_are_bounded_and_dropped_when_it_leaves(long):
    with begun(long):
        gone = [threading.Thread(target=_leave, args=(long,)) for _ in range(2)]
        for thread in gone:
            thread.start()
        time.sleep(0.4)
        answer = long.post("v1/completions", json=LONG)
        status, error = refused(answer)
        assert (status, error["code"]) == (429, "rate_limit_exceeded")
        assert "waiting already" in error["message"] and answer.headers["retry-after"] == "1"
        for thread in gone:
            thread.join()
    idle_after(long)


def _leave(http) -> None:
    """Ask, and leave while the request waits."""
    with pytest.raises(httpx.ReadTimeout):
        http.post("v1/completions", json=LONG, timeout=1.0)


@pytest.mark.slow
def test_the_protocol_can_be_off_and_is_off_in_a_space(serve, bundle, monkeypatch):
    from mlpmem.ui.openai.routes import is_on

    assert is_on({}) and not is_on({"SPACE_ID": "a/b"}) and not is_on({"MLPMEM_OPENAI": "0"})
    assert is_on({"SPACE_ID": "a/b", "MLPMEM_OPENAI": "1"})
    off = serve("--bundle", str(bundle), "--no-datastore", MLPMEM_OPENAI="0")
    answer = off.get("v1/models")
    assert answer.status_code == 404 and "MLPMEM_OPENAI=1" in answer.text
    assert off.post("v1/completions", json=LONG).status_code == 404
    assert "/v1/chat/completions" not in off.get("").text
