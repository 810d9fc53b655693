"""The decoding loop at GPT-2 small's size with random weights, packed or plain, against a peer.

Four forms of the same weights: plain float32, and packed in float32, bfloat16 and 8 bits (see
fastlinear).
The floor is reading the weights once. The peer, where given, is the released code's loop on the
same plain weights. Errors are against plain float32: the largest difference of a log-prob, and KL.

The released code's fused decoding (Binn0/MLPMemory, commit 5b04efb), run from a checkout.

Its model is imported as it is and given the same decoder and the same memory weights; what
transformers 5 lacks is lent at import (three places). Nothing of it is kept here.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers.modeling_utils
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from mlpmem.api import Model
from mlpmem.bench.decode import decoding, generating, read_bytes
from mlpmem.bench.figures import Figure, in_turns, ratios, reading, timed
from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import join_passages
from mlpmem.retrieval.retriever import make_retriever


@dataclass(frozen=True)
class Shape:
    """A decoder of GPT-2's kind, its memory, and what is decoded."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    blocks: int = 12  # of the memory
    vocab: int = 50257
    keys: int = 10_000
    prompt: int = 32  # tokens
    tokens: int = 16  # written
    positions: int = 1024

    def __post_init__(self) -> None:
        """Raise MlpMemError for a prompt that leaves no room to write."""
        most = self.positions - self.tokens - 1
        if not 1 <= self.prompt <= most:
            raise MlpMemError(f"a prompt of {self.prompt} tokens; give 1 to {most}")


def bench(
    shape: Shape | None = None, peer: Path | None = None, rounds: int = 5
) -> Iterator[Figure]:
    """Yield ms a token and to the first, errors of the packed forms, and three columns' cost."""
    shape = shape or Shape()
    made = {"float32": _model(shape), "packed-float32": _model(shape).pack()}
    made["packed-bfloat16"] = _model(shape, torch.bfloat16).pack()
    made["packed-int8"] = _model(shape, torch.bfloat16).pack(8)
    prompt = list(range(2, 2 + shape.prompt))
    work: dict[str, Callable] = {}
    for name, model in made.items():
        model.decoder.eos_ids = frozenset()
        fused, columns = model.only("memory"), ["lm", "memory", "knn"]
        work[name] = decoding(fused, name, ["memory"], prompt, shape.tokens)
        work[f"3/{name}"] = decoding(model, f"3/{name}", columns, prompt, shape.tokens)
        work[f"read/{name}"] = reading(read_bytes(model, ["memory"]))
    work["generate"] = generating(made["float32"], prompt, shape.tokens, "generate")
    if peer is not None:
        work["peer"] = _released(peer, made["float32"], prompt, shape.tokens)
    found = in_turns(work, rounds)
    for name, model in made.items():
        yield from _figures(name, found, peer is not None)
        if name != "float32":
            yield from _errors(name, made["float32"], model, prompt)


def _figures(name: str, found: dict[str, list[float]], has_peer: bool) -> Iterator[Figure]:
    """Yield the times of one form of the weights."""
    for part, metric in (("token", "ms_per_token"), ("first", "ms_to_first_token")):
        floor = float(np.median(found[f"read/{name}"])) if part == "token" else None
        peer = float(np.median(found[f"peer/{part}"])) if has_peer else None
        yield timed(f"engine/{name}/{metric}", found[f"{name}/{part}"], floor=floor, peer=peer)
        if has_peer:
            times = ratios(found[f"peer/{part}"], found[f"{name}/{part}"])
            yield timed(f"engine/{name}/times_faster_than_released_{part}", times, "x")
    times = ratios(found[f"{name}/token"], found["generate/token"])
    yield timed(f"engine/{name}/times_generate_of_decoder_alone", times, "x")
    times = ratios(found[f"3/{name}/token"], found[f"{name}/token"])
    yield timed(f"engine/{name}/three_columns_times_one", times, "x")


def _errors(name: str, plain: Model, packed: Model, prompt: list[int]) -> Iterator:
    """Yield how far a packed form's mix is from the plain one's, after the prompt."""
    one, other = (m.only("memory").distributions(prompt)["fused"] for m in (plain, packed))
    yield Figure(f"engine/{name}/log_prob_error", float((one - other).abs().max()), "nats")
    yield Figure(f"engine/{name}/kl", float((one.exp() * (one - other)).sum().abs()), "nats")


def _released(
    peer: Path, model: Model, prompt: list[int], tokens: int
) -> Callable[[], dict[str, float]]:
    """Return work that has the released loop decode; it writes one token more than it is asked."""
    theirs = released_model(peer, model.decoder.model, model.memory, model.settings.lmbda["memory"])
    ids = torch.tensor([prompt])

    def work() -> dict[str, float]:
        start = time.perf_counter()
        theirs.generate(ids, max_new_tokens=0)
        first = time.perf_counter()
        theirs.generate(ids, max_new_tokens=tokens)
        last = time.perf_counter()
        once = 1000 * (first - start)
        return {"peer/first": once, "peer/token": (1000 * (last - first) - once) / tokens}

    return work


def _model(shape: Shape, dtype: torch.dtype = torch.float32) -> Model:
    """Return decoder, memory and datastore with random weights, the same at every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=shape.positions,
        vocab_size=shape.vocab,
        bos_token_id=0,
        eos_token_id=1,
    )
    decoder = Decoder(GPT2LMHeadModel(config).to(dtype), _tokenizer())
    sizes = shape.hidden, shape.vocab, shape.blocks, 4 * shape.hidden
    memory = Memory(MemoryConfig(*sizes, family="gpt2")).eval().requires_grad_(False).to(dtype)
    model = Model(decoder, memory, Settings({"memory": 0.25, "knn": 0.25}))
    tokens = np.random.default_rng(0).integers(2, shape.vocab, shape.keys + 1).tolist()
    documents = join_passages([(0, tokens)], ["made"], ["made"])
    keys = torch.randn(shape.keys, shape.hidden).half().numpy()
    counts = np.ones(shape.keys, np.int32)
    store = Datastore(keys, np.arange(1, shape.keys + 1), counts, documents)
    model.attach_datastore(store, make_retriever(None, keys))
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes; the other token ids have no text."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def released_model(peer: Path, decoder: torch.nn.Module, memory: Memory, lmbda: float) -> Any:
    """Return the released fused model of a GPT-2 decoder and a memory, the weights shared."""
    transformers.modeling_utils.Conv1D = Conv1D
    GPT2PreTrainedModel.all_tied_weights_keys = {}
    fused, mlp = (_import(peer / "models" / name) for name in ("mlpMemory.py", "mlpGPT2.py"))
    fused.MLPMemory._supports_sdpa = True
    shape = memory.config
    config = GPT2Config(
        n_embd=shape.hidden_size, n_layer=shape.num_layers, vocab_size=shape.vocab_size
    )
    sizes = {"input_dim": shape.hidden_size, "output_dim": shape.hidden_size}
    with torch.device("meta"):
        theirs = mlp.GPT2MLPModel(config=config, **sizes)
    theirs.load_state_dict(memory.state_dict(), assign=True)
    return fused.MLPMemory(decoder, theirs.eval(), lmbda=lmbda).eval()


def _import(path: Path) -> ModuleType:
    """Return a module of the checkout; MlpMemError if it is not there."""
    if not path.is_file():
        raise MlpMemError(
            f"--peer: there is no {path.name} in {path.parent}; give a checkout of the released "
            "code (github.com/Binn0/MLPMemory at 5b04efb)"
        )
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
