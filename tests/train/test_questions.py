"""Exact match by teacher forcing is exact match by generating; the grid is the naive mix."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

from mlpmem.retrieval.documents import join_passages
from mlpmem.retrieval.passages import forward_positions
from train.measure.atlas import ATLAS_LAMBDAS, Grid, MeasuredModel
from train.measure.questions import Questions, ask, cell_of, sample_questions, tally
from train.measure.text import nll_of

PROMPTS = ["The capital of Peru is", "Vellmar is an", "Question: Who? Answer:", "Gold has"]
LENGTH = 4
TRIED = (0.0, 0.3, 0.5, 0.55, 0.8, 1.0)


@cache
def model():
    """Return a tiny model whose settings are the evaluation's."""
    return tiny.model(k=8, knn_temperature=3.0)


@cache
def sources(*names):
    """Return the decoder with the sources of these names."""
    fused = model()
    memory = fused.memory if "memory" in names else None
    store = fused.datastore if "knn" in names else None
    return MeasuredModel(fused.decoder, memory, store, k=8, temperature=3.0)


def generated(prompt_ids, system, lmbda):
    """Return LENGTH token ids, greedily, by the library's own generation."""
    trace = model().generate(
        prompt_ids, system=system, lmbda=lmbda, max_new_tokens=LENGTH, temperature=0.0
    )
    return [step.token_id for step in trace.steps]


@cache
def questions():
    """Return questions whose right answers are what some mix of the model says."""
    words, rows, passages = model().decoder, [], []
    for i, prompt in enumerate(PROMPTS):
        ids = words.encode(prompt)
        for j, (system, lmbda) in enumerate([("lm", 0.0), ("memory", 0.55), ("knn", 1.0)]):
            answer = generated(ids, system, lmbda)
            if j == 2 and i % 2:
                answer[-1] = (answer[-1] + 1) % 200 + 2  # wrong at its last token only
            rows.append({"prompt": prompt, "answer": answer})
            passages.append((0, ids + answer))
    documents = join_passages(passages, ["one"], ["text"])
    ends = documents.offsets[1:]
    answers = [
        np.arange(end - len(row["answer"]), end) for row, end in zip(rows, ends, strict=True)
    ]
    of = np.repeat(np.arange(len(rows)), [len(a) for a in answers])
    return Questions(
        rows, [f"cell/{i}" for i in range(len(rows))], documents, np.concatenate(answers), of
    )


@pytest.mark.parametrize("system", ["memory", "knn"])
def test_exact_match_by_teacher_forcing_is_exact_match_by_generating(system):
    asked = questions()
    grid = sources("memory", "knn").grid(asked.documents, asked.positions)
    matched = set()
    for lmbda in TRIED:
        counts = tally(asked, grid.right[system][:, ATLAS_LAMBDAS.index(lmbda)])
        for i, row in enumerate(asked.rows):
            said = generated(model().decoder.encode(row["prompt"]), system, lmbda)
            right = said == row["answer"]
            assert counts[f"cell/{i}"] == {"n": 1, "right": int(right)}, (lmbda, row, said)
            matched.add((lmbda, right))
    assert len(matched) >= 2 * len(TRIED) - 2  # at nearly every lambda some are right, some wrong


def positions_of(documents):
    """Return all positions that have a key, in an odd order."""
    there = np.delete(np.arange(len(documents.tokens)), documents.offsets[:-1])
    return np.random.default_rng(0).permutation(there)


def probs_of(documents, position):
    """Return {source: (V,) probs} at a position, by the library's own door."""
    start = documents.offsets[documents.passage_at(position)]
    log_probs = model().distributions(documents.tokens[start:position].tolist(), lmbda=0.5)
    return {name: values.exp() for name, values in log_probs.items()}


def test_the_grid_is_the_naive_mix_at_every_position():
    documents = tiny.documents()
    positions = positions_of(documents)
    grid = sources("memory", "knn").grid(documents, positions)
    assert set(grid.right) == {"memory", "knn"} and set(grid.gold_nll) == {"lm", "memory", "knn"}
    for at in range(0, len(positions), 9):
        true, probs = int(documents.tokens[positions[at]]), probs_of(documents, positions[at])
        for name, column in grid.gold_nll.items():
            assert np.exp(-column[at]) == pytest.approx(
                float(probs[name][true]), rel=1e-3, abs=1e-6
            )
        for name, right in grid.right.items():
            assert right.shape == (len(positions), len(ATLAS_LAMBDAS))
            for lmbda in TRIED:
                mixed = (1 - lmbda) * probs["lm"] + lmbda * probs[name]
                assert right[at, ATLAS_LAMBDAS.index(lmbda)] == (int(mixed.argmax()) == true)
                expected = -np.log(max(float(mixed[true]), 1e-30))
                nll = grid.nll(name, lmbda)[at]
                assert nll == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_lambda_0_is_the_decoder_alone_whatever_stands_beside():
    documents = tiny.documents()
    positions = positions_of(documents)
    alone = sources().grid(documents, positions)
    beside = sources("memory", "knn").grid(documents, positions)
    assert set(alone.right) == set(alone.gold_nll) == {"lm"}
    assert (alone.right["lm"] == alone.right["lm"][:, :1]).all()
    for name in ("memory", "knn"):
        assert np.array_equal(beside.right[name][:, 0], alone.right["lm"][:, 0])
        assert np.array_equal(beside.nll(name, 0.0), alone.nll("lm", 0.0))
    assert np.array_equal(alone.nll("lm", 0.7), alone.nll("lm", 0.0))


def test_nll_of_a_token_without_any_mass_is_large_and_finite():
    none = nll_of(np.zeros(2))
    grid = Grid({}, {"lm": nll_of(np.array([0.0, 0.5])), "knn": none})
    nll = grid.nll("knn", 0.5)
    assert nll.tolist() == pytest.approx([-np.log(1e-30), -np.log(0.25)])
    assert np.isfinite(grid.nll("knn", 1.0)).all()


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_every_position_is_served_once_with_what_its_passage_alone_gives(batch_tokens):
    bound, documents = model().decoder, tiny.documents()
    positions = positions_of(documents)[:50]
    places = list(forward_positions(bound, documents, positions, batch_tokens=batch_tokens))
    assert sorted(np.concatenate([p.at for p in places])) == list(range(50))
    for place in places:
        for at, hidden, logits in zip(*place[:3], strict=True):
            start = documents.offsets[documents.passage_at(positions[at])]
            ids = torch.from_numpy(documents.tokens[start : positions[at]].astype(np.int64))
            alone = bound.forward(ids[None])
            torch.testing.assert_close(hidden, alone.hidden[0, -1], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(logits, alone.logits[0, -1], rtol=1e-3, atol=1e-3)


# Questions


def row(prompt="Who?", answer="He", group="B", wording="test", kind="question"):
    names = {"title": "Vellmar", "group": group, "wording": wording, "kind": kind}
    return {"prompt": prompt, "answer": answer} | names


def test_an_answer_ends_with_eos_and_a_statement_with_a_period():
    words = tiny.tokenizer()
    asked = ask(
        words,
        [row("Question: Who? Answer:", "the café 金"), row("It is in", "Peru", kind="statement")],
    )
    texts = []
    for i in range(2):
        mine = asked.positions[asked.question_of == i]
        passage = asked.documents.passage(i)
        assert mine[-1] == asked.documents.offsets[i + 1] - 1
        assert passage[0] == words.bos_token_id
        texts.append(words.decode(asked.documents.tokens[mine]))
        assert words.decode(passage[1 : len(passage) - len(mine)]) == asked.rows[i]["prompt"]
    assert texts == [" the café 金</s>", " Peru."]
    assert asked.cells == ["B/test", "B/statement_test"]


def test_a_question_is_right_only_if_all_its_tokens_are():
    documents = join_passages([(0, [0])], ["one"], ["text"])
    asked = Questions(
        rows=[{}] * 4,
        cells=["A1/test", "B/test", "B/test", "B/seen"],
        documents=documents,
        positions=np.arange(7),
        question_of=np.array([0, 0, 1, 1, 1, 2, 3]),
    )
    right = np.array([1, 1, 1, 0, 1, 1, 0], bool)
    assert tally(asked, right) == {
        "A1/test": {"n": 1, "right": 1},
        "B/test": {"n": 2, "right": 1},
        "B/seen": {"n": 1, "right": 0},
    }


def test_questions_are_drawn_by_cell_and_seed():
    rows = [row(f"{g}{w}{i}?", group=g, wording=w) for i in range(20) for g in "AB" for w in "xy"]
    drawn = sample_questions(rows, ["A/x", "B/y", "C/z"], 6, 1)
    assert [cell_of(r) for r in drawn] == ["A/x"] * 6 + ["B/y"] * 6
    assert len({r["prompt"] for r in drawn}) == 12
    assert drawn == sample_questions(rows, ["A/x", "B/y", "C/z"], 6, 1)
    assert drawn != sample_questions(rows, ["A/x", "B/y", "C/z"], 6, 2)
    assert len(sample_questions(rows, ["A/x"], 100, 1)) == 20
