"""How a memory starts: with the decoder's head and, if shapes fit, close to the decoder itself.

A memory's input is that of the decoder's FFN. If its first block is that FFN, and its last norm and
head are the decoder's, its logits are nearly the decoder's own. Only the length of the residual
stream is missing, because the norm before the FFN removes it; one factor replaces it. Training then
adds what the datastore knows.
"""

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from mlpmem.model.context import sentence_ends
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import layers_of
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.model.memory_layers import LAYOUTS
from train.config.tables import MemoryFitConfig
from train.corpora.chat import question_start
from train.fit.loss import row_nll

FACTORS = tuple(2.0 ** (i / 2) for i in range(-14, 7))  # candidates, for the FFN's output
ENDS = {"llama": "down_proj", "gpt2": "c_proj"}  # the last layer of a memory's FFN


def new_memory(
    config: MemoryFitConfig, decoder: Decoder, depth: int, k: int, temperature: float
) -> Memory:
    """Return an untrained memory for a decoder, with the head that the recipe sets."""
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
            gguf_sha256=decoder.gguf_sha256,
            tied_head=config.head == "tied",
            context=config.context,
            turn=question_start(decoder.tokenizer) if config.words_of == "question" else (),
            asked=config.asked,
        )
    )
    if config.asked:
        memory.sentence_ends.copy_(sentence_ends(decoder.pieces, decoder.special_ids))
    if config.head == "tied":
        memory.lm_head.weight = nn.Parameter(decoder.head_weight.clone(), requires_grad=False)
    if config.head == "decoder":
        with torch.no_grad():
            memory.lm_head.weight.copy_(decoder.head_weight)
    return memory


@torch.no_grad()
def start_as_identity(memory: Memory, decoder: Decoder) -> None:
    """Start with blocks that add nothing to their input, and the decoder's last norm if it fits."""
    for name, weight in memory.named_parameters():
        if name.endswith(tuple(f"{end}.weight" for end in ENDS.values())):
            weight.zero_()
    _, norm = _first_and_last(memory)
    final = getattr(decoder.model.base_model, LAYOUTS[memory.config.family][3], None)
    if _fits(final, norm):
        for name, weight in norm.named_parameters():
            weight.copy_(final.get_parameter(name))
        norm.weight.add_(decoder.family.norm_offset).div_(decoder.logit_divisor)


@torch.no_grad()
def standardise(memory: Memory, keys: Tensor) -> None:
    """Set the mean and deviation by which a memory with a context standardises keys (n, K)."""
    memory.door.mean.copy_(keys.mean(0))
    memory.door.scale.copy_(keys.std(0).clamp_min(1e-4))


@torch.no_grad()
def start_as_decoder(memory: Memory, decoder: Decoder, keys: Tensor, values: Tensor) -> float:
    """Copy the decoder's FFN and last norm into a memory in place; return the factor.

    The factor has the lowest cross-entropy on keys (n, D) and their next tokens, values (n,). It is
    0, and the memory unchanged, if the FFN has other or larger weights, or if no factor helps.
    """
    block, norm = _first_and_last(memory)
    weights = [*block.parameters(), *norm.parameters()]  # the only ones that change
    before = [weight.clone() for weight in weights]
    if not _copy(memory, decoder, keys):
        return 0.0
    copied = [weight.clone() for weight in weights]

    def apply(factor: float) -> None:
        for weight, source in zip(weights, copied if factor else before, strict=True):
            weight.copy_(source)
        if factor:
            _scale(memory, decoder, factor)

    def nll(factor: float) -> float:
        apply(factor)
        return float(row_nll(memory.features(keys), memory.lm_head.weight, values).mean())

    # only one process chooses, so that all start with the same factor on any hardware
    best = [min((0.0, *FACTORS), key=nll) if PartialState().is_main_process else 0.0]
    broadcast_object_list(best)
    apply(best[0])
    return best[0]


def _copy(memory: Memory, decoder: Decoder, keys: Tensor) -> bool:
    """Copy the decoder's FFN and last norm if both fit; return whether they do.

    A key is the normed residual stream r: g * r / |r| + b. The memory's stream starts as the key,
    so it is g times the decoder's. Therefore the last norm is divided by g, and `_scale` scales the
    FFN's output. The block's own norm is set to the identity for keys of median length.
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
            value = source.get_parameter(name)
            weight[tuple(map(slice, value.shape))] = value.to(weight)
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
    """Multiply the output of the first block's FFN by factor * g, and subtract the key's bias b."""
    block, _ = _first_and_last(memory)
    before = getattr(_layer(memory, decoder), decoder.family.norm)
    end = getattr(block.mlp, ENDS[memory.config.family])
    g = factor * _gain(before, decoder).to(end.weight)
    end.weight.mul_(g[:, None] if isinstance(end, nn.Linear) else g)  # (D, inner) or (inner, D)
    if getattr(end, "bias", None) is not None:
        end.bias.mul_(g).sub_(before.bias)


def _gain(norm: nn.Module, decoder: Decoder) -> Tensor:
    """Return the gain (D,) of one of the decoder's norms."""
    return norm.weight + decoder.family.norm_offset


def _first_and_last(memory: Memory) -> tuple[nn.Module, nn.Module]:
    """Return a memory's first block and last norm."""
    _, blocks, _, last = LAYOUTS[memory.config.family]
    return getattr(memory, blocks)[0], getattr(memory, last)


def _layer(memory: Memory, decoder: Decoder) -> nn.Module:
    """Return the decoder's layer whose FFN has the memory's input."""
    return layers_of(decoder.model, decoder.family)[memory.config.depth]


def _fits(source: nn.Module | None, target: nn.Module) -> bool:
    """Return whether a module's weights have the target's names, and no dimension is larger."""
    sources = dict(source.named_parameters()) if source is not None else {}
    targets = dict(target.named_parameters())
    return sources.keys() == targets.keys() and all(
        w.dim() == sources[n].dim() and all(map(int.__le__, sources[n].shape, w.shape))
        for n, w in targets.items()
    )
