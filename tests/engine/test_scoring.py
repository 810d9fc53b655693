"""Scores against one forward pass per token."""

import math

import numpy as np
import pytest
import tiny
import torch

from mlpmem.engine import scoring
from mlpmem.errors import MlpMemError
from mlpmem.model.tokenizer import PARTIAL

TEXT = "The capital of Peru is Lima."


@pytest.fixture(scope="module")
def score(tiny_model):
    return tiny_model.score(TEXT)


def plain_nll(model, ids: list[int], source: str) -> list[float]:
    return [-float(model.distributions(ids[:at])[source][ids[at]]) for at in range(1, len(ids))]


@pytest.mark.parametrize("source", ["lm", "memory", "knn"])
def test_the_nll_of_every_token_is_that_of_its_own_pass(source, score, tiny_model):
    assert score.ids == tiny_model.decoder.encode(TEXT)
    assert len(score.tokens) == len(score.ids) == len(score.nll[source]) + 1
    expected = plain_nll(tiny_model, score.ids, source)
    np.testing.assert_allclose(score.nll[source], expected, atol=2e-3, rtol=1e-3)


def test_perplexity_and_grid_are_of_mixed_probabilities(score):
    lmbdas = [0.0, 0.3, 0.8]
    for source in ("memory", "knn"):
        for lmbda, actual in zip(lmbdas, score.grid(source, lmbdas), strict=True):
            p = (1 - lmbda) * np.exp(-score.nll["lm"]) + lmbda * np.exp(-score.nll[source])
            assert actual == pytest.approx(math.exp(-np.log(p).mean()), rel=1e-6)
    assert score.perplexity() == pytest.approx(math.exp(score.nll["lm"].mean()))
    assert score.perplexity("memory", 1.0) == pytest.approx(math.exp(score.nll["memory"].mean()))
    assert score.perplexity("memory") == score.perplexity("memory", 0.5)


def test_a_token_of_no_neighbour_is_impossible_only_for_the_datastore():
    actual = tiny.model(k=1).score("zzz qqq")
    assert actual.perplexity("knn", 1.0) == math.inf
    assert math.isfinite(actual.perplexity("knn", 0.5))


def test_a_text_longer_than_the_decoder_reads_is_scored_in_overlapping_windows(monkeypatch):
    model = tiny.model()
    monkeypatch.setattr(scoring, "ROWS", 7)
    ids = [0, *torch.randint(2, 250, (2 * tiny.POSITIONS + 11,)).tolist()]
    actual = scoring.score(model, ids)
    assert all(len(nll) == len(ids) - 1 for nll in actual.nll.values())
    stride = tiny.POSITIONS // 2
    for at in (1, tiny.POSITIONS - 1, tiny.POSITIONS, 2 * tiny.POSITIONS - 1, len(ids) - 1):
        start = 0
        while at >= start + tiny.POSITIONS:
            start += stride
        expected = -float(model.distributions(ids[start:at])["memory"][ids[at]])
        assert actual.nll["memory"][at - 1] == pytest.approx(expected, abs=2e-3)


def test_texts_and_sources_that_cannot_be_scored_are_refused(score, tiny_model):
    with pytest.raises(MlpMemError, match="must have two tokens or more"):
        tiny_model.score("")
    with pytest.raises(MlpMemError, match="the text has token ids outside 0"):
        tiny_model.score([0, 10**6])
    with pytest.raises(MlpMemError, match="source must be one of lm, memory, knn; got 'rag'"):
        score.perplexity("rag", 0.5)
    with pytest.raises(MlpMemError, match="from 0"):
        score.grid("knn", [0.5, 1.2])


def test_a_score_has_every_tokens_bytes_and_offsets(tiny_model):
    text = "Peru 😀 is é"
    score = tiny_model.score(text)
    assert b"".join(score.token_bytes) == text.encode() and score.token_bytes[0] == b""
    whole = text.encode()
    for part, (begin, end) in zip(score.token_bytes, score.offsets, strict=True):
        assert whole[begin:end] == part


@pytest.mark.parametrize("text", ["Peru is", " Peru", "  a\n\tb", "\N{GRINNING FACE} Peru", "\n"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_space_that_the_tokenizer_puts_before_a_text_is_no_part_of_it(text, bos):
    model = tiny.model()
    model.decoder.tokenizer = tiny.tokenizer(prefix_space=True, bos=bos)
    score, whole = model.score(text), text.encode()
    assert b"".join(score.token_bytes) == whole and score.offsets[-1][1] == len(whole)
    for part, (begin, end) in zip(score.token_bytes, score.offsets, strict=True):
        assert whole[begin:end] == part
    *_, done = model.inspect(text)
    (trace,) = done.values.values()
    assert trace.prompt + trace.text == text
    shown = [step.text for step in trace.steps if step.text != PARTIAL]
    assert "".join(shown) == trace.text


def test_half_a_surrogate_pair_is_scored_as_the_replacement_that_the_decoder_reads(tiny_model):
    assert b"".join(tiny_model.score("a\ud800b").token_bytes) == "a\ufffdb".encode()
    *_, done = tiny_model.inspect("a\ud800b")
    assert done.values["memory"].text == "a\ufffdb"


def test_ids_are_inspected_as_they_stand_and_a_name_among_them_is_text(tiny_model):
    decoder = tiny_model.decoder
    end = decoder.tokenizer.eos_token_id
    name = decoder.pieces[end]
    ids = [*decoder.encode(f"Peru {name} is"), end, *decoder.encode("Gold")]
    assert ids.count(end) == 1, "the name was typed, so it is text"
    *_, done = tiny_model.inspect(ids)
    (trace,) = done.values.values()
    assert [*trace.prompt_ids, *(step.token_id for step in trace.steps)] == ids
    *_, parsed = tiny_model.inspect(f"Peru {name} is", special=True)
    assert end in [step.token_id for step in parsed.values["memory"].steps]
    with pytest.raises(MlpMemError, match="token ids outside 0"):
        tiny_model.inspect([0, 10**6])


def test_texts_in_a_list_are_scored_like_single_ones(tiny_model):
    texts = ["Peru is", "Gold has the symbol"]
    for ours, text in zip(tiny_model.score(texts), texts, strict=True):
        assert ours.nll["lm"].tolist() == tiny_model.score(text).nll["lm"].tolist()
