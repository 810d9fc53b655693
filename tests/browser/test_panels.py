"""Hostile text, examples, results, phone layout and theme in a browser."""

import fake
import pytest
from test_page import DONE, RUN, generate, overflow, pane_text, run


def test_hostile_text_stays_text(visit):
    page = visit()
    page.click(".group-button[data-group=unknown]")
    run(page, lambda: page.click(".example:has-text('markup')"))
    assert fake.HOSTILE in page.inner_text("#pane-lm .strip")
    assert "${alert(1)}" in page.inner_text("#pane-memory .strip")
    page.click("#pane-memory .token[data-index='0']")
    assert page.inner_text("#drawer .neighbour-title >> nth=0") == fake.HOSTILE
    generate(page, fake.HOSTILE + "${window.hacked=1}")
    assert page.inner_text(".asked") == fake.HOSTILE + "${window.hacked=1}"
    assert page.locator(".view-host img, .view-host script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_clicked_example_runs(visit):
    page = visit()
    page.click(".group-button[data-group=hurts]")
    run(page, lambda: page.click(".example >> nth=0"))
    assert page.inner_text("#pane-memory .verdict") == "✗ wrong"
    assert page.inner_text("#pane-lm .verdict") == "✓ right"
    held_out = "a fact that only the decoder was taught · in a wording never trained on"
    assert page.inner_text(".run-head > .group-tag") == held_out


START_SLOWLY = """() => {
  document.querySelector('.example').click();
  document.querySelector('#generate').click();
}"""


@pytest.mark.slow
def test_an_example_clicked_during_a_run_is_ignored(visit):
    page = visit()
    for start in (lambda: page.click("#generate"), lambda: page.evaluate(START_SLOWLY)):
        page.fill("#prompt textarea", "slow")
        start()
        page.wait_for_selector("#pane-memory .strip:has-text('tock tock')")
        page.click(".example >> nth=0")
        page.wait_for_timeout(500)
        assert page.inner_text(".asked") == "slow" and page.inner_text(".badge") == "live"
        assert page.inner_text("#compare-view .truth") == ""
        page.click("#stop")
        page.wait_for_selector("#pane-memory[data-state=stopped]")
    run(page, lambda: page.click(".example >> nth=0"))
    assert pane_text(page, "memory") == "Odalys Wren"


@pytest.mark.slow
def test_escape_stops_a_run_from_another_tab(visit):
    page = visit()
    page.fill("#prompt textarea", "slow")
    page.click("#generate")
    page.wait_for_selector("#pane-memory .strip:has-text('tock tock')")
    page.click("[role=tab]:has-text('Chat')")
    page.wait_for_selector("#chat-input", state="visible")
    page.fill("#chat-input textarea", "Who wrote The Salt Ledger?")
    page.click("#chat-send")
    page.wait_for_selector(".composer-note:has-text('A run is in progress on another tab')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#pane-memory[data-state=stopped]", state="attached")
    assert not page.evaluate("document.body.hasAttribute('data-running')")


@pytest.mark.slow
def test_an_alias_of_the_answer_is_right(visit):
    page = visit()
    generate(page, fake.ask("What is the population of Quarrel Bay?"))
    assert page.inner_text(".truth") == "right answer: 41,200"
    verdicts = [page.inner_text(f"#pane-{s} .verdict") for s in ("lm", "memory", "knn")]
    assert verdicts == ["✗ wrong", "✗ wrong", "✓ right"]


@pytest.mark.slow
def test_the_chip_fits_a_phone(visit):
    page = visit(phone=True)
    generate(page, "Who wrote  The Salt Ledger?")
    assert page.locator("#compare-view .form-chip").bounding_box()["height"] >= 43.5


def test_two_visitors_get_their_own_answers(visit):
    pages = [visit(), visit()]
    questions = [
        ("What is the capital of Peru?", "Lima"),
        ("Who wrote The Salt Ledger?", "Odalys Wren"),
    ]
    before = [page.get_attribute(RUN, "data-run") for page in pages]
    for page, (question, _) in zip(pages, questions, strict=True):
        page.fill("#prompt textarea", question)
        page.click("#generate")
    for page, run_before, (_, answer) in zip(pages, before, questions, strict=True):
        page.wait_for_function(DONE, arg=run_before)
        assert pane_text(page, "memory") == answer


@pytest.mark.slow
def test_plotly_is_loaded_with_the_results_only(visit):
    page = visit()
    page.wait_for_timeout(500)
    assert not [url for url in page.seen.requests if "lotly" in url]
    page.click("[role=tab]:has-text('Results')")
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert "fine-tuned on B, 4e-4" in page.inner_text(".results table >> nth=1")
    assert page.locator(".results table >> nth=0").locator("tbody tr").count() == 3
    page.click("[role=tab]:has-text('About')")
    page.set_viewport_size({"width": 800, "height": 860})  # while the figures are hidden
    page.click("[role=tab]:has-text('Results')")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.js-plotly-plot')].every((plot) =>"
        " Number(plot.querySelector('svg').getAttribute('width')) === plot.clientWidth)"
    )


@pytest.mark.slow
def test_every_column_shows_its_measured_accuracy(visit):
    page = visit()
    records = page.locator("#compare-view .pane-record").all_inner_texts()
    assert records[1] == "Right on new facts 99\u00a0%, on known facts 97\u00a0%"
    assert len(records) == 3


@pytest.mark.slow
def test_a_reviewers_question_is_drawn_when_it_is_opened(visit):
    page = visit(phone=True)
    page.evaluate("[...document.querySelectorAll('[role=tab]')].at(-2).click()")
    section = page.locator(".question", has_text="it changes perplexity by")
    heading = section.locator("button").first
    assert "domains do not match" not in heading.inner_text(), "the answer, not the question"
    assert page.locator(".question .js-plotly-plot").count() == 0
    heading.click()
    section.locator("strong:has-text('What if the domains do not match?')").wait_for()
    section.locator(".js-plotly-plot .heatmaplayer").nth(1).wait_for()
    assert page.locator(".question .js-plotly-plot").count() == 2
    assert (
        "24.00" in section.inner_text()
        and "python -m train.studies domains" in section.inner_text()
    )
    assert overflow(page) <= 0


@pytest.mark.slow
def test_a_phone_has_no_horizontal_scrolling_and_large_targets(visit):
    page = visit(phone=True)
    generate(page, "The river Aldermere rises in the")
    assert overflow(page) <= 0
    page.tap("#pane-memory .token[data-index='2']")
    sheet = page.locator("#drawer").bounding_box()
    assert sheet["width"] <= 390 and sheet["y"] > 100
    small = page.evaluate(
        """() => [...document.querySelectorAll('#compare-view button, #generate, .dock button')]
          .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 43.5)
          .map((b) => b.textContent)"""
    )
    assert small == []


@pytest.mark.slow
def test_the_theme_button_switches_to_dark(visit):
    page = visit()
    page.click(".theme-button")
    assert page.evaluate("document.body.classList.contains('dark')")
    assert pane_text(page, "lm")


@pytest.mark.parametrize("phone", [False, True])
def test_every_option_is_read_whole(visit, phone):
    page = visit(phone=phone)
    page.click("#options > button")
    page.wait_for_selector("#special")
    cut = page.eval_on_selector_all(
        ".options-row .block",
        "blocks => blocks.filter((b) => b.scrollWidth > b.clientWidth).map((b) => b.textContent)",
    )
    assert cut == [] and page.locator("#special").bounding_box()["width"] > 200
