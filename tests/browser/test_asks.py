"""Scrubbing lambda, branches, surprises, completion of names and the tally, in a browser."""

import fake
import pytest
from test_page import BOOK, generate, pane_text, rows_of, run, set_lambda


def scrub(page, system="memory"):
    page.click(f"#pane-{system} .scrub button")
    page.wait_for_selector(f"#pane-{system} .scrub-ticks:not([hidden])")


def branch(page, system, index, text):
    page.click(f"#pane-{system} .token[data-index='{index}']")
    before = page.get_attribute("#compare-view .view-host", "data-run")
    page.click(f"#drawer .branch:has-text('{text}')")
    page.wait_for_function(
        """([run, system]) => document.querySelector('#compare-view .view-host').dataset.run !== run
          && document.querySelector(`#pane-${system}`).dataset.state === 'done'""",
        arg=[before, system],
    )


@pytest.mark.slow
def test_the_slider_selects_scrubbed_texts_without_a_request(visit):
    page = visit()
    generate(page, BOOK)
    scrub(page)
    line = page.inner_text("#pane-memory .scrub-line")
    assert "11 texts, 2 different, in " in line and "× the time of one" in line
    assert pane_text(page, "memory") == "Odalys Wren"
    before = len(page.seen.requests)
    set_lambda(page, "0.13")
    assert pane_text(page, "memory") == "Martin Holt"
    assert page.inner_text("#pane-memory .verdict") == "✗ wrong"
    line = page.inner_text("#pane-memory .scrub-line")
    assert line == "Written at λ 0.1, the nearest of 11 · text 1 of 2 · 3 tokens changed"
    changed = page.locator("#pane-memory .token[data-marks*=changed]")
    assert changed.all_inner_texts() == ["Mar", "tin", "Holt"]
    assert page.locator("#pane-memory .scrub-ticks [data-now]").count() == 1
    assert all(f == pytest.approx(0.87 * lm + 0.13 * m) for _, lm, m, _, f in rows_of(page))
    set_lambda(page, "0.86")
    assert pane_text(page, "memory") == "Odalys Wren"
    assert page.locator("#pane-memory .token[data-marks*=changed]").count() == 0
    page.click(".reset")
    assert "11 texts" in page.inner_text("#pane-memory .scrub-line")
    assert page.seen.requests[before:] == []
    generate(page, BOOK)
    assert page.is_visible("#pane-memory .scrub button"), "a new run is not scrubbed"


@pytest.mark.parametrize("height", [560, 640, 720, 800])
def test_a_scrubbed_column_shows_its_line_on_a_page_of_any_height(visit, height):
    page = visit()
    page.set_viewport_size({"width": 1280, "height": height})
    generate(page, BOOK)
    page.eval_on_selector("#pane-memory .scrub button", "button => button.click()")
    page.wait_for_selector("#pane-memory .scrub-ticks:not([hidden])")
    page.wait_for_timeout(200)  # the columns are fitted in the next frame
    assert "11 texts" in page.inner_text("#pane-memory .scrub-line")
    assert page.is_visible("#pane-memory .scrub-ticks")


@pytest.mark.slow
def test_stopping_a_scrub_keeps_the_run(visit):
    page = visit()
    page.fill("#prompt textarea", "slow")
    page.click("#options > button")
    page.get_by_label("Max new tokens").fill("8")
    run(page, lambda: page.click("#generate"))
    page.click("#pane-memory .scrub button")
    page.wait_for_selector(".badge:has-text('scrubbing')")
    page.keyboard.press("Escape")
    page.wait_for_selector("body:not([data-running])")
    assert page.inner_text("#compare-view .badge") == "live"
    assert page.get_attribute("#pane-memory", "data-state") == "done"
    scrub(page)


def test_a_branch_continues_a_candidate_and_the_tree_restores_texts(visit):
    page = visit()
    generate(page, BOOK)
    before = pane_text(page, "knn")
    branch(page, "memory", 1, "Lima")
    assert pane_text(page, "memory") == "Od Lima by hand"
    assert pane_text(page, "knn") == before, "the other columns stay"
    assert "You chose “Lima” at token 2" in page.inner_text("#pane-memory .pane-note")
    assert page.inner_text("#drawer .drawer-title").startswith("Token 2 of 5")
    nodes = page.locator(".tree-node")
    assert nodes.count() == 2 and "“Lima” at token 2" in nodes.nth(1).inner_text()
    assert "λ 0.55" in nodes.nth(1).inner_text()
    branch(page, "memory", 2, "Harrow")
    assert pane_text(page, "memory") == "Od Lima Harrow by hand"
    page.click(".tree button:has-text('Undo')")
    assert pane_text(page, "memory") == "Od Lima by hand"
    page.keyboard.press("Enter")
    assert pane_text(page, "memory") == "Odalys Wren"
    assert page.inner_text("#pane-memory .verdict") == "✓ right"
    page.click(".tree button:has-text('Redo')")
    page.click(".tree-node >> nth=2")
    assert pane_text(page, "memory") == "Od Lima Harrow by hand"
    assert page.get_attribute(".tree-node >> nth=2", "aria-current") == "true"
    scrub(page)
    set_lambda(page, "0.9")
    assert pane_text(page, "memory") == "Od Lima Harrow by hand", (
        "a scrubbed branch keeps its tokens"
    )
    page.click(".tree-node >> nth=0")
    assert pane_text(page, "memory") == "Odalys Wren"


@pytest.mark.slow
def test_keys_select_and_branch_candidates(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-knn .token[data-index='0']")
    page.focus("#drawer .branch >> nth=0")
    page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert name == page.get_attribute("#drawer .branch >> nth=1", "aria-label")
    page.keyboard.press("Enter")
    page.wait_for_selector("#pane-knn[data-state=done] .token[data-marks*=given]")
    chosen = page.inner_text("#pane-knn .token >> nth=0").strip()
    assert f"“{chosen}”" in name
    assert page.evaluate("document.activeElement.dataset.index") == "0"


@pytest.mark.slow
def test_a_surprise_runs_and_its_answer_is_shown_at_the_end(visit):
    page = visit()
    page.evaluate("localStorage.clear()")
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    run(page, lambda: page.click(".surprise"))
    assert page.inner_text(".truth").startswith("right answer: ")
    assert "in a wording never trained on" in page.inner_text(".run-head > .group-tag")
    tally = "#compare-view .tally-text"
    assert page.inner_text(tally) == (
        "Right so far, of 1 question: decoder 0 · memory 1 · datastore 1"
    )
    generate(page, fake.ask("What is the symbol of tungsten?"))
    expected = "Right so far, of 2 questions: decoder 1 · memory 1 · datastore 2"
    assert page.inner_text(tally) == expected
    generate(page, fake.ask("What is the symbol of tungsten?"))
    assert page.inner_text(tally) == expected, "a question counts once"
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    assert page.inner_text(tally) == expected
    page.click("#compare-view .tally button")
    assert not page.is_visible(tally)


def test_the_right_answer_is_hidden_until_the_end(visit):
    page = visit()
    page.evaluate(
        """(prompt) => {
          const view = MLPMEM.page.views.find((v) => v.prefix === 'pane-');
          view.receive({ kind: 'begin', run: 'x', prompt, answer: 'Lima', traces: {} });
        }""",
        BOOK,
    )
    assert page.inner_text("#compare-view .truth") == ""
    page.evaluate("MLPMEM.page.views[0].halt()")
    assert page.inner_text("#compare-view .truth") == "right answer: Lima"


@pytest.mark.slow
def test_keys_complete_names_without_a_request(visit):
    page = visit()
    page.wait_for_timeout(1500)  # the status polls every 0.7 s until it has settled
    before = len(page.seen.requests)
    page.fill("#prompt textarea", "")
    page.type("#prompt textarea", "What is the capital of Per")
    options = page.locator(".names [role=option]")
    assert [t.split("\n")[0] for t in options.all_inner_texts()] == ["Peru", "Perth", "Pereñá"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#prompt textarea", "aria-activedescendant") == "name-1"
    page.keyboard.press("Enter")
    assert page.input_value("#prompt textarea") == "What is the capital of Perth"
    assert not page.is_visible(".names")
    assert page.get_attribute("body", "data-running") is None, (
        "Enter completes the name and starts no run"
    )
    page.type("#prompt textarea", " and The Salt L")
    page.keyboard.press("Escape")
    assert not page.is_visible(".names")
    page.fill("#prompt textarea", "Odd <i")
    assert page.inner_text(".names") == f"Odd {fake.HOSTILE}\nB"
    assert page.seen.requests[before:] == []


@pytest.mark.slow
def test_a_prompt_with_a_completed_name_can_be_run_at_once(visit):
    page = visit()
    page.fill("#prompt textarea", "Who wrote The Salt L")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("?")
    run(page, lambda: page.keyboard.press("Enter"))
    assert pane_text(page, "memory") == "Odalys Wren"


TWO_BRANCHES = """() => {
  const [view] = MLPMEM.page.views;
  const [one, other] = ['memory', 'knn'].map((system) => view.panes.get(system));
  const row = one.trace.steps[1].cand.find((candidate) => candidate[1].includes('Lima'));
  const candidate = { id: row[0], text: row[1] };
  view.tree.branch(one, 1, candidate);
  view.tree.branch(other, 1, candidate);
}"""


@pytest.mark.slow
def test_a_second_branch_during_the_first_is_ignored(visit):
    page = visit()
    generate(page, BOOK)
    before, run_before = (
        pane_text(page, "knn"),
        page.get_attribute("#compare-view .view-host", "data-run"),
    )
    page.evaluate(TWO_BRANCHES)
    page.wait_for_function(
        "(run) => document.querySelector('#compare-view .view-host').dataset.run !== run"
        " && document.querySelector('#pane-memory').dataset.state === 'done'",
        arg=run_before,
    )
    assert pane_text(page, "memory") == "Od Lima by hand" and pane_text(page, "knn") == before
    assert [n.split("\n")[0] for n in page.locator(".tree-node .tree-what").all_inner_texts()] == [
        "With memory", "“Lima” at token 2",
    ]  # fmt: skip


@pytest.mark.slow
def test_generating_again_uses_the_prompt_on_screen(visit):
    page = visit()
    generate(page, BOOK)
    page.fill("#prompt textarea", "Something else")
    set_lambda(page, "0.13")
    run(page, lambda: page.click(".again"))
    assert page.inner_text(".asked") == BOOK and page.input_value("#prompt textarea") == BOOK


@pytest.mark.slow
def test_keys_ignore_a_run_on_another_tab(visit):
    page = visit()
    generate(page, BOOK)
    run_before = page.get_attribute("#compare-view .view-host", "data-run")
    page.click("[role=tab]:has-text('Corpus')")
    page.fill("#own-text textarea", "a text")
    page.press("#own-text textarea", "Control+Enter")
    page.click("#own-view")
    page.keyboard.press("]")
    page.wait_for_timeout(300)
    assert page.get_attribute("body", "data-running") is None
    assert page.evaluate("MLPMEM.page.lambda") is None
    page.click("[role=tab]:has-text('Compare')")
    assert page.get_attribute("#compare-view .view-host", "data-run") == run_before


@pytest.mark.slow
def test_branching_and_scrubbing_fit_a_phone(visit):
    page = visit(phone=True)
    generate(page, BOOK)
    page.tap("#compare-view .details-button")
    scrub(page)
    page.tap("#pane-memory .token[data-index='1']")
    page.tap("#drawer .branch:has-text('Lima')")
    page.wait_for_selector(".tree-node >> nth=1")
    overflow = "document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(overflow) <= 0
    small = """[...document.querySelectorAll('.scrub button, .branch, .tree button, .surprise')]
      .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 43.5).length"""
    assert page.evaluate(small) == 0


def test_a_chip_shows_the_trained_form_and_repeats_the_run_as_typed(visit):
    page = visit()
    generate(page, "Where is  Harrow?")
    chip = page.locator("#compare-view .form-chip")
    assert chip.is_visible() and "Where is  Harrow?" in chip.get_attribute("title")
    assert page.inner_text("#compare-view .asked") == "Question: Where is Harrow? Answer:"
    before = page.get_attribute("#compare-view .view-host", "data-run")
    chip.click()
    page.wait_for_function(
        "(run) => document.querySelector('#compare-view .view-host').dataset.run !== run"
        " && document.querySelector('#pane-memory').dataset.state === 'done'",
        arg=before,
    )
    prompt = page.evaluate("document.querySelector('#compare-view .asked').textContent")
    assert prompt == "Where is  Harrow?" and not chip.is_visible()
    generate(page, "Harrow is\n")
    assert not chip.is_visible()
    assert page.evaluate("document.querySelector('#compare-view .asked').textContent") == (
        "Harrow is\n"
    )
