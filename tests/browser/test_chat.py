"""The chat in a browser: words are tokens, answers side by side, versions, and what is kept."""

import re

import fake
import pytest
from conftest import SCREENS
from test_page import overflow

BOOK = "Who wrote The Salt Ledger?"
PERU = "What is the capital of Peru?"
CHAT = "MLPMEM.page.views.at(-1)"


def open_chat(page):
    page.click("[role=tab]:has-text('Chat')")
    page.wait_for_selector("#chat-input textarea")
    page.wait_for_function("MLPMEM.page.status.settled")
    return page


def idle(page):
    page.wait_for_function("!document.body.hasAttribute('data-running')")


def ask(page, question, wait=True):
    page.fill("#chat-input textarea", question)
    page.press("#chat-input textarea", "Enter")
    if wait:
        idle(page)


def last(page, system="memory"):
    return page.locator(f".turn:last-child .answer[data-system={system}]")


def prose(page, system="memory"):
    return last(page, system).locator(".prose").inner_text().strip()


def choose(page, *systems):
    """Choose who answers."""
    for system in ("lm", "memory", "knn"):
        chip = page.locator(f".who-chip[data-system={system}]")
        if system in systems and chip.get_attribute("aria-pressed") == "false":
            chip.click()
    for system in {"lm", "memory", "knn"} - set(systems):
        chip = page.locator(f".who-chip[data-system={system}]")
        if chip.get_attribute("aria-pressed") == "true":
            chip.click()


def test_the_first_column_is_the_memory_and_every_answer_keeps_its_tokens(visit):
    page = open_chat(visit())
    pressed = page.locator(".who-chip[aria-pressed=true]")
    assert pressed.get_attribute("data-system") == "memory"
    for question, answer in ((BOOK, "Odalys Wren"), (PERU, "Lima")):
        ask(page, question)
        assert prose(page) == answer
    assert page.locator(".turn").count() == 2
    page.click(".turn:first-child .token[data-index='1']")
    assert "“aly”" in page.inner_text("#drawer .drawer-title")
    row = page.locator("#drawer .candidate[data-chosen]")
    probs = {s: float(row.get_attribute(f"data-{s}")) for s in ("lm", "memory", "knn", "fused")}
    assert probs["fused"] == page.evaluate(
        "p => MLPMEM.mix(p, 'memory', 0.55)", {k: probs[k] for k in ("lm", "memory", "knn")}
    )
    assert page.locator("#drawer .neighbour").count() == 8
    ids = page.eval_on_selector_all(
        ".turn:first-child .token", "tokens => tokens.map(t => Number(t.dataset.tokenId))"
    )
    assert ids == [fake.token_id(text) for text in (" Od", "aly", "s", " Wren", "</s>")]


def test_the_question_appears_at_once_and_enter_sends_while_shift_enter_does_not(visit):
    page = open_chat(visit())
    box = "#chat-input textarea"
    page.press(box, "Enter")
    assert page.inner_text(".composer-note") == "Write a question first."
    page.fill(box, "slow")
    page.press(box, "Shift+Enter")
    assert page.input_value(box) == "slow\n" and page.locator(".turn").count() == 0
    page.fill(box, "slow")
    seen = page.evaluate(
        """() => {
          document.querySelector('#chat-input textarea').dispatchEvent(
            new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true }));
          return document.querySelector('.turn:last-child .said').textContent;
        }"""
    )
    assert seen == "slow" and page.input_value(box) == ""
    assert page.is_visible("#chat-stop") and not page.is_visible("#chat-send")
    page.wait_for_selector(".answer .token:has-text('tock')")
    ask(page, PERU, wait=False)
    assert "Stop it first" in page.inner_text(".composer-note")
    assert page.input_value(box) == PERU, "nothing is lost"
    assert page.evaluate("document.scrollingElement.scrollTop") == 0, "a short chat needs no scroll"
    page.keyboard.press("Escape")
    idle(page)
    assert "Stopped." in last(page).inner_text() and page.locator("#chat-stop[disabled]").count()
    count = last(page).locator(".token").count()
    page.wait_for_timeout(400)
    assert last(page).locator(".token").count() == count > 0
    last(page).locator(".more-button").click()
    page.wait_for_function(f"document.querySelectorAll('.answer .token').length > {count + 2}")
    page.click("#chat-stop")
    idle(page)
    assert last(page).locator(".pager").is_hidden(), "it is the same answer"
    indices = page.eval_on_selector_all(".answer .token", "t => t.map((n) => +n.dataset.index)")
    assert indices == list(range(len(indices)))


def test_every_system_has_its_own_history_and_its_own_answer_beside_the_others(visit):
    page = open_chat(visit())
    choose(page, "memory")
    ask(page, BOOK)
    choose(page, "lm", "memory", "knn")
    ask(page, "In which town was Ilka Brandt born?")
    assert [prose(page, s) for s in ("lm", "memory", "knn")] == ["Marnfeld", "Tervalla", "Tervalla"]
    boxes = [last(page, s).bounding_box() for s in ("lm", "memory", "knn")]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"] and boxes[0]["y"] == boxes[2]["y"]
    assert "has not read the earlier turn, which it did" in last(page, "lm").inner_text()
    assert "has not read" not in last(page, "memory").inner_text()
    ask(page, PERU)
    histories = page.evaluate(
        f"""() => {{ const {{ talk }} = {CHAT}; const turn = talk.path().at(-1);
          return Object.fromEntries(['lm', 'memory', 'knn'].map((s) =>
            [s, talk.history(turn, s).before.map(([, answer]) => answer)])); }}"""
    )
    assert histories == {
        "lm": [" Marnfeld"], "memory": [" Odalys Wren", " Tervalla"], "knn": [" Tervalla"],
    }  # fmt: skip


@pytest.mark.slow
def test_another_word_writes_on_and_versions_have_their_own_later_turns(visit):
    page = open_chat(visit())
    ask(page, BOOK)
    ask(page, PERU)
    page.click(".turn:first-child .token[data-index='1']")
    page.click("#drawer .candidate[data-chosen] .branch")
    assert page.locator(".turn").count() == 2, "the same word again is no other version"
    other = page.locator("#drawer .candidate:not([data-chosen]) .branch >> nth=0")
    word = other.inner_text().lstrip(" ·")
    other.click()
    idle(page)
    assert f"“{word}”" in page.inner_text("#drawer .drawer-title"), "it shows the new answer"
    assert prose(page).startswith("Od") and prose(page).endswith("by hand")
    assert "You chose" in last(page).inner_text()
    assert page.locator(".turn").count() == 1, "the later turn followed the other version"
    assert last(page).locator(".pager-text").inner_text() == "2/2"
    last(page).locator("[aria-label^='Previous version of the answer']").click()
    assert page.locator(".turn").count() == 2 and prose(page) == "Lima"
    assert page.locator(".turn:first-child .answer .pager-text").inner_text() == "1/2"
    last(page).locator("button:has-text('Regenerate')").click()
    idle(page)
    assert "Begun with" in last(page).inner_text() and "by hand" in prose(page)
    assert last(page).locator(".pager-text").inner_text() == "2/2"


def test_a_question_is_edited_in_place_and_both_versions_stay(visit):
    page = open_chat(visit())
    ask(page, BOOK)
    ask(page, PERU)
    page.hover(".turn:first-child")
    page.click(".turn:first-child [aria-label='Edit the question']")
    page.fill(".edit-box", "In which town was Ilka Brandt born?")
    page.press(".edit-box", "Enter")
    idle(page)
    assert page.locator(".turn").count() == 1 and prose(page) == "Tervalla"
    page.click("[aria-label='Edit the question']")
    page.fill(".edit-box", "y" * 2001)
    page.press(".edit-box", "Enter")
    assert "this one has 2,001. Shorten it." in page.inner_text(".composer-note")
    assert len(page.input_value(".edit-box")) == 2001, "nothing is lost"
    page.press(".edit-box", "Escape")
    pager = page.locator(".turn:first-child .asks-tools .pager")
    assert pager.inner_text().split() == ["‹", "2/2", "›"]
    page.click("[aria-label='Previous version of the question']")
    assert page.locator(".turn").count() == 2 and prose(page) == "Lima"
    page.mouse.move(1, 1)
    page.focus("#chat-input textarea")
    opacity = "p => [p, ...p.parentElement.children].map((n) => getComputedStyle(n).opacity)"
    assert pager.evaluate(opacity)[0] == "1" and "0" in pager.evaluate(opacity), "it stays in sight"
    page.click(".turn:last-child [aria-label='Edit the question']")
    page.press(".edit-box", "Escape")
    assert page.inner_text(".turn:last-child .said") == PERU


def test_the_conversation_survives_a_reload_and_is_erased_for_good(visit):
    page = open_chat(visit())
    choose(page, "lm", "memory")
    ask(page, BOOK)
    page.click("#chat-settings")
    page.fill("#chat-temperature", "0.5")
    assert re.search(r"has [\d.]+ [kM]B. It is not kept on the server", page.inner_text("dialog"))
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    open_chat(page)
    page.wait_for_selector(".turn .answer[data-system=lm]")
    assert prose(page) == "Odalys Wren" and prose(page, "lm") == "Martin Holt"
    assert page.locator(".who-chip[aria-pressed=true]").count() == 2
    page.click(".answer[data-system=memory] .token[data-index='0']")
    assert page.locator("#drawer .candidate").count() > 5, "with its tokens"
    page.click("#chat-settings")
    assert page.input_value("#chat-temperature") == "0.5"
    page.fill("#chat-temperature", "7")
    assert page.get_attribute("#chat-temperature", "aria-invalid") == "true"
    page.press("#chat-temperature", "Tab")
    assert page.input_value("#chat-temperature") == "2", "what is sent"
    assert page.get_attribute("#chat-temperature", "aria-invalid") == "false"
    assert "(0 to 2)" in page.inner_text("#chat-temperature-note")
    page.keyboard.press("Escape")
    page.click("#chat-clear")
    page.wait_for_selector(".chat-empty")
    page.click("text=bring the last conversation back")
    assert page.locator(".turn").count() == 1
    page.click("#chat-clear")
    page.wait_for_timeout(200)
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    open_chat(page)
    page.wait_for_timeout(300)
    assert page.locator(".turn").count() == 0 and page.is_visible(".chat-empty")


def test_an_answer_that_is_left_in_the_middle_is_kept_as_far_as_it_was_seen(visit):
    page = open_chat(visit())
    ask(page, "slow", wait=False)
    page.wait_for_function("document.querySelectorAll('.answer .token').length >= 12")
    seen = page.locator(".answer .token").count()
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    open_chat(page)
    page.wait_for_selector(".turn .answer .token")
    assert seen <= page.locator(".answer .token").count() < 400
    assert page.locator(".answer button:has-text('Continue')").count()


def test_markdown_is_shown_as_such_code_is_copied_and_tokens_stay_words(visit):
    page = open_chat(visit())
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Show me code.")
    answer = last(page)
    assert answer.locator("pre code").inner_text().rstrip() == "def f():\n    return 1"
    assert answer.locator(".code-head").inner_text().split() == ["python", "Copy"]
    assert answer.locator("ul li").all_inner_texts() == ["one", "two"]
    assert answer.locator("strong").inner_text() == "one"
    answer.locator(".code-head button").click()
    page.wait_for_selector("button:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "def f():\n    return 1"
    shown = page.evaluate(
        "[...document.querySelectorAll('.answer .token')].map(n => n.dataset.index)"
    )
    assert shown == [str(i) for i in range(23)], "every token has its place, marks too"
    answer.locator("[aria-label^='Copy the answer']").click()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("Here:\n\n```python\ndef f()") and text.endswith("- **one**\n- two")
    page.click(".answer strong .token:not([data-mark])")
    assert "“one”" in page.inner_text("#drawer .drawer-title")


def test_hostile_texts_stay_texts(visit):
    page = open_chat(visit())
    ask(page, "What does a page do with markup?")
    assert fake.HOSTILE in last(page).inner_text()
    ask(page, fake.HOSTILE)
    assert page.inner_text(".turn:last-child .said") == fake.HOSTILE
    page.click(".turn:first-child .token >> nth=0")
    assert page.evaluate("window.hacked === undefined") and not page.locator("#chat img").count()


@pytest.mark.slow
def test_emoji_and_right_to_left_text_are_whole_at_every_moment(visit):
    page = open_chat(visit())
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
          const prose = document.querySelector('.answer .prose');
          if (prose) window.seen.push(prose.textContent); })
          .observe(document.querySelector('#chat'),
            { subtree: true, childList: true, characterData: true }); }"""
    )
    ask(page, "Greet me.")
    seen = page.evaluate("window.seen")
    assert len(seen) > 3 and not any("\ufffd" in text for text in seen)
    assert not any(text.endswith("\u200d") for text in seen)
    assert prose(page) == "مرحبا\U0001f600\U0001f469\u200d\U0001f4bb!"
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.answer .prose p')).direction")
        == "rtl"
    )
    tokens = page.locator(".answer .token:not([data-void]):not([data-mark])").all_inner_texts()
    assert tokens[:4] == ["مر", "حبا", "\U0001f600", "\U0001f469\u200d\U0001f4bb"]
    isolated = "getComputedStyle(document.querySelector('.answer .token')).unicodeBidi"
    assert page.evaluate(isolated) == "normal", "Arabic letters join across tokens"


@pytest.mark.slow
def test_the_sources_tint_the_words_by_a_switch_and_while_x_is_held(visit):
    page = open_chat(visit())
    ask(page, BOOK)
    tint = "document.querySelector('.answer .prose').hasAttribute('data-tinted')"
    assert not page.evaluate(tint) and not page.is_visible("#lambda")
    page.keyboard.type("x")
    assert not page.evaluate(tint), "the box takes it"
    page.fill("#chat-input textarea", "")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.down("x")
    page.wait_for_function(tint)
    moves = page.eval_on_selector_all(".answer .token", "t => t.map((n) => n.dataset.move)")
    assert "up" in moves and not page.is_visible("#lambda")
    page.keyboard.up("x")
    page.wait_for_function(f"!{tint}")
    page.click("#chat-tint")
    page.wait_for_function(tint)
    assert page.is_visible("#lambda") and page.get_attribute("#chat-tint", "aria-checked") == "true"
    page.focus(".answer .token[data-index='0']")
    page.keyboard.press("ArrowRight")
    assert "“aly”" in page.inner_text("#drawer .drawer-title")
    page.evaluate("MLPMEM.page.bar.set(0)")
    page.wait_for_selector(".flip:not([hidden])")
    assert "it would say “Mar”" in page.inner_text(".flip")
    page.click(".again")
    idle(page)
    assert prose(page) == "Martin Holtend", "the same question at another lambda"


def test_a_wrong_answer_names_the_right_one_and_each_column_has_its_own_speed(visit):
    page = open_chat(visit())
    choose(page, "lm", "memory", "knn")
    ask(page, BOOK)
    assert "✗ wrong" in last(page, "lm").inner_text()
    assert "The right answer is “Odalys Wren”." in last(page, "lm").inner_text()
    assert "The right answer" not in last(page, "memory").inner_text()
    speeds = [
        int(re.search(r"([\d,]+) tokens/s", last(page, s).inner_text())[1])
        for s in ("lm", "memory", "knn")
    ]
    assert speeds[0] > speeds[1] > speeds[2], "not that of the step that asks all of them"


def test_a_tab_with_a_conversation_opens_at_its_end(visit):
    page = open_chat(visit())
    ask(page, "Show me code.")
    ask(page, "Show me code.")
    page.reload()
    page.wait_for_selector("#status .chip[data-state=ready]")
    open_chat(page)
    page.wait_for_selector(".turn >> nth=1")
    page.wait_for_timeout(200)
    page.click("[role=tab]:has-text('Corpus')")
    page.evaluate("document.scrollingElement.scrollTop = 0")
    page.click("[role=tab]:has-text('Chat')")
    page.wait_for_function(
        "() => { const box = document.scrollingElement;"
        " return box.scrollTop > 0 && box.scrollHeight - box.clientHeight - box.scrollTop < 2; }"
    )


def test_settings_reach_the_model_and_a_cut_answer_says_so(visit):
    page = open_chat(visit())
    page.click("#chat-settings")
    assert page.get_attribute("#chat-temperature", "placeholder") == "0"
    page.fill("#chat-longest", "2")
    page.fill("#chat-stops", "\\n\\n")
    page.fill("#chat-system", "Be brief.")
    page.keyboard.press("Escape")
    assert page.get_attribute("#chat-settings", "aria-label") == "Settings, changed"
    ask(page, BOOK)
    assert (
        prose(page) == "Odaly" and "Cut at 2 tokens, the longest answer." in last(page).inner_text()
    )
    settings = page.evaluate(f"{CHAT}.panes.get('memory').trace.settings")
    assert settings["max_new_tokens"] == 2 and settings["stop"] == ["\n\n"]
    last(page).locator(".more-button").click()
    idle(page)
    assert prose(page) == "Odalys Wren" and last(page).locator(".more-button").is_visible()
    last(page).locator(".more-button").click()
    idle(page)
    assert prose(page) == "Odalys Wren" and last(page).locator(".more-button").is_hidden()
    assert last(page).locator(".ending").inner_text() == ""


@pytest.mark.slow
def test_the_context_meter_says_when_old_turns_fall_out(visit):
    page = open_chat(visit())
    for _ in range(3):
        ask(page, PERU)
    assert "of 512 tokens" in page.inner_text(".meter-text")
    assert "left out" not in page.inner_text(".meter-text") and not page.is_visible(".fallen")
    ask(page, PERU)
    assert "1 oldest turn left out" in page.inner_text(".meter-text")
    assert "The oldest turn no longer fits" in page.inner_text(".turn:last-child .fallen")


@pytest.mark.slow
def test_starters_ask_and_a_chip_asks_as_typed(visit):
    page = open_chat(visit())
    starter = page.locator(".starter >> nth=0")
    assert starter.locator(".starter-kind").inner_text() == "Memory helps"
    text = starter.locator("[dir=auto]").inner_text()
    starter.click()
    idle(page)
    assert page.inner_text(".said") == text and fake.ask(text) in fake.ANSWERS
    ask(page, "Who wrote  The Salt Ledger?")
    chip = page.locator(".turn:last-child .form-chip")
    page.hover(".turn:last-child")
    chip.click()
    idle(page)
    assert page.locator(".turn").count() == 2 and not chip.is_visible()
    about = page.evaluate(f"{CHAT}.head.about.prompt")
    assert about == "Who wrote  The Salt Ledger?"
    assert page.locator(".turn:last-child .asks-tools .pager-text").inner_text() == "2/2"


def test_a_phone_shows_answers_side_by_side_without_overflow_and_the_drawer_as_a_sheet(visit):
    page = open_chat(visit(phone=True, dark=True))
    choose(page, "lm", "memory", "knn")
    ask(page, BOOK)
    assert overflow(page) <= 0
    boxes = [last(page, s).bounding_box() for s in ("lm", "memory")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[1]["x"] < 390, "the next one peeps in"
    page.tap(".answer[data-system=lm] .token >> nth=0")
    sheet = page.locator("#chat .drawer-slot").bounding_box()
    assert sheet["width"] == 390 and sheet["y"] > 200
    small = page.evaluate(
        """() => ['.chat-bar', '.composer', '.asks-tools']
          .flatMap((place) => [...document.querySelectorAll(`${place} button`)])
          .filter((b) => b.offsetParent && b.getBoundingClientRect().height < 43.5)
          .map((b) => b.textContent)"""
    )
    assert small == [] and overflow(page) <= 0


@pytest.mark.parametrize(("phone", "dark"), SCREENS)
def test_axe_finds_nothing_in_any_state_of_the_chat(visit, audit, dark, phone):
    page = open_chat(visit(dark=dark, phone=phone))
    audit(page, "empty")
    choose(page, "lm", "memory", "knn")
    ask(page, "slow", wait=False)
    page.wait_for_selector(".answer .token:has-text('tock')")
    audit(page, "running")
    page.keyboard.press("Escape")
    idle(page)
    choose(page, "memory")
    ask(page, "Show me code.")
    audit(page, "answered")
    page.click(".turn:last-child [aria-label='Edit the question']")
    audit(page, "edited")
    page.keyboard.press("Escape")
    page.click("#chat-tint")
    page.wait_for_selector(".prose[data-tinted]")
    audit(page, "sources")
    page.click(".turn:last-child .token:not([data-mark]):not([data-void]) >> nth=0")
    audit(page, "drawer")
    page.keyboard.press("Escape")
    page.click("#chat-settings")
    audit(page, "settings")
