"""The mix as a transformers model: generate(), pipelines, save_pretrained, evaluation harnesses.

    import mlpmem
    from mlpmem.hf import MlpMemoryForCausalLM
    model = MlpMemoryForCausalLM.of(mlpmem.load(), system="memory", lmbda=0.5)
    model.save_pretrained("fused")          # python -m mlpmem.hf fused  does the same

Importing this module registers such folders with AutoConfig and AutoModelForCausalLM. The model is
one system at one lambda; its logits are log-probs. `mlpmem.api.Model` computes them.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mlpmem.api import Model
from mlpmem.engine.distributions import interpolate
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.hf.folder import (
    HUB_OPTIONS,
    check_options,
    find_folder,
    kind_of,
    read_parts,
    write_parts,
)

# values of MlpMemoryLMConfig that a caller may replace when loading
VALUES = ("system", "lmbda", "memory_temperature", "k", "knn_temperature", "retriever")
NOTHING_MISSING = {
    "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": [],
}  # fmt: skip
ROWS = 256  # positions mixed at once, with (rows, V) log-probs per source


class MlpMemoryLMConfig(PreTrainedConfig):
    """The system, its lambda and settings; the decoder's own config is nested."""

    model_type = "mlp_memory_lm"

    decoder: dict | PreTrainedConfig | None = None
    system: str = "memory"  # "lm", "memory" or "knn"
    lmbda: float = 0.5  # weight of the memory or datastore
    memory_temperature: float = 1.0
    k: int = 64  # neighbours
    knn_temperature: float = 20.0
    depth: int = -1  # decoder layer whose FFN input is the hidden state
    retriever: str | None = None  # a name in mlpmem.retrieval.retriever.RETRIEVERS

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn a nested config given as values into a config."""
        if isinstance(self.decoder, dict):
            self.decoder = AutoConfig.for_model(**self.decoder)
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def max_position_embeddings(self) -> int | None:
        """Return the longest sequence, in tokens."""
        return getattr(self.decoder, "max_position_embeddings", None)


class MlpMemoryForCausalLM(PreTrainedModel, GenerationMixin):
    """A transformers model that wraps a Model, its `fused`."""

    config_class = MlpMemoryLMConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: MlpMemoryLMConfig, fused: Model) -> None:
        """Wrap a model that has the parts of config.system; see `of`."""
        super().__init__(config)
        self.fused = fused
        self.decoder, self.memory = fused.decoder.model, fused.memory
        self.generation_config = copy.deepcopy(self.decoder.generation_config)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = fused.decoder.tokenizer.pad_token_id
        self.post_init()
        self.eval()

    @classmethod
    def of(
        cls, model: Model, system: str | None = None, lmbda: float | None = None
    ) -> "MlpMemoryForCausalLM":
        """Return a model's system (default: memory) at a lambda (default: its settings' lambda).

        Weights and datastore are shared with `model`.
        """
        system = model.check_system(system, model.store)
        if system == "mixed" or lmbda == AUTO:
            raise MlpMemError(
                "a transformers model needs one of lm, memory and knn at a number as lmbda; "
                f"got {system!r} at {lmbda!r}"
            )
        single = model.only(system)
        default = model.settings.of(system)  # transformers uses no router
        decoder = copy.deepcopy(model.decoder.model.config)
        decoder.name_or_path = ""  # a path of this machine
        config = MlpMemoryLMConfig(
            decoder=decoder,
            system=system,
            lmbda=model.lmbdas([system], lmbda if lmbda is not None else default)[system],
            memory_temperature=model.settings.memory_temperature,
            k=model.settings.k,
            knn_temperature=model.settings.knn_temperature,
            depth=model.decoder.depth,
            retriever=kind_of(single),
        )
        return cls(config, single)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return log-probs (B, T, V) float32 of the mix as logits, or only the last positions.

        With labels (B, T), the loss is the mean nll of all tokens but the first, without labels of
        -100. There are no gradients, because the model is frozen.
        """
        output = self.fused.decoder.forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values,
            use_cache=bool(use_cache),
            last=0 if labels is not None else logits_to_keep,
        )
        logits, loss = self._mixed(output.hidden, output.logits), None
        if labels is not None:
            targets = labels[:, 1:].flatten().to(logits.device)
            loss = F.nll_loss(logits[:, :-1].flatten(0, 1), targets)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.cache)

    @torch.no_grad()
    def _mixed(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Return log-probs (B, T, V) of the mix from hidden states (B, T, D) and logits."""
        system, store, parts = self.config.system, self.fused.store, []
        shape = logits.shape
        pairs = zip(hidden.flatten(0, 1).split(ROWS), logits.flatten(0, 1).split(ROWS), strict=True)
        for hidden_rows, logits_rows in pairs:
            sources = self.fused.sources(hidden_rows, logits_rows, store)
            parts.append(interpolate(sources["lm"], sources[system], self.config.lmbda))
        return torch.cat(parts).view(shape)

    def _apply(self, fn: Any, recurse: bool = True) -> "MlpMemoryForCausalLM":
        """Move the datastore's tensors along with the weights."""
        super()._apply(fn, recurse)
        store = self.fused.store
        if store is not None:
            moved = store._replace(values=fn(store.values), counts=fn(store.counts))
            self.fused._store = moved
        return self

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.decoder.get_output_embeddings()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Keep the loaded weights."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: decoder and memory have tied their own weights."""

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write config.json, tokenizer, decoder/, and memory/ or datastore/ into a folder."""
        folder = Path(save_directory)
        write_parts(self.fused, folder)
        generation = copy.deepcopy(self.generation_config)
        generation.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        generation.save_pretrained(folder)  # greedy, as here; a pipeline would sample by default
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *_: Any,
        config: MlpMemoryLMConfig | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        generation_config: GenerationConfig | None = None,
        subfolder: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> "MlpMemoryForCausalLM | tuple[MlpMemoryForCausalLM, dict]":
        """Return the model of a folder that save_pretrained wrote, local or on the Hub.

        dtype (or torch_dtype) is float32 by default; "auto" is the stored one. device_map is one
        device, {"": device}, or "auto" for every GPU. VALUES replace the config's values. With
        output_loading_info the second result reports nothing missing, because an incomplete part
        is refused. MlpMemError for unsupported options that would change the results.
        """
        hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        folder = find_folder(pretrained_model_name_or_path, subfolder or "", **hub_options)
        values = {name: options.pop(name) for name in VALUES if name in options}
        check_options(options)
        if not isinstance(config, MlpMemoryLMConfig):
            config = MlpMemoryLMConfig.from_pretrained(config or folder)
        for name, value in values.items():
            setattr(config, name, value)
        attention = attn_implementation or config._attn_implementation_internal
        model = cls(config, read_parts(folder, config, dtype or torch_dtype, device_map, attention))
        if generation_config is None and (folder / "generation_config.json").exists():
            generation_config = GenerationConfig.from_pretrained(folder)
        if generation_config is not None:
            model.generation_config = generation_config
        return (model, copy.deepcopy(NOTHING_MISSING)) if output_loading_info else model


AutoConfig.register(MlpMemoryLMConfig.model_type, MlpMemoryLMConfig)
AutoModelForCausalLM.register(MlpMemoryLMConfig, MlpMemoryForCausalLM)
