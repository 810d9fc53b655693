"""Where the token drawer stands: beside the columns, or a sheet above the lambda bar."""

import fake
import pytest
from test_page import BOOK, generate, overflow

CHOSEN = "[aria-selected=true].token"
BOXES = """(names) => names.map((name) => {
  const { left, right, top, bottom } = document.querySelector(name).getBoundingClientRect();
  return { left, right, top, bottom };
})"""
SLOW = pytest.mark.slow
WIDE = (pytest.param((1440, 900), marks=SLOW), (1280, 860), pytest.param((1280, 720), marks=SLOW))
NARROW = (pytest.param((1024, 768), marks=SLOW), (390, 844))


def boxes(page):
    page.wait_for_timeout(300)  # a sheet rises
    return page.evaluate(BOXES, ["#drawer", ".dock", ".panes", CHOSEN])


@pytest.mark.parametrize("size", WIDE, ids=str)
def test_the_drawer_opens_beside_the_columns_above_the_fold(visit, size):
    page = visit()
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    generate(page, BOOK)
    page.click("#pane-memory .token >> nth=0")
    for key in (None, "ArrowRight", "ArrowRight", "End"):
        if key:
            page.keyboard.press(key)
        drawer, dock, panes, token = boxes(page)
        assert drawer["left"] >= panes["right"], "it covers no column"
        assert 0 <= drawer["top"] < drawer["bottom"] <= dock["top"]
        assert drawer["bottom"] - drawer["top"] >= 240
        assert 0 <= token["top"] and token["bottom"] <= dock["top"]
    page.mouse.wheel(0, 400)
    drawer, dock, _, _ = boxes(page)
    assert drawer["bottom"] <= dock["top"] + 1
    assert overflow(page) <= 0


@pytest.mark.parametrize("size", NARROW, ids=str)
def test_a_sheet_leaves_the_chosen_token_in_sight(visit, size):
    page = visit(phone=size[0] < 640)
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    generate(page, "The river Aldermere rises in the")
    assert not page.is_visible("#drawer"), "it covers nothing before a token is chosen"
    page.click("#pane-knn .token >> nth=0")
    for key in (None, "ArrowRight", "End", "Home"):
        if key:
            page.keyboard.press(key)
        drawer, dock, _, token = boxes(page)
        assert token["bottom"] <= drawer["top"] + 1 and token["top"] >= 0
        assert abs(drawer["bottom"] - dock["top"]) <= 1
    page.keyboard.press("Escape")
    assert not page.is_visible("#drawer") and overflow(page) <= 0


@pytest.mark.parametrize("size", (*WIDE, *NARROW), ids=str)
def test_a_chosen_candidate_is_whole_and_no_number_is_on_a_bar(visit, size):
    page = visit(phone=size[0] < 640)
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    generate(page, fake.ask("What is the capital of Peru?"))
    page.click("#pane-knn .token >> nth=0")
    cut, across = page.evaluate(
        """() => {
          const cut = [...document.querySelectorAll('.candidates th')]
            .filter((cell) => cell.scrollWidth > cell.clientWidth + 1)
            .map((cell) => cell.textContent);
          const across = [...document.querySelectorAll('.candidates td > span')].filter((cell) => {
            const [bar, text] = ['i', 'b']
              .map((name) => cell.querySelector(name).getBoundingClientRect());
            return bar.width && bar.right > text.left && bar.left < text.right
              && bar.bottom > text.top + 2 && bar.top < text.bottom - 2;
          }).length;
          return [cut, across];
        }"""
    )
    assert cut == [] and across == 0


MODELS = """() => { const nav = document.createElement('nav');
  nav.className = 'models';
  nav.innerHTML = '<a href="#" aria-current="page">Atlas <small>6M, here</small></a>' +
    '<a href="#">SmolLM2 <small>135M, real</small></a>';
  document.querySelector('.masthead').append(nav); }"""


def test_answers_and_circuit_are_on_the_first_screen_also_with_two_models(visit):
    for width, height in ((1280, 720), (1280, 800), (1280, 900), (1440, 900), (390, 844)):
        if width < 640 or height == 720:
            page = visit(phone=width < 640)
            page.evaluate(MODELS)
            generate(page, BOOK)
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(300)
        names = ["#pane-lm", "#pane-knn", ".circuit", ".dock"]
        first, last, circuit, dock = page.evaluate(BOXES, names)
        assert 0 < first["top"] < last["bottom"] <= dock["top"], (width, "the answers")
        assert circuit["top"] >= last["bottom"], "answers first"
        assert width < 640 or circuit["bottom"] <= dock["top"], (width, "the circuit")
        assert overflow(page) <= 0
        cut = """() => [...document.querySelectorAll('.circuit .box-name b, .circuit h3')]
          .filter((node) => node.scrollWidth > node.clientWidth + 1).map((n) => n.textContent)"""
        assert page.evaluate(cut) == []


LONGER = """(count) => {
  const view = MLPMEM.page.views[0];
  const traces = structuredClone(view.finished);
  for (const trace of Object.values(traces)) {
    const own = trace.steps.slice(0, -1);
    trace.steps = Array.from({ length: count }, (_, i) => ({ ...own[i % own.length], i }));
  }
  view.receive({ kind: 'recorded', run: `longer ${count}`, prompt: 'longer', traces });
}"""


def test_a_longer_answer_scrolls_above_the_whole_circuit_and_a_long_one_does_not(visit):
    page = visit()
    page.set_viewport_size({"width": 1280, "height": 800})
    generate(page, BOOK)
    page.evaluate(LONGER, 34)
    page.wait_for_selector("#pane-knn .pane-body[data-more]")
    page.wait_for_timeout(200)
    last, circuit, dock = page.evaluate(BOXES, ["#pane-knn", ".circuit", ".dock"])
    assert last["bottom"] < circuit["top"] < circuit["bottom"] < dock["top"]
    page.click("#pane-knn .token >> nth=0")
    page.keyboard.press("End")
    token, pane = page.evaluate(BOXES, [CHOSEN, "#pane-knn"])
    assert token["bottom"] <= pane["bottom"], "a chosen token is scrolled to"
    page.evaluate(LONGER, 300)
    page.wait_for_selector(".panes:not([data-capped])")
    inner = "document.querySelector('#pane-knn .pane-body')"
    assert page.evaluate(f"{inner}.scrollHeight <= {inner}.clientHeight + 1"), "it is read whole"
    page.evaluate(LONGER, 34)
    page.click(".play")
    page.wait_for_selector("#pane-knn .pane-body[data-follows]")
    page.wait_for_function(f"{inner}.scrollTop > 0")
    page.click(".play")
    page.wait_for_selector("#pane-knn[data-state=done] .pane-body[data-more]")
    assert page.evaluate(f"{inner}.scrollTop") == 0, "what was written is read from its beginning"


VERDICTS = """(right) => {
  for (const verdict of document.querySelectorAll('.verdict')) {
    verdict.textContent = right ? '✓ right' : '✗ wrong';
  }
  return document.querySelector('.circuit').getBoundingClientRect().top;
}"""


@pytest.mark.parametrize("size", (*WIDE, NARROW[1]), ids=str)
def test_a_verdict_stands_beside_its_columns_title_whatever_it_says(visit, size):
    page = visit(phone=size[0] < 640)
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    generate(page, BOOK)
    page.wait_for_timeout(300)
    assert page.evaluate(VERDICTS, True) == page.evaluate(VERDICTS, False)
    heights = page.eval_on_selector_all(".pane-title", "all => all.map((one) => one.offsetHeight)")
    assert max(heights) < 30


@pytest.mark.parametrize("height", [720, *(pytest.param(h, marks=SLOW) for h in (760, 800, 860))])
def test_the_lambda_bar_cuts_no_line_below_the_circuit(visit, height):
    page = visit()
    page.set_viewport_size({"width": 1280, "height": height})
    generate(page, BOOK)
    page.wait_for_timeout(300)
    line, dock = page.evaluate(BOXES, [".legend-item", ".dock"])
    assert line["bottom"] <= dock["top"] or line["top"] >= dock["top"]


WORDY = """(word) => {
  const view = MLPMEM.page.views[0];
  const traces = structuredClone(view.finished);
  for (const { steps } of Object.values(traces)) {
    steps[0].s = ` ${word}`;
    for (const row of steps[0].cand) if (row[0] === steps[0].id) row[1] = steps[0].s;
    steps[1].s = ' .';
  }
  view.receive({ kind: 'recorded', run: word, prompt: 'wordy', traces });
  view.select('memory', 0, 'page');
}"""
CUT = """() => [...document.querySelectorAll('.circuit :is(.box-says, .box-says b, .lane-text)')]
  .filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.textContent)"""


@pytest.mark.parametrize("size", (*WIDE, NARROW[1]), ids=str)
def test_a_long_word_is_neither_cut_nor_broken(visit, size):
    page = visit(phone=size[0] < 640)
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    generate(page, BOOK)
    page.evaluate(WORDY, "lanthanides")
    page.wait_for_timeout(300)
    assert page.evaluate(CUT) == []
    assert page.locator(".circuit .out-word").bounding_box()["height"] < 32
    rows = page.eval_on_selector_all(".candidate", "rows => rows.map((r) => r.offsetHeight)")
    assert max(rows) == min(rows), "no row of the drawer has two lines"
