"""app.py with a tiny bundle, from start to drawer, and its endpoints; and with a GGUF file."""

import json
import math
import time
import urllib.request

import pytest
from test_page import generate, rows_of

CHAT_DONE = (
    """(count) => document.querySelectorAll('#chat .answer[data-state=done]').length === count"""
)


def answering(servers):
    """Return the app once its model answers, whichever test is the first in this process."""
    server = servers["app"].wait()
    for _ in range(600):
        with urllib.request.urlopen(server.url + "health") as answer:
            if json.load(answer)["model"]["complete"]:
                return server
        time.sleep(0.1)
    return pytest.fail(server.log.read_text())


def test_the_app_serves_a_bundle_from_start_to_drawer(visit, servers, tmp_path):
    page = visit("app")
    assert "memory removes" in page.inner_text("#status .status-line")
    generate(page, "Peru is")
    for system in ("lm", "memory", "knn"):
        page.wait_for_selector(f"#pane-{system}[data-state=done]")
        assert page.locator(f"#pane-{system} .token").count() > 0
    page.click("#pane-knn .token >> nth=0")
    rows = rows_of(page)
    assert len(rows) >= 8
    for _, lm, _, knn, fused in rows:
        assert fused == pytest.approx(0.4 * lm + 0.6 * knn, abs=1e-6)
    assert page.locator("#drawer .neighbour").count() > 0


def test_exactly_four_endpoints_are_public(servers):
    with urllib.request.urlopen(servers["app"].wait().url + "gradio_api/info") as answer:
        info = json.load(answer)
    assert sorted(info["named_endpoints"]) == [
        "/distributions", "/generate", "/neighbours", "/score",
    ]  # fmt: skip
    assert info["unnamed_endpoints"] == {}
    for endpoint in info["named_endpoints"].values():
        assert "at most 2,000" in str(endpoint), "the limit is documented"


def test_a_url_is_not_downloaded_and_a_lone_surrogate_is_replaced(servers):
    server = answering(servers)

    def ask(prompt):
        """Return the last event that the endpoint sends for a prompt."""
        url = server.url + "gradio_api/call/generate"
        body = json.dumps(
            {"data": [prompt, None, None, 3, 0.0, 1.0, 0, 0, 0.0, 1.0, None]}
        ).encode()
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/{event}") as answer:
            return answer.read().decode().strip().split("event: ")[-1]

    address = {"path": "https://example.org/a", "meta": {"_type": "gradio.FileData"}}
    event = ask(address)
    assert event.startswith("error") and "values of the wrong type" in event
    assert "Traceback" not in server.log.read_text()
    event = ask("Peru \ud83d is")
    assert event.startswith("complete") and "Peru \\ufffd is" in event


def test_programs_get_the_librarys_numbers_and_errors(servers):
    client_of = pytest.importorskip("gradio_client").Client
    client = client_of(answering(servers).url, verbose=False)
    run = client.predict(prompt="Peru is", max_new_tokens=3, api_name="/generate")
    assert list(run["traces"]) == ["lm", "memory", "knn"] and run["lmbda"] is None
    step = run["traces"]["knn"]["steps"][0]
    after = client.predict(prompt="Peru is", system="knn", api_name="/distributions")
    assert after["lmbda"] == pytest.approx(0.6)
    assert [c["token_id"] for c in after["candidates"]] == [c[0] for c in step["cand"]]
    for candidate, (_, _, *probs) in zip(after["candidates"], step["cand"], strict=True):
        got = [candidate[s] for s in ("lm", "memory", "knn")]
        assert got == pytest.approx(probs, rel=1e-5)
        assert candidate["fused"] == pytest.approx(0.4 * got[0] + 0.6 * got[2], rel=1e-6)
    found = client.predict(prompt="Peru is", api_name="/neighbours")["neighbours"]
    assert [n["entry"] for n in found] == [n[0] for n in step["nn"]]
    score = client.predict(text="Peru is", lmbda=1, api_name="/score")
    assert len(score["nll"]["memory"]) == len(score["ids"]) - 1 > 0
    for source, nll in score["nll"].items():
        mean = sum(nll) / len(nll) if None not in nll else None
        assert score["perplexity"][source] == (mean and pytest.approx(math.exp(mean)))
    for name, wrong, message in (
        ("/generate", {"prompt": " "}, "empty"),
        ("/generate", {"prompt": "x", "max_new_tokens": 129}, "between 1 and 128"),
        ("/distributions", {"prompt": "x", "system": "else"}, "Choose from"),
        ("/score", {"text": "x" * 2001}, "2,001"),
        ("/neighbours", {"prompt": "x" * 2001}, "2,001"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(**wrong, api_name=name)


@pytest.mark.slow
@pytest.mark.parametrize("phone", [False, True])
def test_a_gguf_file_chats_in_turns_as_it_does_in_python(visit, servers, phone):
    import mlpmem

    page = visit("gguf", phone=phone)
    assert "This model has no memory" in page.inner_text("#pane-memory")
    page.click("[role=tab]:has-text('Chat')")
    page.wait_for_selector("#chat-input textarea")
    model = mlpmem.load(decoder=servers.folder / "tiny.gguf")
    turns = []
    page.click("#chat-settings")
    page.fill("#chat-longest", "48")
    page.keyboard.press("Escape")
    for question in ("What is the capital of Peru?", "And of Chile?"):
        page.fill("#chat-input textarea", question)
        page.press("#chat-input textarea", "Enter")
        page.wait_for_function(CHAT_DONE, arg=len(turns) + 1)
        trace = model.chat([*turns, (question, "")], "lm", max_new_tokens=48)
        ids = page.evaluate(
            "MLPMEM.page.views.at(-1).panes.get('lm').strip.nodes.map(t => +t.dataset.tokenId)"
        )
        assert ids == [step.token_id for step in trace.steps]
        turns.append((question, trace.text))
    assert page.locator(".log .turn").count() == 2
    assert "tokens/s" in page.inner_text(".turn:last-child .answer-numbers")
