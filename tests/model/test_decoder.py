"""The decoder's results do not depend on caching, batching, padding or threads."""

import codecs
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import tiny
import torch
from marks import slow
from safetensors.torch import save_file

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.tokenizer import TextEnd, TextStream, token_bytes, tokenizer_hash, whole_text

PROMPTS = [[0, 40, 41, 42, 43, 44, 45], [0, 90, 91], [0, 60, 61, 62, 63]]


def close(output: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(output, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_one_token_at_a_time_with_a_cache_equals_all_at_once(family):
    decoder = tiny.decoder(family)
    ids = torch.tensor([PROMPTS[0]])
    full = decoder.forward(ids)
    output = decoder.forward(ids[:, :3], use_cache=True)
    for at in range(3, ids.shape[1]):
        output = decoder.forward(ids[:, at : at + 1], cache=output.cache)
        close(output.logits[:, -1], full.logits[:, at])
        close(output.hidden[:, -1], full.hidden[:, at])


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_a_left_padded_batch_equals_single_runs_at_prefill_and_with_the_cache(family):
    decoder = tiny.decoder(family)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[1] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    following = torch.tensor([[70], [71], [72]])
    first = decoder.forward(ids, attention_mask=mask, use_cache=True, last=1)
    mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
    second = decoder.forward(following, attention_mask=mask, cache=first.cache)
    for row, prompt in enumerate(PROMPTS):
        single = decoder.forward(torch.tensor([[*prompt, int(following[row])]]))
        close(first.logits[row, -1], single.logits[0, -2])
        close(first.hidden[row, -1], single.hidden[0, -2])
        close(second.logits[row, -1], single.logits[0, -1])


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_a_batch_equals_single_runs(family):
    decoder = tiny.decoder(family)
    ids = torch.tensor([p[:3] for p in PROMPTS])
    together = decoder.forward(ids)
    for row in range(3):
        single = decoder.forward(ids[row : row + 1])
        close(together.logits[row], single.logits[0])
        close(together.hidden[row], single.hidden[0])


def test_the_last_positions_and_a_pass_without_head_give_the_same_values():
    decoder = tiny.decoder()
    ids = torch.tensor([PROMPTS[0]])
    full = decoder.forward(ids)
    last = decoder.forward(ids, last=2)
    close(last.logits, full.logits[:, -2:])
    assert torch.equal(last.hidden, full.hidden[:, -2:])
    bare = decoder.forward(ids, head=False)
    assert bare.logits is None
    assert torch.equal(bare.hidden, full.hidden)


def test_threads_never_see_each_others_hidden_states():
    decoder = tiny.decoder("gpt2")
    inputs = [torch.randint(2, 250, (1, 5 + i % 3)) for i in range(24)]
    wanted = [decoder.forward(ids).hidden for ids in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: decoder.forward(ids).hidden, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_model_is_frozen_and_in_eval_mode():
    decoder = tiny.decoder("gpt2")
    assert not decoder.model.training
    assert not any(p.requires_grad for p in decoder.model.parameters())
    assert not decoder.forward(torch.tensor([[0, 3]])).logits.requires_grad


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_a_loaded_decoder_equals_the_saved_one(family, tmp_path):
    decoder = tiny.decoder(family)
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    loaded = Decoder.load(tmp_path, depth=1)
    ids = torch.tensor([PROMPTS[0]])
    known = decoder.model.state_dict()
    assert all(torch.equal(w, known[n]) for n, w in loaded.model.state_dict().items())
    # a product may add in another order where weights lie elsewhere in memory
    torch.testing.assert_close(loaded.forward(ids).logits, decoder.forward(ids).logits)
    positions = 2**31 if family == "bloom" else tiny.POSITIONS  # ALiBi has no limit
    assert (loaded.depth, loaded.num_layers, loaded.max_positions) == (1, 3, positions)
    assert loaded.folder == tmp_path
    assert loaded.tokenizer_hash == decoder.tokenizer_hash
    assert loaded.eos_ids == {1}
    assert loaded.bytes == decoder.bytes > 0


def test_a_bin_file_is_read_only_if_it_has_nothing_but_tensors(tmp_path):
    decoder = tiny.decoder()
    decoder.tokenizer.save_pretrained(tmp_path)
    decoder.model.config.save_pretrained(tmp_path)
    weights = decoder.model.state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    ids = torch.tensor([PROMPTS[0]])
    close(Decoder.load(tmp_path).forward(ids).logits, decoder.forward(ids).logits)
    torch.save(weights | {"more": pytest.approx}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MlpMemError, match="cannot load"):
        Decoder.load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    tiny.decoder().model.config.save_pretrained(tmp_path)
    with pytest.raises(MlpMemError, match="give a transformers folder.*model.safetensors"):
        Decoder.load(tmp_path)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *slow(*tiny.OTHERS)])
def test_a_folder_without_a_tokenizer_or_with_missing_weights_is_refused(family, tmp_path):
    """transformers would use an empty tokenizer and random weights."""
    decoder = tiny.decoder(family)
    decoder.model.save_pretrained(tmp_path)
    with pytest.raises(MlpMemError, match="it has no tokenizer; it needs one of tokenizer.json"):
        Decoder.load(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(Decoder.load(tmp_path).head_weight, decoder.head_weight)
    weights = {k: v.clone() for k, v in decoder.model.state_dict().items() if "layers.1." not in k}
    weights = {k: v for k, v in weights.items() if ".h.1." not in k and k != "lm_head.weight"}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MlpMemError, match="it lacks [0-9]+ weights, such as"):
        Decoder.load(tmp_path)


def test_half_a_character_is_encoded_as_an_unknown_one():
    decoder = tiny.decoder()
    assert decoder.encode("a\ud83d b") == decoder.encode("a\ufffd b")
    assert decoder.encode("a\ud83d\ude00") == decoder.encode("a\U0001f600")


def test_a_missing_folder_is_refused_with_the_next_step(tmp_path):
    with pytest.raises(MlpMemError, match="nowhere' is not a folder.*fetch a Hub id first"):
        Decoder.load(tmp_path / "nowhere")


def test_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    import transformers

    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    reader = transformers.AutoModelForCausalLM
    monkeypatch.setattr(reader, "from_pretrained", lambda *_, **__: pytest.fail("weights read"))
    with pytest.raises(MlpMemError, match="decoder family 'mamba' is not known; known are gpt2"):
        Decoder.load(tmp_path)


def test_text_becomes_ids_and_text_again():
    decoder = tiny.decoder()
    text = "the café in Peru: 金"
    ids = decoder.encode(text)
    assert ids[0] == 0
    assert decoder.decode([*ids, 1]) == text
    assert b"".join(decoder.token_bytes[i] for i in ids[1:]) == text.encode()
    assert decoder.pieces[0] == "<s>"


def test_a_character_appears_with_the_token_that_completes_it():
    stream = TextStream()
    pieces = [b"a", b"\xe9", b"\x87", b"\x91", b"\xff", b"b", b"\xc3", b"x"]
    shown = [stream.push(piece) for piece in pieces]
    assert shown == ["a", "�", "�", "金", "�", "b", "�", "�x"]


def test_beginnings_of_characters_are_those_of_pythons_decoder():
    some = [0x41, 0x80, 0x87, 0x90, 0xA0, 0xC0, 0xC3, 0xE0, 0xE9, 0xED, 0xF0, 0xF1, 0xF4, 0xFF]
    for size in range(1, 5):
        for data in map(bytes, product(some, repeat=size)):
            plain = codecs.getincrementaldecoder("utf-8")("replace")
            assert whole_text(data) == plain.decode(data), data


def test_a_stop_text_is_found_with_the_token_that_ends_it():
    emoji = "\N{GRINNING FACE}".encode()
    pieces = [b"x", emoji[:2], emoji[2:], b"ab", b"c", b"\xff", b"d" * 50, b"e"]
    for stop, at in (("x", 0), (f"x{emoji.decode()}a", 3), ("bc", 4), ("\ufffd", 5), ("de", 7)):
        end = TextEnd()
        assert [end.stops(piece, ["never", stop]) for piece in pieces].index(True) == at
    end = TextEnd()
    assert not any(end.stops(b"word ", ["a stop"]) for _ in range(1000))
    assert len(end._text) < len("a stop"), "what is looked at does not grow"


def test_pieces_of_a_sentencepiece_vocabulary_are_bytes_and_spaces():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<s>": 0, "\u2581the": 1, "<0xC3>": 2, "x": 3}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    words = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_bytes(words, 6) == [b"<s>", b" the", b"\xc3", b"x", b"", b""]


def test_the_tokenizer_hash_changes_with_vocabulary_and_merges():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def hashed(vocab: dict, merges: list) -> str:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        return tokenizer_hash(PreTrainedTokenizerFast(tokenizer_object=backend))

    vocab = {"a": 0, "b": 1, "ab": 2, "ba": 3}
    first = hashed(vocab, [("a", "b")])
    assert first == hashed(dict(reversed(vocab.items())), [("a", "b")])
    assert first != hashed(vocab, [("b", "a")])
    assert first != hashed({**vocab, "a": 1, "b": 0}, [("a", "b")])
