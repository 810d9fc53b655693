"""A GPT-2 answers on the static Space, in Chromium and Firefox; another one stays a replay."""

import json
import shutil

import pytest
import tiny
from bidi import Firefox
from conftest import ROOT, Server
from live import READY, compared, expected
from test_live import PERU

from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.manifest import list_files
from mlpmem.space import live
from mlpmem.space.build import build
from mlpmem.ui.recordings import saved

NEW = 32  # tokens of an answer
LONGEST = "a" * (tiny.POSITIONS - NEW - 1)  # a prompt of <s> and these fills up with its answer
TEXT = "Vellmar is an invented town. Its mayor is Ilka Brandt."
PROMPTS = [PERU, "The hills in", "金 café", LONGEST]


def bundle(folder):
    """Write a tiny GPT-2's bundle with one recorded run, and return its model."""
    bound = tiny.noisy(tiny.decoder("gpt2"))
    config = {"family": "gpt2"}
    tiny.bundle(folder / "first", bound, config)
    model = load_bundle(folder / "first").model()
    run = saved.record(PERU, {"answer": "Lima"}, 0.5, model.compare(PERU, max_new_tokens=4))
    router = tiny.routed().routers["memory"]
    tiny.bundle(folder / "bundle", bound, config, routers={"memory": router}, traces=[run])
    return load_bundle(folder / "bundle").model()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Return (model, bundle's folder, site's folder, server) with weights in parts of 20 kB."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = bundle(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "PART_BYTES", 20_000)
        built = build(folder / "site", "static", bundle=folder / "bundle")
    assert built.notes == []
    server = Server(folder / "log", "-m", "http.server", "{port}", "--bind", "127.0.0.1",
                    "--directory", str(built.folder), cwd=ROOT)  # fmt: skip
    yield model, folder, built.folder, server.wait()
    server.stop()


def test_chromium_gives_pythons_answers_up_to_the_last_position(chromium, served):
    model, _, _, server = served
    assert len(model.decoder.encode(LONGEST)) + NEW == tiny.POSITIONS
    page, requests = chromium.new_context().new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#status .chip[data-state=ready]")
    assert sum("/model/decoder-model" in url for url in requests) > 2, "parts"
    requests.clear()
    same, largest = compared(page, PROMPTS, expected(model, PROMPTS))
    assert same == len(PROMPTS) and largest <= 1e-4
    page.click("#pane-memory .token:visible >> nth=0")
    page.fill(".probe-input", "the")
    page.click(".probe-row button")
    page.wait_for_selector(".probe-table tr")
    page.click("[role=tab]:has-text('Inspect')")
    page.fill("#inspect-text textarea", TEXT)
    page.click("#inspect-score")
    page.wait_for_selector(".inspect-sentence:has-text('Perplexity')")
    page.click("[role=tab]:has-text('Chat')")
    page.fill("#chat-input textarea", "What is Gold?")
    page.click("#chat-send")
    page.wait_for_selector("#chat .answer[data-state=done]")
    longest = page.evaluate("MLPMEM.page.status.chat.longest")
    chat = model.chat([("What is Gold?", "")], "memory", lmbda="auto", max_new_tokens=longest)
    written = page.evaluate("MLPMEM.page.views.at(-1).panes.get('memory').trace.steps")
    assert [step["id"] for step in written] == [step.token_id for step in chat.steps]
    page.click("[role=tab]:has-text('Your text')")
    page.fill("#own-text textarea", TEXT)
    page.click("#own-make")
    page.wait_for_selector(".own-line:has-text('in this tab only, and sent nowhere')")
    assert requests == [], "nothing is requested after loading"
    page.context.close()


@pytest.mark.slow
def test_firefox_gives_the_same(served):
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox")
    model, _, _, server = served
    browser = Firefox(program)
    try:
        browser.goto(server.url)
        browser.evaluate(READY)
        same, largest = compared(browser, PROMPTS, expected(model, PROMPTS))
    finally:
        browser.close()
    assert same == len(PROMPTS) and largest <= 1e-4


def test_an_altered_part_of_its_weights_is_said(chromium, served):
    _, _, site, server = served
    (part,) = site.glob("model/decoder-model.safetensors.*.2.bin")
    page = chromium.new_context().new_page()
    data = part.read_bytes()[:-1] + b"\x01"
    page.context.route(f"**/{part.name}", lambda route: route.fulfill(body=data))
    page.goto(server.url)
    page.wait_for_selector("#status .chip[data-state=replay]")
    assert "is altered" in page.inner_text("#status .status-line")
    page.context.close()


@pytest.mark.parametrize(
    ("values", "note", "line"),
    [
        (
            {"model_type": "rwkv"},
            "its decoder is of the family rwkv, and only llama and gpt2 do",
            "",
        ),
        ({"activation_function": "relu"}, "", "with the activation relu, which does not run"),
    ],
)
def test_another_one_stays_a_replay_with_a_sentence(chromium, served, tmp_path, values, note, line):
    _, folder, _, _ = served
    other = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    config = other / "decoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | values), "utf-8")
    manifest = json.loads((other / "manifest.json").read_text("utf-8"))
    manifest["files"] = {k: v for k, v in list_files(other).items() if k != "manifest.json"}
    (other / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    built = build(tmp_path / "site", "static", bundle=other)
    assert note in "".join(built.notes) and bool(note) == bool(built.notes)
    server = Server(tmp_path / "log", "-m", "http.server", "{port}", "--bind", "127.0.0.1",
                    "--directory", str(built.folder), cwd=ROOT)  # fmt: skip
    page = chromium.new_context().new_page()
    page.goto(server.wait().url)
    page.wait_for_selector("#pane-memory[data-state=done] .token", state="attached")
    page.wait_for_selector(f"#status .status-line:has-text('{line or 'ecorded'}')")
    assert not page.is_visible("#generate")
    page.context.close()
    server.stop()
