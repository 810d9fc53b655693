"""Facts that a visitor tells and teaches: asked, forgotten, taught, cancelled, undone."""

import fake
import pytest
from test_inspect import tab
from test_page import BOOK, generate, overflow, pane_text

STATUS = "#teach-view .teach-status"


def tell(page, text):
    tab(page, "Corpus")
    count = page.locator(".teach-list li").count()
    page.fill(".teach-box", text)
    page.press(".teach-box", "Enter")
    page.wait_for_selector(f".teach-list li >> nth={count}")


def teach(page):
    page.click("#teach-start")
    page.wait_for_selector(".teach-table table")


@pytest.mark.parametrize(
    "start, button",
    [("Chat", ".chat-empty button:has-text('tell it a fact')"), ("Compare", ".tells")],
)
def test_an_empty_chat_and_the_examples_lead_to_where_facts_are_told(visit, start, button):
    page = visit()
    tab(page, start)
    page.click(button)
    page.wait_for_function("document.activeElement.matches('.teach-box')")


@pytest.mark.slow
def test_a_told_fact_is_asked_and_a_deleted_one_is_forgotten(visit):
    page = visit()
    tab(page, "Corpus")
    page.click(".teach-offer >> nth=0")
    page.wait_for_selector(f"{STATUS}:has-text('The datastore knows 1 sentence')")
    page.wait_for_selector("#store-choice label:has-text('Your text')")
    name = page.locator("#store-choice label span >> nth=0")
    name.evaluate("span => { span.textContent = 'The memory’s facts'; }")  # the widest of all
    links, choice = (page.locator(p).bounding_box() for p in (".value-links", "#store-choice"))
    assert links["x"] + links["width"] <= choice["x"], "the links stay whole"
    page.click(".teach-ask")
    page.wait_for_selector("#pane-knn .token:has-text('own')")
    assert "trained before you came" in page.inner_text("#pane-memory .pane-caption")
    assert page.input_value("#prompt textarea").endswith("?")
    tell(page, f"{fake.HOSTILE} is a name.")
    assert fake.HOSTILE in page.inner_text(".teach-list")
    assert page.locator(".teach-list img").count() == 0
    for left in (1, 0):
        page.click(".teach-forget >> nth=0")
        page.wait_for_function(f"document.querySelectorAll('.teach-list li').length === {left}")
    page.wait_for_selector(f"{STATUS}:has-text('Nothing is told')")
    page.wait_for_selector("#store-choice", state="hidden")
    assert not page.is_visible("#teach-start")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "knn") == "Odalys Wren"


def test_a_taught_memory_answers_its_visitor_only_until_undo(visit, audit):
    page, other = visit(), visit()
    tell(page, "Harrow has a ferry.")
    teach(page)
    assert page.get_attribute(".teach-line", "d").startswith("M")
    rows = page.inner_text(".teach-table")
    assert "Who rang?" in rows and "Question:" not in rows and "Old facts" in rows
    audit(page, "taught")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "memory") == "taught by you"
    assert "taught by you: 1 sentence" in page.inner_text("#pane-memory .pane-caption")
    assert pane_text(page, "lm") == "Martin Holt"
    generate(other, BOOK)
    assert pane_text(other, "memory") == "Odalys Wren"
    assert "taught" not in other.inner_text("#pane-memory .pane-caption")
    tab(page, "Corpus")
    page.click("#teach-undo")
    page.wait_for_selector(f"{STATUS}:has-text('Undone')")
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "memory") == "Odalys Wren"


@pytest.mark.slow
def test_a_teaching_can_be_cancelled_and_another_waits_in_the_queue(visit):
    page, other = visit(), visit(phone=True)
    tell(other, "Harrow has a ferry.")
    tell(page, "This is a slow fact.")
    page.click("#teach-start")
    page.wait_for_selector(f"{STATUS}:has-text('step')")
    other.click("#teach-start")
    other.wait_for_selector(f"{STATUS}:has-text('Waiting in the queue')")
    assert overflow(other) <= 0
    page.click("#teach-halt")
    page.wait_for_selector(f"{STATUS}:has-text('Cancelled')")
    other.wait_for_selector(".teach-table table")
    assert not page.is_visible(".teach-bar") and page.is_visible("#teach-start")
    assert page.locator(".teach-table table").count() == 0
    tab(page, "Compare")
    generate(page, BOOK)
    assert pane_text(page, "memory") == "Odalys Wren"


@pytest.mark.slow
def test_a_teaching_begins_again_at_once_after_it_was_cancelled(visit):
    page = visit()
    tell(page, "This is a slow fact.")
    for _ in range(3):
        page.click("#teach-start")
        page.wait_for_selector(f"{STATUS}:has-text('step')")
        page.click("#teach-halt")
    assert "Cancelled" in page.inner_text(STATUS)


def test_clicks_that_follow_at_once_are_all_done(visit):
    page = visit()
    facts = [f"Harrow has {count} ferries." for count in ("two", "six", "ten")]
    for fact in facts:
        tell(page, fact)
    page.fill(".teach-box", "being written")
    page.evaluate("for (const i of [0, 1]) document.querySelectorAll('.teach-forget')[i].click()")
    page.wait_for_function("document.querySelectorAll('.teach-list li').length === 1")
    assert facts[2] in page.inner_text(".teach-list")
    assert page.input_value(".teach-box") == "being written"
    page.fill(".teach-box", facts[0])
    page.dblclick("#teach-tell")
    page.wait_for_selector(".teach-list li >> nth=1")
    page.wait_for_timeout(800)
    assert not page.inner_text("#teach-view .alert") and not page.input_value(".teach-box")


def test_no_button_drops_a_click(visit):
    """A handler that is begun once at a time is a poll, or not begun by a visitor."""
    page = visit()
    once = page.evaluate("""() => {
      const { components, dependencies } = window.gradio_config;
      const named = Object.fromEntries(components.map(({ id, props }) => [id, props.elem_id]));
      return dependencies.filter((one) => one.backend_fn && one.trigger_mode === 'once')
        .flatMap((one) => one.targets.map(([id, event]) => `${named[id] ?? ''} ${event}`));
    }""")
    polls = {"tick", "load", "select", "expand", "ahead", "download"}
    assert once and {name.split()[-1] for name in once} <= polls, once


@pytest.mark.slow
def test_a_long_or_repeated_sentence_is_a_message(visit):
    page = visit()
    tell(page, "Harrow has a ferry.")
    page.fill(".teach-box", "Harrow has  a ferry.")
    page.click("#teach-tell")
    page.wait_for_selector("#teach-view .alert:has-text('told this already')")
    assert page.locator(".teach-list li").count() == 1


@pytest.mark.slow
def test_the_real_app_teaches_a_tiny_memory(visit):
    page = visit("app")
    tell(page, "The capital of Tarn is Lima.")
    teach(page)
    assert "learned 1 sentence" in page.inner_text(STATUS)
    tab(page, "Compare")
    generate(page, "Peru is")
    page.wait_for_selector("#pane-memory[data-state=done]")
    assert "taught by you: 1 sentence" in page.inner_text("#pane-memory .pane-caption")
