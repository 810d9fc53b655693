"""The page at load, while it runs and when it is done: nothing raw, false or jumping."""

import fake
import pytest
from test_page import BOOK, generate

HEIGHTS = "() => [...document.querySelectorAll('#compare-view .pane')].map((p) => p.offsetHeight)"
WATCH = """() => {
  window.seen = { raw: 0, heights: new Set() };
  const look = () => {
    const view = document.querySelector('#compare-view');
    for (const node of view.querySelectorAll('.token, .candidates th')) {
      if (/<\\/s>/.test(node.textContent + node.getAttribute('aria-label'))) window.seen.raw += 1;
    }
    window.seen.heights.add(document.querySelector('#pane-memory').offsetHeight);
  };
  new MutationObserver(look).observe(document.querySelector('#compare-view'),
    { subtree: true, childList: true, attributes: true });
}"""


def test_no_raw_end_token_and_no_jump_between_running_and_done(visit):
    page = visit()
    generate(page, BOOK)
    page.wait_for_timeout(300)
    before = page.evaluate(HEIGHTS)
    page.evaluate(WATCH)
    page.fill("#prompt textarea", fake.ask("In which town was Ilka Brandt born?"))
    page.click("#generate")
    page.wait_for_selector("#pane-memory[data-state=running], #pane-memory[data-state=done]")
    page.wait_for_selector("#pane-memory .token[data-end]")
    page.wait_for_function("document.querySelector('#pane-memory').dataset.state === 'done'")
    page.wait_for_timeout(300)
    assert page.evaluate(HEIGHTS) == before
    seen = page.evaluate("({ raw: window.seen.raw, heights: [...window.seen.heights] })")
    assert seen["raw"] == 0 and len(seen["heights"]) == 1
    label = page.get_attribute("#pane-memory .token[data-end]", "aria-label")
    assert label.startswith("“end”, ")


@pytest.mark.slow
def test_a_linked_question_is_the_only_one_shown(visit):
    page = visit(query="q=Question%3A%20What%20is%20the%20capital%20of%20Peru%3F%20Answer%3A")
    page.wait_for_selector("#pane-memory[data-state=done]")
    assert page.inner_text(".asked") == fake.ask("What is the capital of Peru?")
    page.add_init_script(
        """new MutationObserver(() => {
          const text = document.querySelector('#compare-view .asked')?.textContent;
          window.asked ||= [];
          if (text && !window.asked.includes(text)) window.asked.push(text);
        }).observe(document, { subtree: true, childList: true, characterData: true });"""
    )
    page.reload()
    page.wait_for_selector("#pane-memory[data-state=done]")
    assert page.evaluate("window.asked") == [fake.ask("What is the capital of Peru?")]


@pytest.mark.slow
def test_the_state_is_never_called_loading_after_it_is_ready(visit):
    page = visit()
    page.add_init_script(
        """new MutationObserver(() => {
          const chip = document.querySelector('#status .chip')?.textContent;
          window.chips ||= [];
          if (chip && !window.chips.includes(chip)) window.chips.push(chip);
        }).observe(document, { subtree: true, childList: true, characterData: true });"""
    )
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    assert page.evaluate("window.chips") == ["connecting", "ready"]


@pytest.mark.slow
def test_the_slider_stays_where_it_is_when_auto_arrives(visit):
    page = visit()
    at = lambda: page.locator("#lambda").bounding_box()  # noqa: E731
    with_auto = at()
    page.evaluate("MLPMEM.page.status.auto = []; MLPMEM.page.emit('status', MLPMEM.page.status)")
    assert not page.is_visible("#lambda-auto")
    assert at() == with_auto


@pytest.mark.slow
def test_enter_during_a_run_says_why_nothing_starts(visit):
    page = visit()
    page.fill("#prompt textarea", "slow")
    page.click("#generate")
    page.wait_for_selector("#pane-memory .strip:has-text('tock')")
    page.press("#prompt textarea", "Enter")
    assert "A run is in progress" in page.inner_text("#compare-view .alert")
    page.keyboard.press("Escape")
    page.wait_for_selector("#pane-memory[data-state=stopped]")
    assert page.inner_text("#compare-view .alert") == ""


@pytest.mark.slow
def test_a_page_too_many_says_the_limit_and_opens_once_there_is_a_place(visit):
    first = visit()
    hold = """() => { window.held = new AbortController();
      return Promise.all([1, 2, 3].map(async (i) => (await fetch(`gradio_api/heartbeat/other${i}`,
        { signal: window.held.signal })).status)); }"""
    assert first.evaluate(hold) == [200, 200, 200]
    page = visit(ready=False)
    page.wait_for_selector("#status .chip[data-state=full]")
    line = page.inner_text(".status-line")
    assert "One address can have 4 pages open here" in line and "opens by itself" in line
    page.click("#generate")
    assert "4 pages open" in page.inner_text("#compare-view .alert")
    first.evaluate("window.held.abort()")
    page.wait_for_selector("#status .chip[data-state=ready]")
    generate(page, BOOK)


@pytest.mark.slow
def test_a_datastore_that_the_page_lacks_is_named_nowhere(visit):
    page = visit()
    page.wait_for_function("MLPMEM.page.status.settled")
    named = """() => [...document.querySelectorAll('[role=tabpanel] *, .dock *')].filter((node) =>
      node.children.length === 0 && node.getClientRects().length &&
      /datastore/i.test(node.textContent)).map((node) => node.textContent)"""
    assert page.evaluate(named) != []
    page.evaluate(
        """() => { const { page } = MLPMEM; const [view] = page.views;
          const traces = { ...view.finished }; delete traces.knn;
          for (const trace of Object.values(traces)) {
            for (const step of trace.steps) { step.nn = []; step.p.knn = null; }
          }
          view.usual = ['lm', 'memory'];
          view.setSystems(view.usual);
          page.status.chat.systems = ['lm', 'memory'];
          view.name('another');
          view.restart(traces, view.usual);
          view.complete(traces); }"""
    )
    page.wait_for_selector("#drawer .candidate")
    assert page.evaluate(named) == []
    page.evaluate("document.body.setAttribute('data-own', '')")
    page.wait_for_function(f"({named})().length > 0")


@pytest.mark.parametrize("phone", [False, True])
def test_a_words_pieces_stand_together(visit, phone):
    page = visit(phone=phone)
    generate(page, BOOK)
    sides = page.eval_on_selector_all(
        "#pane-lm .token:not([data-end])",
        "tokens => tokens.map((t) => t.getBoundingClientRect()).map((r) => [r.left, r.right])",
    )
    assert len(sides) == 3 and page.inner_text("#pane-lm .token >> nth=1") == "tin"
    assert sides[1][0] == pytest.approx(sides[0][1], abs=0.6), "Mar and tin are one word"
    style = "token => getComputedStyle(token).paddingLeft"
    assert page.eval_on_selector("#pane-lm .token >> nth=1", style) == "0px"
