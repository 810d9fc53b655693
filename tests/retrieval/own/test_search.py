"""The search of own texts, against scores written out."""

import numpy as np
import pytest
import torch

from mlpmem.retrieval.documents import join_passages
from mlpmem.retrieval.own.search import FOLLOWED, MOST, SHARED, STATE, TOKENS, TextSearch
from mlpmem.retrieval.own.words import Vocabulary, Words

PASSAGES = [[11, 12, 13, 14, 2], [11, 12, 15, 2], [16, 17, 2]]
READ = [[3, 11, 12], [16], [20, 21]]


@pytest.fixture(scope="module")
def made():
    documents = join_passages([(0, p) for p in PASSAGES], ["mine"], ["text"])
    positions = np.arange(len(documents.tokens))
    units = documents.passage_at(positions)
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(len(positions), 6, generator=generator).half().numpy()
    reference = torch.randn(40, 6, generator=generator) * torch.tensor([1, 1, 1, 1, 1, 50.0])
    parts = [np.array(p) for p in PASSAGES]
    words = Words(Vocabulary.of([f"w{i}" for i in range(30)], {0, 1, 2}), parts, [0, 0, 0])
    search = TextSearch(keys, positions, documents, words, parts, units, reference)
    return search, words, keys, reference, units, documents


def scores_of(made, queries):
    """Return scores (R, N) by loops."""
    _, words, keys, reference, units, documents = made
    states = torch.cat([reference, torch.from_numpy(keys).float()])
    scale = states.std(0)
    scores = torch.zeros(len(queries), len(keys))
    for r, read in enumerate(READ):
        shares = words.shares(read)
        for n in range(len(keys)):
            d = ((queries[r] - torch.from_numpy(keys[n]).float()) / scale).square().mean()
            before = documents.tokens[documents.offsets[units[n]] : n].tolist()[::-1]
            followed = 0
            for mine, other in zip(before, read[::-1], strict=False):
                if mine != other or followed == TOKENS:
                    break
                followed += 1
            last = n + 1 == documents.offsets[units[n] + 1]
            score = -STATE * d + SHARED * float(shares[units[n]]) + FOLLOWED * followed
            scores[r, n] = -torch.inf if last and not followed else score
    return scores


def test_scores_are_those_of_the_formula(made):
    search = made[0]
    queries = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    found, near = search.search(queries, READ, 5)
    top = scores_of(made, queries).topk(5, dim=1)
    assert torch.equal(found.indices, top.indices)
    torch.testing.assert_close(found.distances, MOST - top.values, atol=1e-4, rtol=1e-4)
    assert near.shape == (3, 3) and near[:, 0].max() <= 1


def test_a_number_of_great_variance_does_not_decide_alone(made):
    search = made[0]
    query = torch.from_numpy(made[2][3]).float()[None].clone()
    query[0, 5] += 20  # less than half a deviation of the reference's sixth number
    assert search.search(query, [[20]], 1).neighbours.indices.item() == 3


def test_the_end_of_a_passage_is_found_only_behind_its_last_token(made):
    search = made[0]
    query = torch.from_numpy(made[2][4]).float()[None]  # the state before the first passage's end
    assert search.search(query, [[20, 13]], 1).neighbours.indices.item() != 4
    assert search.search(query, [[20, 14]], 1).neighbours.indices.item() == 4


def test_a_search_without_a_sentence_finds_none_of_it(made):
    search, *_, units, _ = made
    query = torch.from_numpy(made[2][1]).float()[None]
    found, near = search.leaving(0).search(query, [[11, 12]], 50)
    entries = found.indices[0][found.indices[0] >= 0].numpy()
    assert 0 not in units[entries] and len(entries) == len(PASSAGES[1]) + len(PASSAGES[2]) - 2
    assert search.search(query, [[11, 12]], 1).neighbours.indices.item() in range(5), "unchanged"


def test_rows_together_equal_rows_alone(made):
    search = made[0]
    queries = torch.randn(3, 6)
    together = search.search(queries, READ, 4).neighbours
    for r, read in enumerate(READ):
        alone = search.search(queries[r : r + 1], [read], 4).neighbours
        assert torch.equal(alone.indices[0], together.indices[r])
