"""Systems: a column equals the model, and batches equal single calls."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

from mlpmem.engine.rag import Rag
from mlpmem.engine.systems import ModelSystem
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.model.lora import add_adapter, load_adapter
from mlpmem.retrieval.text_search import Passages
from mlpmem.retrieval.texts import cut_text
from train.measure import batches
from train.measure.batches import generate, next_tokens, score_continuations

PROMPTS = ("The capital of Peru is", "Vellmar is an", "Gold", "Question: Who? Answer:")


@cache
def model():
    """Return a tiny model with all three sources."""
    return tiny.model(k=8)


@cache
def routed():
    """Return the same model with one lambda per token."""
    return tiny.routed(k=8)


@cache
def passages():
    """Return the tiny documents' passages."""
    return Passages(tiny.documents(), model().decoder)


def system(name):
    """Return a column by name, or retrieval before the decoder or the memory."""
    if name.startswith("auto"):
        return ModelSystem(routed(), name.removeprefix("auto_"), AUTO)
    if name.startswith("rag"):
        inner = ModelSystem(model(), "memory" if "memory" in name else "lm", 0.7)
        inner = system("auto_memory") if "auto" in name else inner
        return Rag(inner, passages(), count=1, layout="text" if "text" in name else "turns")
    return ModelSystem(model(), name, 0.7)


ALL = ("lm", "memory", "knn", "rag", "rag_memory_text", "auto_memory", "auto_mixed", "rag_auto")


@pytest.mark.parametrize("name", ["lm", "memory", "knn", "mixed"])
def test_a_column_gives_the_models_own_distribution(name):
    for prompt in PROMPTS:
        ids = model().decoder.encode(prompt)
        log_probs = system(name).log_probs(ids)[0]
        torch.testing.assert_close(log_probs, model().distributions(ids, 0.7, name)["fused"])


def test_a_column_without_lambda_takes_the_models_or_its_routers():
    ids = model().decoder.encode(PROMPTS[0])
    lm, memory, knn = tiny.systems(tiny.routed(k=8, auto=True))
    assert (lm.reads_evidence, memory.reads_evidence, knn.reads_evidence) == (False, True, False)
    torch.testing.assert_close(memory.log_probs(ids), system("auto_memory").log_probs(ids))
    torch.testing.assert_close(knn.log_probs(ids), knn.at(0.5).log_probs(ids))
    assert generate(memory, [ids], 4) == generate(system("auto_memory"), [ids], 4)


def test_a_column_leaves_its_lambda_to_the_router():
    ids = model().decoder.encode(PROMPTS[0])
    log_probs = system("auto_mixed").log_probs(ids)[0]
    torch.testing.assert_close(log_probs, routed().distributions(ids, AUTO, "mixed")["fused"])


@pytest.mark.parametrize("name", ["lm", "memory", "knn", "auto_mixed"])
def test_the_last_positions_are_those_of_shorter_prompts(name):
    ids = model().decoder.encode(PROMPTS[0])
    rows = system(name).log_probs(ids, last=3)
    for row, at in zip(rows, (len(ids) - 2, len(ids) - 1, len(ids)), strict=True):
        one = system(name).log_probs(ids[:at])[0]
        torch.testing.assert_close(row, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_batched_scores_equal_single_calls(name):
    column, encode = system(name), model().decoder.encode
    pairs = [(encode(p), encode(f"{p} Lima.")[len(encode(p)) :]) for p in PROMPTS]
    scores = score_continuations(column, pairs)
    for i, (prompt, continuation) in enumerate(pairs):
        log_probs = column.log_probs([*prompt, *continuation[:-1]], last=len(continuation))
        gold = log_probs[range(len(continuation)), continuation]
        assert scores.log_probs[scores.of == i] == pytest.approx(gold.numpy(), abs=1e-4)
        assert scores.sums()[i] == pytest.approx(float(gold.sum()), abs=1e-3)
        assert scores.means()[i] == pytest.approx(float(gold.mean()), abs=1e-3)
        greedy = log_probs.argmax(-1).tolist() == continuation
        assert scores.exact()[i] == greedy
    ids = [3, 40, 7]
    rows = next_tokens(column, [prompt for prompt, _ in pairs], ids)
    for row, (prompt, _) in zip(rows, pairs, strict=True):
        assert row == pytest.approx(column.log_probs(prompt)[0, ids].numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_batched_generation_equals_single_generation(name, monkeypatch):
    monkeypatch.setattr(batches, "ROWS", 3)
    column, encode = system(name), model().decoder.encode
    written = generate(column, [encode(p) for p in PROMPTS], 6)
    for prompt, ids in zip(PROMPTS, written, strict=True):
        trace = column.generate(prompt, max_new_tokens=6)
        assert [step.token_id for step in trace.steps] == ids
    scores = score_continuations(
        column, [(encode(p), ids) for p, ids in zip(PROMPTS, written, strict=True)]
    )
    assert scores.exact().all()


def test_batched_generation_stops_at_the_end_token(monkeypatch):
    column, encode = system("lm"), model().decoder.encode
    free = generate(column, [encode(p) for p in PROMPTS], 6)
    monkeypatch.setitem(model().decoder.__dict__, "eos_ids", frozenset([free[1][2]]))
    for ids, cut in zip(free, generate(column, [encode(p) for p in PROMPTS], 6), strict=True):
        end = ids.index(free[1][2]) + 1 if free[1][2] in ids else len(ids)
        assert cut == ids[:end]


def test_a_prompt_that_is_too_long_keeps_its_first_token_and_its_end():
    ids = list(range(2, 2 + 150))
    read = batches.fit_prompt(system("lm"), ids, 6)
    assert read == [2, *ids[-(tiny.POSITIONS - 7) :]] and len(read) == tiny.POSITIONS - 6
    with pytest.raises(MlpMemError, match="fewer than the 96 .* got 96"):
        batches.fit_prompt(system("lm"), ids, 96)


def test_a_column_has_its_bytes_seconds_and_label():
    columns = {column.name: column for column in tiny.systems(model())}
    assert list(columns) == model().systems and columns["memory"].seconds == 0.0
    decoder = model().decoder.bytes
    assert columns["lm"].bytes == decoder and columns["knn"].bytes == decoder + model().store.bytes
    assert columns["memory"].bytes == decoder + model().memory.bytes
    assert columns["memory"].label == "decoder + memory"


# Retrieval


def test_retrieval_finds_the_planted_document_and_puts_it_first():
    decoder = model().decoder
    (best,) = passages().search("symbol of gold", 1)
    assert decoder.decode(passages().ids[best]).startswith("Gold has the symbol Au")
    ids = decoder.encode("The symbol of gold is")
    read = system("rag").context(ids, 6)
    assert read == [0, *passages().ids[best][1:], *ids[1:]]  # BOS once, with the passage's end
    text = Rag(ModelSystem(model()), passages(), layout="text").context(ids, 6)
    expected = f"{decoder.decode(passages().ids[best])} The symbol of gold is"
    assert decoder.decode(text) == expected and text.count(0) == 1 and 1 not in text


def test_plain_text_is_joined_to_the_prompt():
    decoder = model().decoder
    notes = Passages(cut_text(decoder, [("notes", "Tin has the symbol Sn")]), decoder)
    ids = Rag(ModelSystem(model()), notes).context(decoder.encode("The symbol of tin is"), 6)
    assert decoder.decode(ids) == "Tin has the symbol Sn The symbol of tin is"
    assert passages().layout == "turns" and not {0, 1} & set(ids[1:])
    long = Passages(cut_text(decoder, [("notes", "Tin is soft. " * 40 + "Zinc is hard.")]), decoder)
    assert max(map(len, long.ids)) == tiny.POSITIONS // 4
    read = Rag(ModelSystem(model()), long).context(decoder.encode("Zinc"), 6)
    assert "hard" in decoder.decode(read), "a long text is searched in pieces"


def test_passages_without_a_word_in_common_are_not_read():
    ids = model().decoder.encode("zzz")
    assert system("rag").context(ids, 6) == ids and passages().search("zzz", 3) == []


def test_a_search_of_a_text_without_words_finds_nothing():
    decoder = model().decoder
    mute = Passages(cut_text(decoder, [("notes", "!!! ???")]), decoder)
    ids = decoder.encode("The symbol of gold is")
    assert mute.search("gold", 3) == [] and mute.bytes > 0
    assert Rag(ModelSystem(model()), mute).context(ids, 6) == ids


def test_the_best_passage_comes_last_and_passages_that_do_not_fit_are_left_out():
    several = Rag(ModelSystem(model()), passages(), count=4)
    ids = model().decoder.encode("capital of Peru Vellmar town")
    room = tiny.POSITIONS - len(ids)
    order = passages().search("capital of Peru Vellmar town", 4)
    assert len(order) == 3  # of five passages, two are equal and one has none of the words
    best, second = (passages().ids[p][1:] for p in order[:2])
    read = several.context(ids, room - len(best) - len(second))
    assert read == [0, *second, *best, *ids[1:]]
    assert several.context(ids, room - len(best) + 1) == ids


def test_a_trace_of_retrieval_has_its_prompt_and_its_time():
    trace = system("rag").generate("The symbol of gold is", max_new_tokens=3)
    assert "Gold has the symbol Au" in trace.prompt and trace.cost["retrieval_ms"] > 0
    assert trace.cost["passages_bytes"] == passages().bytes > 0
    assert trace.settings["asked"] == "The symbol of gold is", "the passages are in trace.prompt"
    assert trace.prompt.endswith(trace.settings["asked"]) and trace.settings["max_new_tokens"] == 3
    rag = system("rag")
    assert rag.bytes > model().decoder.bytes and rag.seconds > 0
    assert rag.label == "decoder + retrieval"


@pytest.mark.parametrize("wrong", [{"layout": "columns"}, {"count": 0}])
def test_an_unknown_layout_or_count_is_refused(wrong):
    with pytest.raises(MlpMemError, match="must be one of turns, text"):
        Rag(ModelSystem(model()), passages(), **wrong)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    for package, call in {
        "bm25s": lambda: Passages(tiny.documents(), model().decoder),
        "peft": lambda: add_adapter(tiny.decoder().model, 2),
    }.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MlpMemError, match=f"pip install {package}"):
            call()


# Adapters


def test_an_untrained_adapter_leaves_the_logits_as_they_are():
    bound = tiny.decoder()
    ids = torch.tensor([bound.encode(PROMPTS[0])])
    before = bound.forward(ids).logits
    wrapped = add_adapter(bound.model, 4)
    assert torch.equal(bound.forward(ids).logits, before)
    asking = {n for n, p in bound.model.named_parameters() if p.requires_grad}
    assert asking and all("lora_" in name for name in asking)
    linears = 7 * tiny.LAYERS  # q, k, v, o, gate, up, down; never the head
    assert len(asking) == 2 * linears and wrapped.peft_config["default"].r == 4


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(MlpMemError, match="lacks adapter_config.json"):
        load_adapter(tiny.decoder(), tmp_path)


def test_an_adapter_of_another_decoder_is_refused(tmp_path):
    from mlpmem.model.lora import save_adapter

    save_adapter(add_adapter(tiny.decoder("gpt2").model, 4), tmp_path)
    assert "/" not in (tmp_path / "adapter_config.json").read_text()
    with pytest.raises(MlpMemError, match="does not fit this decoder"):
        load_adapter(tiny.decoder("llama"), tmp_path)


def test_scores_are_summed_and_averaged_per_continuation():
    log_probs, right = np.log([0.5, 0.25, 0.5]), np.array([True, True, False])
    scores = batches.ContinuationScores(log_probs, right, np.array([0, 0, 1]))
    assert np.exp(scores.sums()) == pytest.approx([0.125, 0.5])
    assert np.exp(scores.means()) == pytest.approx([0.125**0.5, 0.5])
    assert scores.exact().tolist() == [True, False]
