"""A decoder from a GGUF file: transformers' model and tokenizer.

configs.py has each family's config; TOP, LEAVES and EXPERTS translate names. Weights become dense a
few rows at a time, so a file is never held twice. Linear layers keep the location of their blocks,
which 4-bit products read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.model.gguf.configs import CONFIGS, MIXTURES
from mlpmem.model.gguf.reader import (
    Blocks,
    Header,
    Place,
    dense_rows,
    one_line,
    plain,
    read_header,
    wrong,
)
from mlpmem.model.gguf.vocabulary import read_tokenizer


def load_gguf(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Return a transformers model with weights in dtype, and its tokenizer.

    Quantised linear layers get an attribute `blocks`, their Blocks, and the model `gguf`, the file.
    """
    header = read_header(path)
    model_type, skeleton = _skeleton(header, dtype)
    config, expected = skeleton.config, skeleton.state_dict()
    sources = {name: _source(model_type, name) for name in expected}
    if config.tie_word_embeddings:
        sources.pop("lm_head.weight", None)
    _check(header, model_type, sources, expected)
    _check_frequencies(header, skeleton)
    tokenizer = read_tokenizer(header)
    state = {
        name: _weight(header, source, model_type, dtype).view(expected[name].shape)
        for name, source in sources.items()
    }
    model = type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    state.clear()
    _set_frequencies(model, header)
    model.generation_config.eos_token_id = _ends(header) or None
    _set_blocks(model, header, model_type, sources)
    model.gguf = header.file
    header.file.check_path()  # the tokenizer was read by the path
    return model, tokenizer


def _skeleton(header: Header, dtype: torch.dtype) -> tuple[str, nn.Module]:
    """Return transformers' model_type of a file, and its model without memory for weights."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    _check_family(header)
    _check_layers(header)
    try:
        model_type, values = CONFIGS[header.architecture](header)
        config = CONFIG_MAPPING[model_type](**values, **_common(header), dtype=dtype)
        with torch.device("meta"):
            return model_type, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    except MlpMemError:
        raise
    except Exception as error:  # a config's checks raise errors of many kinds
        raise wrong(header.path, f"its configuration: {one_line(error)}") from error


def _check_family(header: Header) -> None:
    """Raise MlpMemError for a family, or a mixture of experts, that is not read here."""
    if header.architecture not in CONFIGS:
        raise MlpMemError(
            f"decoder: {header.path.name} has the family {header.architecture!r}; GGUF files must "
            f"be of {', '.join(CONFIGS)}. Use a transformers folder, or another model"
        )
    if header.get("expert_count") and header.architecture not in MIXTURES:
        raise MlpMemError(
            f"decoder: {header.path.name} is a mixture of experts of the family "
            f"{header.architecture!r}; GGUF files of mixtures must be of {' or '.join(MIXTURES)}. "
            "Use its transformers folder, or another model"
        )


def _set_blocks(
    model: nn.Module, header: Header, model_type: str, sources: Mapping[str, "Source"]
) -> None:
    """Give every linear layer of quantised weights its `blocks`."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in model.named_modules():
        source = sources.get(f"{name}.weight")
        if isinstance(layer, nn.Linear | Conv1D) and source:
            (tensor,) = source.names
            if (place := header.places[tensor]).kind.bits:
                layer.blocks = Blocks(header.file, place, _order(header, model_type, tensor))


def _common(header: Header) -> dict[str, Any]:
    """Return the config values of every family."""
    rows = (
        header.places["token_embd.weight"].shape[0] if "token_embd.weight" in header.places else 0
    )
    special = {name: header.values.get(f"tokenizer.ggml.{name}") for name in IDS}
    return {
        "vocab_size": rows,
        "bos_token_id": special["bos_token_id"],
        "eos_token_id": special["eos_token_id"],
        "pad_token_id": special["padding_token_id"],
        "tie_word_embeddings": "output.weight" not in header.places,
    }


IDS = ("bos_token_id", "eos_token_id", "padding_token_id")
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def _ends(header: Header) -> list[int]:
    """Return the token ids that end a text or a turn."""
    ids = (header.values.get(f"tokenizer.ggml.{name}") for name in ENDS)
    return sorted({i for i in ids if isinstance(i, int)})


TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.word_embeddings": "token_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
EXPERTS = {  # of all experts at once
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
}
HEAD_NORM = re.compile(r"self_attn\.([qk])_layernorm\.norms\.(\d+)")  # one per head
FACTORS = "rope_freqs.weight"  # of the rotation's frequencies
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)")


class Source(NamedTuple):
    """Where a file has one of transformers' weights."""

    names: tuple[str, ...]  # of tensors, joined along the last dimension but one
    row: int | None = None  # of the tensor, if the weight is only this row


def _source(model_type: str, name: str) -> Source:
    """Return where a file has a weight, by its name in transformers."""
    base, _, part = name.rpartition(".")
    if (match := LAYER.fullmatch(name)) and match[2] in EXPERTS:
        return Source(tuple(f"blk.{match[1]}.{leaf}.weight" for leaf in EXPERTS[match[2]]))
    if not (match := LAYER.fullmatch(base)):
        return Source((f"{TOP.get(base, base)}.{part}",))
    if norm := HEAD_NORM.fullmatch(match[2]):
        return Source((f"blk.{match[1]}.attn_{norm[1]}_norm.{part}",), int(norm[2]))
    leaf = LEAVES.get(match[2], match[2])
    if model_type.startswith("gemma") and match[2] == "post_attention_layernorm":
        leaf = "post_attention_norm"  # in other families, this norm comes before the FFN
    return Source((f"blk.{match[1]}.{leaf}.{part}",))


def stored(header: Header, model_type: str, names: Iterable[str]) -> dict[str, Place]:
    """Return the location of each of transformers' weights that is one tensor, by its name."""
    return {name: header.places[_source(model_type, name).names[0]] for name in names}


def _check_layers(header: Header) -> None:
    """Raise MlpMemError unless a file has at least a tensor per layer: no model is built before."""
    count, most = header.get("block_count"), len(header.places)
    if not isinstance(count, int) or not 1 <= count <= most:
        raise wrong(header.path, f"it has {most} tensors, the header says {count!r:.40} layers")


def _check(
    header: Header, model_type: str, sources: Mapping[str, Source], expected: Mapping[str, Tensor]
) -> None:
    """Raise MlpMemError unless every weight exists in its expected shape."""
    needed = {tensor for source in sources.values() for tensor in source.names}
    if missing := sorted(needed - header.places.keys()):
        raise wrong(header.path, f"it lacks {len(missing)} tensors, such as {missing[0]}")
    for name, source in sources.items():
        for tensor in source.names:
            shape = list(header.places[tensor].shape)
            wanted = _shape(model_type, source, tensor, list(expected[name].shape), shape)
            if shape != wanted:
                raise wrong(header.path, f"{tensor} is {shape}, the header says {wanted}")


def _shape(
    model_type: str, source: Source, tensor: str, weight: list[int], found: list[int]
) -> list[int]:
    """Return the shape that a tensor of the file must have for a weight of transformers."""
    if source.row is not None:
        return [max(found[0], source.row + 1), *weight]
    if len(source.names) > 1:
        return [*weight[:-2], weight[-2] // len(source.names), weight[-1]]
    if weight[0] == 1 and len(found) == len(weight) - 1:
        return weight[1:]  # files drop a dimension of size 1
    return weight[::-1] if _is_transposed(model_type, tensor, weight) else weight


def _order(header: Header, model_type: str, name: str) -> Tensor | None:
    """Return the order of a tensor's rows in transformers, None if it is the file's order.

    The file orders Llama's queries and keys for a rotation of neighbours: (heads, size / 2, 2). It
    has all queries of Bloom and Falcon first, then keys, then values: (heads + 2 key heads, size).
    """
    leaf, heads = name.split(".")[-2], header.get("attention.head_count")
    kv_heads = header.get("attention.head_count_kv", heads)
    rows = torch.arange(header.places[name].shape[0])
    if model_type == "llama" and leaf in ("attn_q", "attn_k"):
        heads = heads if leaf == "attn_q" else kv_heads
        return rows.view(heads, -1, 2).transpose(1, 2).reshape(-1)
    if model_type in ("bloom", "falcon") and leaf == "attn_qkv":
        queries, *others = rows.view(heads + 2 * kv_heads, -1).split([heads, kv_heads, kv_heads])
        groups = [queries.view(kv_heads, -1), *others]  # a key head with its queries
        return torch.cat(groups, dim=1).reshape(-1)
    return None


def _weight(header: Header, source: Source, model_type: str, dtype: torch.dtype) -> Tensor:
    """Return a weight in transformers' layout and in dtype."""
    parts = [_tensor(header, name, model_type, dtype) for name in source.names]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
    return weight if source.row is None else weight[source.row]


def _tensor(header: Header, name: str, model_type: str, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the file with transformers' order of rows, in dtype."""
    weight = torch.empty(header.places[name].shape, dtype=dtype)
    for first, rows in dense_rows(header, name):
        if model_type.startswith("gemma") and name.endswith("norm.weight"):
            rows = rows - 1  # files store 1 + weight
        weight.view(-1, weight.shape[-1])[first : first + len(rows)] = rows
    if (order := _order(header, model_type, name)) is not None:
        weight = weight[order]
    return weight.T.contiguous() if _is_transposed(model_type, name, weight.shape) else weight


def _is_transposed(model_type: str, name: str, shape: Sequence[int]) -> bool:
    """Return whether transformers holds a weight as (inputs, outputs); files never do."""
    return model_type == "gpt2" and name.startswith("blk.") and len(shape) == 2


def _check_frequencies(header: Header, model: nn.Module) -> None:
    """Raise MlpMemError unless a file's factors fit the rotation's frequencies."""
    if FACTORS in header.places:
        found, rotary = header.places[FACTORS].shape, _rotary(model)
        needed = tuple(rotary.inv_freq.shape) if rotary is not None else (0,)
        if found != needed:
            raise wrong(header.path, f"{FACTORS} is {list(found)}, and must be {list(needed)}")


def _set_frequencies(model: nn.Module, header: Header) -> None:
    """Divide the rotation's frequencies by the file's factors, as Llama 3 needs."""
    if FACTORS in header.places:
        _rotary(model).inv_freq /= plain(header, FACTORS)


def _rotary(model: nn.Module) -> nn.Module | None:
    """Return the module that has the rotation's frequencies, None if nothing is rotated."""
    return getattr(model.get_decoder(), "rotary_emb", None)
