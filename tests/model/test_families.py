"""Every row of the families' table finds its FFN: logits and hidden states of transformers."""

import pytest
import tiny
import torch

from mlpmem.errors import MlpMemError
from mlpmem.model.families import FAMILIES, family_of, ffn_at

IDS = torch.tensor([[0, 5, 9, 7, 200, 31]])
# where the FFN of layer 1 stands, and which of the layer's norms is before it
LLAMA = ("model.layers.1.mlp", "post_attention_layernorm")
GEMMA = ("model.layers.1.mlp", "pre_feedforward_layernorm")
PLACES = {
    "gpt2": ("transformer.h.1.mlp", "ln_2"),
    "gpt_neox": ("gpt_neox.layers.1.mlp", "post_attention_layernorm"),
    "opt": ("model.decoder.layers.1.fc1", "final_layer_norm"),
    "phi": ("model.layers.1.mlp", "input_layernorm"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
}
PARALLEL = ("gpt_neox", "phi")  # attention and FFN both read the layer's input


def _watched(model: torch.nn.Module, place: str, norm: str):
    """Return (logits, what entered the FFN, what its norm made of what) of a plain call."""
    seen = {}
    module = model.get_submodule(place)
    layer = model.get_submodule(place.rpartition(".")[0])
    hooks = [
        module.register_forward_hook(lambda _, args, out: seen.update(ffn=args[0])),
        layer.get_submodule(norm).register_forward_hook(
            lambda _, args, out: seen.update(before=args[0], normed=out)
        ),
    ]
    with torch.no_grad():
        output = model(input_ids=IDS, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return output, seen


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_hidden_states_are_those_of_a_plain_call_of_transformers(name):
    decoder = tiny.decoder(name, depth=1)
    output, seen = _watched(decoder.model, *PLACES[name])
    found = decoder.forward(IDS)
    assert found.hidden.shape == (*IDS.shape, tiny.HIDDEN)
    torch.testing.assert_close(found.logits, output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.hidden, seen["ffn"].view_as(found.hidden))
    torch.testing.assert_close(found.hidden, seen["normed"].view_as(found.hidden))
    enters = output.hidden_states[1]  # the second layer
    same = torch.equal(seen["before"].view_as(enters), enters)
    assert same == (name in PARALLEL), "side by side the norm reads the layer's own input"


def test_the_tables_rows_are_all_tried():
    assert set(FAMILIES) == {*tiny.FAMILIES, *tiny.OTHERS} == {*PLACES}
    assert {row.memory for row in FAMILIES.values()} == {"gpt2", "llama"}


def test_an_unknown_family_is_named_with_those_that_are_known_and_how_to_add_it():
    with pytest.raises(MlpMemError, match="'bert' is not known; known are gpt2.*add a row.*Family"):
        family_of("bert")


@pytest.mark.parametrize("depth", [3, -4])
def test_a_depth_outside_the_decoder_is_refused(depth):
    decoder = tiny.decoder()
    with pytest.raises(MlpMemError, match="use -3 to 2"):
        ffn_at(decoder.model, decoder.family, depth)


def test_embeddings_narrower_than_the_layers_do_not_mislead_about_the_hidden_size():
    from transformers import OPTConfig, OPTForCausalLM

    from mlpmem.model.decoder import Decoder

    shape = tiny.SHAPES["opt"] | {"word_embed_proj_dim": 16, "vocab_size": 263}
    decoder = Decoder(OPTForCausalLM(OPTConfig(**shape)), tiny.tokenizer())
    assert decoder.hidden_size == decoder.forward(IDS).hidden.shape[-1] == tiny.HIDDEN
