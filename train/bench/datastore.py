"""Building keys: keys/s from text to a file, against the FLOP that a key needs.

The floor is the rate of a large matmul of the same dtype over the FLOP of a key: 2 per weight of
the layers and token (without the last FFN and the head), and the products of causal attention. The
peer is the released code's class, with the same decoder and passages and its own file format.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from mlpmem.fast.devices import keep_memory
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import build_keys
from mlpmem.retrieval.documents import Documents, entries, join_passages
from mlpmem.retrieval.shards import write_shard
from train.bench.released import released_keys
from train.bench.turns import BenchOptions, Figure, Turn
from train.run.machine import alternate, matmul_work

PEER_BATCH = 16  # passages per forward pass of the released code


@dataclass(frozen=True)
class Shape:
    """A GPT-2 decoder and its text."""

    name: str
    hidden: int
    layers: int
    vocab: int
    passages: int
    length: int  # tokens per passage
    dtype: torch.dtype

    @property
    def keys(self) -> int:
        """Return the number of keys: one per token except each passage's first."""
        return self.passages * (self.length - 1)

    @property
    def flop(self) -> int:
        """Return the FLOP per key, the mean over a passage."""
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


def bench(options: BenchOptions, shapes: tuple[Shape, ...] | None = None) -> Iterator[Figure]:
    """Yield keys/s of every shape."""
    device = options.device
    for shape in shapes or SHAPES[torch.device(device).type]:
        with TemporaryDirectory() as folder, ExitStack() as stack:

            def start(prepare: Callable, *arguments) -> Turn:
                return stack.enter_context(closing(Turn(prepare, *arguments)))

            turns = {
                "ours": start(our_keys, shape, device, folder),
                "matmul": start(_matmul, shape.dtype, device),
            }
            if options.peer is not None:
                turns["peer"] = start(peer_keys, shape, device, folder, str(options.peer))
            seconds = alternate(turns)
        rate = {name: shape.keys / taken for name, taken in seconds.items()}
        floor = matmul_work(device, shape.dtype)[1] / seconds["matmul"] / shape.flop
        name = f"datastore/{shape.name}/keys"
        yield Figure(name, rate["ours"], "keys/s", floor, rate.get("peer"))


def our_keys(shape: Shape, device: str, folder: str) -> Callable[[], object]:
    """Return the work of a turn: one shard with the keys of all passages, as in the stage."""
    keep_memory()
    decoder, documents = Decoder(random_model(shape, device), None), _documents(shape)
    positions, _ = entries(documents)
    assert len(positions) == shape.keys, (len(positions), shape)
    return lambda: write_shard(Path(folder), 0, build_keys(decoder, documents, positions))


def peer_keys(shape: Shape, device: str, folder: str, peer: str) -> Callable[[], object]:
    """Return the released code's work of a turn, with the same decoder and passages."""
    tokens = torch.from_numpy(_tokens(shape)).to(device)
    model = random_model(shape, device).eval()
    return released_keys(Path(peer), model, tokens, PEER_BATCH, Path(folder))


def _matmul(dtype: torch.dtype, device: str) -> Callable[[], object]:
    """Return the work of a turn: one large matmul."""
    return matmul_work(device, dtype)[0]


def random_model(shape: Shape, device: str) -> PreTrainedModel:
    """Return a decoder with random weights, the same in every process."""
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
    return model.to(device, shape.dtype)


def _documents(shape: Shape) -> Documents:
    """Return the random passages as one document."""
    return join_passages([(0, row) for row in _tokens(shape).tolist()], ["random"], [""])


def _tokens(shape: Shape) -> np.ndarray:
    """Return random passages (passages, length), the same in every process."""
    return np.random.default_rng(0).integers(shape.vocab, size=(shape.passages, shape.length))
