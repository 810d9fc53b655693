"""How a memory begins: with the decoder's head and, where it fits, as nearly the decoder itself.

A memory reads what enters the decoder's FFN. If its first block is that FFN, and its last norm and
head are the decoder's, it gives the decoder's own answer at once, but for the length of the
residual stream, which the norm before the FFN takes away: one factor stands for it. What is left to
learn is what the datastore adds.
"""

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from mlpmem.model.decoder import Decoder
from mlpmem.model.families import layers_of
from mlpmem.model.memory import LAYOUTS, Memory, MemoryConfig
from train.config.tables import MemoryFitConfig
from train.fit.loss import row_nll

FACTORS = tuple(2.0 ** (i / 2) for i in range(-14, 7))  # of the FFN's output, tried one by one
ENDS = {"llama": "down_proj", "gpt2": "c_proj"}  # the last layer of a memory's FFN


def new_memory(
    config: MemoryFitConfig, decoder: Decoder, depth: int, k: int, temperature: float
) -> Memory:
    """Return an untrained memory for a decoder, with the head its recipe asks for."""
    memory = Memory(
        MemoryConfig(
            hidden_size=decoder.hidden_size,
            vocab_size=decoder.vocab_size,
            num_layers=config.blocks,
            intermediate_size=config.intermediate_size,
            family=decoder.family.memory,
            depth=depth,
            lmbda=config.lmbda,
            knn_k=k,
            knn_temperature=temperature,
            tokenizer_hash=decoder.tokenizer_hash,
            tied_head=config.head == "tied",
        )
    )
    if config.head == "tied":
        memory.lm_head.weight = nn.Parameter(decoder.head_weight.clone(), requires_grad=False)
    if config.head == "decoder":
        with torch.no_grad():
            memory.lm_head.weight.copy_(decoder.head_weight)
    return memory


@torch.no_grad()
def begin_as_decoder(memory: Memory, decoder: Decoder, keys: Tensor, values: Tensor) -> float:
    """Give a memory in place the decoder's FFN and last norm; return the factor, 0 if left as is.

    keys (n, D) and their next tokens (n,) choose the factor: the one of the lowest cross-entropy.
    It is left as it is where the FFN is of another make or larger, or where nothing is gained.
    """
    block, norm = _first_and_last(memory)
    changed = [*block.parameters(), *norm.parameters()]  # of a large memory the rest is not copied
    before = [weight.clone() for weight in changed]
    if not _copy(memory, decoder, keys):
        return 0.0
    copied = [weight.clone() for weight in changed]

    def put(factor: float) -> None:
        for weight, kept in zip(changed, copied if factor else before, strict=True):
            weight.copy_(kept)
        if factor:
            _scale(memory, decoder, factor)

    def nll(factor: float) -> float:
        put(factor)
        return float(row_nll(memory.features(keys), memory.lm_head.weight, values).mean())

    # one process chooses: others would do it twice, and on unlike machines begin unlike
    best = [min((0.0, *FACTORS), key=nll) if PartialState().is_main_process else 0.0]
    broadcast_object_list(best)
    put(best[0])
    return best[0]


def _copy(memory: Memory, decoder: Decoder, keys: Tensor) -> bool:
    """Copy the decoder's FFN and last norm where both fit; return whether they do.

    A key is the residual stream r, normed: g * r / |r| + b. The memory's stream begins as the key,
    so it is g times the decoder's: the last norm is divided by g, and `_scale` does the rest. The
    block's own norm is made to leave keys as they are, up to their usual length.
    """
    block, norm = _first_and_last(memory)
    layer = _layer(memory, decoder)
    ffn = getattr(layer, "mlp", None)
    final = getattr(decoder.model.base_model, LAYOUTS[memory.config.family][3], None)
    before = getattr(layer, decoder.family.norm, None)
    if not (_fits(ffn, block.mlp) and _fits(final, norm) and _fits(before, norm)):
        return False
    for target, source in ((block.mlp, ffn), (norm, final)):
        for name, weight in target.named_parameters():
            given = source.get_parameter(name)
            weight[tuple(map(slice, given.shape))] = given.to(weight)
    norm.weight.add_(decoder.family.norm_offset).div_(decoder.logit_divisor)
    g = _gain(before, decoder).to(norm.weight)
    norm.weight.mul_(g.square().mean().sqrt() / g)
    own = next(module for name, module in block.named_children() if name != "mlp")
    middle = torch.zeros(len(keys))
    if hasattr(own, "bias"):
        middle = keys.mean(1)
        own.bias.fill_(float(middle.median()))
    own.weight.fill_(float((keys - middle[:, None]).square().mean(1).sqrt().median()))
    return True


def _scale(memory: Memory, decoder: Decoder, factor: float) -> None:
    """Multiply what the first block's FFN adds by factor * g, and take the key's bias b away."""
    block, _ = _first_and_last(memory)
    before = getattr(_layer(memory, decoder), decoder.family.norm)
    end = getattr(block.mlp, ENDS[memory.config.family])
    g = factor * _gain(before, decoder).to(end.weight)
    end.weight.mul_(g[:, None] if isinstance(end, nn.Linear) else g)  # (D, inner) or (inner, D)
    if getattr(end, "bias", None) is not None:
        end.bias.mul_(g).sub_(before.bias)


def _gain(norm: nn.Module, decoder: Decoder) -> Tensor:
    """Return what one of the decoder's norms multiplies with, (D,)."""
    return norm.weight + decoder.family.norm_offset


def _first_and_last(memory: Memory) -> tuple[nn.Module, nn.Module]:
    """Return a memory's first block and its last norm."""
    _, blocks, _, last = LAYOUTS[memory.config.family]
    return getattr(memory, blocks)[0], getattr(memory, last)


def _layer(memory: Memory, decoder: Decoder) -> nn.Module:
    """Return the decoder's layer whose FFN's input is the memory's."""
    return layers_of(decoder.model, decoder.family)[memory.config.depth]


def _fits(source: nn.Module | None, target: nn.Module) -> bool:
    """Return whether a module's weights have the target's names and are nowhere larger."""
    theirs = dict(source.named_parameters()) if source is not None else {}
    ours = dict(target.named_parameters())
    return theirs.keys() == ours.keys() and all(
        w.dim() == theirs[n].dim() and all(map(int.__le__, theirs[n].shape, w.shape))
        for n, w in ours.items()
    )
