"""The first minute in a browser: the circuit, recordings at their own pace, one slider."""

import fake
import pytest
from marks import slow
from test_page import BOOK, generate, overflow, pane_text, run, set_lambda, traces_of

RIVER = "The river Aldermere rises in the"
PIPES = """() => Object.fromEntries([...document.querySelectorAll('.circuit .pipe')]
  .map((pipe) => [pipe.dataset.source, Number(pipe.dataset.p)]))"""
WIDTHS = """(size) => {
  const pipes = [...document.querySelectorAll('.circuit .pipe')];
  return Object.fromEntries(pipes.map((pipe) => [pipe.dataset.source, pipe.getBBox()[size]]));
}"""


def lanes(page):
    """Return the race's bars: {text: (probability in per cent, whether it is written)}."""
    return page.eval_on_selector_all(
        ".circuit .lane",
        """lanes => Object.fromEntries(lanes.map((lane) => [
          lane.querySelector('.lane-text').textContent,
          [parseFloat(lane.querySelector('.lane-p').textContent), 'written' in lane.dataset]]))""",
    )


@pytest.mark.parametrize("phone", [False, *slow(True)])
def test_pipes_are_as_wide_as_the_traces_probabilities(visit, phone):
    page = visit(phone=phone)
    generate(page, BOOK)
    trace = traces_of(BOOK)["memory"]
    page.wait_for_function(
        "() => document.querySelector('.circuit-place').textContent.includes('5')"
    )
    for index, step in enumerate(trace["steps"][:3]):
        assert page.inner_text(".circuit-place").endswith(f"{index + 1} of 5")
        found = page.evaluate(PIPES)
        assert found == pytest.approx({s: step["p"][s] for s in found}, abs=1e-3)
        widths = page.evaluate(WIDTHS, "width" if phone else "height")
        for source, p in found.items():
            assert widths[source] == pytest.approx(max(1.5, 34 * p), abs=0.6)
        page.click("[aria-label='Next token in the circuit']")
    assert overflow(page) == 0


def test_an_earlier_runs_figures_are_faint_until_the_next_run_begins(visit):
    page = visit()
    generate(page, BOOK)
    page.evaluate("""() => {
      window.faint = ['.circuit', '.curve-box'].map((name) => {
        const [part, seen] = [document.querySelector(name), []];
        new MutationObserver(() => seen.push(part.hasAttribute('data-earlier')))
          .observe(part, { attributeFilter: ['data-earlier'] });
        return seen;
      });
    }""")
    generate(page, RIVER)
    assert page.evaluate("window.faint") == [[True, False]] * 2


@pytest.mark.slow
def test_the_circuits_parts_are_in_order_and_none_is_cut(visit):
    for phone in (False, True):
        page = visit(phone=phone)
        generate(page, BOOK)
        boxes = [
            page.locator(f".circuit {part}").bounding_box()
            for part in (".words", ".frozen", ".source[data-source=memory]", ".output")
        ]
        along, size = ("y", "height") if phone else ("x", "width")
        for before, after in zip(boxes, boxes[1:], strict=False):
            assert before[along] + before[size] <= after[along]
        circuit = page.locator(".circuit").bounding_box()
        assert all(
            circuit["x"] <= b["x"] and b["x"] + b["width"] <= circuit["x"] + circuit["width"]
            for b in boxes
        )


@pytest.mark.slow
def test_a_click_on_a_pipe_or_a_box_opens_what_the_source_says(visit):
    page = visit()
    generate(page, BOOK)
    page.keyboard.press("Escape")
    assert not page.is_visible("#drawer")
    page.locator(".circuit .pipe[data-source=memory]").click(force=True)
    assert page.is_visible("#drawer")
    assert page.get_attribute("#drawer", "data-focus") == "memory"
    page.click(".circuit .source[data-source=knn]")
    assert page.get_attribute("#drawer", "data-focus") == "knn"
    assert page.inner_text("#drawer .drawer-title").startswith("Token 1 of 5")


@pytest.mark.slow
def test_neighbours_are_cards_and_the_memory_has_none(visit):
    page = visit()
    generate(page, BOOK)
    assert page.locator(".circuit-card").count() == 2
    assert "The Salt Ledger (book)" in page.inner_text(".circuit-cards")
    assert "looks nothing up" in page.inner_text(".source[data-source=memory]")


def test_a_screen_reader_gets_the_same_content(visit):
    page = visit()
    generate(page, BOOK)
    name = page.get_attribute(".circuit", "aria-describedby")
    text = page.text_content(f"#{name}")
    step = traces_of(BOOK)["memory"]["steps"][0]
    assert "Token 1 of 5: “Od”" in text and "Column: with memory" in text
    for source in ("lm", "memory", "knn"):
        percent = page.evaluate("p => MLPMEM.percent(p)", step["p"][source])
        assert f"gives “Od” {percent} per cent" in text


def test_hostile_tokens_stay_text_in_the_circuit(visit):
    page = visit()
    generate(page, fake.ask("What does a page do with markup?"))
    assert "${alert(1)}" in page.inner_text(".circuit .out-word")
    page.click("[aria-label='Previous token in the circuit']")
    assert fake.HOSTILE in page.inner_text(".circuit .out-word")
    assert page.locator(".circuit img, .circuit script").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.slow
def test_another_column_is_shown_and_its_valve_opens_its_own_pipe(visit):
    page = visit()
    generate(page, BOOK)
    shut = ".circuit .pipe[data-shut]"
    assert page.eval_on_selector_all(shut, "p => p.map((one) => one.dataset.source)") == ["knn"]
    page.click(".circuit-system[data-system=knn]")
    assert page.eval_on_selector_all(shut, "p => p.map((one) => one.dataset.source)") == ["memory"]
    page.click(".circuit-system[data-system=lm]")
    assert page.locator(shut).count() == 2


def test_the_circuit_follows_lambda_without_a_request(visit):
    page = visit()
    generate(page, BOOK)
    page.wait_for_timeout(500)
    before = len(page.seen.requests)
    step = traces_of(BOOK)["memory"]["steps"][0]
    for lmbda in (0.3, 0.9):
        set_lambda(page, lmbda)
        fused = (1 - lmbda) * step["p"]["lm"] + lmbda * step["p"]["memory"]
        percent = page.evaluate("p => MLPMEM.percent(p)", fused)
        assert page.inner_text(".circuit .out-p") == f"this token {percent} %"
        assert page.inner_text(".circuit .valve b") == f"{lmbda:.2f}"
    assert page.seen.requests[before:] == []


@pytest.mark.slow
def test_a_recording_plays_once_at_each_systems_own_pace(visit):
    page = visit("eager", ready=False)
    page.wait_for_selector("#pane-memory[data-state=done]")
    width = page.locator(".play").bounding_box()["width"]
    assert page.get_attribute("#pane-knn", "data-state") in ("waiting", "running")
    assert page.inner_text("#pane-lm .verdict") == "✗ wrong"
    assert page.inner_text("#pane-lm .pane-clock") == "answered in 8.00 ms"
    assert page.inner_text("#pane-memory .pane-clock") == "answered in 20.0 ms"
    page.wait_for_selector("#pane-knn[data-state=done]")
    assert page.inner_text("#pane-knn .pane-clock") == "answered in 200 ms"
    page.wait_for_function("document.querySelector('.play').textContent === '▶ Play'")
    assert page.locator(".play").bounding_box()["width"] == width, "nothing beside it moves"
    assert "token 1 of 5" in page.inner_text(".circuit-place")
    page.wait_for_timeout(600)
    assert page.locator("#pane-knn[data-state=done]").count() == 1, "it plays once"


@pytest.mark.slow
def test_reduced_motion_shows_the_recording_at_once(visit, contexts, servers):
    page = contexts["desk"].new_page()
    page.emulate_media(reduced_motion="reduce")
    page.goto(servers["eager"].wait().url)
    page.wait_for_selector("#pane-knn[data-state=done]", timeout=10_000)
    assert page.locator(".pane-clock").count() == 0
    animated = "() => document.getAnimations().filter((a) => a.playState === 'running').length"
    assert page.evaluate(animated) == 0


@pytest.mark.slow
def test_the_first_question_is_scrubbed_and_the_slider_changes_the_answer(visit):
    page = visit("eager")
    page.wait_for_function("document.querySelector('.play').textContent === '▶ Play'")
    before = len(page.seen.requests)
    set_lambda(page, 0.1)
    assert pane_text(page, "memory") == "Martin Holt"
    assert page.inner_text(".curve-value").startswith("right answer "), "though no column is right"
    assert page.inner_text("#pane-memory .verdict") == "✗ wrong"
    slow = lanes(page)
    assert {text: written for text, (_, written) in slow.items()} == {
        "Martin Holt": True, "Odalys Wren": False,
    }  # fmt: skip
    set_lambda(page, 0.9)
    assert pane_text(page, "memory") == "Odalys Wren"
    assert page.inner_text("#pane-memory .verdict") == "✓ right"
    fast = lanes(page)
    assert fast["Odalys Wren"][0] > slow["Odalys Wren"][0] and fast["Odalys Wren"][1]
    set_lambda(page, 0.87)  # between two texts; every number is of the slider's lambda
    lane = page.inner_text(".lane:has-text('Odalys') .lane-p")
    assert page.inner_text(".curve-value") == f"right answer {lane}"
    page.click("#pane-memory .token >> nth=0")
    assert "Mixed at λ 0.87" in page.inner_text("#drawer .story")
    assert page.inner_text(".circuit .valve b") == "0.87"
    urls = [url for url in page.seen.requests[before:] if "queue/join" in url]
    assert urls == []


@pytest.mark.slow
def test_short_answers_are_scrubbed_without_asking_and_long_ones_are_not(visit):
    page = visit("eager")
    page.click(".details-button")  # a low window hides the columns' tools
    generate(page, fake.ask("In which town was Ilka Brandt born?"))
    page.wait_for_selector("#pane-memory .scrub-ticks:not([hidden])")
    assert page.inner_text("#pane-memory .scrub-line").startswith("11 texts, 2 different")
    set_lambda(page, 0.0)
    assert pane_text(page, "memory") == "Marnfeld"
    generate(page, RIVER)
    page.wait_for_timeout(600)
    assert page.is_hidden("#pane-memory .scrub-ticks")
    assert page.is_visible("#pane-memory .scrub button")


@pytest.mark.slow
def test_where_the_memory_has_that_from_is_found_later_or_said_to_be_nowhere(visit):
    page = visit()
    generate(page, BOOK)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.click(".origin-ask")
    page.wait_for_selector(".origin-card")
    page.wait_for_function(
        "() => document.querySelector('.origin').getBoundingClientRect().bottom"
        " <= document.querySelector('.dock').getBoundingClientRect().top"
    )
    assert page.inner_text(".origin-card .origin-tag") == "found later, not used"
    assert page.locator(".origin-card mark").all_inner_texts() == ["Ledger", "Odalys", "Wren"]
    assert page.get_attribute(".origin-ask", "aria-expanded") == "true"
    run(page, lambda: generate(page, fake.ask("What is the population of Quarrel Bay?")))
    assert page.is_hidden(".origin"), "another answer has another origin"
    page.click(".origin-ask")
    page.wait_for_selector(".origin-line:has-text('no passage of the corpus answers')")


@pytest.mark.slow
def test_words_are_explained_on_hover_and_focus(visit):
    page = visit()
    generate(page, BOOK)
    page.evaluate("document.querySelector('.circuit').scrollIntoView()")
    page.wait_for_timeout(300)
    page.hover(".circuit .frozen b")
    page.wait_for_selector(".circuit .frozen b[aria-describedby=glossary]")
    assert "never change here" in page.inner_text("#glossary")
    page.keyboard.press("Escape")
    assert page.is_hidden("#glossary")
    page.focus(".circuit .valve")
    assert "let through" in page.inner_text("#glossary")


def test_the_value_and_links_are_on_the_first_screen(visit):
    for phone in (False, True):
        page = visit(phone=phone)
        assert page.is_visible(".value")
        assert page.get_attribute("text=Paper", "href") == "https://arxiv.org/abs/2508.01832"
        assert page.get_attribute("meta[property='og:title']", "content") == "MLP Memory, live"
        assert "Gradio" not in page.eval_on_selector_all(
            "meta[property^='og:'], meta[name^='twitter:']",
            "m => m.map((one) => one.content).join()",
        )
        assert overflow(page) == 0


@pytest.mark.slow
def test_the_circuit_repaints_fast_while_lambda_moves(visit):
    page = visit()
    generate(page, RIVER)
    took = page.evaluate(
        """() => {
          const begin = performance.now();
          for (let i = 0; i <= 100; i += 1) MLPMEM.page.setLambda(i / 100);
          return (performance.now() - begin) / 101;
        }"""
    )
    assert took < 16, f"{took:.1f} ms per value"
