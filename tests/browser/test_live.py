"""The static Space answers in the browser: a tiny model in a worker, and what if there is none."""

import time

import pytest
import tiny
from conftest import ROOT, Server
from marks import slow as slow_cases

from mlpmem.loading.bundle import load_bundle
from mlpmem.space.build import build
from mlpmem.ui.recordings import saved

BREATH, SLOW = "inlet.postMessage(0);", "setTimeout(() => inlet.postMessage(0), 40);"
PERU = "Question: What is the capital of Peru? Answer:"


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory):
    """Return (model, site's folder, server) of a tiny bundle with one recorded run."""
    folder = tmp_path_factory.mktemp("live")
    router = tiny.routed().routers["memory"]
    tiny.bundle(folder / "first")
    model = load_bundle(folder / "first").model()
    store = tiny.datastore(model.decoder)
    model.attach_datastore(store, tiny.make_retriever("exact", store.keys))
    run = saved.record(PERU, {"answer": "Lima"}, 0.5, model.compare(PERU, max_new_tokens=4))
    questions = [
        {"prompt": "Question: Who? Answer:", "answer": "x", "part": "B", "wording": "test"}
    ]
    tiny.bundle(folder / "bundle", routers={"memory": router}, traces=[run], questions=questions)
    model = load_bundle(folder / "bundle").model()
    site = build(folder / "site", "static", bundle=folder / "bundle").folder
    server = Server(folder / "log", "-m", "http.server", "{port}", "--bind", "127.0.0.1",
                    "--directory", str(site), cwd=ROOT)  # fmt: skip
    yield model, site, server.wait()
    server.stop()


@pytest.fixture
def opened(chromium, served):
    """Return opened(worker=..., state=..., phone=...) -> a page in that state; nothing fails on it.

    worker is code that runs in the worker before its own; with slow, a token takes 40 ms more.
    """
    _, site, server = served
    seen = []

    def open_page(worker="", state="ready", context=None, slow=False, **shape):
        context = context or chromium.new_context(**shape)
        page = context.new_page()
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        if worker or slow:
            code = worker + (site / "worker.js").read_text("utf-8")
            assert BREATH in code
            code = code.replace(BREATH, SLOW) if slow else code
            headers = {"content-type": "text/javascript"}
            page.route("**/worker.js", lambda route: route.fulfill(body=code, headers=headers))
        page.goto(server.url)
        page.wait_for_selector(f"#status .chip[data-state={state}]")
        seen.append((page, context))
        return page

    yield open_page
    for page, context in seen:
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith(server.url)] == []
        context.close()


def settle(page) -> None:
    """Wait until the run on screen has ended."""
    page.wait_for_selector(".badge:has-text('live') >> visible=true")
    page.wait_for_function("!document.body.hasAttribute('data-running')")


def ids(page, system: str) -> list[int]:
    return page.evaluate(
        "system => MLPMEM.page.activeView().finished[system].steps.map((step) => step.id)", system
    )


def test_it_answers_and_nothing_is_requested_after_loading(opened, served):
    model, _, _ = served
    page = opened()
    before = len(page.requests)
    assert page.inner_text("#status .status-line") == "answers in your browser"
    page.click("#settings summary")
    page.fill("#option-max_new_tokens", "6")
    page.fill("#prompt textarea", "The hills in")
    page.keyboard.press("Enter")
    settle(page)
    traces = model.compare("The hills in", ["lm", "memory"], sources=["memory"], max_new_tokens=6)
    for system, trace in traces.items():
        assert ids(page, system) == [step.token_id for step in trace.steps]
    assert "stays out of your browser" in page.inner_text("#pane-knn .pane-empty")
    page.click("#pane-memory .token:visible >> nth=0")
    page.fill(".probe-input", "the")
    page.click(".probe-row button")
    page.wait_for_selector(".probe-table tr")
    page.click("#drawer .branch >> nth=1")
    page.wait_for_selector(".tree-node >> nth=1")
    settle(page)
    page.click(".details-button")
    page.click("#pane-memory .scrub button")
    page.wait_for_selector("#pane-memory .scrub-line:has-text('11 texts')")
    page.click(".surprise")
    page.wait_for_selector(".asked:has-text('Who?')")
    settle(page)
    assert "in a wording never trained on" in page.inner_text(".run-head")
    page.click("#pane-memory .pane-tool")
    page.wait_for_selector(".inspect-sentence:has-text('Perplexity')")
    page.click("[role=tab]:has-text('Chat')")
    page.fill("#chat-input textarea", "What is Gold?")
    page.click("#chat-send")
    page.wait_for_selector("#chat .answer[data-state=done]")
    longest = page.evaluate("MLPMEM.page.status.chat.longest")
    chat = model.chat([("What is Gold?", "")], "memory", max_new_tokens=longest)
    written = page.evaluate("MLPMEM.page.views.at(-1).panes.get('memory').trace")
    assert written["text"] == chat.text
    assert [step["id"] for step in written["steps"]] == [step.token_id for step in chat.steps]
    assert page.requests[before:] == []


@pytest.mark.slow
def test_a_recorded_example_keeps_its_datastore_column(opened):
    page = opened()
    assert page.inner_text(".badge") == "recorded"
    page.click(".group-button:has-text('Longer texts')")
    page.click(".example")
    settle(page)
    assert page.locator("#pane-knn .token").count() == 4
    assert page.inner_text("#pane-knn .pane-caption").startswith("Recorded on a server")
    page.click("#pane-knn .token >> nth=0")
    assert page.locator("#drawer .candidate").count() and not page.locator(".branch").count()
    page.evaluate("MLPMEM.page.bar.set(0.2)")
    page.click(".again")
    settle(page)
    assert page.evaluate("MLPMEM.page.activeView().finished.memory.lmbda") == 0.2
    assert not page.is_visible(".again[data-offered]"), "the recording needs no other lambda"


def test_a_visitors_own_text_makes_the_third_column_live(opened, served):
    model, _, _ = served
    page = opened()
    text = "Vellmar is an invented town. Its mayor is Ilka Brandt."
    page.click("[role=tab]:has-text('Your text')")
    page.fill("#own-text textarea", text)
    page.click("#own-make")
    page.wait_for_selector(".own-line:has-text('in this tab only, and sent nowhere')")
    page.click("[role=tab]:has-text('Compare')")
    page.fill("#prompt textarea", "Its mayor is")
    page.click("#generate")
    settle(page)
    store = model.store_texts([("your text", text)])
    trace = model.generate("Its mayor is", "knn", store=store, max_new_tokens=32)
    assert page.evaluate("MLPMEM.page.activeView().finished.knn.lmbda") == trace.lmbda == "auto"
    steps = page.evaluate("MLPMEM.page.activeView().finished.knn.steps.map((step) => step.lmbda)")
    away = all(lmbda < 0.1 for lmbda in steps)
    assert page.is_visible(":text('no passage of your text near enough')") == away
    page.evaluate("MLPMEM.page.bar.set(0.3)")
    page.click("#generate")
    settle(page)
    trace = model.generate("Its mayor is", "knn", store=store, lmbda=0.3, max_new_tokens=32)
    assert ids(page, "knn") == [step.token_id for step in trace.steps]
    page.click("#pane-knn .token >> nth=0")
    assert page.locator("#drawer .neighbour").count() == 8
    page.click("[role=tab]:has-text('Your text')")
    page.click("#own-delete")
    page.wait_for_selector(".own-line:has-text('Deleted')")


@pytest.mark.slow
def test_a_second_visit_takes_the_model_from_the_browsers_cache(chromium, opened):
    context = chromium.new_context()
    first = opened(context=context)
    second = opened(context=context)
    assert any("/model/" in url for url in first.requests)
    assert not any("/model/" in url for url in second.requests)


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        ("delete self.WebAssembly;", "answers in your browser"),
        *slow_cases(
            ("self.caches.open = async () => { throw 1; };", "could not store the model"),
            ("self.caches.open = async () => ({ match: async () => undefined, "
             "put: async () => { throw new DOMException('full', 'QuotaExceededError'); } });",
             "could not store the model"),
        ),
    ],
)  # fmt: skip
def test_without_storage_or_wasm_it_still_answers(opened, worker, text):
    page = opened(worker)
    assert text in page.inner_text("#status .status-line")
    page.fill("#prompt textarea", "The hills in")
    page.click("#generate")
    settle(page)
    assert ids(page, "memory")


FETCH = "const fetched = self.fetch; self.fetch = async (url, ...more) => "
CHANGED = (
    "{ const bytes = new Uint8Array(await (await fetched(url, ...more)).arrayBuffer()); "
    "CHANGE; return new Response(bytes.slice(0, bytes.length - CUT)); };"
)


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (FETCH + CHANGED.replace("CHANGE", "bytes[bytes.length - 1] ^= 1").replace("CUT", "0"),
         "is altered"),
        (FETCH + "new Response('', { status: 404 });", "status 404"),
        *slow_cases(
            (FETCH + CHANGED.replace("CHANGE", "").replace("CUT", "5"), "is truncated"),
            (FETCH + "{ throw new TypeError('no'); };", "the connection failed"),
            ("self.Uint8Array = class { constructor() { throw new RangeError(); } };",
             "memory left"),
            ("throw new Error('no');", "worker has ended"),
            ("Object.defineProperty(self, 'crypto', { value: {} });", "not secure"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said_and_the_recording_stays(opened, worker, text):
    page = opened(worker, state="replay")
    line = page.inner_text("#status .status-line")
    assert text in line and line.endswith("Recorded runs are shown.")
    page.wait_for_selector("#pane-knn[data-state=done] .token")
    assert not page.is_visible("#generate")
    assert page.locator(".example").count() == 1, "only the recorded example is offered"


@pytest.mark.slow
def test_a_worker_that_ends_in_a_run_is_said(opened):
    page = opened("self.addEventListener('message', ({ data }) => { if (data.plan) "
                  "setTimeout(() => { throw 1; }); });")  # fmt: skip
    page.fill("#prompt textarea", "The hills in")
    page.click("#generate")
    page.wait_for_selector("#status .chip[data-state=replay]")
    assert "worker has ended" in page.inner_text("#compare-view .alert")


def test_stop_is_heard_between_two_tokens(opened):
    page = opened(slow=True)
    page.fill("#prompt textarea", "The hills in")
    page.click("#generate")
    # more than the recorded answer's, which is on screen until the run's first token
    written = "document.querySelectorAll('#pane-memory[data-state=running] .token').length"
    page.wait_for_function(f"{written} > 5")
    page.click("#stop")
    page.wait_for_selector(".badge:has-text('stopped')")
    count = page.locator("#pane-memory .token").count()
    assert 0 < count < 32
    page.click("[role=tab]:has-text('Chat')")
    page.fill("#chat-input textarea", "What is Gold?")
    page.click("#chat-send")
    page.wait_for_selector("#chat .answer[data-state=running]")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.body.hasAttribute('data-running')")
    page.click("[role=tab]:has-text('Compare')")
    assert page.locator("#pane-memory .token").count() == count, "nothing came after Stop"


@pytest.mark.slow
def test_a_tab_put_to_sleep_in_a_run_goes_on_where_it_was(opened):
    page = opened(slow=True)
    page.fill("#prompt textarea", "The hills in")
    page.click("#generate")
    page.wait_for_selector("#pane-memory[data-state=running] .token", state="attached")
    session = page.context.new_cdp_session(page)
    for state in ("frozen", "active"):
        session.send("Page.setWebLifecycleState", {"state": state})
        time.sleep(0.5)
    settle(page)
    assert page.locator("#pane-memory .token").count() == len(ids(page, "memory"))


@pytest.mark.slow
def test_wrong_values_are_said(opened):
    page = opened()
    page.fill("#prompt textarea", "x" * 200_000)
    page.click("#generate")
    page.wait_for_selector(".alert:has-text('at most 2,000 characters; got 200,000')")
    page.fill("#prompt textarea", "the " * 90)
    page.click("#generate")
    page.wait_for_selector(".alert:has-text('Shorten the prompt')")
    page.click("[role=tab]:has-text('Your text')")
    page.fill("#own-text textarea", "a" * 200_000)
    page.click("#own-make")
    page.wait_for_selector(".own-line:has-text('Computing keys')")
    page.click("#own-stop")
    page.wait_for_selector(".own-line:has-text('Cancelled')")


@pytest.mark.slow
def test_a_phone_has_no_overflow(opened):
    page = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.fill("#prompt textarea", "The hills in")
    page.click("#generate")
    settle(page)
    tops = "['#compare-view', '#recordings'].map((n) => document.querySelector(n).offsetTop)"
    assert page.evaluate(f"{tops}[0] < {tops}[1]"), "the answers come first"
    for tab in ("Inspect", "Chat", "Your text", "Compare"):
        page.click(f"[role=tab]:has-text('{tab}')")
        if tab == "Inspect":
            assert "With a text of your own" in page.inner_text(".inspect-empty")
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_from_a_disk_it_is_a_replay_and_says_so(chromium, served):
    _, site, _ = served
    page = chromium.new_context().new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("#status .status-line:has-text('opened from a disk')")
    page.wait_for_selector("#pane-memory[data-state=done] .token")
    assert not page.is_visible("#generate")
    page.context.close()
