"""Sharing in a browser: links, files, the static site, and About's example programs."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fake
import pytest
from test_chat import ask, choose, open_chat
from test_page import generate, pane_text, set_lambda

from mlpmem.engine.trace import mix
from mlpmem.ui.recordings import replay
from mlpmem.ui.recordings.recorded import read

BARE = "Who wrote The Salt Ledger?"
BOOK = fake.ask(BARE)
SOURCES = ("lm", "memory", "knn")
SCREEN = """() => [...document.querySelectorAll('#compare-view .pane')].map((pane) => [
  pane.dataset.system,
  [...pane.querySelectorAll('.token')].map((token) => Number(token.dataset.tokenId)),
])"""


def saved(page, kind, folder):
    """Return the path of the file that Share saves."""
    page.click(".share-button")
    with page.expect_download() as download:
        page.click(f".share-{kind}")
    assert not page.is_visible(".share-panel") and page.inner_text(".share-said") == "Saved."
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.slow
def test_files_and_api_have_the_run_on_screen(visit, servers, tmp_path):
    client_of = pytest.importorskip("gradio_client").Client
    page = visit()
    set_lambda(page, "0.3")
    generate(page, BOOK)
    record = json.loads(saved(page, "json", tmp_path).read_text("utf-8"))
    client = client_of(servers["fake"].url, verbose=False)
    assert client.predict(prompt=BOOK, lmbda=0.3, api_name="/generate") == record
    assert record["answer"] == "Odalys Wren" and record["part"] == "B"
    assert dict(page.evaluate(SCREEN)) == {
        system: [step["id"] for step in trace["steps"]]
        for system, trace in record["traces"].items()
    }
    page.click("#pane-memory .token[data-index='2']")
    drawn = page.eval_on_selector_all(
        "#drawer .candidate",
        "rows => rows.map(r => [r.dataset.tokenId, r.dataset.lm, r.dataset.memory, r.dataset.knn, "
        "r.dataset.fused].map(Number))",
    )
    path = saved(page, "csv", tmp_path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == set(SOURCES)
    mine = [r for r in rows if (r["system"], r["index"]) == ("memory", "2")]
    numbers = [[float(r[k]) for k in ("token_id", *SOURCES, "fused")] for r in mine]
    assert sorted(numbers) == sorted(drawn)
    step = record["traces"]["memory"]["steps"][2]
    assert [json.loads(r["token"]) for r in mine if r["chosen"] == "1"] == [step["s"]]
    for row in rows:
        probs = {s: float(row[s]) for s in SOURCES}
        expected = mix(probs, row["system"], float(row["lmbda"]))
        assert float(row["fused"]) == pytest.approx(expected, abs=1e-12)


def test_a_link_restores_prompt_options_columns_and_lambda(visit, servers):
    page = visit()
    page.click("#options button")
    page.wait_for_selector("#systems input", state="visible")
    page.uncheck("#systems input >> nth=0")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("Max new tokens").fill("3")
    generate(page, BOOK)
    set_lambda(page, "0.42")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.click(".share-button")
    page.click(".share-copy")
    page.wait_for_selector(".share-link:focus")
    link = page.input_value(".share-link")
    assert parse_qs(urlsplit(link).query) == {
        "q": [BOOK], "tokens": ["3"], "temperature": ["0"], "top_p": ["1"], "top_k": ["0"],
        "seed": ["11"], "lambda": ["0.42"], "systems": ["memory,knn"],
    }  # fmt: skip
    other = visit(query=urlsplit(link).query)
    other.wait_for_function("MLPMEM.page.activeView()?.finished?.memory?.settings.seed === 11")
    assert other.inner_text("#compare-view .badge") == "live"
    assert other.input_value("#prompt textarea") == BOOK
    assert other.inner_text("#pane-lm .pane-empty") == "Not part of this run."
    assert other.locator("#pane-memory .token").count() == 3
    assert other.inner_text(".lambda-value") == "0.42"
    assert other.evaluate("MLPMEM.page.activeView().finished.memory.lmbda") == 0.42
    assert other.evaluate("MLPMEM.linkOf(MLPMEM.recordOf(MLPMEM.page.activeView()))") == link


@pytest.mark.slow
def test_a_conversation_is_shared_whole_and_asked_again_beside_ones_own(visit, servers, tmp_path):
    page = open_chat(visit())
    choose(page, "lm", "memory")
    for question in (BARE, "What is the capital of Peru?"):
        ask(page, question)
    record = json.loads(saved(page, "json", tmp_path).read_text("utf-8"))
    assert [turn["question"] for turn in record["turns"]] == [BARE, "What is the capital of Peru?"]
    assert [list(turn["traces"]) for turn in record["turns"]] == [["lm", "memory"]] * 2
    with saved(page, "csv", tmp_path).open(encoding="utf-8", newline="") as file:
        assert {row["turn"] for row in csv.DictReader(file)} == {"1", "2"}
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.click(".share-button")
    assert "The whole conversation, 2 questions." in page.inner_text(".share-note")
    page.click(".share-copy")
    link = page.input_value(".share-link")
    page.evaluate(
        "[...document.querySelectorAll('[role=tab]')].find((t) => t.textContent === 'Compare')"
        ".click()"  # without a pointer, whose press closes the panel
    )
    page.wait_for_selector(".share-panel", state="hidden")

    other = open_chat(visit())
    ask(other, "Where is Lima?")
    other.wait_for_timeout(300)
    other.goto("about:blank")
    other.goto(link)
    other.wait_for_selector(".linked-note:has-text('and 1 more')")
    other.wait_for_selector("#status .chip[data-state=ready]")
    other.wait_for_selector(".turn")
    other.click(".linked button >> nth=0")
    other.wait_for_function(
        "document.querySelectorAll('.turn .answer[data-state=done]').length === 4"
    )
    said = other.locator(".said").all_inner_texts()
    assert said == [BARE, "What is the capital of Peru?"]
    assert other.inner_text(".turn:first-child .asks-tools .pager-text") == "2/2", "and one's own"
    assert "#" not in other.url and not other.is_visible(".linked")


def test_a_saved_conversation_opens_in_the_chat_of_another_page(visit, tmp_path):
    page = open_chat(visit())
    choose(page, "lm", "memory")
    ask(page, BARE)
    path = saved(page, "json", tmp_path)
    record = json.loads(path.read_text("utf-8"))
    words = page.locator(".answer[data-system=memory] .token").all_inner_texts()
    record["turns"].append({**record["turns"][0], "question": fake.HOSTILE})
    record["turns"][1]["traces"] = {"lm": record["turns"][0]["traces"]["lm"]}
    steps = json.loads(json.dumps(record["turns"][1]["traces"]["lm"]["steps"]))
    steps[0]["s"] = fake.HOSTILE
    record["turns"][1]["traces"]["lm"] |= {"steps": steps, "text": fake.HOSTILE}
    path.write_text(json.dumps(record), "utf-8")

    other = visit()
    other.click(".share-button")
    other.set_input_files(".share-panel input[type=file]", path)
    other.wait_for_selector(".turn >> nth=1")
    assert other.locator(".said").all_inner_texts() == [BARE, fake.HOSTILE]
    assert other.inner_text(".share-said") == "Opened, 2 questions."
    verdict = other.locator(".turn:first-child .answer[data-system=lm] .verdict")
    assert verdict.inner_text() == "✗ wrong"
    assert other.locator(".answer[data-system=memory] .token").all_inner_texts() == words
    assert other.locator(".log img").count() == 0 and other.evaluate("window.hacked") is None
    other.click(".answer[data-system=memory] .token >> nth=0")
    assert other.is_visible("#drawer .candidate")
    ask(other, "What is the capital of Peru?")
    other.reload()
    open_chat(other)
    other.wait_for_selector(".turn >> nth=2")
    bad = tmp_path / "bad.json"
    record["turns"][0]["traces"]["lm"]["steps"][0]["p"] = 7
    bad.write_text(json.dumps(record), "utf-8")
    other.click(".share-button")
    assert other.inner_text(".share-open") == "Open a saved conversation…"
    other.set_input_files(".share-panel input[type=file]", bad)
    other.wait_for_selector(".share-note:has-text('a token has no probability')")
    bad.write_text(json.dumps(record)[:900], "utf-8")
    other.set_input_files(".share-panel input[type=file]", bad)
    other.wait_for_selector(".share-note:has-text('or it is damaged')")
    assert other.locator(".turn").count() == 3, "nothing else changed"


@pytest.mark.slow
def test_a_link_without_a_model_shows_the_recording_or_waits(visit):
    page = visit("waiting", ready=False, query="q=Who+wrote+The+Salt+Ledger%3F&lambda=7&seed=x")
    page.wait_for_function("document.querySelector('.lambda-value').textContent === '1.00'")
    assert page.inner_text(".badge") == "recorded"
    assert pane_text(page, "memory") == "Odalys Wren"
    hostile = visit("waiting", ready=False, query="q=%3Cimg+src%3Dx+onerror%3Dwindow.hacked%3D1%3E")
    hostile.wait_for_selector(".badge:has-text('once the model is ready')")
    assert hostile.inner_text(".asked") == fake.HOSTILE
    assert hostile.evaluate("window.hacked") is None


@pytest.mark.slow
def test_a_saved_run_is_shown_without_a_model(visit, tmp_path):
    page = visit()
    generate(page, fake.ask("In which town was Ilka Brandt born?"))
    set_lambda(page, "0.25")
    path = saved(page, "json", tmp_path)
    record = json.loads(path.read_text("utf-8"))
    other = visit("waiting", ready=False)
    other.click(".share-button")
    other.set_input_files(".share-panel input[type=file]", path)
    other.wait_for_selector(".badge:has-text('from a file')")
    assert pane_text(other, "memory") == "Tervalla"
    other.wait_for_function("p => document.querySelector('#prompt textarea').value === p",
                            arg=record["prompt"])  # fmt: skip
    assert other.inner_text("#pane-memory .verdict") == "✓ right"
    assert other.inner_text(".lambda-value") == "0.25"
    assert other.evaluate("MLPMEM.recordOf(MLPMEM.page.activeView())") == record
    record["traces"]["memory"]["steps"][0]["cand"][0][1] = {"html": "<b>"}
    path.write_text(json.dumps(record), "utf-8")
    other.click(".share-button")
    other.set_input_files(".share-panel input[type=file]", path)
    other.wait_for_selector(".alert:has-text('cannot be shown')")
    assert pane_text(other, "memory") == "Tervalla", "the view is unchanged"


@pytest.mark.slow
def test_the_static_site_plays_from_a_disk(contexts, tmp_path):
    bundle = fake.write_bundle(tmp_path / "bundle")
    code = [
        sys.executable,
        "-m",
        "mlpmem.ui.recordings.replay",
        tmp_path / "site",
        "--bundle",
        bundle,
    ]
    process = subprocess.run(code, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for phone in ("desk", "phone"):
        page = contexts[phone].new_page()
        requests, errors = [], []
        page.on("request", lambda request, into=requests: into.append(request.url))
        page.on("pageerror", lambda error, into=errors: into.append(str(error)))
        page.goto((tmp_path / "site" / "index.html").as_uri() + "?q=none&lambda=0.2")
        assert pane_text(page, "memory") == "Odalys Wren"
        assert page.inner_text("#pane-memory .verdict") == "✓ right"
        assert "Text valid up to here" in page.inner_text("#pane-memory .pane-note")
        page.click("#pane-knn .token >> nth=0")
        assert page.locator("#drawer .neighbour").count() == 8
        page.keyboard.press("Escape")
        if page.locator(".group-button").count() > 1:
            page.click(".group-button >> nth=1")
        page.click(".example >> nth=0")
        assert pane_text(page, "knn").startswith("high moors above Tervalla and is crossed")
        page.click(".play")
        page.wait_for_selector("#pane-memory[data-state=running] .token")
        page.click(".share-button")
        assert page.is_hidden(".share-open"), "no page to open a run with"
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        page.close()
        assert {urlsplit(url).scheme for url in requests} == {"file"} and errors == []


def test_a_bundle_without_recordings_writes_no_site(tmp_path, capsys):
    assert replay.main([str(tmp_path / "site"), "--bundle", str(tmp_path)]) == 2
    assert "no readable recorded run" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
    assert replay.values(read(fake.write_bundle(tmp_path)))["first"] == BOOK


@pytest.mark.slow
def test_the_examples_on_the_about_tab_work(visit, servers):
    pytest.importorskip("gradio_client")
    page = visit("app")
    page.click("[role=tab]:has-text('About')")
    page.wait_for_function(
        "url => document.querySelector('#snippet-python')?.textContent.includes(url)",
        arg=servers["app"].url,
    )
    python = page.text_content("#snippet-python")
    process = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("lm 0.0") and "'token_id'" in process.stdout
    if sys.platform != "win32":
        curl = page.text_content("#snippet-curl")
        process = subprocess.run(["bash", "-c", curl], capture_output=True, text=True)
        assert "event: complete" in process.stdout and '"fused"' in process.stdout, process.stderr
