"""Answers computed without a server: equal to the library's, whole or in pieces."""

import math

import hypothesis.strategies as st
import pytest
import tiny
from hypothesis import given

from mlpmem.engine.rag import Rag
from mlpmem.engine.systems import ModelSystem
from mlpmem.model.prompts import chat_ids
from mlpmem.retrieval.text_search import Passages
from mlpmem.ui.openai import answers, names, requests, runs
from mlpmem.ui.openai.answers import ApiError
from mlpmem.ui.openai.pieces import begun
from mlpmem.ui.request.limits import Deadline

PROMPT = "The capital of Peru is"
QUESTION = [{"role": "user", "content": "What is it?"}]


@pytest.mark.parametrize("system", ["lm", "memory", "knn", "mixed"])
def test_a_completion_is_what_the_library_writes(system, ask, tiny_model):
    options = {"temperature": 1.1, "seed": 5, "top_p": 0.9, "lmbda": 0.4}
    answer = ask(model=f"tiny:{system}", prompt=PROMPT, max_tokens=8, **options)
    trace = tiny_model.generate(PROMPT, system, max_new_tokens=8, **options)
    (choice,) = answer["choices"]
    assert choice["text"] == trace.text and choice["logprobs"] is None
    assert choice["finish_reason"] == {"eos": "stop", "length": "length"}[trace.finish]
    assert (answer["object"], answer["model"]) == ("text_completion", f"tiny:{system}")
    assert (answer["system"], answer["lmbda"]) == (system, trace.lmbda)
    assert answer["usage"] == {
        "prompt_tokens": len(trace.prompt_ids), "completion_tokens": len(trace.steps),
        "total_tokens": len(trace.prompt_ids) + len(trace.steps),
    }  # fmt: skip


def test_the_bare_name_is_the_default_system(ask):
    assert ask(prompt=PROMPT)["system"] == "memory"


def test_a_chat_is_what_the_library_answers(ask, tiny_model):
    answer = ask(True, messages=QUESTION, max_tokens=6)
    trace = tiny_model.chat(QUESTION, "memory", max_new_tokens=6)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": trace.text, "refusal": None}
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["prompt_tokens"] == len(chat_ids(tiny_model.decoder, QUESTION))


def test_without_a_number_as_many_tokens_are_written_as_are_usual_and_fit(ask, monkeypatch):
    monkeypatch.setattr("mlpmem.engine.generation._finish", lambda writer, _, options: (
        "length" if len(writer.steps) == options.max_new_tokens else ""))  # fmt: skip
    written = lambda **body: ask(**body)["usage"]["completion_tokens"]  # noqa: E731
    assert written(prompt=PROMPT) == 16
    assert written(prompt=[5] * 90) == 6, "the decoder has 96 positions"
    assert written(chat=True, messages=QUESTION) == 48


def test_several_prompts_and_samples_equal_single_requests(ask):
    prompts = [PROMPT, "Peru is", "Gold has", "Peru was"]
    options = {"temperature": 1.2, "max_tokens": 6, "logprobs": 2}
    batch = ask(prompt=prompts, n=3, seed=11, **options)
    assert [choice["index"] for choice in batch["choices"]] == list(range(12))
    for i, prompt in enumerate(prompts):
        for sample in range(3):
            (single,) = ask(prompt=prompt, seed=11 + sample, **options)["choices"]
            choice = batch["choices"][3 * i + sample]
            for name in ("text", "finish_reason"):
                assert choice[name] == single[name]
            ours, theirs = choice["logprobs"], single["logprobs"]
            assert ours["tokens"] == theirs["tokens"]
            assert ours["text_offset"] == theirs["text_offset"]
            assert ours["token_logprobs"] == pytest.approx(theirs["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize("system", ["lm", "memory", "knn"])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echo_has_the_scores_of_the_prompt_to_the_last_bit(system, max_tokens, ask, tiny_model):
    text = "Peru's café is 金 small."
    score = tiny_model.score(text)
    expected = [None, *(-score.mixed(system)).tolist()]
    prompts = [text, score.ids, tiny_model.decoder.encode("Peru is")]
    answer = ask(model=f"tiny:{system}", prompt=prompts, echo=True, max_tokens=max_tokens,
                 logprobs=1)  # fmt: skip
    for choice, ids in zip(answer["choices"], (score.ids, score.ids, prompts[2]), strict=True):
        found, at = choice["logprobs"], len(ids)
        assert found["token_ids"][:at] == ids and len(found["tokens"]) == at + max_tokens
        assert found["text_offset"] == sorted(found["text_offset"])
        assert found["top_logprobs"][0] is None and found["token_logprobs"][0] is None
        if ids is score.ids:
            assert found["token_logprobs"][:at] == expected
        for token, value, best in list(
            zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        )[1:]:
            assert best[token] >= value and len(best) <= 2
    typed, by_ids, _ = (choice["text"] for choice in answer["choices"])
    assert typed.startswith(text) and by_ids.startswith(f"<s>{text}")
    assert typed == by_ids.removeprefix("<s>")


def test_offsets_are_where_tokens_begin_in_the_text(ask, tiny_model):
    text = "the café 金 in"
    (choice,) = ask(prompt=text, echo=True, max_tokens=0, logprobs=0)["choices"]
    found = choice["logprobs"]
    assert choice["text"] == text
    for token, offset, i in zip(
        found["tokens"], found["text_offset"], found["token_ids"], strict=True
    ):
        if not token.startswith("bytes:") and i not in tiny_model.decoder.special_ids:
            assert text[offset : offset + len(token)] == token
    parts = [o for t, o in zip(found["tokens"], found["text_offset"], strict=True) if "bytes:" in t]
    assert parts == [text.index("é")] * 2 + [text.index("金")] * 3


def test_a_harness_reads_likelihood_and_greedy_from_an_echo(ask, tiny_model):
    """Read answers as lm_eval's parse_logprobs does, which drops one generated token."""
    context = tiny_model.decoder.encode(PROMPT)
    greedy = tiny_model.generate(context, "memory", max_new_tokens=3)
    written = [step.token_id for step in greedy.steps]
    other = [tiny_model.decoder.encode("x")[-1], *written[1:]]
    prompts = [context + written, context + other]
    answer = ask(prompt=prompts, echo=True, max_tokens=1, logprobs=1)
    for choice, ids, is_greedy in zip(answer["choices"], prompts, (True, False), strict=True):
        at, found = len(context), choice["logprobs"]
        values, best = found["token_logprobs"][at:-1], found["top_logprobs"][at:-1]
        assert len(values) == 3
        expected = -tiny_model.score(ids).mixed("memory")[at - 1 :]
        assert sum(values) == pytest.approx(expected.sum(), abs=1e-9)
        greedy_at = [v == max(top.values()) for v, top in zip(values, best, strict=True)]
        assert all(greedy_at) is is_greedy


def test_sources_tell_what_each_would_have_said(ask, tiny_model):
    answer = ask(model="tiny:lm", prompt=PROMPT, max_tokens=2, logprobs=0, sources=["knn"])
    (choice,) = answer["choices"]
    first = tiny_model.distributions(PROMPT)
    token = choice["logprobs"]["token_ids"][0]
    told = choice["logprobs"]["sources"][0]
    assert set(told) == {"lm", "knn"} and choice["logprobs"]["token_logprobs"][0] == told["lm"]
    knn = float(first["knn"][token])
    assert told["knn"] == (pytest.approx(knn, abs=1e-4) if math.isfinite(knn) else None)


def test_a_routers_lambda_is_told_by_token(service):
    service.model = tiny.routed(auto=True)
    asked = requests.parse({"model": "tiny", "prompt": PROMPT, "logprobs": 0, "echo": True,
                            "temperature": 0, "max_tokens": 3}, False)  # fmt: skip
    answer = answers.whole(runs.run(service, asked, Deadline()))
    lmbdas = answer["choices"][0]["logprobs"]["lmbda"]
    trace = service.model.generate(PROMPT, "memory", max_new_tokens=3)
    assert answer["lmbda"] == "auto" and lmbdas[0] is None and len({*lmbdas}) > 3
    assert lmbdas[-3:] == pytest.approx([step.lmbda for step in trace.steps])


def test_a_stop_text_ends_the_answer_and_its_tokens(ask, tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    body = {"model": "tiny:lm", "prompt": PROMPT, "max_tokens": 20, "logprobs": 0}
    (whole,) = ask(**body)["choices"]
    cut = whole["text"][4:7]
    (choice,) = ask(**body, stop=["never", cut])["choices"]
    assert choice["text"] == whole["text"][: whole["text"].index(cut)]
    assert choice["finish_reason"] == "stop"
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stop", [[], ["e", "\ufffd"], ["qq", "1"]])
def test_streams_join_to_the_whole_answer(chat, stop, service):
    body = {"model": "tiny", "temperature": 1.4, "seed": 3, "n": 3, "max_tokens": 12}
    body |= {"messages": QUESTION} if chat else {"prompt": [PROMPT, "Peru is"], "echo": True}
    body |= {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}
    asked = requests.parse({**body, "stop": stop}, chat)
    whole = answers.whole(runs.run(service, asked, Deadline()))
    head, *parts = runs.run(service, asked, Deadline())
    opened: set[int] = set()
    chunks = [c for part in parts for c in answers.chunks(head, part, opened, True)]
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        probs = [c["logprobs"] for c in own if c["logprobs"]]
        if chat:
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(c["delta"].get("content", "") for c in own)
            assert text == choice["message"]["content"]
            joined = [row for one in probs for row in one["content"]]
            assert joined == choice["logprobs"]["content"]
        else:
            assert "".join(c["text"] for c in own) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [v for one in probs for v in one[name]] == values


@pytest.mark.parametrize("chat", [False, True])
def test_a_stopped_run_does_not_say_that_its_answer_is_whole(chat, service):
    class Soon(Deadline):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 3

    body = {"messages": QUESTION} if chat else {"prompt": PROMPT}
    asked = requests.parse({**body, "model": "tiny", "seed": 3, "max_tokens": 30}, chat)
    head, *parts = runs.run(service, asked, Soon())
    assert parts[-1].completion < 30
    chunks = [c for part in parts for c in answers.chunks(head, part, set(), False)]
    assert not any(choice["finish_reason"] for c in chunks for choice in c["choices"])


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_held_back_text_is_the_longest_that_may_begin_a_stop_text(text, stop):
    size = begun(text, stop)
    starts = {one[:n] for one in stop for n in range(1, len(one))}
    ends = [n for n in range(1, len(text) + 1) if text[-n:] in starts]
    assert size == max(ends, default=0)


def test_models_are_the_systems_and_the_pages_columns(service):
    assert names.listed([service]) == {
        "tiny": "memory", "tiny:lm": "lm", "tiny:memory": "memory", "tiny:knn": "knn",
        "tiny:mixed": "mixed",
    }  # fmt: skip
    service.name = "served"
    assert names.check([service], "served:knn") == (service, "knn")
    for wrong in ("tiny", "served:rag", "served:", "gpt-4o"):
        with pytest.raises(ApiError, match="Use one of served, served:lm") as refused:
            names.check([service], wrong)
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_a_system_that_is_still_made_is_not_ready(service):
    service.model = service.model.only("memory")
    service.status.settled, service.status.line = False, "building the datastore"
    with pytest.raises(ApiError, match="not ready yet: building the datastore") as refused:
        names.check([service], "tiny:knn")
    assert (refused.value.status, refused.value.code) == (503, "not_ready")


def test_retrieval_puts_its_passage_before_the_prompt(service, tiny_model, monkeypatch):
    passages = Passages(tiny_model.datastore.documents, tiny_model.decoder)
    rag = Rag(ModelSystem(tiny_model, "lm"), passages)
    monkeypatch.setattr(type(service.extras), "system", lambda *_: rag)
    monkeypatch.setattr(names, "check", lambda *_: (service, "rag"))
    body = {"model": "tiny:rag", "prompt": "Gold has the symbol", "temperature": 0}
    asked = requests.parse({**body, "max_tokens": 5}, False)
    answer = answers.whole(runs.run(service, asked, Deadline()))
    trace = rag.generate(body["prompt"], max_new_tokens=5)
    assert answer["choices"][0]["text"] == trace.text and answer["system"] == "rag"
    assert answer["usage"]["prompt_tokens"] == len(trace.prompt_ids)
    with pytest.raises(ApiError, match="Leave echo out"):
        list(runs.run(service, requests.parse({**body, "echo": True}, False), Deadline()))


@pytest.mark.parametrize(
    ("body", "words"),
    [({"prompt": "x" * 100}, "96 in all"), ({"prompt": [5, 9999]}, "token ids outside"),
     ({"prompt": PROMPT, "model": "tiny:lm", "lmbda": "auto"}, None),
     ({"prompt": PROMPT, "lmbda": "auto"}, "needs a router")],
)  # fmt: skip
def test_what_the_model_cannot_do_is_an_error(body, words, ask):
    if words is None:
        assert ask(**body)["lmbda"] == 0.0
        return
    with pytest.raises(ValueError if words != "96 in all" else ApiError, match=words):
        ask(**body)


def test_typed_control_tokens_are_text_unless_special_is_true(ask):
    literal = ask(prompt="</s>", echo=True, max_tokens=0, logprobs=0)["choices"][0]
    special = ask(prompt="</s>", echo=True, max_tokens=0, logprobs=0, special=True)["choices"][0]
    assert literal["text"] == special["text"] == "</s>"
    assert len(literal["logprobs"]["tokens"]) == 5
    assert special["logprobs"]["tokens"] == ["<s>", "</s>"]
    assert special["logprobs"]["text_offset"] == [0, 0]
