"""The Chat tab: one system answers in turns; the last answer is shown token by token."""

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import gradio as gr

from mlpmem.model.tokenizer import PARTIAL
from mlpmem.ui import components
from mlpmem.ui.components import packed
from mlpmem.ui.context import PRIVATE, STREAM, Shared
from mlpmem.ui.recordings.words import words
from mlpmem.ui.request import columns, inputs, stream

SOURCES = [("Decoder only", "lm"), ("With memory", "memory"), ("With datastore", "knn")]
MAX_TURNS = 12
MAX_NEW_TOKENS = 48


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events; the turns are stored in the visitor's session."""
    turns = gr.State([], time_to_live=3600)
    texts = words(shared.recorded)
    components.static(f'<p class="panel-note">{texts.chat_note}</p>')
    source = gr.Radio(
        SOURCES, value="memory", label="Who answers", elem_id="chat-source", container=False,
        show_label=False,
    )  # fmt: skip
    log = components.chat_log(texts.chat_hint, elem_id="chat-log")
    with gr.Row(elem_classes="ask-row"):
        question = gr.Textbox(
            "", lines=1, max_lines=4, placeholder=texts.question, label="Question",
            show_label=False, container=False, scale=1, elem_id="chat-input",
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", elem_id="chat-send", scale=0)
        stop = gr.Button("Stop", elem_id="chat-stop", scale=0)
        retry = gr.Button("Retry", elem_id="chat-retry", scale=0)
        clear = gr.Button("Clear", elem_id="chat-clear", scale=0)
    view = components.token_view(None, "chat-pane-", [], undoes=True, elem_id="chat-view")
    outputs = [turns, log, view, question]
    inputs_ = [question, turns, source, shared.lambda_bar, shared.own, shared.choice]
    ask = gr.on([send.click, question.submit], _asker(shared), inputs_, outputs, **STREAM)
    again = retry.click(_repeater(shared, another_try), inputs_, outputs, **STREAM)
    undone = view.undo(_repeater(shared, as_typed), inputs_, outputs, **STREAM)
    stop.click(None, cancels=[ask, again, undone])
    clear.click(_clear, None, outputs, cancels=[ask, again, undone], **PRIVATE)
    for event in (tab.select, log.came):
        event(_chooser(shared), [source, shared.choice], source, **PRIVATE)


def _chooser(shared: Shared):
    """Return the handler that replaces a source without an answer by the best available one.

    A datastore that is still being built stays, because only a visitor can have chosen it.
    """

    def choose(source: Any, choice: Any) -> Any:
        status = shared.service.status
        if not status.ready or (source == "knn" and not status.settled):
            return gr.skip()
        available = {*shared.service.model.systems, *(["knn"] if choice == "own" else [])}
        return gr.skip() if source in available else best(available)

    return choose


def best(available: Collection[str]) -> str:
    """Return the default source."""
    return next((source for source in ("memory", "knn") if source in available), "lm")


def _clear() -> tuple:
    empty = {"kind": "recorded", "run": stream.new_run(), "traces": {}}
    return [], packed([]), packed(empty), ""


def _asker(shared: Shared):
    """Return the handler of Send."""

    def ask(question: Any, turns: list, source: Any, lmbda: Any, *own: Any) -> Iterator[tuple]:
        def start() -> list[dict]:
            text = inputs.check_text(question, "question")
            return [*turns[-MAX_TURNS + 1 :], new_turn(text, source, inputs.check_lmbda(lmbda))]

        yield from _answer(shared, start, own)

    return ask


def _repeater(shared: Shared, renewed: Callable[[dict, Any, float | str | None], dict]):
    """Return a handler that asks the last question again, as the turn that `renewed` makes of it.

    `renewed` takes the last turn, and the present source and lambda.
    """

    def repeat(question: Any, turns: list, source: Any, lmbda: Any, *own: Any) -> Iterator[tuple]:
        def start() -> list[dict]:
            if not turns:
                raise inputs.MlpMemError("There is no question to ask again. Write one first.")
            return [*turns[:-1], renewed(turns[-1], source, inputs.check_lmbda(lmbda))]

        yield from _answer(shared, start, own, sent=False)

    return repeat


def new_turn(question: str, system: Any, lmbda: float | str | None) -> dict:
    """Return a turn without an answer; "firsts" will have its likeliest first tokens.

    "typed" is whether it is asked as typed, where the decoder has a form of questions.
    """
    return {"question": question, "answer": "", "system": system, "lmbda": lmbda, "try": 1,
            "firsts": [], "done": False, "typed": False}  # fmt: skip


def another_try(turn: dict, system: Any, lmbda: float | str | None) -> dict:
    """Return the turn for another answer.

    Decoding is greedy, so the same question, system and lambda would repeat the answer. Try n
    therefore begins with the n-th likeliest token, and after the last with the likeliest again. A
    stopped try is repeated.
    """
    fresh = {**new_turn(turn["question"], system, lmbda), "typed": turn["typed"]}
    if (turn["system"], turn["lmbda"]) != (system, lmbda) or not turn["firsts"]:
        return fresh
    number = (turn["try"] - 1 + turn["done"]) % len(turn["firsts"]) + 1
    return {**fresh, "try": number, "firsts": turn["firsts"]}


def as_typed(turn: dict, *_: Any) -> dict:
    """Return the turn for the same question without the decoder's form, by the same system."""
    return {**new_turn(turn["question"], turn["system"], turn["lmbda"]), "typed": True}


def firsts_of(trace: dict) -> list[list]:
    """Return [id, text] of the candidates for an answer's first token, without the end token."""
    end = trace["steps"][-1]["id"] if trace["finish"] == "eos" else None
    return [row[:2] for row in trace["steps"][0]["cand"] if row[0] != end]


def _answer(shared: Shared, start: Any, own: tuple, sent: bool = True) -> Iterator[tuple]:
    """Yield (turns, log, view, question) as the last turn's answer grows; own is (id, choice).

    The box is cleared if its text was sent.
    """
    turns: list[dict] = []

    def values(stop: threading.Event) -> Iterator[dict]:
        turns.extend(start())
        store = shared.store(*own)
        if store is None or turns[-1]["system"] != "knn":
            _check_system(shared.service.model, turns[-1]["system"])
        yield from _generate(shared, turns, stop, own[0], store)

    for value in stream.guarded(values):
        if value["kind"] == "steps":
            added = (step["s"] for steps in value["steps"].values() for step in steps)
            turns[-1]["answer"] += "".join(text for text in added if text != PARTIAL)
        elif value["kind"] == "done":
            (trace,) = value["traces"].values()
            turns[-1]["answer"] = trace["text"]
            turns[-1]["done"] = True
            turns[-1]["firsts"] = turns[-1]["firsts"] or firsts_of(trace)
        if value["kind"] == "message":
            yield gr.skip(), gr.skip(), packed(value), gr.skip()
            continue
        copy = [dict(turn) for turn in turns]
        cleared = "" if sent and value["kind"] == "begin" else gr.skip()
        yield copy, packed(copy), packed(value), cleared


def _generate(shared: Shared, turns: list, stop: Any, own: Any, store: Any) -> Iterator[dict]:
    """Yield the token view's values for the last turn; own is the id of a visitor's text.

    If the decoder's form changes the question, "typed" has it as it was typed. Asked as typed, the
    whole chat is read as lines.
    """
    model, last = shared.service.model, turns[-1]
    run, system, number, question = stream.new_run(), last["system"], last["try"], last["question"]
    prompt = question if last["typed"] else model.chat_question(question)
    lmbdas = columns.lambdas(model, [system], last["lmbda"], store)
    begin = stream.begin(run, prompt, shared.recorded.known(prompt), lmbdas, 0.0)
    forced = [last["firsts"][number - 1][0]] if number > 1 else []
    begin["traces"][system]["settings"]["forced"] = forced
    typed = question if prompt != question else ""
    yield {**begin, "own": shared.searched(own, store, [system]), "typed": typed}
    before = [(turn["question"], turn["answer"]) for turn in turns[:-1] if turn["answer"]]
    ids = model.chat_ids([*before, (question, "")], MAX_NEW_TOKENS, last["typed"])
    events = model.stream(
        ids, [system], lmbda=lmbdas, max_new_tokens=MAX_NEW_TOKENS, forced=forced, cancel=stop,
        store=store, sources=columns.sources(model, store),
    )  # fmt: skip
    yield from stream.deltas(run, events)


def _check_system(model: Any, system: Any) -> None:
    """Raise MlpMemError unless the model has the system."""
    if system in model.systems:
        return
    if system == "knn":
        raise inputs.MlpMemError(
            "The datastore is not ready yet. Choose the decoder or the memory, or wait."
        )
    if system == "memory":
        raise inputs.MlpMemError("This model has no memory. Choose the decoder or the datastore.")
    raise inputs.MlpMemError(f"Unknown source {system!r}. Choose one of the listed sources.")
