"""The stage decoder takes an existing decoder, unchanged or for further training."""

import dataclasses

import numpy as np
import pytest
import tiny
import tiny_run
import torch
import torch.nn.functional as F

from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from train.config.tables import DecoderConfig, OptimizerConfig
from train.corpora.text import PARTS
from train.corpora.tokenizer import train_tokenizer
from train.files import read_json
from train.fit.packing import NO_TARGET, pack
from train.run.stage import StageContext
from train.stages.decoder import (
    check_source,
    finetune,
    make_decoder,
    packed_loss,
    training_parts,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return the folders of a tiny run on a text corpus with the decoder's tokenizer."""
    paths = tiny_run.stages(tmp_path_factory.mktemp("run"), "text")
    tiny.tokenizer().save_pretrained(paths["corpus"] / "tokenizer")
    return paths


def recipe(inputs, **config):
    """Return a recipe whose source is the tiny run's decoder."""
    defaults = {"source": str(inputs["decoder"]), "row": 64, "batch": 120, "dtype": "float32"}
    return DecoderConfig(**defaults | {"processes": 1} | config)


def nll_of(decoder):
    """Return the mean nll of the tiny documents' tokens."""
    documents, nll = tiny.documents(), []
    for p in range(len(documents)):
        ids = torch.from_numpy(documents.passage(p).astype(np.int64))[None]
        nll.append(F.cross_entropy(decoder.forward(ids).logits[0, :-1], ids[0, 1:]))
    return float(torch.stack(nll).mean())


def test_without_epochs_the_decoder_is_unchanged(inputs, tmp_path):
    counts = make_decoder(StageContext(tmp_path, inputs, recipe(inputs, epochs=0), 0))
    source, saved = Decoder.load(inputs["decoder"]), Decoder.load(tmp_path)
    assert counts == {} and saved.tokenizer_hash == source.tokenizer_hash
    assert saved.model.state_dict().keys() == source.model.state_dict().keys()
    for name, weight in source.model.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], weight.half().float()), name


def test_with_epochs_training_continues_from_the_source(inputs, tmp_path):
    config = recipe(inputs, epochs=6, optimizer=OptimizerConfig(lr=3e-3, warmup=0.0))
    make_decoder(StageContext(tmp_path, inputs, config, 0))
    before, after = nll_of(Decoder.load(inputs["decoder"])), nll_of(Decoder.load(tmp_path))
    assert after < before - 0.5
    tokens = len(tiny.documents().tokens)
    assert read_json(tmp_path / "history.json")[-1]["step"] == 6 * max(1, tokens // 120)


def test_a_decoder_learns_its_own_draws_or_the_memorys_documents(tmp_path):
    assert training_parts(tmp_path) == [tmp_path / PARTS["train"]]
    for draw in ("decoder_01", "decoder_00"):
        (tmp_path / draw).mkdir()
    assert [p.name for p in training_parts(tmp_path)] == ["decoder_00", "decoder_01"]


def test_another_tokenizer_is_refused(inputs):
    other = train_tokenizer(["other words " * 9], 270)
    with pytest.raises(MlpMemError, match="tokenizer .268 tokens. must be that of .* .263 tokens"):
        check_source(recipe(inputs), other)


def test_rows_beyond_the_decoders_context_are_refused(inputs):
    with pytest.raises(MlpMemError, match="row must be at most 96 for .* got 97"):
        check_source(recipe(inputs, row=97), tiny.tokenizer())
    check_source(recipe(inputs, row=97, epochs=0), tiny.tokenizer())


def test_a_missing_decoder_is_named(inputs, tmp_path):
    config = dataclasses.replace(recipe(inputs), source=str(tmp_path))
    with pytest.raises(MlpMemError, match="decoder: cannot load"):
        check_source(config, tiny.tokenizer())


def test_a_decoder_with_capped_logits_is_used_unchanged_or_refused(inputs, tmp_path):
    tiny.decoder("gemma2").model.save_pretrained(tmp_path / "capped")
    tiny.tokenizer().save_pretrained(tmp_path / "capped")
    config = dataclasses.replace(recipe(inputs), source=str(tmp_path / "capped"))
    with pytest.raises(MlpMemError, match="final_logit_softcapping.* set epochs = 0"):
        check_source(config, tiny.tokenizer())
    check_source(dataclasses.replace(config, epochs=0), tiny.tokenizer())


@pytest.mark.parametrize(
    ("family", "shape"), [("bloom", {}), ("falcon", {"alibi": True})], ids=["bloom", "falcon"]
)
def test_a_decoder_with_alibi_is_used_unchanged_or_refused(inputs, tmp_path, family, shape):
    tiny.decoder(family, **shape).model.save_pretrained(tmp_path / "made")
    tiny.tokenizer().save_pretrained(tmp_path / "made")
    config = dataclasses.replace(recipe(inputs), source=str(tmp_path / "made"))
    with pytest.raises(MlpMemError, match="ALiBi.* set epochs = 0"):
        check_source(config, tiny.tokenizer())
    check_source(dataclasses.replace(config, epochs=0), tiny.tokenizer())
    model, documents = Decoder.load(tmp_path / "made").model, tiny.documents()
    with pytest.raises(MlpMemError, match="ALiBi.* leave .finetuned. out"):
        finetune(model, documents, config, 1e-3, 1, tmp_path / "checkpoint")


@pytest.mark.parametrize("family", sorted({*tiny.FAMILIES, *tiny.OTHERS} - {"gemma2", "bloom"}))
def test_the_packed_loss_equals_every_familys_own_in_value_and_gradient(family):
    model = tiny.decoder(family).model.requires_grad_(True)
    with torch.no_grad():  # biases that are not 0
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    rows = pack(tiny.documents(), 60, "0/0")
    batch = rows.batch(np.arange(len(rows)))
    loss, _ = packed_loss(model, batch)
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    mask = batch["attention_mask"]
    if model.config._attn_implementation == "eager":  # its mask is added to the scores
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    logits = model(
        input_ids=batch["ids"], position_ids=batch["position_ids"],
        attention_mask=mask, use_cache=False,
    ).logits  # fmt: skip
    expected = F.cross_entropy(
        logits.flatten(0, 1),
        batch["targets"].flatten(),
        ignore_index=NO_TARGET,
        reduction="sum",
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-3, msg=name)
