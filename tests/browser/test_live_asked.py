"""A large chat model on the static Space is loaded by a button only, and then asked as a chat."""

import named
import pytest
from conftest import ROOT, Server
from test_live import FETCH, ids, settle

pytest.importorskip("gguf")

from mlpmem.loading.bundle import load_bundle
from mlpmem.space import live
from mlpmem.space.build import build
from mlpmem.ui.recordings import saved

HILLS, PERU = "What is in the hills?", "Where is Lima?"
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory):
    """Return (model, server) of a tiny chat bundle that counts as a large one."""
    folder = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "packages")
        patch.setattr(live, "ASKED_BYTES", 1)
        patch.setattr(live, "PART_BYTES", 6_000)  # more parts than a browser has connections
        named.package(folder / "packages", kind="Q4_1", **SHAPE)
        named.bundle(folder / "first", context=(4.0, 16.0))
        model = load_bundle(folder / "first").model()
        traces = model.compare(model.chat_ids(PERU, 4), max_new_tokens=4)
        run = saved.record(PERU, {"answer": "Peru"}, 0.5, traces)
        named.bundle(folder / "bundle", context=(4.0, 16.0), traces=[run])
        site = build(folder / "site", "static", bundle=folder / "bundle").folder
    server = Server(folder / "log", "-m", "http.server", "{port}", "--bind", "127.0.0.1",
                    "--directory", str(site), cwd=ROOT)  # fmt: skip
    yield model, site, server.wait()
    server.stop()


@pytest.fixture
def opened(chromium, served):
    """Return opened(worker=..., page_script=...) -> a page that has not loaded the model."""
    _, site, server = served
    contexts = []

    def open_page(worker="", script="", **shape):
        context = chromium.new_context(**shape)
        contexts.append(context)
        page = context.new_page()
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        if script:
            page.add_init_script(script)
        if worker:
            code = worker + (site / "worker.js").read_text("utf-8")
            headers = {"content-type": "text/javascript"}
            page.route("**/worker.js", lambda route: route.fulfill(body=code, headers=headers))
        page.goto(server.url)
        page.wait_for_selector("#status .chip[data-state=replay]")
        page.wait_for_selector("#pane-memory .token", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_nothing_is_loaded_before_the_button_is_pressed_and_then_it_answers_chats(opened, served):
    model, *_ = served
    page = opened()
    assert page.inner_text("#download").startswith("Load tiny, ")
    assert not page.is_visible("#generate")
    assert page.is_visible("#pane-knn:has-text('comes without a datastore')")
    assert page.inner_text(".badge") == "recorded"
    assert not any("/model/" in url or "worker" in url for url in page.requests)
    page.click("#download")
    page.wait_for_selector("#status .chip[data-state=ready]")
    assert not page.is_visible("#download")
    before = len(page.requests)
    page.click("#settings summary")
    page.fill("#option-max_new_tokens", "6")
    page.fill("#prompt textarea", HILLS)
    page.keyboard.press("Enter")
    settle(page)
    assert page.inner_text(".run-head .form-chip") == "asked as a chat ×"
    traces = model.compare(model.chat_ids(HILLS, 6), ["lm", "memory"], max_new_tokens=6)
    for system, trace in traces.items():
        assert ids(page, system) == [step.token_id for step in trace.steps]
    page.click(".details-button")
    page.click("#pane-memory .scrub button")
    page.wait_for_selector("#pane-memory .scrub-line:has-text('11 texts')")
    page.click(".run-head .form-chip")
    page.wait_for_selector(".run-head .form-chip", state="hidden")
    settle(page)
    trace = model.generate(HILLS, "memory", max_new_tokens=6)
    assert ids(page, "memory") == [step.token_id for step in trace.steps], "as it was typed"
    tabs = page.locator("[role=tab]").all_inner_texts()
    assert tabs == ["Compare", "Inspect", "Chat", "Your text"]
    page.click("[role=tab]:has-text('Chat')")
    page.fill("#chat-input textarea", HILLS)
    page.click("#chat-send")
    page.wait_for_selector("#chat .answer[data-state=done]")
    longest = page.evaluate("MLPMEM.page.status.chat.longest")
    chat = model.chat([(HILLS, "")], "memory", max_new_tokens=longest)
    assert page.evaluate("MLPMEM.page.views.at(-1).panes.get('memory').trace.text") == chat.text
    assert page.requests[before:] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (FETCH + "new Response('', { status: 404 });", "status 404"),
        ("if (self.WebAssembly) self.WebAssembly.Memory = class { constructor() "
         "{ throw new RangeError(); } };", "MB of memory left for the model"),
        ("throw new Error('no');", "worker has ended"),
    ],
)  # fmt: skip
def test_what_fails_is_said_and_can_be_tried_again(opened, worker, text):
    page = opened(worker)
    page.click("#download")
    page.wait_for_selector("#status .status-line:has-text('Recorded runs are shown.')")
    assert text in page.inner_text("#status .status-line")
    page.wait_for_selector("#pane-memory[data-state=done] .token", state="attached")
    assert not page.is_visible("#generate") and page.is_visible("#download")


@pytest.mark.slow
def test_a_device_with_too_little_memory_gets_a_sentence_and_no_button(opened):
    page = opened(script="Object.defineProperty(navigator, 'deviceMemory', { value: 0.0001 })")
    assert "needs a device with more memory than 0.0001 GB" in page.inner_text("#status")
    assert not page.is_visible("#download")


@pytest.mark.slow
def test_the_button_fits_a_phone(opened):
    page = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
