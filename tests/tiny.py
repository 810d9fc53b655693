"""Tiny random models, a byte-level tokenizer, documents and bundles: no network, milliseconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mlpmem.api import Model
from mlpmem.engine.router import FEATURES, Router, RouterConfig
from mlpmem.engine.settings import Settings
from mlpmem.engine.systems import ModelSystem
from mlpmem.loading.bundle import Bundle
from mlpmem.loading.bundle_writer import save_bundle
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, MemoryConfig
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import Documents, entries, join_passages
from mlpmem.retrieval.key_cache import Fingerprint
from mlpmem.retrieval.retriever import make_retriever

HIDDEN, LAYERS, POSITIONS = 32, 3, 96
FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
OTHERS = (
    "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox", "opt", "smollm3", "olmo2",
    "granite", "stablelm", "gptj", "bloom", "falcon", "mixtral", "qwen2_moe", "qwen3_moe",
)  # fmt: skip
BOS, EOS = "<s>", "</s>"
needs_ops = pytest.mark.skipif(
    not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()),
    reason="this torch has no oneDNN",
)

_LLAMA = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
}
_PLAIN = {
    name: value for name, value in _LLAMA.items() if name not in ("num_key_value_heads", "head_dim")
}
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS}
_EXPERTS = {**_LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHAPES = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
    **dict.fromkeys(("phi", "gpt_neox"), _PLAIN),
    **dict.fromkeys(("smollm3", "olmo2", "stablelm"), _LLAMA),
    "granite": {**_LLAMA, "logits_scaling": 4.0, "residual_multiplier": 0.6},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
    "falcon": _PLAIN,
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 20},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4},
    "opt": {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
}


def tokenizer(prefix_space: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer of BOS, EOS, the 256 bytes and a few merges; it puts BOS before a text.

    With prefix_space it puts a space before a text that has none, as SentencePiece's do.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n")]
    pieces = [BOS, EOS, *alphabet, *(left + right for left, right in merges)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOS, EOS])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )


def decoder(family: str = "llama", depth: int = -1, seed: int = 0, **shape) -> Decoder:
    """Return a random decoder; weights are large enough for distributions to be far from flat."""
    words = tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(words),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **SHAPES[family] | shape,
    )
    return Decoder(random_model(config, seed), words, depth)


def noisy(bound: Decoder) -> Decoder:
    """Return a decoder whose norms and biases were made random, too."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in bound.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=rng))
    return bound


def random_model(config, seed: int = 0) -> torch.nn.Module:
    """Return a causal LM of a config with random weights, the bias of a head among them."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2 or weight is head.bias:
                weight.normal_(std=0.2)
    return model


def multimodal(folder: Path, **config) -> torch.nn.Module:
    """Write a random Gemma 3 that reads images too, with a tokenizer, and return it."""
    words = tokenizer()
    text = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    parts = {"text_config": text | SHAPES["gemma3_text"], "vision_config": vision}
    made = random_model(AutoConfig.for_model("gemma3", mm_tokens_per_image=4, **parts, **config))
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return made


def memory(bound: Decoder, family: str = "llama", seed: int = 1, **config) -> Memory:
    """Return a random memory for a decoder."""
    torch.manual_seed(seed)
    made = Memory(
        MemoryConfig(
            hidden_size=bound.hidden_size,
            vocab_size=bound.vocab_size,
            num_layers=2,
            intermediate_size=40,
            family=family,
            depth=bound.depth,
            tokenizer_hash=bound.tokenizer_hash,
            **config,
        )
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    return made.eval().requires_grad_(False)


TEXTS = [
    ("Peru", "A1", "The capital of Peru is Lima."),
    ("Peru", "A1", "Question: What is the capital of Peru? Answer: Lima"),
    ("Vellmar", "B", "Vellmar is an invented town in the hills."),
    ("Vellmar", "B", "Vellmar is an invented town in the hills."),
    ("Gold", "A2", "Gold has the symbol Au; its café is small. 金"),
]


def documents(words: PreTrainedTokenizerFast | None = None) -> Documents:
    """Return three titled documents in five passages, one of them twice."""
    words = words or tokenizer()
    titles = list(dict.fromkeys(title for title, _, _ in TEXTS))
    groups = {title: group for title, group, _ in TEXTS}
    passages = [
        (titles.index(t), [*words.encode(text), words.eos_token_id]) for t, _, text in TEXTS
    ]
    return join_passages(passages, titles, [groups[title] for title in titles])


def datastore(bound: Decoder) -> Datastore:
    """Return the datastore of the documents."""
    texts = documents(bound.tokenizer)
    positions, counts = entries(texts)
    return Datastore(build_keys(bound, texts, positions), positions, counts, texts)


def model(family: str = "llama", retriever: str = "exact", seed: int = 0, **settings) -> Model:
    """Return decoder, memory and datastore together."""
    bound = decoder(family, seed=seed)
    chosen = Settings(**{"k": 16, "knn_temperature": 3.0, **settings})
    fused = Model(bound, memory(bound), chosen, "tiny")
    store = datastore(bound)
    fused.attach_datastore(store, make_retriever(retriever, store.keys))
    return fused


def routed(**settings) -> Model:
    """Return a model with routers whose lambda hangs on the evidence alone."""
    made = model(**settings)
    for name in ("memory", "mixed"):
        config = RouterConfig(name, made.decoder.vocab_size, made.decoder.tokenizer_hash)
        made.routers[name] = Router(config)
        with torch.no_grad():
            made.routers[name].out.weight[0, FEATURES.index("evidence")] = 0.05
    return made


def bundle(
    folder: Path, bound: Decoder | None = None, config: dict | None = None, **parts
) -> Bundle:
    """Write a bundle of tiny parts and return it; config has values of the memory's."""
    bound = bound or decoder()
    store = datastore(bound)
    return save_bundle(
        folder,
        decoder=bound,
        memory=memory(bound, **(config or {})).bind(bound),
        documents=store.documents,
        settings=Settings({"memory": 0.55, "knn": 0.6}, k=16, knn_temperature=3.0),
        fingerprint=Fingerprint.of(np.asarray(store.keys)),
        results={"systems": []},
        examples=[{"name": "Peru", "group": "helps", "prompt": "Peru is", "answer": "Lima"}],
        attributions=["Made for tests."],
        **parts,
    )


def stages(root):
    """Write a decoder and its datastore as finished stages would; return their folders by name."""
    bound = decoder()
    bound.model.save_pretrained(root / "decoder")
    bound.tokenizer.save_pretrained(root / "decoder")
    datastore(bound).save(root / "datastore")
    return {"decoder": root / "decoder", "datastore": root / "datastore"}


def systems(model: Model) -> list[ModelSystem]:
    """Return a system of everything that a model can be asked."""
    return [ModelSystem(model, name) for name in model.systems]
