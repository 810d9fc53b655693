"""Inspect, neighbours, corpus and a visitor's own text in a browser, with the fake model."""

import gzip
import json

import fake
import pytest
from test_page import BOOK, generate, overflow, pane_text, rows_of, set_lambda, traces_of

TEXT = "the salt coast has two towns and a clerk who counts too well by far"
FILE = "[role=tabpanel] input[type=file]"
SCORED = "#inspect-pane-memory[data-state=done]"


def tab(page, name):
    page.click(f"[role=tab]:has-text('{name}')")
    page.wait_for_timeout(400)  # Gradio creates a tab when it is first opened


def inspect(page, text=TEXT):
    tab(page, "Inspect")
    page.fill("#inspect-text textarea", text)
    page.click("#inspect-score")
    page.wait_for_selector(SCORED)


def trace_of(text=TEXT):
    *_, done = fake.FakeModel(pace=0).inspect(text)
    return json.loads(done.values["memory"].to_json())


def test_a_scored_text_is_mixed_again_without_a_request(visit):
    page = visit()
    inspect(page)
    steps = trace_of()["steps"]
    assert page.locator(f"{SCORED} .token").count() == len(steps)
    page.wait_for_timeout(1500)  # the status polls every 0.7 s until it has settled
    before = len(page.seen.requests)
    for lmbda in (0.2, 0.9):
        set_lambda(page, str(lmbda))
        share = page.eval_on_selector_all(
            f"{SCORED} .token", "ts => ts.map(t => Number(t.style.getPropertyValue('--share')))"
        )
        moves = page.eval_on_selector_all(f"{SCORED} .token", "ts => ts.map(t => t.dataset.move)")
        for step, got, move in zip(steps, share, moves, strict=True):
            p = step["p"]
            fused = (1 - lmbda) * p["lm"] + lmbda * p["memory"]
            assert got == pytest.approx(lmbda * p["memory"] / fused, abs=0.006)
            assert move == "same" or (move == "up") == (p["memory"] > p["lm"])
    assert {"up", "down"} <= set(moves)
    assert page.locator(f"{SCORED} .token[data-marks*=flips]").count() > 0
    assert page.locator(f"{SCORED} .token[data-marks*=stale]").count() == 0
    page.click(".inspect-head .group-button:has-text('datastore')")
    assert page.locator("#inspect-pane-knn .token").count() == len(steps)
    assert page.seen.requests[before:] == []
    assert page.locator(".nll-row:visible").count() == 4
    sentence = page.inner_text(".inspect-sentence")
    page.click(".inspect-head .pane-tool")
    assert page.inner_text(".inspect-sentence") != sentence


@pytest.mark.parametrize("phone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_part_covers_another_with_or_without_the_drawer(visit, phone):
    page = visit(phone=phone)
    inspect(page)
    for chosen in (False, True):
        if chosen:
            page.click(f"{SCORED} .token >> nth=0")
        tops = page.evaluate("""() => ['.panes', '.legend', '.inspect-more'].map((part) => {
          const box = document.querySelector(`#inspect-view ${part}`).getBoundingClientRect();
          return [box.top, box.bottom];
        })""")
        assert all(a[1] <= b[0] for a, b in zip(tops, tops[1:], strict=False)), tops
    assert "B" not in page.locator("[data-kind=documents] small").all_inner_texts()


@pytest.mark.slow
def test_gains_and_losses_jump_to_their_tokens(visit):
    page = visit()
    inspect(page)
    for kind in ("gains", "losses"):
        button = page.locator(f"[data-kind={kind}] .jump >> nth=0")
        at = button.get_attribute("data-index")
        button.click()
        chosen = page.locator(f"{SCORED} .token[aria-selected=true]")
        assert chosen.get_attribute("data-index") == at
        assert chosen.get_attribute("data-move") == ("up" if kind == "gains" else "down")
        assert page.is_visible("#inspect-view #drawer")


@pytest.mark.slow
def test_an_answer_of_compare_can_be_inspected(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-memory .pane-tool")
    page.wait_for_selector(SCORED)
    assert page.input_value("#inspect-text textarea").endswith("Answer: Odalys Wren")
    assert "Wren" in page.inner_text(f"{SCORED} .strip")
    assert not page.is_checked("#inspect-special input")
    answer = traces_of(BOOK)["memory"]
    ids = [*answer["prompt_ids"], *(step["id"] for step in answer["steps"][:-1])]  # not its end
    assert page.evaluate("MLPMEM.page.brought.ids") == ids
    scored = "MLPMEM.page.activeView().panes.get('memory').trace?.prompt"
    assert page.evaluate(scored) == f"{len(ids)} ids"
    page.fill("#inspect-text textarea", TEXT)
    page.click("#inspect-score")
    page.wait_for_function(f"{scored} === 'First'")  # the ids are of another text
    tab(page, "Compare")
    page.evaluate("MLPMEM.page.views[0].head.about.chat = true")
    page.click("#pane-memory .pane-tool")
    page.wait_for_selector("#inspect-special input:checked", state="attached")


@pytest.mark.slow
def test_inspect_shows_progress_stops_and_refuses_invalid_texts(visit):
    page = visit()
    tab(page, "Inspect")
    page.fill("#inspect-text textarea", "slow " * 60)
    page.click("#inspect-score")
    page.wait_for_selector("#inspect-view .badge:has-text('of 60 tokens')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#inspect-view .badge:has-text('stopped')")
    page.wait_for_timeout(500)
    for text, word in (("  ", "empty"), ("x " * 600, "at most 512"), ("x" * 9000, "9,000")):
        page.fill("#inspect-text textarea", text)
        page.click("#inspect-score")
        page.wait_for_selector(f"#inspect-view .alert:has-text('{word}')")
    inspect(page)


@pytest.mark.slow
def test_a_typed_token_is_probed_at_the_selected_position(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-memory .token[data-index='1']")
    page.fill(".probe-input", "Jena")
    page.press(".probe-input", "Enter")
    page.wait_for_selector(".probe-table tr")
    set_lambda(page, "0.4")
    script = "cells => cells.map(cell => cell.innerText)"
    cells = page.eval_on_selector_all(".probe-table tr:first-child td", script)
    assert cells == ["12.5", "50.0", "25.0", "27.5"]
    assert page.locator(".probe-table tr").count() == 2
    page.keyboard.press("Escape")


@pytest.mark.slow
def test_unticking_a_neighbour_recomputes_datastore_and_mix(visit):
    page = visit()
    generate(page, BOOK)
    page.wait_for_timeout(1500)  # the status polls every 0.7 s until it has settled
    page.click("#pane-knn .token[data-index='0']")
    before, requests = rows_of(page), len(page.seen.requests)
    step = traces_of(BOOK)["knn"]["steps"][0]
    page.click(".neighbour-use >> nth=0")
    page.click(".neighbour-use >> nth=6")
    ids = {c[0] for c in step["cand"]}
    mass = dict(step["far"])
    for i, row in enumerate(step["nn"]):
        if i not in (0, 6):
            key = row[5] if row[5] in ids else -1
            mass[key] = mass.get(key, 0.0) + row[8]
    total = sum(mass.values())
    after = rows_of(page)
    assert after != before
    for token, lm, _, knn, fused in after:
        assert knn == pytest.approx(mass.get(token, 0) / total, rel=1e-6, abs=1e-12)
        assert fused == pytest.approx(0.49 * lm + 0.51 * knn, rel=1e-6)
    assert "Without 2 neighbours" in page.inner_text(".left-out")
    for i in (1, 2, 3, 4, 5, 7):
        page.click(f".neighbour-use >> nth={i}")
    page.click(".neighbour-use >> nth=0")
    page.click(".neighbour-use >> nth=0")
    for i in range(8):
        page.click(f".neighbour-use >> nth={i}")
    assert rows_of(page) == before and page.inner_text(".left-out") == ""
    assert page.seen.requests[requests:] == []


@pytest.mark.slow
def test_removing_neighbours_is_exact_with_the_unshown_mass(visit):
    page = visit()
    step = {"id": 7, "p": {"lm": 0.5, "knn": 0.6}, "rest": {"lm": 0.1, "knn": 0.1},
            "cand": [[7, "a", 0.5, None, 0.6], [8, "b", 0.4, None, 0.3]],
            "far": [[7, 0.1], [-1, 0.1]],
            "nn": [[1, "t", "B", "", "a", 7, "", 1.0, 0.5],
                   [2, "t", "B", "", "b", 8, "", 1.0, 0.3]]}  # fmt: skip
    script = "([step, left]) => MLPMEM.without(step, new Set(left))"
    got = page.evaluate(script, [step, [0]])
    assert got["p"]["knn"] == pytest.approx(0.2)
    assert [c[4] for c in got["cand"]] == pytest.approx([0.2, 0.6])
    assert got["rest"]["knn"] == pytest.approx(0.2)
    none = page.evaluate(script, [{**step, "far": []}, [0, 1]])
    assert (none["p"]["knn"], none["rest"]["knn"]) == (0.5, 0.1), "it repeats the decoder"


@pytest.mark.slow
def test_a_document_marks_its_tokens_and_a_second_click_unmarks_them(visit):
    page = visit()
    inspect(page)
    page.click("[data-kind=documents] .jump >> nth=0")
    assert page.locator(f"{SCORED} .token[data-cited]").count() == len(trace_of()["steps"])
    page.click("[data-kind=documents] .jump >> nth=0")
    assert page.locator(".token[data-cited]").count() == 0
    page.click(f"{SCORED} .token >> nth=2")
    page.click("#drawer .neighbour-title >> nth=7")
    assert "Harrow" in page.inner_text("#drawer .cited")
    assert page.locator("[data-kind=documents] .jump[aria-pressed=true]").count() == 1


def test_the_corpus_can_be_searched_and_read(visit):
    page = visit()
    tab(page, "Corpus")
    page.fill("#corpus-query :is(input, textarea)", "salt coast")
    page.press("#corpus-query :is(input, textarea)", "Enter")
    page.wait_for_selector(".hit")
    assert page.locator(".hit").count() == 2
    page.click(".hit:has-text('Ledger')")
    page.wait_for_selector(".document h2:has-text('The Salt Ledger')")
    assert page.locator(".document p").count() == 2
    marks = page.locator(".document mark").all_inner_texts()
    assert {mark.lower() for mark in marks} <= {"salt", "coast"} and marks
    page.fill("#corpus-query :is(input, textarea)", "SÁLT")
    page.click("#corpus-search")
    page.wait_for_selector(".hit mark:has-text('Salt')")
    page.click(".hit:has-text('Ledger')")
    page.wait_for_selector(".document mark:has-text('Salt')")
    page.fill("#corpus-query :is(input, textarea)", "markup")
    page.click("#corpus-search")
    page.wait_for_selector(".hit:has-text('Markup')")
    page.click(".hit >> nth=0")
    page.wait_for_selector(".document h2:has-text('onerror')")
    assert page.locator(".corpus-host img").count() == 0
    assert page.evaluate("window.hacked") is None
    page.fill("#corpus-query :is(input, textarea)", " ")
    page.click("#corpus-search")
    page.wait_for_selector("#corpus-view .alert:has-text('empty')")


BLANK = """() => {
  const box = (name) => document.querySelector(`#inspect-view ${name}`).getBoundingClientRect();
  const [legend, lines, slot] = [box('.legend'), box('.lines'), box('.drawer-slot')];
  return { blank: lines.top - legend.bottom, beside: lines.right <= slot.left,
    below: slot.bottom <= lines.top };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1180, 1280, 1440])
def test_no_blank_area_is_under_the_legend_beside_the_drawer(visit, width):
    page = visit()
    page.set_viewport_size({"width": width, "height": 900})
    inspect(page)
    page.click(f"{SCORED} .token >> nth=1")
    page.wait_for_selector("#inspect-view .drawer-slot[data-open]")
    opened = page.evaluate(BLANK)
    assert opened["blank"] < 60 and opened["beside"], opened
    assert overflow(page) <= 0
    page.keyboard.press("Escape")
    page.wait_for_selector("#inspect-view .drawer-slot:not([data-open])")
    closed = page.evaluate(BLANK)
    assert closed["blank"] < 100 and not closed["beside"], "the curves have the whole width"
    assert closed["below"], "they do not cover the hint"


@pytest.mark.slow
def test_no_blank_area_is_under_the_legend_on_a_phone(visit):
    page = visit(phone=True)
    inspect(page)
    page.tap(f"{SCORED} .token >> nth=1")
    page.wait_for_selector("#drawer:visible")
    assert page.evaluate(BLANK)["blank"] < 60


def own_text(page, text="zorblat is the capital of the moon"):
    tab(page, "Corpus")
    page.fill("#own-text textarea", text)
    page.click("#own-make")
    page.wait_for_selector("#own-view .own-line:has-text('kept for you only')")


@pytest.mark.slow
def test_a_neighbours_document_opens_on_the_corpus_tab(visit):
    page = visit()
    generate(page, fake.ask("Who wrote The Salt Ledger?"))
    page.wait_for_selector("#pane-knn[data-state=done]")
    page.click("#pane-knn .token >> nth=0")
    page.click(".neighbour-read >> nth=0")
    page.wait_for_selector("#corpus-view .document h2:has-text('The Salt Ledger')")
    assert page.locator("#corpus-view .document p").count() == 2
    page.evaluate("MLPMEM.page.read({title: 'My notes', group: 'text', left: '', target: 'x'})")
    page.wait_for_selector("#corpus-view .alert:has-text('texts of your own are not listed')")


def test_an_own_text_is_searched_for_its_visitor_only_until_it_is_deleted(visit):
    page, other = visit(), visit()
    own_text(page)
    assert "7 tokens" in page.inner_text(".own-line")
    assert "it was trained earlier" in page.inner_text(".own-line")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "knn") == "from your own"
    assert "your own text" in page.inner_text("#pane-knn .pane-caption")
    page.click("#pane-knn .token >> nth=0")
    assert page.locator(".neighbour-read").count() == 0, (
        "the Corpus tab shows the page's corpus only"
    )
    assert page.evaluate("MLPMEM.recordOf(MLPMEM.page.activeView()).own") is True
    page.click(".share-button")
    page.click(".share-copy")
    page.wait_for_selector(":is(.share-note, .share-said):has-text('own corpus: save the run')")
    page.keyboard.press("Escape")
    gates = "MLPMEM.page.status.auto = ['memory', 'knn']; MLPMEM.page.status.gated = {}"
    page.evaluate(gates.format("true"))
    assert page.evaluate("MLPMEM.canRoute('knn', 'own') && !MLPMEM.canRoute('mixed', 'own')")
    page.evaluate(gates.format("false") + "; MLPMEM.page.bar.repaint()")
    view = "MLPMEM.page.activeView()"
    for column in ("memory", "lm"):
        page.evaluate(f"{view}.panes.get('{column}').trace = null")
    assert page.evaluate(f"{view}.isOff('auto')") is False, "no router is for it"
    assert page.evaluate("MLPMEM.canRoute('knn')") is True
    page.click("#pane-knn .token >> nth=0")
    page.click("#lambda-auto")
    assert page.get_attribute("#lambda-auto", "aria-checked") == "true"
    own_lambda = page.evaluate(f"{view}.panes.get('knn').trace.lmbda")
    assert page.inner_text(".lambda-value") == f"{own_lambda:.2f}", "it keeps its own lambda"
    page.click("#lambda-auto")
    generate(other, BOOK)
    assert pane_text(other, "knn") == "Odalys Wren"
    assert not other.is_visible("#store-choice")
    tab(page, "Chat")
    page.click("#chat-source button:has-text('memory')")
    page.click("#chat-source button:has-text('datastore')")
    page.click("#chat-source button:has-text('memory')")
    page.fill("#chat-input textarea", "Who wrote The Salt Ledger?")
    page.press("#chat-input textarea", "Enter")
    page.wait_for_selector("#chat .answer[data-system=knn] .prose:has-text('from your own')")
    inspect(page)
    assert len(page.evaluate("MLPMEM.page.activeView().own")) == 6
    page.click("#store-choice label:has-text('The atlas')")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "knn") == "Odalys Wren"
    page.click("#store-choice label:has-text('Your text')")
    tab(page, "Corpus")
    page.click("#own-delete")
    page.wait_for_selector(".own-line:has-text('Deleted')")
    page.wait_for_selector("#store-choice", state="hidden")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "knn") == "Odalys Wren"


@pytest.mark.slow
def test_building_a_datastore_can_be_cancelled(visit):
    page = visit()
    tab(page, "Corpus")
    for stored in (False, True):
        if stored:
            own_text(page)
        page.fill("#own-text textarea", "slow to key")
        page.click("#own-make")
        page.wait_for_selector(".own-line:has-text('Computing keys')")
        assert not page.is_visible("#own-delete")
        page.click("#own-stop")
        page.wait_for_selector(".own-line:has-text('kept')")
        line = page.inner_text(".own-line")
        assert ("7 tokens" in line) is stored, "an earlier text stays"
        assert page.is_visible("#own-make") and page.is_visible("#own-delete") is stored
        assert not page.is_visible(".own-bar") and not page.is_visible("#own-stop")


def test_uploads_are_read_or_refused_with_a_message(visit, tmp_path):
    page = visit()
    tab(page, "Corpus")
    hostile = b'{"title": "' + fake.HOSTILE.encode() + b'", "text": "x y z"}\n{"text": "w"}'
    files = {"a.jsonl": hostile, "b.txt": b"\xff\xfe\x00", "c.txt": b"a\x00b",
             "d.txt": b"x " * 1_100_000, "e.jsonl": b"[1]"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    words = {"b.txt": "UTF-8", "c.txt": "NUL", "d.txt": "at most 2 MB", "e.jsonl": "line 1"}
    for name, word in words.items():
        page.set_input_files(FILE, tmp_path / name)
        page.wait_for_selector(f"#own-view .alert:has-text('{word}')")
    page.set_input_files(FILE, tmp_path / "a.jsonl")
    page.wait_for_selector(".own-line:has-text('2 documents, 4 tokens')")
    (tmp_path / "B.JSONL.gz").write_bytes(gzip.compress(hostile.upper().replace(b"TEXT", b"text")))
    page.set_input_files(FILE, tmp_path / "B.JSONL.gz")
    page.wait_for_selector("#own-view .own-line:has-text('B.JSONL.gz')")


@pytest.mark.slow
def test_inspect_and_corpus_fit_a_phone(visit):
    page = visit(phone=True)
    inspect(page)
    assert overflow(page) <= 0
    page.tap(f"{SCORED} .token >> nth=3")
    assert overflow(page) <= 0
    small = page.evaluate(
        """() => [...document.querySelectorAll('#inspect-view button')]
          .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 43.5)
          .map((b) => b.textContent)"""
    )
    assert small == []
    page.keyboard.press("Escape")
    own_text(page)
    page.fill("#corpus-query :is(input, textarea)", "salt")
    page.click("#corpus-search")
    page.wait_for_selector(".hit")
    assert overflow(page) <= 0


@pytest.mark.slow
def test_memory_and_decoder_are_shown_before_the_datastore_has_searched(visit):
    page = visit()
    tab(page, "Inspect")
    page.fill("#inspect-text textarea", "late " * 40)
    page.click("#inspect-score")
    page.wait_for_selector(".inspect-search:has-text('the datastore searches')")
    columns = "document.querySelector('#inspect-view .panes').getBoundingClientRect().top"
    top = page.evaluate(columns)
    assert page.locator("#inspect-pane-memory .token").count() == 40
    assert page.locator(".nll-row:visible").count() == 3, "decoder, memory, mix"
    page.wait_for_selector(".inspect-head .group-button:has-text('datastore'):visible")
    assert page.locator(".nll-row:visible").count() == 4
    assert page.evaluate(columns) == top, "the text stays where it is when the search ends"


@pytest.mark.slow
def test_the_first_word_is_shown_and_a_word_has_two_marks(visit):
    page = visit()
    inspect(page)
    assert page.inner_text(f"{SCORED} .unscored") == "First"
    marks = page.eval_on_selector_all(
        f"{SCORED} .token",
        """tokens => tokens.map((t) => [getComputedStyle(t, '::before').content !== 'none',
          t.ariaSelected !== 'true' && getComputedStyle(t).boxShadow !== 'none'])""",
    )
    assert not any(map(any, marks)), "no sign above a word and no box around it"
    assert page.inner_text(".curve-best") == "of your text", "Inspect's sentence has the optimum"
