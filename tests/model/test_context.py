"""The context vector: its value, its pieces, its rows, and the memory that reads it."""

import numpy as np
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.model.context import (
    ASKED,
    CLOSED,
    ENDED,
    SENTENCE_LIFE,
    Context,
    ContextLayer,
    sentence_ends,
    word_weights,
)
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval.documents import entries, join_passages
from mlpmem.retrieval.passages import forward_positions
from tests import tiny

LIVES = (2.0, 8.0)


@pytest.fixture(scope="module")
def decoder():
    """Return a tiny Llama decoder that gives context vectors."""
    decoder = tiny.decoder("llama")
    decoder.context = Context(LIVES, word_weights(decoder.special_ids, decoder.vocab_size))
    return decoder


def direct(decoder, ids):
    """Return context vectors (T, n D) by the formula, in float64."""
    e = decoder.model.get_input_embeddings().weight[ids].double()
    w = decoder.context.weights[ids].double()
    out = []
    for t in range(len(ids)):
        row = []
        for life in LIVES:
            decays = 2.0 ** (-(t - torch.arange(t + 1).double()) / life) * w[: t + 1]
            row.append((decays[:, None] * e[: t + 1]).sum(0) / decays.sum().clamp_min(1e-30))
        out.append(torch.cat(row))
    return torch.stack(out)


def states(decoder, ids, **options):
    """Return what stands behind the hidden state, (B, T, n D)."""
    return decoder.forward(torch.tensor(ids), **options).hidden[..., decoder.hidden_size :]


def test_context_is_the_formula(decoder):
    ids = [5, 9, 9, 31, 7, 12]
    assert decoder.state_size == 3 * decoder.hidden_size
    torch.testing.assert_close(states(decoder, [ids])[0].double(), direct(decoder, ids))


def test_control_tokens_weigh_nothing(decoder):
    special = min(decoder.special_ids)
    seen = states(decoder, [[special, 5, special, 9]])[0]
    assert (seen[0] == 0).all()
    weight = decoder.model.get_input_embeddings().weight
    torch.testing.assert_close(seen[1], torch.cat([weight[5]] * 2))
    torch.testing.assert_close(seen[2], seen[1])


def test_control_tokens_that_the_decoder_does_not_know_are_left_out():
    assert word_weights(frozenset({1, 4, 7}), 4).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_pieces_give_the_same_bits(decoder, cut):
    ids = [5, 9, 9, 31, 7, 12, 40]
    whole = states(decoder, [ids])
    first = decoder.forward(torch.tensor([ids[:cut]]), use_cache=True)
    rest = [first.hidden]
    for token in ids[cut:]:
        rest.append(decoder.forward(torch.tensor([[token]]), cache=first.cache).hidden)
    pieces = torch.cat(rest, 1)[..., decoder.hidden_size :]
    assert torch.equal(pieces, whole)


def test_rows_are_chosen_and_cropped_with_the_cache(decoder):
    rows = torch.tensor([[5, 9, 31], [7, 12, 40]])
    output = decoder.forward(rows, use_cache=True)
    assert isinstance(output.cache.layers[-1], ContextLayer)
    output.cache.batch_select_indices(torch.tensor([1, 1, 0]))
    after = decoder.forward(torch.tensor([[3], [4], [6]]), cache=output.cache)
    alone = states(decoder, [[7, 12, 40, 3], [7, 12, 40, 4], [5, 9, 31, 6]])[:, -1:]
    assert torch.equal(after.hidden[..., decoder.hidden_size :], alone)
    output.cache.crop(-2)
    again = decoder.forward(torch.tensor([[8], [8], [8]]), cache=output.cache)
    alone = states(decoder, [[7, 12, 8], [7, 12, 8], [5, 9, 8]])[:, -1:]
    assert torch.equal(again.hidden[..., decoder.hidden_size :], alone)


def test_padding_is_not_read(decoder):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    padded = states(decoder, [[1, 1, 5, 9], [5, 9, 31, 7]], attention_mask=mask)
    assert torch.equal(padded[:1, 2:], states(decoder, [[5, 9]]))
    assert torch.equal(padded[1:], states(decoder, [[5, 9, 31, 7]]))


def test_packed_passages_have_their_own_context(decoder):
    rng = np.random.default_rng(0)
    start = rng.integers(5, 60, 9)
    passages = [(0, [*start[: rng.integers(3, 9)], *rng.integers(5, 60, 6)]) for _ in range(12)]
    documents = join_passages(passages, ["a"], ["a"])
    positions, _ = entries(documents)
    packed = torch.zeros(len(positions), decoder.state_size)
    plain = torch.zeros_like(packed)
    for head, out in ((False, packed), (True, plain)):
        for places in forward_positions(decoder, documents, positions, head=head):
            out[places.at] = places.hidden
    size = decoder.hidden_size
    assert torch.equal(packed[:, size:], plain[:, size:])
    torch.testing.assert_close(packed, plain)


def test_a_memory_without_context_leaves_it_out(decoder):
    sizes = decoder.hidden_size, decoder.vocab_size, 1, 8
    memory = Memory(MemoryConfig(*sizes)).bind(decoder)
    hidden = decoder.forward(torch.tensor([[5, 9]])).hidden
    assert torch.equal(memory(hidden), memory(hidden[..., : decoder.hidden_size]))


def test_a_memory_with_context_makes_the_decoder_give_it(tmp_path):
    decoder = tiny.decoder("llama")
    sizes = decoder.hidden_size, decoder.vocab_size, 1, 8
    memory = Memory(MemoryConfig(*sizes, context=LIVES, turn=(3, 9)))
    with torch.no_grad():
        memory.token_weights[3] = 0.25
        memory.door.mean.normal_()
        memory.door.scale.uniform_(0.5, 2)
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path)
    assert loaded.config == memory.config
    loaded.bind(decoder)
    assert decoder.half_lives == LIVES and decoder.context.weights[3] == 0.25
    assert decoder.context.turn == (3, 9)
    hidden = decoder.forward(torch.tensor([[5, 9, 3]])).hidden
    assert torch.equal(loaded(hidden), memory(hidden))
    for config in ({"context": (4.0,)}, {"context": LIVES, "turn": (9,)}):
        with pytest.raises(MlpMemError, match="another decoder: (context|turn)"):
            Memory(MemoryConfig(*sizes, **config)).bind(decoder)


def test_a_door_starts_as_the_identity_on_the_hidden_state():
    memory = Memory(MemoryConfig(6, 9, 1, 8, context=LIVES))
    x = torch.zeros(2, 18)
    x[:, :6] = torch.randn(2, 6)
    assert torch.equal(memory.door(x), x[:, :6])


TURNS = {(9,): [5, 9, 31, 7, 9, 12, 40], (31, 9): [31, 9, 5, 9, 31, 31, 9, 12, 40]}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("cut", [1, 5, 6])
def test_a_question_begins_its_words_anew(decoder, turn, cut, monkeypatch):
    ids = TURNS[turn]
    last = max(i for i in range(len(ids)) if tuple(ids[: i + 1][-len(turn) :]) == turn)
    inside = ids[: ids.index(5) + 2]  # 9 alone is no question where two ids begin one
    words = Context(LIVES, decoder.context.weights, turn)
    alone, begun = direct(decoder, ids[last:]), direct(decoder, inside[inside.index(9) :])
    monkeypatch.setattr(decoder, "context", words)
    whole = states(decoder, [ids])
    torch.testing.assert_close(whole[0, last:].double(), alone)
    if len(turn) == 2:
        torch.testing.assert_close(whole[0, len(inside) - 1].double(), begun[-1])
    first = decoder.forward(torch.tensor([ids[:cut]]), use_cache=True)
    rest = [decoder.forward(torch.tensor([[t]]), cache=first.cache).hidden for t in ids[cut:]]
    pieces = torch.cat([first.hidden, *rest], 1)[..., decoder.hidden_size :]
    assert torch.equal(pieces, whole)


def seen_by(parents):
    """Return what each token of a tree sees, (1, 1, T, T) bool: itself and its ancestors."""
    sees = torch.zeros(1, 1, len(parents), len(parents), dtype=torch.bool)
    for t in range(len(parents)):
        at = t
        while at >= 0:
            sees[0, 0, t, at], at = True, parents[at]
    return sees


def test_a_tree_of_tokens_begins_anew_along_each_branch():
    weights, vectors = torch.ones(50), torch.randn(1, 5, 4)
    words = Context(LIVES, weights, (3, 9))
    ids = torch.tensor([[5, 3, 9, 9, 7]])  # 3 follows 5; 9 follows 3, and another 9 follows 5
    tree = words.read(vectors, ids, seen_by([-1, 0, 1, 0, 3]), None)[0]
    for path in ([0, 1, 2], [0, 3, 4]):
        alone = words.read(vectors[:, path], ids[:, path], None, None)[0]
        assert torch.equal(tree[path], alone)
    assert torch.equal(tree[2, :4], vectors[0, 2]) and not torch.equal(tree[3, :4], vectors[0, 3])


# tokens that end a sentence, ask, begin a question, end it, and end a sentence without a word
STOP, MARK, TURN, DONE, STOP0 = 20, 21, 22, 23, 24
CHATS = {  # token ids, and the places of the words that were asked at its end
    "nothing has ended": ([TURN, 5, 9], None),
    "none asks, the last one counts": ([TURN, 5, 9, STOP, 7, 12, STOP], [4, 5, 6]),
    "none asks, one is at hand": ([TURN, 5, 9, STOP, 7, 12], [1, 2, 3]),
    "a sentence needs a word": ([TURN, 5, 9, STOP, STOP0, STOP0], [1, 2, 3]),
    "it needs no full stop": ([TURN, 5, 9, DONE, 31, STOP], [1, 2]),
    "an answer is not asked": ([TURN, 5, MARK, DONE, 7, MARK, 31, STOP], [1, 2]),
    "nor is it the last sentence": ([TURN, 5, STOP, 6, DONE, DONE, 7, STOP], [3]),
    "a header in front is no question": ([TURN, DONE, DONE, 5, STOP, DONE, 31], [3, 4]),
    "the last sentence asks": ([TURN, 5, 9, STOP, 7, 12, MARK], [4, 5, 6]),
    "the first one asks": ([TURN, 5, 9, MARK, 7, 12, STOP], [1, 2, 3]),
    "an answer follows": ([TURN, 5, 9, MARK, 31, 40, STOP, 6], [1, 2, 3]),
    "two ask": ([TURN, 5, MARK, 8, STOP, 7, 12, MARK, 6], [1, 2, 5, 6, 7]),
    "an earlier question asked": ([TURN, 5, MARK, 8, TURN, 7, 12, MARK], [5, 6, 7]),
    "the new question has not asked yet": ([TURN, 5, MARK, 8, TURN, 7, 12], None),
}


@pytest.fixture
def asking(decoder, monkeypatch):
    """Return the decoder with a context of what was asked, too."""
    ends = torch.zeros(decoder.vocab_size)
    ends[STOP], ends[STOP0], ends[MARK], ends[DONE] = ENDED, ENDED, ASKED, CLOSED
    weights = torch.linspace(0.2, 1, decoder.vocab_size)
    weights[[STOP0, DONE]] = 0
    monkeypatch.setattr(decoder, "context", Context(LIVES, weights, (TURN,), ends))
    return decoder


@pytest.mark.parametrize("name", CHATS)
def test_what_was_asked_is_the_mean_of_the_sentences_that_ask(asking, name):
    ids, places = CHATS[name]
    size = asking.hidden_size
    assert asking.state_size == 4 * size
    state = states(asking, [ids])[0, -1]
    longest, asked = state[size : 2 * size], state[2 * size :]
    if places is None:
        assert torch.equal(asked, longest)
        return
    words = torch.tensor([ids[place] for place in places])
    ends = [next(p for p in range(place, len(ids)) if p + 1 not in places) for place in places]
    left = 2.0 ** (
        -torch.tensor([e - p for e, p in zip(ends, places, strict=True)]) / SENTENCE_LIFE
    )
    weights = asking.context.weights[words].double() * left.double()
    embeddings = asking.model.get_input_embeddings().weight[words].double()
    mean = (weights[:, None] * embeddings).sum(0) / weights.sum()
    torch.testing.assert_close(asked.double(), mean)


@pytest.mark.parametrize("cut", [1, 3, 6, 8, 9, 11, 13])
def test_what_was_asked_has_the_same_bits_in_pieces_in_rows_and_after_a_crop(asking, cut):
    ids = [TURN, 5, 9, STOP, 7, 12, MARK, DONE, 31, STOP, TURN, 6, STOP, DONE, 8]
    whole = states(asking, [ids])
    first = asking.forward(torch.tensor([ids[:cut], [40] * cut]), use_cache=True)
    first.cache.batch_select_indices(torch.tensor([1, 0]))
    asking.forward(torch.tensor([[MARK], [MARK]]), cache=first.cache)
    first.cache.crop(-1)
    rest = [
        asking.forward(torch.tensor([[3], [t]]), cache=first.cache).hidden[1:] for t in ids[cut:]
    ]
    pieces = torch.cat([first.hidden[:1], *rest], 1)[..., asking.hidden_size :]
    assert torch.equal(pieces, whole)


def test_what_was_asked_follows_each_branch_of_a_tree(asking):
    words, vectors = asking.context, torch.randn(1, 6, 4)
    ids = torch.tensor([[TURN, 5, MARK, STOP, 7, 8]])  # 5 goes on with "?" and 7, or "." and 8
    tree = words.read(vectors, ids, seen_by([-1, 0, 1, 1, 2, 3]), None)[0]
    for path in ([0, 1, 2, 4], [0, 1, 3, 5]):
        alone = words.read(vectors[:, path], ids[:, path], None, None)[0]
        assert torch.equal(tree[path], alone)
    assert not torch.equal(tree[4, 8:], tree[5, 8:]), "a sentence with its own end"


def test_sentences_end_at_marks_and_at_line_ends():
    pieces = [" Who", "?", '?"', "？", ".", '."', "!\n", "\n", ".5", "U.S", ""]
    ends = [0, ASKED, ASKED, ASKED, ENDED, ENDED, ENDED, ENDED, 0, 0, 0]
    assert sentence_ends(pieces).tolist() == ends


def test_a_memory_keeps_what_ends_a_sentence(tmp_path):
    decoder = tiny.decoder("llama")
    sizes = decoder.hidden_size, decoder.vocab_size, 1, 8
    memory = Memory(MemoryConfig(*sizes, context=LIVES, turn=(TURN,), asked=True))
    with torch.no_grad():
        memory.sentence_ends.copy_(sentence_ends(decoder.pieces))
    memory.save(tmp_path, torch.float16)
    loaded = Memory.load(tmp_path).bind(decoder)
    assert loaded.config.asked and decoder.state_size == loaded.config.input_size
    assert torch.equal(decoder.context.ends, sentence_ends(decoder.pieces))
    assert decoder.context.ends.max() == ASKED
    with pytest.raises(MlpMemError, match="another decoder: asked"):
        Memory(MemoryConfig(*sizes, context=LIVES, turn=(TURN,))).bind(decoder)


@pytest.mark.parametrize("values", [{"asked": True}, {"asked": 1, "turn": (3,)}])
def test_odd_words_of_asked_are_refused(values):
    with pytest.raises(MlpMemError, match="asked must be"):
        MemoryConfig(6, 9, 1, 8, context=LIVES, **values)


@pytest.mark.parametrize("turn", [(1, 2, 3), (-1,), (9,), (True,), ("a",)])
def test_odd_turns_are_refused(turn):
    with pytest.raises(MlpMemError, match="turn must be"):
        MemoryConfig(6, 9, 1, 8, context=LIVES, turn=turn)


@pytest.mark.parametrize("lives", [(0.0,), (2.0, 2.0), ("a",), (True,), (1.0,) * 5, (-3.0,)])
def test_odd_half_lives_are_refused(lives):
    with pytest.raises(MlpMemError, match="half-lives in tokens"):
        MemoryConfig(6, 9, 1, 8, context=lives)
