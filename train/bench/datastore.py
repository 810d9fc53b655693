"""Building keys: keys/s against the FLOP of the decoder's forward pass up to where a key is caught.

The floor counts 2 FLOP a weight of the layers and token (the last FFN and the head are not run),
and the products of causal attention, at the rate of a large matmul in the same type.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from mlpmem.datastore import build_keys
from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, entries, join_passages
from train.bench.device import alternate, matmul_work
from train.bench.figures import Figure, Options


@dataclass(frozen=True)
class Shape:
    """A decoder of GPT-2's kind and the text it reads."""

    name: str
    hidden: int
    layers: int
    vocab: int
    passages: int
    length: int  # tokens a passage
    dtype: torch.dtype

    @property
    def flop(self) -> int:
        """Return the FLOP of one token on its way to its key, the mean over a passage."""
        attention, ffn = 4 * self.hidden**2, 8 * self.hidden**2
        weights = self.layers * attention + (self.layers - 1) * ffn
        return 2 * weights + self.layers * 4 * self.hidden * self.length // 2


SHAPES = {
    "cpu": (Shape("d384x6", 384, 6, 16384, 64, 128, torch.float32),),
    "cuda": (
        Shape("gpt2-small", 768, 12, 50257, 256, 512, torch.bfloat16),
        Shape("gpt2-large", 1280, 36, 50257, 256, 512, torch.bfloat16),
    ),
}


def bench(options: Options, shapes: tuple[Shape, ...] | None = None) -> Iterator[Figure]:
    """Yield keys/s of every shape."""
    for shape in shapes or SHAPES[torch.device(options.device).type]:
        work, keys = keys_work(shape, options.device)
        matmul, flop = matmul_work(options.device, shape.dtype)
        seconds = alternate({"keys": work, "matmul": matmul}, device=options.device)
        floor = flop / seconds["matmul"] / shape.flop
        yield Figure(f"datastore/{shape.name}/keys", keys / seconds["keys"], "keys/s", floor)


def keys_work(shape: Shape, device: str) -> tuple[Callable[[], np.ndarray], int]:
    """Return (work that builds the keys of random text, how many)."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=max(1, shape.hidden // 64),
        n_positions=shape.length,
        vocab_size=shape.vocab,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    decoder = Decoder(model.to(device, shape.dtype), None)
    documents = _documents(shape)
    positions, _ = entries(documents)
    return lambda: build_keys(decoder, documents, positions), len(positions)


def _documents(shape: Shape) -> Documents:
    """Return one document of random passages."""
    tokens = np.random.default_rng(0).integers(shape.vocab, size=(shape.passages, shape.length))
    return join_passages([(0, row) for row in tokens.tolist()], ["random"], [""])
