"""Parts "keys" and "decode" of `python -m train.bench gpu`: what a decoder costs, with a memory.

Decoders are Llamas with random weights, built without memory (on the meta device) and filled on the
device, so that no file is read and the host holds nothing. Where a shape names an installed file,
keys are built with that. Letters: D hidden size, V vocabulary, L layers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mlpmem.api import Model
from mlpmem.bench.decode import read_bytes
from mlpmem.bench.figures import Figure, in_turns, ratios, timed
from mlpmem.engine.distributions import interpolate
from mlpmem.errors import MlpMemError
from mlpmem.loading.packages import packaged_file
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval.datastore import build_keys
from mlpmem.retrieval.documents import entries, join_passages
from train.bench.gpu.device import Job
from train.run.machine import copy_rate, synchronise

STD = 0.02  # of random weights
PROMPT = 32  # tokens that are read first
LMBDA = 0.5
ROUNDS = 5  # texts that each is timed on, in turns


@dataclass(frozen=True)
class Llama:
    """A decoder's shape, its memory's, and what is read and written."""

    name: str
    hidden: int  # D
    layers: int  # L
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int  # V
    blocks: int  # of the memory
    width: int  # of the memory's blocks
    passages: int  # that are keyed
    length: int  # tokens per passage
    tokens: int  # written
    dtype: str
    source: str = ""  # "package:NAME/FILE" of its weights, used for keys if it is installed

    @property
    def flop(self) -> int:
        """Return the FLOP per key, the mean over a passage; neither last FFN nor head is needed."""
        values = 2 * self.hidden * (self.hidden + self.hidden * self.kv_heads // self.heads)
        weights = self.layers * values + (self.layers - 1) * 3 * self.hidden * self.intermediate
        return 2 * weights + self.layers * 4 * self.hidden * self.length // 2


def keys(sizes: tuple[Llama, ...], job: Job) -> Iterator[Figure]:
    """Yield tokens/s of building keys, by decoder, with the FLOP per token and their MFU."""
    for shape in sizes:
        job.check(shape.name)
        decoder, weights = _decoder(shape, job.device)
        rows = np.random.default_rng(0).integers(shape.vocab, size=(shape.passages, shape.length))
        documents = join_passages([(0, row) for row in rows.tolist()], ["random"], [""])
        positions, _ = entries(documents)
        seconds = job.seconds(lambda d=decoder, t=documents, p=positions: build_keys(d, t, p), 3)
        rates = [len(positions) / s for s in seconds]
        name = f"keys/{shape.name}-{weights}"
        yield timed(f"{name}/tokens", rates, "tokens/s")
        yield Figure(f"{name}/flop", shape.flop, "FLOP/token")
        if job.peak is not None:
            yield timed(f"{name}/mfu", [rate * shape.flop / job.peak for rate in rates], "share")
        del decoder


def decode(sizes: tuple[Llama, ...], job: Job) -> Iterator[Figure]:
    """Yield ms per token of decoder only ("lm") and of decoder and memory, one row, greedily.

    The floor is reading every weight once at the rate of a large copy, of whose bytes those read
    and those written count.
    """
    rate = copy_rate(job.device)
    yield Figure("decode/copy", rate / 1e9, "GB/s")
    for shape in sizes:
        job.check(shape.name)
        model = Model(random_decoder(shape, job.device), random_memory(shape, job.device))
        work = {name: _written(model, name, shape.tokens) for name in ("lm", "memory")}
        found = in_turns(work, ROUNDS)
        for name in work:
            floor = 1000 * read_bytes(model, [name]) / rate
            yield timed(f"decode/{shape.name}/{name}/ms_per_token", found[name], floor=floor)
        shares = ratios(found["memory"], found["lm"])
        yield timed(f"decode/{shape.name}/memory_times_lm", shares, "x")
        del model, work


def _written(model: Model, name: str, tokens: int) -> Callable[[], dict[str, float]]:
    """Return work that reads a prompt, then writes tokens; it gives the ms of one of these."""
    decoder = model.decoder
    prompt = torch.arange(PROMPT, device=decoder.device)[None] % decoder.vocab_size
    parts = ("memory",) if name == "memory" else ()

    @torch.inference_mode()
    def work() -> dict[str, float]:
        output = decoder.forward(prompt, use_cache=True, last=1)
        synchronise(decoder.device)
        start = time.perf_counter()
        for _ in range(tokens):
            hidden, logits = output.states((slice(None), -1))
            sources = model.sources(hidden, logits, None, parts, output.recalled)
            log_probs = sources["lm"]
            if parts:
                log_probs = interpolate(log_probs, sources["memory"], LMBDA)
            token = log_probs.argmax(-1, keepdim=True)
            beside = model.memory if parts else None
            output = decoder.forward(token, cache=output.cache, last=1, memory=beside)
        synchronise(decoder.device)
        return {name: 1000 * (time.perf_counter() - start) / tokens}

    return work


def _decoder(shape: Llama, device: str) -> tuple[Decoder, str]:
    """Return a shape's decoder and where it is from: its installed "file", or else "random"."""
    if shape.source:
        try:
            file = packaged_file(shape.source)
        except MlpMemError:  # it is not installed
            pass
        else:
            dtype = getattr(torch, shape.dtype)
            return Decoder.load(file, dtype=dtype, device=device), "file"
    return random_decoder(shape, device), "random"


def random_decoder(shape: Llama, device: str) -> Decoder:
    """Return a decoder with random weights and no tokenizer, the same at every call."""
    model = empty_model(shape)
    _fill(model, device)
    rotary = type(model.model.rotary_emb)  # its frequencies are computed, not drawn
    model.model.rotary_emb = rotary(model.config).to(device)
    return Decoder(model, None)


def empty_model(shape: Llama) -> PreTrainedModel:
    """Return the decoder's model on the meta device, which holds no numbers."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        max_position_embeddings=max(2048, shape.length),
        tie_word_embeddings=False,
    )
    dtype = getattr(torch, shape.dtype)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def random_memory(shape: Llama, device: str) -> Memory:
    """Return a memory for the shape's decoder with random weights and a head of its own."""
    with torch.device("meta"):
        config = MemoryConfig(shape.hidden, shape.vocab, shape.blocks, shape.width, "llama")
        memory = Memory(config).to(getattr(torch, shape.dtype))
    _fill(memory, device)
    return memory.eval().requires_grad_(False)


@torch.no_grad()
def _fill(model: nn.Module, device: str) -> None:
    """Move a model without memory to a device: matrices drawn from N(0, STD), norms are 1."""
    model.to_empty(device=device)
    rng = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.normal_(0, STD, generator=rng)
        else:
            weight.fill_(1)
