"""The right answer's probability beside lambda, and what unticked neighbours change."""

import fake
import pytest
from test_page import BOOK, generate, rows_of, set_lambda, traces_of

BAY = fake.ask("What is the population of Quarrel Bay?")


def test_the_bar_shows_the_right_answers_probability_not_the_wrong_texts(visit):
    page = visit()
    generate(page, BOOK)
    steps = traces_of(BOOK)["memory"]["steps"][:-1]
    set_lambda(page, "0.3")
    expected = 100.0
    for step in steps:
        expected *= 0.7 * step["p"]["lm"] + 0.3 * step["p"]["memory"]
    page.click("#pane-memory .token >> nth=0")
    shown = page.inner_text(".curve-value")
    assert shown.startswith("right answer ") and shown.endswith(" %")
    assert float(shown.split()[2]) == pytest.approx(expected, rel=0.06)
    assert "memory: most at λ 1.00" in page.inner_text(".curve-best")
    page.click(".truth")
    assert page.get_attribute(".truth", "aria-expanded") == "true"
    now = page.inner_text(".whole-best").split("memory: ")[1].split("now ")[1]
    assert float(now.split()[0]) == pytest.approx(expected, rel=0.06)
    assert page.locator(".whole tbody tr").count() == len(steps), "every token of the answer"
    set_lambda(page, "0.9")
    assert page.inner_text(".whole-best").split("now ")[1] != now
    page.keyboard.press("Escape")
    assert page.is_hidden(".whole") and page.is_visible("#drawer")


@pytest.mark.slow
def test_where_no_column_is_right_the_server_scores_the_answer(visit):
    page = visit()
    generate(page, fake.ask("Who rang?"))
    set_lambda(page, "0.2")
    page.click("#pane-memory .token >> nth=0")
    assert page.inner_text(".curve-value") == "right answer 20.0 %"
    page.click("#pane-knn .token >> nth=0")
    assert page.inner_text(".curve-value") == "right answer 15.0 %"


@pytest.mark.slow
def test_where_no_answer_is_known_the_bar_says_whose_text_it_is(visit):
    page = visit()
    generate(page, "The river Aldermere rises in the")
    page.click("#pane-memory .token >> nth=0")
    assert page.inner_text(".curve-value").startswith("perplexity ")
    assert page.inner_text(".curve-best") == "of its own text (memory)", "and no best lambda"


def test_an_unticked_neighbour_changes_words_order_and_later_branches(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-knn .token >> nth=0")
    words = "#drawer .agreement"
    assert "agree closely" in page.inner_text(words)
    for i in range(6):
        page.uncheck(f".neighbour-use >> nth={i}")
    assert "at least" in page.inner_text(words), page.inner_text(words)
    assert "agree closely" not in page.inner_text(words), page.inner_text(words)
    fused = [row[-1] for row in rows_of(page)]
    assert fused == sorted(fused, reverse=True), "the likeliest is first again"
    assert "datastore and mix are recomputed" in page.inner_text(".left-out")
    knn, story = page.inner_text(".source[data-source=knn]"), page.inner_text("#drawer .story")
    assert page.inner_text(".circuit .out-p").removeprefix("this token ") in story
    assert page.locator(".circuit-card").count() <= 2, knn
    page.click("#pane-memory .token >> nth=1")
    assert page.locator(".neighbour-use:checked").count() == 8, "those of another position"
    page.click("#pane-knn .token >> nth=0")
    assert page.locator(".neighbour-use:checked").count() == 2
    page.click("#drawer .branch >> nth=1")
    page.wait_for_selector("#pane-knn[data-state=done] .token[data-marks*=given]")
    assert page.locator(".neighbour-use:checked").count() == 2, "a branch keeps them"
    generate(page, BOOK)
    page.click("#pane-knn .token >> nth=0")
    assert page.locator(".neighbour-use:checked").count() == 8, "a new run does not"


@pytest.mark.slow
def test_the_memorys_column_says_that_its_mix_has_no_datastore(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-memory .token >> nth=0")
    before = [row[-1] for row in rows_of(page)]
    page.uncheck(".neighbour-use >> nth=0")
    assert "This column does not mix it." in page.inner_text(".left-out")
    assert [row[-1] for row in rows_of(page)] == before


@pytest.mark.slow
def test_the_candidates_can_be_sorted_by_any_source(visit):
    page = visit()
    generate(page, BOOK)
    page.click("#pane-memory .token >> nth=0")
    for number, name in ((1, "decoder"), (2, "memory"), (3, "datastore"), (4, "mix")):
        page.click(f".sorter:has-text('{name}')")
        column = [row[number] for row in rows_of(page)]
        assert column == sorted(column, reverse=True)
    assert page.locator(".candidates [aria-sort=descending]").inner_text() == "mix"
    page.click("#pane-memory .token >> nth=0")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.className") == "branch"
