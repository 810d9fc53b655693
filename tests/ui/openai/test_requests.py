"""Bodies as clients send them: what is read, what is refused by name, what is ignored."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.openai.answers import ApiError, encoded, error
from mlpmem.ui.openai.requests import IGNORED, MAX_CHAT, OWN, REFUSED, parse

HI = [{"role": "user", "content": "Hi"}]


def text(**body):
    return parse({"model": "m", "prompt": "Peru is", **body}, chat=False)


def chat(**body):
    return parse({"model": "m", "messages": HI, **body}, chat=True)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        (" Peru\n", [" Peru\n"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_several(prompt, read):
    assert text(prompt=prompt).prompts == read


def test_by_default_the_likeliest_tokens_are_written_as_on_the_page():
    asked = text()
    assert (asked.new_tokens, asked.samples, asked.ranked, asked.echo) == (None, 1, None, False)
    assert (asked.options.temperature, asked.options.top_p, asked.options.lmbda) == (0.0, 1.0, None)
    assert len({text().options.seed for _ in range(5)}) > 1, "every request draws anew"
    assert text(seed=7).options.seed == 7
    assert chat(max_completion_tokens=3, max_tokens=9).new_tokens == 3
    assert text(max_tokens=0).new_tokens == 0


def test_what_changes_nothing_is_ignored():
    asked = chat(user="x", metadata={"a": 1}, store=True, tools=None, tool_choice="none", n=None,
                 response_format={"type": "text"}, logit_bias={}, frequency_penalty=0.0,
                 parallel_tool_calls=False, foo=None)  # fmt: skip
    assert asked == chat(seed=asked.options.seed)
    assert text(best_of=1, suffix="").prompts == ["Peru is"]


@pytest.mark.parametrize(
    ("kind", "body", "param", "words"),
    [
        (chat, {"tools": [{"type": "function"}]}, "tools", "not served"),
        (chat, {"tool_choice": "required"}, "tool_choice", "not served"),
        (chat, {"response_format": {"type": "json_object"}}, "response_format", "not served"),
        (chat, {"logit_bias": {"5": 1}}, "logit_bias", "not served"),
        (text, {"frequency_penalty": 0.5}, "frequency_penalty", "not served"),
        (text, {"best_of": 2}, "best_of", "not served"),
        (text, {"suffix": "x"}, "suffix", "not served"),
        (chat, {"echo": True}, "echo", "not served"),
        (text, {"temprature": 0}, "temprature", "Did you mean temperature?"),
        (text, {"foo": 1}, "foo", "not a known field"),
        (text, {"max_tokens": BOUNDS.new_tokens + 1}, "max_tokens", "from 0 to 128; got 129"),
        (chat, {"max_tokens": 0}, "max_tokens", "from 1"),
        (chat, {"max_completion_tokens": 1.5}, "max_completion_tokens", "whole number"),
        (text, {"temperature": 2.5}, "temperature", "between 0 and 2"),
        (text, {"temperature": "hot"}, "temperature", "must be a number"),
        (text, {"top_p": 0}, "top_p", "between 0.01 and 1"),
        (text, {"seed": -1}, "seed", "from 0"),
        (text, {"n": 0}, "n", "from 1 to 16"),
        (text, {"n": True}, "n", "whole number"),
        (text, {"prompt": ["a"] * 5, "n": 4}, "prompt", "20 answers"),
        (text, {"prompt": ""}, "prompt", "empty"),
        (text, {"prompt": None}, "prompt", "missing"),
        (text, {"prompt": []}, "prompt", "list of them"),
        (text, {"prompt": [1, "a"]}, "prompt", "list of them"),
        (text, {"prompt": [[1], ["a"]]}, "prompt", "list of them"),
        (text, {"prompt": 3}, "prompt", "list of them"),
        (text, {"prompt": "x" * 2001}, "prompt", "2,000"),
        (text, {"prompt": [1] * 2001}, "prompt", "2,000 token ids"),
        (text, {"stop": [""]}, "stop", "stop must be"),
        (text, {"stop": ["x"] * 9}, "stop", "up to 8"),
        (text, {"logprobs": 21}, "logprobs", "from 0 to 20"),
        (text, {"logprobs": True}, "logprobs", "whole number"),
        (chat, {"logprobs": 3}, "logprobs", "true or false"),
        (chat, {"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        (text, {"lmbda": 1.5}, "lmbda", "between 0 and 1"),
        (text, {"lmbda": {"lmbda": 0.5}}, "lmbda", "number from 0 to 1"),
        (text, {"sources": ["rag"]}, "sources", "some of lm, memory, knn"),
        (text, {"sources": [["lm"]]}, "sources", "some of lm, memory, knn"),
        (text, {"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        (text, {"stream": "yes"}, "stream", "true or false"),
        (text, {"model": ""}, "model", "/v1/models"),
        (text, {"model": None}, "model", "/v1/models"),
        (chat, {"messages": []}, "messages", "must be a list"),
        (chat, {"messages": ["Hi"]}, "messages", "role None"),
        (chat, {"messages": [{"role": "tool", "content": "x"}]}, "messages", "role 'tool'"),
        (chat, {"messages": [{"role": "user"}]}, "messages", "only text"),
        (chat, {"messages": [{"role": "user", "content": "x" * 2001}]}, "messages", "2,000"),
        (chat, {"messages": [{"role": "user", "content": "x" * 2000}] * 13}, "messages",
         f"{MAX_CHAT:,} characters in all"),
        (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages",
         "'image_url'"),
        (chat, {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages",
         "tool_calls"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(kind, body, param, words):
    with pytest.raises(ApiError) as refused:
        kind(**body)
    status, shape = error(refused.value)
    assert status == 400 and set(shape) == {"error"}
    found = shape["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["param"] == param and words in found["message"]
    assert found["type"] == "invalid_request_error" and found["message"].endswith((".", "?"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "text", "auto", 10**400, "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4),
)  # fmt: skip
NAMES = sorted({*OWN["text"], *OWN["chat"], *REFUSED, *IGNORED, "unknown", "\ud83d"})


@given(st.booleans(), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_no_body_raises_anything_but_a_refusal(is_chat, body):
    try:
        asked = parse({"model": "m", "prompt": "x", "messages": HI, **body}, is_chat)
    except ApiError as refused:
        status, shape = error(refused)
        assert status == 400 and refused.sentence.strip() and encoded(shape).decode()
    else:
        assert asked.chat is is_chat


def test_parts_of_text_are_joined_and_a_lone_surrogate_is_replaced():
    texts = ["What is\n", " the \ud83d capital?"]
    parts = [{"type": "text", "text": text} for text in texts]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert chat(messages=messages).messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is\n the \ufffd capital?"},
    ]


def test_a_stream_ends_with_its_usage_where_asked():
    assert text(stream=True, stream_options={"include_usage": True}).include_usage
    assert not text(stream=True, stream_options={}).include_usage


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(422, "invalid_request_error", None), (404, "invalid_request_error", "not_found"),
     (413, "invalid_request_error", "request_too_large"),
     (429, "rate_limit_error", "rate_limit_exceeded"), (503, "server_error", "unavailable")],
)  # fmt: skip
def test_the_doors_refusals_have_the_protocols_shape(status, kind, code):
    from mlpmem.ui.door.routes import RefusedError

    got, shape = error(RefusedError(status, "send less"))
    assert got == (400 if status == 422 else status)
    assert shape["error"] == {"message": "send less.", "type": kind, "param": None, "code": code}
