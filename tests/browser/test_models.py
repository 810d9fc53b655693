"""Two models on one page: each session is on one, and a missing decoder is downloaded if asked."""

import json
import shutil
import sys
import urllib.request

import named
import pytest
import tiny
from conftest import HERE, PATIENCE, SHAPES, Server
from fake_hub import FakeHub

import mlpmem

RUN = "#compare-view .view-host"
DONE = f"""(run) => document.querySelector('{RUN}').dataset.run !== run
  && document.querySelector('#pane-memory')?.dataset.state === 'done'"""
IDS = "tokens => tokens.map(t => Number(t.dataset.tokenId))"


def write(folder):
    """Write an atlas and a bundle that names its decoder; return the named file."""
    site = folder / "site"
    file = named.package(site)
    sys.path.insert(0, str(site))
    try:
        tiny.bundle(folder / "atlas", traces=[], name="atlas")
        named.bundle(folder / "smollm2", traces=[], name="smollm2")
    finally:
        sys.path.remove(str(site))
    return file


def start(folder, **environment):
    serve = str(HERE / "serve_two.py")
    cache = str(folder / "cache")
    return Server(
        folder / "log", serve, str(folder), "{port}", MLPMEM_CACHE=cache, HF_HUB_CACHE=cache,
        **environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return a running page of two models, and its folder."""
    folder = tmp_path_factory.mktemp("two")
    write(folder)
    server = start(folder).wait()
    yield server, folder
    server.stop()


@pytest.fixture
def opened(chromium):
    """Return opened(url, shape) -> a page whose requests stay on its server."""
    pages = []

    def open_page(url, shape="desk"):
        page = chromium.new_context(**SHAPES[shape]).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.seen, page.errors = [], []
        page.on("request", lambda request: page.seen.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        pages.append((page, url))
        page.goto(url)
        page.wait_for_selector("#prompt")
        return page

    yield open_page
    for page, url in pages:
        page.context.close()
        own = (url.removesuffix("smollm2"), "data:", "blob:")
        assert [u for u in page.seen if not u.startswith(own)] == [] and page.errors == []


def switch(page):
    """Choose the second model and wait until it answers."""
    page.click(".models a:has-text('SmolLM2')")
    page.wait_for_url("**/smollm2")
    page.wait_for_selector("#status .chip[data-state=ready]")


def ids_of(page, system):
    return page.eval_on_selector_all(f"#pane-{system} .token", IDS)


def test_two_sessions_on_two_models_get_their_own_models_tokens(two, opened, monkeypatch):
    server, folder = two
    pages = [opened(server.url), opened(server.url)]
    switch(pages[1])
    pages[0].wait_for_selector("#status .chip[data-state=ready]")
    for page, title in zip(pages, ("Atlas", "SmolLM2"), strict=True):
        assert title in page.inner_text(".models a[aria-current=page]")
        assert not page.is_visible(".nav-holder"), "Gradio's own links are hidden"
    before = [page.get_attribute(RUN, "data-run") for page in pages]
    for page in pages:
        page.fill("#prompt textarea", "Where is Lima?")
        page.click("#generate")
    for page, run in zip(pages, before, strict=True):
        page.wait_for_function(DONE, arg=run)
    monkeypatch.syspath_prepend(str(folder / "site"))
    models = [mlpmem.load(folder / name) for name in ("atlas", "smollm2")]
    asked = ["Question: Where is Lima? Answer:", models[1].chat_ids("Where is Lima?", 32)]
    for page, model, prompt in zip(pages, models, asked, strict=True):
        for system in ("lm", "memory"):
            trace = model.generate(prompt, system, max_new_tokens=32)
            assert ids_of(page, system) == [step.token_id for step in trace.steps]
    assert pages[0].locator("#pane-knn").count() == 1
    assert pages[1].locator("#pane-knn").count() == 0, "it has no datastore"
    assert pages[1].inner_text(".form-chip") == "asked as a chat ×"


@pytest.mark.slow
def test_a_chat_is_branched_as_a_chat_and_repeated_as_typed(two, opened, monkeypatch):
    server, folder = two
    page = opened(f"{server.url}smollm2")
    page.wait_for_selector("#status .chip[data-state=ready]")
    run = page.get_attribute(RUN, "data-run")
    page.fill("#prompt textarea", "Where is Lima?")
    page.click("#generate")
    page.wait_for_function(DONE, arg=run)
    run = page.get_attribute(RUN, "data-run")
    page.click("#pane-memory .token >> nth=1")
    first = ids_of(page, "memory")[0]
    page.click("#drawer .branch >> nth=1")
    page.wait_for_function(DONE, arg=run)
    monkeypatch.syspath_prepend(str(folder / "site"))
    model = mlpmem.load(folder / "smollm2")
    ids = model.chat_ids("Where is Lima?", 32)
    branched = ids_of(page, "memory")
    assert branched[0] == first
    trace = model.generate(ids, "memory", max_new_tokens=32, forced=branched[:2])
    assert branched == [step.token_id for step in trace.steps]
    run = page.get_attribute(RUN, "data-run")
    page.click(".form-chip")
    page.wait_for_function(DONE, arg=run)
    trace = model.generate("Where is Lima?", "memory", max_new_tokens=32)
    assert ids_of(page, "memory") == [step.token_id for step in trace.steps]
    assert not page.is_visible(".form-chip")


def test_examples_and_saved_runs_stay_with_their_model(two, opened):
    server, _ = two
    page = opened(server.url)
    assert "Peru is" in page.inner_text("#examples")
    page.wait_for_selector("#status .chip[data-state=ready]")
    run = page.get_attribute(RUN, "data-run")
    page.fill("#prompt textarea", "Where is Lima?")
    page.click("#generate")
    page.wait_for_function(DONE, arg=run)
    view = "MLPMEM.page.views.find((one) => one.prefix === 'pane-')"
    text = page.evaluate(f"JSON.stringify(MLPMEM.recordOf({view}))")
    switch(page)
    assert "Where is Lima?" in page.inner_text("#examples")
    assert "Peru is" not in page.inner_text("#examples")
    assert page.locator("#compare-view .token").count() == 0, "no token of the other model"
    saved = {"name": "run.json", "mimeType": "application/json", "buffer": text.encode()}
    page.set_input_files("input[type=file][accept*=json]", saved)
    page.wait_for_selector("#compare-view .alert:has-text('This is a run of Atlas')")
    assert page.locator("#compare-view .token").count() == 0


@pytest.mark.slow
def test_programs_ask_either_model_by_name(two, opened, monkeypatch):
    server, folder = two
    client = pytest.importorskip("gradio_client").Client(server.url, verbose=False)
    switch(opened(server.url))
    monkeypatch.syspath_prepend(str(folder / "site"))
    for name in ("atlas", "smollm2"):
        run = client.predict("Peru is", max_new_tokens=3, model=name, api_name="/generate")
        model = mlpmem.load(folder / name, datastore=False)
        prompt = "Peru is" if name == "atlas" else model.chat_ids("Peru is", 3)
        trace = model.generate(prompt, "memory", max_new_tokens=3)
        steps = run["traces"]["memory"]["steps"]
        assert [step["id"] for step in steps] == [step.token_id for step in trace.steps]
        assert run.get("chat", False) == (name == "smollm2")
    with pytest.raises(Exception, match="Use one of atlas, smollm2"):
        client.predict("Peru is", model="other", api_name="/generate")
    with urllib.request.urlopen(f"{server.url}v1/models") as answer:
        names = {row["id"] for row in json.load(answer)["data"]}
    assert {"atlas", "smollm2", "atlas:lm", "smollm2:lm"} <= names
    body = {"model": "smollm2:lm", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    request = urllib.request.Request(
        f"{server.url}v1/chat/completions", json.dumps({**body, "temperature": 0}).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        said = json.load(answer)["choices"][0]["message"]["content"]
    assert said == mlpmem.load(folder / "smollm2").chat("Hi", "lm", max_new_tokens=3).text


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["desk", "phone"])
def test_a_missing_decoder_is_downloaded_by_a_click(chromium, opened, tmp_path, shape):
    file = write(tmp_path)
    (tmp_path / "repository").mkdir()
    shutil.move(file, tmp_path / "repository" / named.FILE)
    fake = FakeHub({named.HUB_ID: tmp_path / "repository"})
    server = start(tmp_path, HF_ENDPOINT=fake.url).wait()
    try:
        page = opened(server.url, shape)
        page.click(".models a:has-text('SmolLM2')")
        page.wait_for_selector("#status .chip[data-state=absent]")
        line = page.inner_text("#status .status-line")
        assert "MB, licence apache-2.0" in line and "pip install" in line
        assert fake.asked == []
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0 and page.inner_text("#download").startswith("Download ")
        page.click("#download")
        page.wait_for_selector("#status .chip[data-state=ready]")
        assert any(named.FILE in asked for asked in fake.asked) and not page.is_visible("#download")
    finally:
        server.stop()
        fake.close()
