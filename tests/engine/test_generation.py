"""Generation against loops without cache or batch; its limits, seeds and threads."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from mlpmem.engine import fused, generation
from mlpmem.engine import steps as rows
from mlpmem.engine.distributions import interpolate
from mlpmem.engine.trace import mix
from mlpmem.errors import MlpMemError

PROMPT = "The capital of Peru is"
EVERY = ("memory", "knn")


def plain_greedy(model, system: str, lmbda: float, tokens: int) -> list[int]:
    """Return greedy token ids from whole forward passes, one system, no cache."""
    ids = model.decoder.encode(PROMPT)
    start = len(ids)
    while len(ids) < start + tokens and ids[-1] not in model.decoder.eos_ids:
        output = model.distributions(ids)
        fused = output["lm"] if system == "lm" else interpolate(output["lm"], output[system], lmbda)
        ids.append(int(fused.argmax()))
    return ids[start:]


def chosen(trace) -> list[int]:
    return [step.token_id for step in trace.steps]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_systems_in_one_batch_equal_whole_passes_one_by_one(family):
    model = tiny.model(family, seed=3)
    traces = model.compare(PROMPT, lmbda={"memory": 0.4, "knn": 0.7}, max_new_tokens=12)
    assert list(traces) == ["lm", "memory", "knn"]
    for system, lmbda in {"lm": 0.0, "memory": 0.4, "knn": 0.7}.items():
        assert chosen(traces[system]) == plain_greedy(model, system, lmbda, 12)
        assert traces[system].lmbda == lmbda


def test_the_decoder_alone_equals_transformers_generate(tiny_model):
    ids = torch.tensor([tiny_model.decoder.encode(PROMPT)])
    expected = tiny_model.decoder.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
    )
    assert (
        chosen(tiny_model.generate(PROMPT, "lm", max_new_tokens=10))
        == expected[0, ids.shape[1] :].tolist()
    )


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_system_writes_the_same_in_any_company(temperature, tiny_model):
    options = {"max_new_tokens": 10, "temperature": temperature, "seed": 5, "top_p": 0.95}
    together = tiny_model.compare(PROMPT, **options)
    for system, trace in together.items():
        assert chosen(tiny_model.generate(PROMPT, system, **options)) == chosen(trace)
        assert chosen(tiny_model.compare(PROMPT, [system, "lm"], **options)[system]) == chosen(
            trace
        )


def test_at_lambda_0_every_system_writes_what_the_decoder_writes(tiny_model):
    traces = tiny_model.compare(PROMPT, lmbda=0.0, max_new_tokens=8, temperature=0.9, seed=2)
    assert len({tuple(chosen(trace)) for trace in traces.values()}) == 1


def test_the_same_seed_gives_the_same_text_and_another_seed_another(tiny_model):
    options = {"max_new_tokens": 16, "temperature": 1.5}
    first = tiny_model.generate(PROMPT, **options, seed=1)
    assert chosen(first) == chosen(tiny_model.generate(PROMPT, **options, seed=1))
    assert chosen(first) != chosen(tiny_model.generate(PROMPT, **options, seed=2))


@pytest.mark.parametrize("temperature", [0.0, 1.1])
@pytest.mark.parametrize("system", ["memory", "knn"])
def test_scrubbing_writes_what_single_generations_write_at_every_lambda(
    system, temperature, tiny_model
):
    options = {"max_new_tokens": 9, "temperature": temperature, "seed": 3}
    traces = tiny_model.scrub(PROMPT, system, **options)
    assert list(traces) == [i / 10 for i in range(11)]
    assert len({tuple(chosen(trace)) for trace in traces.values()}) > 1
    for lmbda, trace in traces.items():
        alone = tiny_model.generate(PROMPT, system, lmbda=lmbda, **options)
        assert (trace.system, trace.lmbda) == (system, lmbda)
        assert chosen(trace) == chosen(alone)
        for ours, theirs in zip(trace.steps, alone.steps, strict=True):
            assert ours.probs == pytest.approx(theirs.probs, abs=1e-5)


def test_scrubbing_computes_equal_histories_once(tiny_model, monkeypatch):
    rows = []
    forward = tiny_model.decoder.forward

    def counted(ids, **options):
        rows.append(len(ids))
        return forward(ids, **options)

    monkeypatch.setattr(tiny_model.decoder, "forward", counted)
    traces = tiny_model.scrub(PROMPT, max_new_tokens=6)
    histories = [
        {tuple(chosen(t)[:n]) for t in traces.values() if len(t.steps) > n} for n in range(6)
    ]
    assert rows == [len(some) for some in histories if some] and max(rows) < 11


def test_scrubbing_streams_by_lambda_and_refuses_systems_without_lambda(tiny_model):
    *steps, done = tiny_model.stream_scrub(PROMPT, lmbdas=[0, 0.5, 1, 0.5], max_new_tokens=3)
    assert list(done.values) == [0.0, 0.5, 1.0] and set(steps[0].values) == {0.0, 0.5, 1.0}
    for wrong in ({"system": "lm"}, {"lmbdas": []}, {"lmbdas": [1.5]}):
        with pytest.raises(MlpMemError, match="lambda|lmbda"):
            tiny_model.scrub(PROMPT, **wrong)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_forcing_a_traces_own_tokens_changes_nothing(temperature, tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    options = {"max_new_tokens": 9, "temperature": temperature, "seed": 6}
    for system, free in tiny_model.compare(PROMPT, **options).items():
        for count in (1, 5, 9):
            forced = chosen(free)[:count]
            again = tiny_model.generate(PROMPT, system, forced=forced, sources=EVERY, **options)
            assert chosen(again) == chosen(free) and again.text == free.text
            assert again.settings["forced"] == forced
            for ours, theirs in zip(again.steps, free.steps, strict=True):
                assert ours.probs == pytest.approx(theirs.probs, abs=1e-5)
                assert ours.index == theirs.index and ours.text == theirs.text


def test_after_a_forced_token_the_system_continues_from_it(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    free = tiny_model.generate(PROMPT, "knn", lmbda=0.6, max_new_tokens=4)
    other = next(c for c in free.steps[1].candidates if c.token_id != free.steps[1].token_id)
    forced = [free.steps[0].token_id, other.token_id]
    trace = tiny_model.generate(PROMPT, "knn", lmbda=0.6, max_new_tokens=4, forced=forced)
    assert trace.steps[1].probs == pytest.approx(other.probs, abs=1e-5)
    assert trace.prompt_ids == free.prompt_ids, "forced tokens are not part of the prompt"
    ids = [*trace.prompt_ids, *forced]
    for step in trace.steps[2:]:
        log_probs = tiny_model.distributions(ids, lmbda=0.6, system="knn")
        assert step.token_id == int(log_probs["fused"].argmax())
        ids.append(step.token_id)


def test_impossible_forced_tokens_are_refused_and_a_forced_end_token_ends(tiny_model):
    with pytest.raises(MlpMemError, match="forced must have at most max_new_tokens = .*; got 3"):
        tiny_model.generate(PROMPT, forced=[5, 6, 7], max_new_tokens=2)
    with pytest.raises(MlpMemError, match="forced has token ids outside"):
        tiny_model.generate(PROMPT, forced=[99999])
    trace = tiny_model.generate(PROMPT, forced=[70, 1])
    assert chosen(trace) == [70, 1] and trace.finish == "eos" and trace.text == "e"


def test_a_stop_text_of_bytes_that_are_no_character_ends_the_text(tiny_model):
    forced = [tiny_model.decoder.token_bytes.index(bytes([x])) for x in b"ab\xf0\x87"]
    options = {"forced": forced, "max_new_tokens": 9, "stop": "\ufffd"}
    trace = tiny_model.generate("The", "lm", **options)
    assert (trace.finish, trace.text, len(trace.steps)) == ("stop_string", "ab", 4)


def test_top_k_1_is_greedy(tiny_model):
    greedy = tiny_model.generate(PROMPT, max_new_tokens=8)
    assert chosen(
        tiny_model.generate(PROMPT, max_new_tokens=8, temperature=2.0, top_k=1)
    ) == chosen(greedy)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_there_are_exactly_max_new_tokens_tokens(tokens, tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    for trace in tiny_model.compare(PROMPT, max_new_tokens=tokens).values():
        assert len(trace.steps) == tokens
        assert trace.finish == "length"
        assert [step.index for step in trace.steps] == list(range(tokens))


def test_a_column_ends_at_its_eos_and_the_others_go_on(tiny_model, monkeypatch):
    free = tiny_model.compare(PROMPT, max_new_tokens=12, temperature=1.0, seed=4)
    third = chosen(free["lm"])[2]
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset([third]))
    traces = tiny_model.compare(PROMPT, max_new_tokens=12, temperature=1.0, seed=4)
    for system, trace in traces.items():
        whole = chosen(free[system])
        end = whole.index(third) + 1 if third in whole else 12
        assert chosen(trace) == whole[:end]
        assert trace.finish == ("eos" if third in whole else "length")


def test_the_end_token_is_kept_as_a_step_but_not_in_the_text(tiny_model, monkeypatch):
    decoder = tiny_model.decoder
    monkeypatch.setattr(decoder, "eos_ids", frozenset(range(decoder.vocab_size)))
    monkeypatch.setattr(decoder, "special_ids", frozenset(range(decoder.vocab_size)))
    trace = tiny_model.generate(PROMPT)
    assert len(trace.steps) == 1 and trace.finish == "eos" and trace.text == ""


def test_cancel_is_checked_before_every_token(tiny_model):
    stop = threading.Event()
    kinds, traces = [], {}
    for event in tiny_model.stream(PROMPT, max_new_tokens=30, cancel=stop):
        kinds.append(event.kind)
        traces = event.values
        if len(kinds) == 3:
            stop.set()
    assert kinds == ["step"] * 3 + ["done"]
    assert all(len(t.steps) == 3 and t.finish == "stop" for t in traces.values())
    assert tiny_model.generate(PROMPT, cancel=stop).steps == []


def test_the_stream_yields_every_step_and_then_the_traces(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    *steps, done = tiny_model.stream(PROMPT, max_new_tokens=4)
    assert [event.kind for event in steps] == ["step"] * 4
    for system, trace in done.values.items():
        assert [event.values[system] for event in steps] == trace.steps


def test_candidates_hold_every_sources_best_and_sum_to_1_with_the_rest(tiny_model):
    traces = tiny_model.compare(PROMPT, max_new_tokens=6, temperature=1.0)
    for system, trace in traces.items():
        ids = [*trace.prompt_ids]
        for step in trace.steps:
            exact = tiny_model.distributions(ids)
            table = {c.token_id: c for c in step.candidates}
            assert step.token_id in table and table[step.token_id].probs == step.probs
            for source in ("lm", "memory", "knn"):
                assert {int(i) for i in exact[source].topk(8).indices if exact[source][i] > -9} <= {
                    *table
                }
                total = sum(c.probs[source] for c in step.candidates) + step.rest[source]
                assert total == pytest.approx(1.0, abs=1e-5)
                for candidate in step.candidates:
                    p = math.exp(float(exact[source][candidate.token_id]))
                    assert candidate.probs[source] == pytest.approx(p, abs=1e-4)
            for candidate in step.candidates:
                remixed = mix(candidate.probs, system, trace.lmbda)
                assert candidate.probs["fused"] == pytest.approx(remixed, abs=1e-7)
            ids.append(step.token_id)


def test_neighbours_are_the_weightiest_with_their_surroundings(tiny_model):
    step = tiny_model.generate(PROMPT, "knn", max_new_tokens=1, sources=EVERY).steps[0]
    weights = [n.weight for n in step.neighbours]
    assert (
        len(weights) == 8 and weights == sorted(weights, reverse=True) and sum(weights) <= 1.00001
    )
    for n in step.neighbours:
        context = tiny_model.datastore.context(n.entry)
        assert (n.title, n.group, n.target_id) == (context.title, context.group, context.target)
        assert n.left == tiny_model.decoder.decode(context.left)
    assert step.neighbours[0].title == "Peru"
    assert step.neighbours[0].distance < 0.1, "the text contains the prompt literally"
    assert 0 <= step.js <= math.log(2)


def test_the_turns_around_a_neighbour_are_separated(tiny_model):
    decoder, turns = tiny_model.decoder, ("Who? I", "Where? Here")
    ids = [0, *(token for t in turns for token in (*decoder.encode(t)[1:], 1))]
    assert rows.passage_text(decoder, ids) == " ¶ Who? I ¶ Where? Here ¶ "
    assert rows.passage_text(decoder, decoder.encode("Who?")[1:]) == "Who?"


@pytest.fixture
def four_threads():
    """Have torch use four threads."""
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def test_a_step_of_few_rows_computes_with_the_decoders_threads(four_threads, monkeypatch):
    model, seen = tiny.model(), {}
    model.decoder.threads, model.decoder.all_threads = 2, 4

    def note(owner, name):
        function = getattr(owner, name)

        def noting(*arguments, **options):
            seen.setdefault(name, set()).add(torch.get_num_threads())
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    note(generation, "sample")
    note(fused, "log_softmax")
    note(model.retriever, "search")
    for _ in model.stream("Peru is", max_new_tokens=3):
        assert torch.get_num_threads() == 4, "nothing stays set between steps"
    assert seen == {"sample": {2}, "log_softmax": {2}, "search": {4}}


def test_four_threads_write_what_they_write_one_by_one(tiny_model):
    calls = [
        {
            "prompt": f"{PROMPT} {i}",
            "temperature": float(i % 2),
            "seed": i,
            "max_new_tokens": 6 + i % 3,
        }
        for i in range(8)
    ]

    def run(call):
        traces = tiny_model.compare(**call)
        return [(s, chosen(t), [dict(step.probs) for step in t.steps]) for s, t in traces.items()]

    expected = [run(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, calls)) == expected


def test_a_trace_has_its_settings_and_its_cost(tiny_model):
    options = {"max_new_tokens": 3, "seed": 7, "top_p": 0.9, "sources": EVERY}
    trace = tiny_model.generate(PROMPT, "knn", **options)
    assert trace.prompt == PROMPT and trace.prompt_ids == tiny_model.decoder.encode(PROMPT)
    assert trace.settings == {
        "max_new_tokens": 3, "temperature": 0.0, "top_k": 0, "top_p": 0.9, "seed": 7,
        "k": 16, "knn_temperature": 3.0, "memory_temperature": 1.0,
    }  # fmt: skip
    assert trace.model == {"bundle": "tiny", "tokenizer_hash": tiny_model.decoder.tokenizer_hash}
    assert trace.cost["decoder_bytes"] == tiny_model.decoder.bytes
    assert trace.cost["memory_bytes"] == tiny_model.memory.bytes
    assert trace.cost["datastore_bytes"] > tiny_model.datastore.keys.nbytes
    times = ("prefill_ms", "decoder_ms", "memory_ms", "search_ms")
    assert all(trace.cost[name] > 0 for name in times)
    assert trace.text == tiny_model.decoder.decode(chosen(trace))


def test_a_chat_is_its_turns_token_ids(tiny_model):
    from mlpmem.model.prompts import chat_ids

    turns = [("What is gold?", "Au"), ("And Peru?", "")]
    trace = tiny_model.chat(turns, "lm", max_new_tokens=2)
    assert trace.prompt_ids == chat_ids(tiny_model.decoder, turns)
    assert trace.prompt == "<s>What is gold?\nAu\nAnd Peru?", "control tokens are visible"
    model = tiny_model._like(None, tiny_model.settings, {}, None)
    model.questions = True
    trace = model.chat(turns, "lm", max_new_tokens=2)
    assert trace.prompt == ("<s>Question: What is gold? Answer: Au</s>Question: And Peru? Answer:")


@pytest.mark.parametrize("prompt", ["", "   \n", []])
def test_an_empty_prompt_is_refused(prompt, tiny_model):
    with pytest.raises(MlpMemError, match="the prompt is empty"):
        tiny_model.compare(prompt)


@pytest.mark.parametrize("prompt", [None, [1.5], [None], 7])
def test_a_prompt_that_is_neither_text_nor_ids_is_refused_everywhere(prompt, tiny_model):
    doors = "generate", "distributions", "score", "inspect"
    for ask in (getattr(tiny_model, name) for name in doors):
        with pytest.raises(MlpMemError, match="neither text nor token ids"):
            ask(prompt)


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(tiny_model):
    fits = [5] * (tiny.POSITIONS - 10)
    assert len(tiny_model.generate(fits, "lm", max_new_tokens=10).prompt_ids) == len(fits)
    with pytest.raises(
        MlpMemError, match=f"has {len(fits) + 1} tokens; with 10 .* room for {len(fits)}"
    ):
        tiny_model.generate([*fits, 5], "lm", max_new_tokens=10)
    with pytest.raises(MlpMemError, match="token ids outside"):
        tiny_model.generate([99999], "lm")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"temperature": -1.0},
        {"temperature": float("nan")}, {"temperature": "hot"}, {"top_p": 0.0}, {"top_p": 1.5},
        {"top_k": -1}, {"top_k": True}, {"seed": -3}, {"seed": None},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_before_anything_is_computed(wrong, tiny_model):
    with pytest.raises(MlpMemError, match=next(iter(wrong))):
        tiny_model.stream(PROMPT, **wrong)


def test_unknown_and_missing_systems_are_refused(tiny_model):
    with pytest.raises(MlpMemError, match="system 'rag' is not available, only lm, memory, knn"):
        tiny_model.compare(PROMPT, ["lm", "rag"])
    with pytest.raises(MlpMemError, match="must name at least one system"):
        tiny_model.compare(PROMPT, [])


def test_a_system_computes_only_what_it_mixes_and_requested_sources(tiny_model, monkeypatch):
    searched, search = [], tiny_model.retriever.search
    monkeypatch.setattr(
        tiny_model.retriever, "search", lambda *arguments: searched.append(1) or search(*arguments)
    )
    for system, names in (("lm", {"lm"}), ("memory", {"lm", "memory"})):
        step = tiny_model.generate(PROMPT, system, max_new_tokens=2).steps[0]
        assert set(step.probs) == names | {"fused"} and not step.neighbours and not searched
    more = tiny_model.generate(PROMPT, "lm", max_new_tokens=2, sources=["knn"])
    assert set(more.steps[0].probs) == {"lm", "knn", "fused"} and len(searched) == 2
    assert "memory_bytes" not in more.cost and more.cost["datastore_bytes"] > 0
    with pytest.raises(MlpMemError, match="'else' is not available"):
        tiny_model.generate(PROMPT, "lm", sources=["else"])


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_batch_of_prompts_is_its_prompts_one_by_one(temperature, tiny_model, monkeypatch):
    prompts = [PROMPT, "Peru is", "Gold has", PROMPT, tiny_model.decoder.encode("Peru was"), "A"]
    options = {"max_new_tokens": 7, "temperature": temperature, "seed": 4}
    singles = [tiny_model.compare(prompt, **options) for prompt in prompts]
    rows, forward = [], tiny_model.decoder.forward
    monkeypatch.setattr(
        tiny_model.decoder, "forward", lambda ids, **o: rows.append(len(ids)) or forward(ids, **o)
    )
    traces = tiny_model.compare(prompts, **options)
    assert max(rows) > 3, "prompts of one length share a batch"
    for ours, theirs in zip(traces, singles, strict=True):
        assert list(ours) == list(theirs)
        for name, trace in ours.items():
            assert chosen(trace) == chosen(theirs[name]) and trace.text == theirs[name].text
            assert trace.prompt_ids == theirs[name].prompt_ids
            for one, other in zip(trace.steps, theirs[name].steps, strict=True):
                assert one.probs == pytest.approx(other.probs, abs=1e-5)
    assert [t.text for t in tiny_model.generate(prompts, "lm", **options)] == [
        traces["lm"].text for traces in singles
    ]


def test_a_batch_under_a_router_is_its_prompts_one_by_one():
    model = tiny.routed(k=8, auto=True)
    prompts = [PROMPT, "Peru is", "Gold has", PROMPT[::-1]]
    traces = model.generate(prompts, "memory", max_new_tokens=4)
    for prompt, trace in zip(prompts, traces, strict=True):
        single = model.generate(prompt, "memory", max_new_tokens=4)
        assert [s.lmbda for s in trace.steps] == pytest.approx([s.lmbda for s in single.steps])


def test_an_answer_ends_before_a_stop_text(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    whole = tiny_model.generate(PROMPT, "lm", max_new_tokens=20)
    text = whole.text[5:8]
    for stop in (text, ["never", text]):
        trace = tiny_model.generate(PROMPT, "lm", max_new_tokens=20, stop=stop)
        assert trace.finish == "stop_string" and text not in trace.text
        assert whole.text.startswith(trace.text + text)
    other = tiny_model.generate(PROMPT, "lm", max_new_tokens=20, stop_strings=[text])
    assert (other.text, other.finish) == (trace.text, trace.finish)
    for wrong in (3, [3], [""], threading.Event()):
        with pytest.raises(MlpMemError, match="stop must be a text or a list of texts .*; got "):
            tiny_model.generate(PROMPT, "lm", stop=wrong)


def test_a_stop_text_may_span_tokens_and_hold_characters_of_several_tokens():
    text = "a\N{GRINNING FACE}b, \N{RAINBOW}END of it"
    model = tiny.model()
    decoder = model.decoder
    ids = decoder.encode(text)
    pieces = [decoder.token_bytes[i] for i in ids]
    assert max(map(len, pieces)) < len("\N{RAINBOW}".encode()), "characters are split"
    for stop in ("\N{GRINNING FACE}", "b, \N{RAINBOW}E", "END", " of", text, "it"):
        ends = text.index(stop) + len(stop)
        trace = model.generate(PROMPT, "lm", max_new_tokens=len(ids), forced=ids, stop=[stop, "~"])
        assert trace.finish == "stop_string" and trace.text == text[: text.index(stop)]
        assert len(trace.steps) == len(decoder.encode(text[:ends])), "at once"
    for stop in ("\N{REPLACEMENT CHARACTER}", "\N{WINKING FACE}", text + "~"):
        trace = model.generate(PROMPT, "lm", max_new_tokens=len(ids), forced=ids, stop=stop)
        assert trace.finish == "length" and trace.text == text, "half a character is no text"


def test_an_answer_that_ends_within_a_character_ends_before_it():
    model = tiny.model()
    ids = model.decoder.encode("ab\N{GRINNING FACE}")[1:]
    assert len(ids) == 6
    for count, text in ((2, "ab"), (3, "ab"), (5, "ab"), (6, "ab\N{GRINNING FACE}")):
        trace = model.generate(PROMPT, "lm", max_new_tokens=count, forced=ids[:count])
        assert trace.text == text and len(trace.steps) == count
    broken = model.decoder.token_bytes.index(b"\xff")
    trace = model.generate(PROMPT, "lm", max_new_tokens=3, forced=[*ids[:2], broken])
    assert trace.text == "ab\ufffd", "a byte that begins no character is kept"


def test_option_names_of_other_libraries_are_accepted_or_corrected(tiny_model):
    hot = {"temperature": 1.5, "max_new_tokens": 6}
    greedy = tiny_model.generate(PROMPT, "lm", max_new_tokens=6)
    assert chosen(tiny_model.generate(PROMPT, "lm", do_sample=False, **hot)) == chosen(greedy)
    with pytest.raises(MlpMemError, match="max_tokens is not an option.*max_new_tokens"):
        tiny_model.generate(PROMPT, "lm", max_tokens=3)
    with pytest.raises(MlpMemError, match="cancel must have is_set.*; got 7"):
        tiny_model.generate(PROMPT, "lm", cancel=7)


def test_a_penalty_avoids_repeats_and_min_p_the_unlikely(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.decoder, "eos_ids", frozenset())
    plain = chosen(tiny_model.generate(PROMPT, "lm", max_new_tokens=20))
    held = chosen(tiny_model.generate(PROMPT, "lm", max_new_tokens=20, repetition_penalty=50.0))
    assert len(set(held)) == 20 > len(set(plain))
    sure = tiny_model.generate(PROMPT, "lm", temperature=5.0, min_p=1.0, max_new_tokens=8)
    assert chosen(sure) == plain[:8]


def test_nan_is_an_error_that_names_the_source():
    model = tiny.model()
    with torch.no_grad():
        model.memory.lm_head.weight[:2].fill_(float("nan"))
    with pytest.raises(MlpMemError, match="the memory gives values that are not numbers"):
        model.generate(PROMPT, "memory")
    assert model.generate(PROMPT, "lm", max_new_tokens=2).steps
    with torch.no_grad():
        model.decoder.head_weight.fill_(float("inf"))
    for ask in (model.generate, model.score, model.distributions):
        with pytest.raises(MlpMemError, match="the decoder gives values that are not numbers"):
            ask(PROMPT)


def test_every_call_has_named_parameters():
    import inspect

    for call in (tiny.Model.generate, tiny.Model.compare, tiny.Model.stream, tiny.Model.chat):
        names = inspect.signature(call).parameters
        assert {"lmbda", "max_new_tokens", "temperature", "stop", "seed", "sources"} <= set(names)
