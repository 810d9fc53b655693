"""A tiny Llama-shaped decoder with a memory of two blocks."""

import tiny
import torch

from mlpmem.engine.fused import FusedModel
from mlpmem.model.context import ASKED, ENDED
from mlpmem.model.memory import Memory, MemoryConfig

SHAPE = {"hidden_size": 64, "intermediate_size": 96}


def model_of(family="llama", tied=False, depth=-1, dtype=torch.float32, **options) -> FusedModel:
    """Return a decoder with a memory of two blocks, nothing compiled yet."""
    torch.manual_seed(1)
    decoder = tiny.decoder(family, depth, **SHAPE)
    decoder.model.to(dtype)
    sizes = decoder.hidden_size, decoder.vocab_size, 2, 96
    config = MemoryConfig(
        *sizes, family="llama", depth=depth, tied_head=tied, norm_eps=1e-3, **options
    )
    memory = Memory(config)
    for weight in memory.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    if memory.config.context:
        memory.door.mean.normal_()
        memory.door.scale.uniform_(0.5, 2)
    if memory.config.asked:
        memory.sentence_ends[::7], memory.sentence_ends[::5] = ENDED, ASKED
    return FusedModel(decoder, memory.eval().requires_grad_(False).to(dtype))
