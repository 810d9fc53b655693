"""Every row of the families' table finds the FFN and catches its post-norm input."""

import pytest
import tiny
import torch

from mlpmem.errors import MlpMemError
from mlpmem.families import FAMILIES, family_of, ffn_at, layers_of

NORM_BEFORE_FFN = {
    "gpt2": "ln_2",
    "opt": "final_layer_norm",
    "phi": "input_layernorm",
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [-1, 1])
def test_the_hidden_state_is_the_output_of_the_norm_before_the_ffn(name, depth):
    decoder = tiny.decoder(name, depth)
    layer = layers_of(decoder.model, family_of(name))[depth]
    norm = layer.get_submodule(NORM_BEFORE_FFN.get(name, "post_attention_layernorm"))
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    hidden = decoder.forward(torch.tensor([[0, 5, 9, 7]])).hidden
    assert hidden.shape == (1, 4, tiny.HIDDEN)
    assert torch.equal(hidden, seen[0].view_as(hidden))


def test_the_tables_rows_are_all_tried():
    assert set(FAMILIES) == {*tiny.FAMILIES, *tiny.OTHERS}
    assert {row.memory for row in FAMILIES.values()} == {"gpt2", "llama"}


def test_an_unknown_family_is_named_with_those_that_are_known():
    with pytest.raises(MlpMemError, match="'bert' is not known; known are gpt2"):
        family_of("bert")


@pytest.mark.parametrize("depth", [3, -4])
def test_a_depth_outside_the_decoder_is_refused(depth):
    decoder = tiny.decoder()
    with pytest.raises(MlpMemError, match="use -3 to 2"):
        ffn_at(decoder.model, decoder.family, depth)
