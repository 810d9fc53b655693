"""The chat's answers: each column's own history, whole characters, checked requests."""

from types import SimpleNamespace

import pytest

from mlpmem.engine.call import Event
from mlpmem.engine.prefix import PrefixCache
from mlpmem.errors import MlpMemError
from mlpmem.model.prompts import question_prompt
from mlpmem.model.tokenizer import TextStream
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.panels import chat
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.recordings.words import starters
from mlpmem.ui.request import stream
from mlpmem.ui.request.chats import check_chat
from mlpmem.ui.service.facts import usual_sampling

EMOJI = "\N{GRINNING FACE}".encode()
PIECES = [b"A", EMOJI[:1], EMOJI[1:2], EMOJI[2:], b"\n  b"]
QUESTION = " Where is\n Harrow?"
FORM = "Question: Where is Harrow? Answer:"


class Step(SimpleNamespace):
    def to_dict(self):
        return {"i": self.i, "s": self.text}


class Chatty:
    """A model that records what it is asked, and writes PIECES."""

    def __init__(self, systems=("lm", "memory"), form=False, positions=100, fails=()):
        self.systems, self.form, self.routers, self.fails = list(systems), form, {}, fails
        self.decoder = SimpleNamespace(max_positions=positions)
        self.chats, self.runs = [], []

    def lmbdas(self, names, *_):
        return {name: 0.0 if name == "lm" else 0.5 for name in names}

    def chat_question(self, question):
        return question_prompt(question) if self.form else question

    def fitted_chat(self, messages, room, typed):
        self.chats.append((messages, room, typed))
        return [len(text["content"]) for text in messages], 0

    def stream(self, ids, names, **options):
        self.runs.append((ids, names, options))
        return self._events(names)

    def _events(self, names):
        text = TextStream()
        steps = []
        for i, piece in enumerate(PIECES):
            if set(names) & set(self.fails):
                raise MlpMemError("the run broke")
            steps.append(Step(i=i, text=text.push(piece)))
            yield Event("step", dict.fromkeys(names, steps[-1]))
        trace = {"text": "x", "steps": [step.to_dict() for step in steps]}
        yield Event("done", {name: SimpleNamespace(to_dict=lambda: trace) for name in names})


def request(*columns, **fields):
    rows = [{"system": system, "before": before} for system, before in columns]
    return {"run": "r1", "question": QUESTION, "columns": rows, **fields}


def ask(model, data, known=None):
    """Return the values that answer a request."""
    return list(chat.answer(shared_of(model, known), data, None, "", "atlas"))


def shared_of(model, known=None):
    return SimpleNamespace(
        service=SimpleNamespace(model=model), recorded=known or Recorded(), store=lambda *_: None,
        searched=lambda *_: "",
    )  # fmt: skip


def test_what_the_session_has_read_reaches_every_run():
    model, prefix = Chatty(), PrefixCache()
    data = request(("lm", []), ("memory", [["Who?", "x"]]))
    list(chat.answer(shared_of(model), data, None, "", "atlas", prefix))
    assert [options["prefix"] for _, _, options in model.runs] == [prefix, prefix]


def said(messages):
    return [(message["role"], message["content"]) for message in messages]


def test_every_column_reads_its_own_history_and_the_texts_as_they_are():
    model = Chatty()
    typed, answered = "why?\n\n  if a:\n\tb()  <|im_end|>", "  because\n"
    ask(model, request(("lm", [[typed, "mine"]]), ("memory", [[typed, answered]]),
                       settings={"system": "Be\nbrief."}))  # fmt: skip
    (lm, _, _), (memory, _, _) = model.chats
    first = [("system", "Be\nbrief."), ("user", typed)]
    assert said(lm) == [*first, ("assistant", "mine"), ("user", QUESTION)]
    assert said(memory) == [*first, ("assistant", answered), ("user", QUESTION)]
    assert [names for _, names, _ in model.runs] == [["lm"], ["memory"]]


def test_columns_that_read_the_same_share_a_batch():
    model = Chatty()
    ask(model, request(("lm", []), ("memory", [])))
    assert [names for _, names, _ in model.runs] == [["lm", "memory"]]


def test_answers_grow_side_by_side_with_whole_characters(monkeypatch):
    monkeypatch.setattr(stream, "PERIOD", 0)
    begin, *values, done = ask(Chatty(), request(("lm", [["a", "b"]]), ("memory", [])))
    assert begin["kind"] == "begin" and list(begin["columns"]) == ["lm", "memory"]
    assert begin["columns"]["memory"]["room"] == 100 and begin["columns"]["lm"]["read"] == 3
    order = [system for value in values for system in value["steps"]]
    assert order[:4] == ["lm", "memory", "lm", "memory"], "in turn"
    texts = [step["s"] for value in values for step in value["steps"].get("lm", ())]
    assert texts == ["A", "\ufffd", "\ufffd", "\N{GRINNING FACE}", "\n  b"]
    assert set(done["traces"]) == {"lm", "memory"} and done["seq"] == len(values) + 1


def test_kept_tokens_are_forced_and_not_sent_again(monkeypatch):
    monkeypatch.setattr(stream, "PERIOD", 0)
    model = Chatty()
    data = request(("lm", []), settings={"longest": 7})
    data["columns"][0] |= {"forced": [5, 6, 7], "kept": 2}
    begin, *values, done = ask(model, data)
    ((_, _, options),) = model.runs
    assert options["forced"] == [5, 6, 7] and options["max_new_tokens"] == 2 + 7
    assert begin["columns"]["lm"]["kept"] == 2
    sent = [step["i"] for value in values for step in value["steps"].get("lm", ())]
    assert sent == [2, 3, 4] and [step["i"] for step in done["traces"]["lm"]["steps"]] == [2, 3, 4]


def test_a_run_that_fails_leaves_the_others():
    *_, failed, done = ask(Chatty(fails=["memory"]), request(("lm", [["a", "b"]]), ("memory", [])))
    assert done["kind"] == "done" and set(done["traces"]) == {"lm"}
    assert done["failed"] == {"memory": "The run broke"} or failed["kind"] == "failed"


def test_a_rewritten_question_is_told_and_its_facts_are_known():
    recorded = Recorded(questions=[{"prompt": FORM, "answer": "at the coast"}])
    model = Chatty(form=True)
    begin, *_ = ask(model, request(("lm", [])), recorded)
    assert begin["prompt"] == FORM and begin["form"] and begin["answer"] == "at the coast"
    begin, *_ = ask(model, request(("lm", []), typed=True), recorded)
    assert begin["prompt"] == QUESTION and not begin["form"]
    assert [typed for *_, typed in model.chats] == [False, True]
    begin, *_ = ask(model, request(("lm", []), question=FORM), recorded)
    assert not begin["form"], "it was in this form already"


def test_the_answer_has_half_of_a_short_context_at_most():
    model = Chatty(positions=60)
    ask(model, request(("lm", []), settings={"longest": 200}))
    ((_, room, _),) = model.chats
    assert room == 30
    ((ids, _, options),) = model.runs
    assert options["max_new_tokens"] == 60 - len(ids)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "The question is empty"),
        (request(("lm", []), question=" "), "The question is empty"),
        (request(), "Choose at least one"),
        (request(("else", [])), "Unknown source"),
        (request(("lm", []), ("lm", [])), "incomplete"),
        (request(("lm", [["a"]])), "incomplete"),
        (request(("lm", [["a", 3]])), "incomplete"),
        (request(("lm", [["a", "b"]] * 201)), "at most 200 earlier turns"),
        (request(("lm", [["a", "b" * 500_000]])), "too long"),
        (request(("lm", []), settings={"temperature": 3}), "temperature"),
        (request(("lm", []), settings={"longest": 513}), "longest answer"),
        (request(("lm", []), settings={"stop": [""]}), "stop must be"),
        (request(("lm", []), settings={"system": "x" * 2001}), "system prompt"),
    ],
)
def test_an_invalid_request_is_refused_with_a_reason(data, message):
    with pytest.raises(MlpMemError, match=message):
        check_chat(data)


def test_forced_ids_and_kept_counts_are_checked():
    for wrong in ({"forced": [-1]}, {"forced": [True]}, {"forced": [1], "kept": 2}, {"kept": -1}):
        data = request(("lm", []))
        data["columns"][0] |= wrong
        with pytest.raises(MlpMemError, match="incomplete"):
            check_chat(data)
    data["columns"][0] = {"system": "lm", "before": [], "forced": [1] * BOUNDS.chat_tokens}
    with pytest.raises(MlpMemError, match="An answer has at most"):
        check_chat(data)


def test_a_system_that_cannot_answer_says_why():
    for system, text in (("knn", "datastore is not ready"), ("memory", "has no memory")):
        with pytest.raises(MlpMemError, match=text):
            ask(Chatty(systems=["lm"]), request((system, [])))


def test_the_models_own_sampling_is_offered_where_it_samples():
    config = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "min_p": None}
    asked = usual_sampling(SimpleNamespace(**config))
    assert asked == {"temperature": 0.2, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}
    greedy = usual_sampling(SimpleNamespace(**config | {"do_sample": False}))
    assert greedy["temperature"] == 0.0 and greedy == usual_sampling(None)


def test_an_empty_chat_offers_one_question_of_each_group_where_the_memory_helps_first():
    groups = ("hurts", "helps", "helps", "agree", "longer", "unknown")
    examples = [
        {"prompt": f"Question: {text}? Answer:", "group": group}
        for text, group in zip("abcdef", groups, strict=True)
    ]
    offered = starters(Recorded(examples=[*examples, {"prompt": "The river", "group": "helps"}]))
    assert offered == [("helps", "b?"), ("agree", "d?"), ("hurts", "a?"), ("unknown", "f?")]
    assert [group for group, _ in starters(Recorded(examples=examples[:3]))][0] == "helps"
    assert [group for group, _ in starters(Recorded())] == [""] * 4


def test_a_chat_model_is_offered_facts_of_its_memory_and_general_questions():
    examples = [
        {"prompt": text, "group": group}
        for text, group in (("x", "unknown"), ("a?", "helps"), ("b.", "helps"), ("c?", "helps"))
    ]
    offered = starters(Recorded(examples=examples, chat_form=True))
    assert offered[:2] == [("helps", "a?"), ("helps", "b.")]
    assert [group for group, _ in offered] == ["helps", "helps", "", ""]
