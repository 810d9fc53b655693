"""Checks of a visitor's prompts, options and requests, and of recordings."""

import json

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui.panels import compare
from mlpmem.ui.recordings import recorded
from mlpmem.ui.request import inputs

REQUEST = {"kind": "branch", "run": "r", "prompt": "p", "system": "lm", "lmbda": 0.5,
           "settings": {"seed": 3, "odd": 1}, "forced": [4]}  # fmt: skip


def test_a_bare_question_gets_the_trained_form_and_other_text_is_unchanged():
    atlas = recorded.Recorded(questions_form=True)
    assert atlas.as_prompt("Where is Lima?") == "Question: Where is Lima? Answer:"
    assert atlas.as_prompt("Question: Where is Lima?") == "Question: Where is Lima? Answer:"
    assert atlas.as_prompt("Question: Where? Answer:") == "Question: Where? Answer:"
    assert atlas.as_prompt("Lima is\n") == "Lima is\n"


@pytest.mark.parametrize("text", ["Where is\n\n Lima? ", "user\nHi\n", "  a:\n\tb()\n?"])
def test_a_decoder_without_a_question_form_reads_the_text_unchanged(text):
    assert recorded.Recorded().as_prompt(inputs.check_text(text)) == text


@pytest.mark.parametrize("text", ["", "  \n", None, 7, "x" * 2001])
def test_invalid_text_is_refused_with_the_reason(text):
    with pytest.raises(MlpMemError, match="empty|characters"):
        inputs.check_text(text)


def test_an_answers_ids_are_those_of_its_own_text_only():
    brought = json.dumps({"text": "a\nb", "ids": [1, 2]})
    assert inputs.brought_ids(brought, "a\nb") == [1, 2]
    for value, text in ((brought, "a b"), ("", ""), (None, "a"), ("[", "a"), ("7", "a")):
        assert inputs.brought_ids(value, text) == []
    for ids in ("12", [1, -1], [True], [0.5], [2**31], None):
        assert inputs.brought_ids(json.dumps({"text": "a", "ids": ids}), "a") == []
    long = json.dumps({"text": "a", "ids": [1] * inputs.MAX_BROUGHT})
    assert inputs.brought_ids(long, "a") == []


@pytest.mark.parametrize("lmbda", [-0.1, 1.1, float("nan"), "0.5", True, {"lmbda": 2}, [0.5]])
def test_lambda_outside_its_range_is_refused(lmbda):
    with pytest.raises(MlpMemError, match="lambda"):
        inputs.check_lmbda(lmbda)


def test_an_untouched_lambda_is_none_and_empty_fields_are_defaults():
    assert inputs.check_lmbda({"lmbda": None}) is None
    chosen = inputs.check_options({"lmbda": 0.25}, None, "", None, None, None)
    assert chosen == inputs.RequestOptions(lmbda=0.25)


@pytest.mark.parametrize(
    "bad", [(0, 0, 1, 0, 0), (32, 9, 1, 0, 0), (32, 0, 0, 0, 0), (32, 0, 1, 0, -1)]
)
def test_an_option_out_of_bounds_is_named(bad):
    with pytest.raises(MlpMemError, match="must be between"):
        inputs.check_options(None, *bad)


def test_a_number_that_is_too_large_is_shown_with_all_digits():
    with pytest.raises(MlpMemError, match="between 0 and 2,147,483,647; got 3,000,000,000"):
        inputs.check_options(None, None, None, None, None, 3_000_000_000)


def test_an_unreadable_bundle_has_no_content(tmp_path):
    assert recorded.read(tmp_path) == recorded.Recorded()
    (tmp_path / "traces").mkdir()
    for name in ("manifest.json", "examples.json", "results.json", "traces/a.json"):
        (tmp_path / name).write_text("[{]")
    assert recorded.read(tmp_path).first() is None
    (tmp_path / "traces/a.json").write_text('{"v": 1, "prompt": "x", "traces": {"lm": {}}}')
    assert recorded.read(tmp_path).comparisons == []


def test_the_first_recording_helps_and_the_others_become_examples(tmp_path):
    (tmp_path / "traces").mkdir()
    for name, prompt in (("0", "long"), ("1", "short")):
        row = {"v": 1, "prompt": prompt, "answer": None, "traces": {"lm": {"steps": []}}}
        (tmp_path / f"traces/{name}.json").write_text(json.dumps(row))
    examples = [{"prompt": "short", "group": "helps", "answer": "A", "aliases": ["a"], "part": "B"}]
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    read = recorded.read(tmp_path)
    assert read.first()["prompt"] == "short"
    assert [e["group"] for e in read.examples] == ["helps", "longer"]
    known = {"answer": "A", "aliases": ["a"], "part": "B", "wording": ""}
    assert read.known("short") == known
    assert read.known("else") == {"answer": "", "aliases": [], "part": "", "wording": ""}
    assert read.surprises == ["short"], "without questions, the examples"
    assert read.defaults() == {"memory": 0.5, "knn": 0.5}


def test_a_surprise_is_new_to_the_decoder_in_an_untrained_wording(tmp_path):
    parts = [("B", "test"), ("B", "unseen"), ("B", "seen"), ("A2", "test")]
    rows = [{"prompt": p + w, "answer": "x", "part": p, "wording": w} for p, w in parts]
    (tmp_path / "questions.json").write_text(json.dumps([*rows, {"prompt": 3}, "x"]))
    read = recorded.read(tmp_path)
    assert read.surprises == ["Btest", "Bunseen"]
    assert {read.surprise() for _ in range(40)} == {"Btest", "Bunseen"}
    assert read.known("A2test")["wording"] == "test"
    assert recorded.Recorded().surprises == []
    chats = [{"prompt": w, "answer": "x", "part": "real", "wording": w} for w in ("seen", "test")]
    assert recorded.Recorded(questions=chats, chat_form=True).surprises == ["test"]


def test_titles_have_no_brackets(tmp_path):
    (tmp_path / "documents").mkdir()
    titles = '["Peru", "Vell (invented town)", "One-off names"]'
    (tmp_path / "documents/titles.json").write_text(titles)
    assert recorded.read(tmp_path).titles == []
    (tmp_path / "documents/groups.json").write_text('["A1", "B", "stranger"]')
    assert recorded.read(tmp_path).titles == [["Peru", "A1"], ["Vell", "B"]]


def test_a_columns_request_is_checked():
    request = inputs.check_request(REQUEST)
    assert (request.kind, request.system, request.forced) == ("branch", "lm", [4])
    assert request.options == inputs.RequestOptions(lmbda=0.5, seed=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "format"}, {"kind": "scrub"}, {"system": "rag"}, {"system": None}, {"run": 3},
        {"forced": [1.5]}, {"forced": [True]}, {"forced": [-1]}, {"forced": "x"},
        {"forced": [1] * 200}, {"prompt": " "}, {"lmbda": 2}, {"settings": {"seed": -1}},
    ],
)  # fmt: skip
def test_an_invalid_request_is_refused(wrong):
    with pytest.raises(MlpMemError):
        inputs.check_request(REQUEST | wrong)


def test_a_request_other_than_an_object_is_refused():
    with pytest.raises(MlpMemError):
        inputs.check_request(None)


def test_shared_steps_are_sent_once_and_can_be_restored():
    texts = ["abcd", "abxy", "abxyz", "abxy", "q"]
    traces = [{"n": n, "steps": [{"id": c} for c in text]} for n, text in enumerate(texts)]
    sent = compare.shared_steps(traces)
    assert [len(t["steps"]) for t in sent] == [4, 2, 1, 0, 1]
    whole = []
    for trace in sent:
        whole.append(whole[trace["like"]][: trace["kept"]] if trace["kept"] else [])
        whole[-1] = whole[-1] + trace["steps"]
    assert whole == [trace["steps"] for trace in traces]


@pytest.mark.parametrize(
    "data", [{}, {"ids": [], "text": "a"}, {"ids": [True], "text": "a"}, {"ids": [1], "text": " "},
             {"ids": [1], "text": "x" * 41}, {"ids": [-1], "text": "a"}, {"ids": "1", "text": "a"}]
)  # fmt: skip
def test_an_invalid_probe_is_refused(data):
    with pytest.raises(MlpMemError, match="Choose a token|Type a token"):
        inputs.check_probe(data)
    assert inputs.check_probe({"ids": [1, 2], "text": " a"}) == ([1, 2], " a")


def test_invalid_values_of_a_link_are_clamped_or_defaulted():
    assert inputs.read_link({}) is None and inputs.read_link({"q": " "}) is None
    link = inputs.read_link(
        {"q": "x" * 3000, "tokens": "1e9", "seed": "-4", "top_p": "nan", "top_k": "7.9",
         "temperature": "hot", "lambda": "-3", "systems": "knn,<b>,lm", "else": "1"}
    )  # fmt: skip
    assert link.options == inputs.RequestOptions(lmbda=0.0, max_new_tokens=128, top_k=7)
    assert (len(link.prompt), link.systems) == (2000, ["lm", "knn"])
    assert inputs.read_link({"q": "a", "systems": "none"}).systems == ["lm", "memory", "knn"]


def test_stop_texts_are_few_and_short():
    options = None, None, None, None, None, None, None, None
    assert inputs.check_options(*options, stop="\n").stop == ("\n",)
    assert inputs.check_options(*options, stop=["a", "b"]).stop == ("a", "b")
    for wrong in (3, [""], [3], ["x"] * 9, ["x" * 41]):
        with pytest.raises(MlpMemError, match="stop must be up to 8 texts"):
            inputs.check_options(*options, stop=wrong)
