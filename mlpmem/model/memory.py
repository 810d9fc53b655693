"""The memory: an all-MLP from one hidden state to a distribution over the vocabulary, D -> V.

It sees neither positions nor other tokens, so its rows are independent. Its blocks are in
`memory_layers.py`. `checkpoints.py` reads the published folders.
"""

import json
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import first_device
from mlpmem.fast.llama_layers import Block, Norm, Recall
from mlpmem.fast.packed import PackedLinear
from mlpmem.formats import MEMORY_TYPE, check_kinds
from mlpmem.model.checkpoints import config_values, memory_folder, read_weights
from mlpmem.model.context import Context, check_half_lives, check_turn
from mlpmem.model.memory_layers import LAYOUTS, Door

MOST = 2**26  # limit of sizes: larger than any memory's
# field -> (kind, minimum, maximum)
RANGES = {
    "hidden_size": (Integral, 1, MOST),
    "vocab_size": (Integral, 1, MOST),
    "num_layers": (Integral, 1, 1024),
    "intermediate_size": (Integral, 1, MOST),
    "norm_eps": (Real, 0, 1),
    "depth": (Integral, -1024, 1023),
    "lmbda": (Real, 0, 1),
    "temperature": (Real, 1e-6, 1e6),
    "knn_k": (Integral, 0, MOST),
    "knn_temperature": (Real, 0, 1e9),
}


@dataclass(frozen=True)
class MemoryConfig:
    """The shape of a memory, its decoder, and the best settings for its use."""

    hidden_size: int  # D, of the decoder's hidden states
    vocab_size: int  # V
    num_layers: int
    intermediate_size: int
    family: str = "llama"  # "llama" (RMSNorm, SwiGLU) or "gpt2" (LayerNorm, GELU)
    norm_eps: float = 1e-5
    depth: int = -1  # decoder layer whose FFN input it reads; -1 is the last
    lmbda: float = 0.5  # its weight in the mix
    temperature: float = 1.0  # divides its logits
    knn_k: int = 0  # neighbours of its training targets, 0 if unknown
    knn_temperature: float = 0.0  # of its training targets, 0 if unknown
    tokenizer_hash: str = ""  # "" if unknown, as in published checkpoints
    gguf_sha256: str = ""  # of the file that its decoder came from, "" for another or unknown one
    tied_head: bool = False  # whether it uses the decoder's head
    # half-lives in tokens of the context vectors that it reads with the hidden state; the paper's
    # memory and every published one read none
    context: tuple[float, ...] = ()
    # one or two token ids that begin a question in a chat; context vectors begin anew there
    turn: tuple[int, ...] = ()
    # whether it also reads a vector of the sentences that ask, see model/context.py
    asked: bool = False

    def __post_init__(self) -> None:
        """Raise MlpMemError for invalid values."""
        for name, (kind, low, high) in RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                raise MlpMemError(
                    f"memory config: {name} must be a number from {low:g} to {high:g}; got "
                    f"{value!r}. Export or download the memory again"
                )
        if not isinstance(self.tokenizer_hash, str) or not isinstance(self.tied_head, bool):
            raise MlpMemError(
                "memory config: tokenizer_hash must be a text, tied_head true or false; got "
                f"{self.tokenizer_hash!r}, {self.tied_head!r}. Export or download the memory again"
            )
        if not isinstance(self.gguf_sha256, str):
            raise MlpMemError(
                f"memory config: gguf_sha256 must be a text; got {self.gguf_sha256!r}. Export or "
                "download the memory again"
            )
        if not isinstance(self.asked, bool) or (self.asked and not self.turn):
            raise MlpMemError(
                "memory config: asked must be true or false, and with true, turn must say what "
                f"begins a question; got {self.asked!r}. Export or download the memory again"
            )
        if str(self.family) not in LAYOUTS:
            raise MlpMemError(
                f"memory config: family must be {' or '.join(LAYOUTS)}; got {self.family!r}. "
                "Export or download the memory again"
            )
        check_half_lives(self.context, "memory config")
        check_turn(self.turn, self.vocab_size, "memory config")

    @property
    def input_size(self) -> int:
        """Return K, of what it reads: D, and D more per context vector."""
        return self.hidden_size * (1 + len(self.context) + self.asked)

    @classmethod
    def from_dict(cls, row: dict) -> "MemoryConfig":
        """Return the config of a config.json's values, ignoring unknown ones."""
        known = {field.name for field in fields(cls)}
        missing = [
            f
            for f in ("hidden_size", "vocab_size", "num_layers", "intermediate_size")
            if f not in row
        ]
        if missing:
            raise MlpMemError(
                f"memory config: {', '.join(missing)} missing; export the memory again"
            )
        values = {name: value for name, value in row.items() if name in known}
        for name in ("context", "turn"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps({"model_type": MEMORY_TYPE, **asdict(self)}, indent=2)


class Memory(nn.Module):
    """Blocks, a last norm and a head, or the decoder's head if tied_head is set."""

    def __init__(self, config: MemoryConfig) -> None:
        """Create a memory with random weights; `bind` sets a tied head."""
        super().__init__()
        self.config = config
        if config.context:
            self.door = Door(config.input_size, config.hidden_size)
            self.token_weights: Tensor
            self.register_buffer("token_weights", torch.ones(config.vocab_size))
        if config.asked:
            self.sentence_ends: Tensor
            self.register_buffer("sentence_ends", torch.zeros(config.vocab_size))
        block, self._blocks, norm, self._norm = LAYOUTS[config.family]
        self.add_module(
            self._blocks, nn.ModuleList(block(config) for _ in range(config.num_layers))
        )
        self.add_module(self._norm, norm(config.hidden_size, eps=config.norm_eps))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = None
        self.reset_parameters()

    @property
    def bytes(self) -> int:
        """Return the size of the memory's own weights, without a tied head."""
        from mlpmem.fast.linear import bytes_of

        return bytes_of(self, but=self.lm_head if self.config.tied_head else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw matrices from N(0, 0.02), a block's last with std / sqrt(2 * num_layers)."""
        for name, weight in self.named_parameters():
            if weight.dim() >= 2:
                is_last = name.endswith(("c_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    weight, std=0.02 / ((2 * self.config.num_layers) ** 0.5 if is_last else 1)
                )
        if self.config.context:
            self.door.reset_parameters(0.02)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of what its layers compute, also where weights are packed."""
        return getattr(self, self._norm).weight.dtype

    @property
    def device(self) -> torch.device:
        """Return the device of hidden states."""
        return getattr(self, self._norm).weight.device

    def features(self, hidden: Tensor) -> Tensor:
        """Return the head's input (..., D) for hidden states (..., D).

        A memory with a context also reads the context vectors that follow them, (..., K). Others
        ignore what follows the hidden states.
        """
        if self.config.context:
            hidden = self.door(hidden)
        else:
            hidden = hidden[..., : self.config.hidden_size]
        for block in getattr(self, self._blocks):
            hidden = block(hidden)
        return getattr(self, self._norm)(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) for hidden states; see `features`."""
        return self.lm_head(self.features(hidden))

    def recall(self) -> Recall | None:
        """Return the parts that a compiled step can read, None for another layout."""
        if self.config.family != "llama":
            return None
        eps = self.config.norm_eps
        blocks = [
            Block(
                Norm(block.input_layernorm, eps, 0.0),
                (block.mlp.gate_proj, block.mlp.up_proj),
                block.mlp.down_proj,
            )
            for block in getattr(self, self._blocks)
        ]
        norm = Norm(getattr(self, self._norm), eps, 0.0)
        door = self.door.parts if self.config.context else None
        return Recall(tuple(blocks), norm, self.lm_head, door)

    def bind(self, decoder) -> "Memory":
        """Check the memory against its decoder and set a tied head; return self.

        A decoder without context vectors gets those that the memory reads.
        """
        if self.config.context and decoder.context is None:
            weights = self.token_weights.float().to(decoder.device)
            ends = self.sentence_ends.float().to(decoder.device) if self.config.asked else None
            decoder.context = Context(self.config.context, weights, self.config.turn, ends)
        check_binding(self.config, decoder)
        if self.config.tied_head:
            head = decoder.model.get_output_embeddings()
            if isinstance(head, PackedLinear) and head.bias is None:
                self.lm_head = head  # packed once for both
            else:
                weight = decoder.head_weight.to(decoder.device)
                self.lm_head.weight = nn.Parameter(weight, requires_grad=False)
        return self

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors; see save_memory."""
        save_memory(self, folder, dtype)

    @classmethod
    def load(cls, folder: str | Path, **options) -> "Memory":
        """Return the memory of a folder, our own or published; see load_memory."""
        return load_memory(folder, **options)


def check_binding(config: MemoryConfig, decoder) -> None:
    """Raise MlpMemError unless the memory was trained for this decoder."""
    pairs = {
        "hidden size": (config.hidden_size, decoder.hidden_size),
        "vocabulary": (config.vocab_size, decoder.vocab_size),
        "depth": (config.depth % decoder.num_layers, decoder.depth % decoder.num_layers),
    }
    if config.context:
        pairs["context"] = (config.context, decoder.half_lives)
        pairs["turn"] = (config.turn, decoder.context.turn)
        pairs["asked"] = (config.asked, decoder.context.ends is not None)
    if config.tokenizer_hash:
        pairs["tokenizer hash"] = (config.tokenizer_hash[:12], decoder.tokenizer_hash[:12])
    if config.gguf_sha256 and decoder.gguf_sha256:
        pairs["sha256 of the GGUF file"] = (config.gguf_sha256[:12], decoder.gguf_sha256[:12])
    mismatches = [
        f"{name} {ours} against {theirs}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
    if mismatches:
        raise MlpMemError(
            f"this memory belongs to another decoder: {', '.join(mismatches)} (memory against "
            "decoder). Load the decoder it was trained for, or train a memory for this one"
        )


def save_memory(memory: Memory, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors (in dtype if set) into folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().to("cpu", dtype or weight.dtype).contiguous()
        for name, weight in memory.state_dict().items()
        if not (memory.config.tied_head and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(memory.config.to_json(), encoding="utf-8")


def load_memory(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    depth: int | None = None,
    lmbda: float | None = None,
    temperature: float | None = None,
) -> Memory:
    """Return a frozen memory in eval mode; depth, lmbda and temperature override its config.

    loading/hub.py downloads Hub ids. MlpMemError names what is missing or wrong.
    """
    top = Path(folder)
    if not top.is_dir():
        raise MlpMemError(
            f"memory: {str(folder)!r} is not a folder; check the path, or fetch a Hub id first"
        )
    folder = memory_folder(top)
    check_kinds(folder, "memory")
    overrides = {"depth": depth, "lmbda": lmbda, "temperature": temperature}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    config = MemoryConfig.from_dict(config_values(top, folder) | overrides)
    with torch.device("meta"):
        memory = Memory(config)
    weights = read_weights(folder)
    _check_weights(memory, weights, folder)
    device = first_device(device)
    weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
    memory.load_state_dict(weights, assign=True)
    return memory.eval().requires_grad_(False)


def _check_weights(memory: Memory, weights: dict[str, Tensor], folder: Path) -> None:
    """Raise MlpMemError unless names and shapes match the config and all numbers are finite."""
    expected = {name: weight.shape for name, weight in memory.state_dict().items()}
    missing, extra = sorted(expected.keys() - weights), sorted(weights.keys() - expected)
    shapes = [
        f"{name} is {list(weights[name].shape)}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    faults = [f"{len(missing)} names missing such as {missing[0]}"] if missing else []
    faults += [f"{len(extra)} unknown names such as {extra[0]}"] if extra else []
    faults += shapes[:1]
    if faults:
        raise MlpMemError(
            f"memory: the weights in {folder.name} do not fit its config.json: "
            f"{'; '.join(faults)}. Check that this is a memory's folder, or download it again"
        )
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise MlpMemError(
                f"memory: {name} in {folder.name} contains infinity or NaN; its training failed or "
                "the file is altered. Download or train it again"
            )
