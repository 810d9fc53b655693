"""A lambda that knows when: a tiny model from what two sources say to the weight of the second.

It sees how sure decoder and other source are, whether they agree, how near the nearest neighbour
is, and which of the two was right so far (`Evidence`); never the token that comes. R positions,
F features.

Evidence: which of two sources has been right about a text so far.

Two experts that are mixed ought to be weighed by what each gave to what was read already: Bayes'
rule, with older tokens forgotten little by little (dynamic model averaging: Raftery, Karny and
Ettler 2010, Technometrics 52(1)). It costs no model: decoder and other source are asked about every
token anyhow when it is generated, and about a prompt's tokens in its one pass. R positions.
"""

import json
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.engine.trace import PARTS
from mlpmem.errors import MlpMemError
from mlpmem.formats import parse_json
from mlpmem.retrieval.datastore import Store
from mlpmem.retrieval.documents import Documents

FLOOR = -20.0  # nats; what is less probable is as good as impossible
LEAST = -80.0  # nats; below it float32 is slow (subnormal), and an entropy gains nothing
MOST_UNITS, MOST_BYTES = 4096, 2**22  # far more than pays: a folder cannot ask for all memory
LARGEST, LEAST_SCALE = 1e6, 1e-6  # of a router's numbers: with these no lambda overflows to nan
FEATURES = (
    "lm_top", "other_top",  # log-prob of each one's most probable token
    "lm_entropy", "other_entropy",  # nats
    "lm_of_other", "other_of_lm",  # log-prob that each gives to the other's most probable token
    "agree",  # 1 where those are the same token
    "nearest",  # log(1 + squared L2 to the nearest neighbour), 0 where the system searches nothing
    "evidence",  # nats by which the other was more right about what was read, see Evidence
)  # fmt: skip


def features(lm: Tensor, other: Tensor, evidence: Tensor, nearest: Tensor | None = None) -> Tensor:
    """Return FEATURES (R, F) float32 of log-probs (R, V), evidence and squared distances (R,)."""
    pair = torch.stack([lm, other]).float().clamp_min_(LEAST)  # (2, R, V)
    top, token = pair.max(dim=-1)
    entropy = -pair.exp().mul_(pair).sum(dim=-1)
    crossed = pair.gather(-1, token.flip(0).unsqueeze(-1)).squeeze(-1)
    agree = (token[0] == token[1]).float().unsqueeze(0)
    near = torch.zeros_like(agree)
    if nearest is not None:  # infinite where there is none, and 0 times that is nan
        near = nearest.float().log1p().clamp_max(-LEAST).unsqueeze(0)
    evidence = evidence.to(agree).unsqueeze(0)
    found = torch.cat([top, entropy, crossed.clamp_min(FLOOR), agree, near, evidence])
    return found.T.contiguous()


@dataclass(frozen=True)
class RouterConfig:
    """Whose lambda it is, and the decoder it belongs to."""

    system: str  # a key of PARTS with parts: "memory", "knn" or "mixed"
    vocab_size: int  # V
    tokenizer_hash: str
    units: int = 0  # of one hidden layer, at most MOST_UNITS; 0 is a logistic regression
    features: tuple[str, ...] = FEATURES  # what the weights were fitted to, in their order

    def __post_init__(self) -> None:
        """Raise MlpMemError for a system without lambda, or features that are not made any more."""
        system, units = str(self.system)[:40], str(self.units)[:40]
        if not PARTS.get(system):
            raise MlpMemError(
                f"router config: system {system!r} has no lambda; use memory, knn or mixed, and "
                "fit the router again"
            )
        if type(self.units) is not int or not 0 <= self.units <= MOST_UNITS:
            raise MlpMemError(
                f"router config: units is {units!r}, no whole number from 0 to {MOST_UNITS}; "
                "correct it, or fit the router again"
            )
        if type(self.vocab_size) is not int or not isinstance(self.tokenizer_hash, str):
            raise MlpMemError(
                "router config: vocab_size is no whole number or tokenizer_hash no text; download "
                "the router or fit it again"
            )
        if tuple(self.features) != FEATURES:
            raise MlpMemError(
                f"router config: it reads {', '.join(map(str, self.features))[:200]}; this program "
                f"makes {', '.join(FEATURES)}. Fit the router again (`python -m train router`)"
            )


class Router(nn.Module):
    """Features, brought to mean 0 and deviation 1, through one layer or two to logit(lmbda)."""

    def __init__(self, config: RouterConfig) -> None:
        """Make a router of lambda one half everywhere (or nearly, with a hidden layer)."""
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))
        self.hidden = nn.Linear(len(FEATURES), config.units) if config.units else None
        self.out = nn.Linear(config.units or len(FEATURES), 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, found: Tensor) -> Tensor:
        """Return logits of lambda (R,) of features (R, F)."""
        x = (found - self.mean) / self.scale
        if self.hidden is not None:
            x = torch.tanh(self.hidden(x))
        return self.out(x).squeeze(-1)

    @torch.inference_mode()
    def lmbda(
        self, lm: Tensor, other: Tensor, evidence: Tensor, nearest: Tensor | None = None
    ) -> Tensor:
        """Return lambda (R,), 0 .. 1 float32, of what `features` takes."""
        return torch.sigmoid(self(features(lm, other, evidence, nearest)))

    def bind(self, decoder) -> "Router":
        """Return self on the decoder's device; MlpMemError where another decoder is meant."""
        ours = self.config.vocab_size, self.config.tokenizer_hash
        theirs = decoder.vocab_size, decoder.tokenizer_hash
        if ours != theirs:
            raise MlpMemError(
                f"this router belongs to another decoder: vocabulary {ours[0]} and tokenizer "
                f"{ours[1][:12]} against {theirs[0]} and {theirs[1][:12]}. Load the bundle it came "
                "with, or fit one for this decoder (`python -m train router`)"
            )
        return self.to(decoder.device)

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(asdict(self.config), indent=2)
        (folder / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Router":
        """Return the router of a folder, frozen; MlpMemError says what is wrong with it."""
        from safetensors import SafetensorError

        folder = Path(folder)
        known = {field.name for field in fields(RouterConfig)}
        try:
            with (folder / "config.json").open(encoding="utf-8") as file:
                row = parse_json(file.read(MOST_BYTES))
            row: dict[str, Any] = {name: value for name, value in row.items() if name in known}
            row["features"] = tuple(row["features"])
            made = cls(RouterConfig(**row))
            weights = _read_weights(folder / "model.safetensors", made.state_dict())
            made.load_state_dict(weights)
        except MlpMemError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
                SafetensorError) as error:  # fmt: skip
            raise MlpMemError(
                f"router: {folder.name} cannot be read ({str(error)[:200]}); it is incomplete or "
                "altered, download it or fit it again"
            ) from error
        return made.eval().requires_grad_(False)


def _read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a router's tensors by name; ValueError says which is not as it must be."""
    from safetensors import safe_open

    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"its weights have {size:,} bytes, a router at most {MOST_BYTES:,}")
    shapes = {name: [*weight.shape] for name, weight in wanted.items()}
    with safe_open(path, "pt") as file:
        there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        for name in sorted(there.keys() | shapes.keys()):
            if there.get(name) != shapes.get(name):
                raise ValueError(
                    f"{name[:40]} is {there.get(name, 'not there')} in its weights, config.json "
                    f"says {shapes.get(name, 'there is none')}"
                )
        found = {name: file.get_tensor(name) for name in shapes}
    for name, weight in found.items():
        if not weight.is_floating_point() or not (weight.abs() <= LARGEST).all():  # nan is not less
            raise ValueError(f"{name} holds numbers that are none or beyond {LARGEST:.0e}")
    if found["scale"].min() < LEAST_SCALE:
        raise ValueError(f"scale holds numbers below {LEAST_SCALE:.0e}")
    return found


def load_routers(folder: str | Path, listed: Container[Path] | None = None) -> dict[str, Router]:
    """Return {system: Router} of a folder's folders, empty where there is none.

    Where `listed` names the files that may be trusted, others are passed over.

    MlpMemError for one that cannot be used, or two of one system.
    """
    folders = [path.parent for path in sorted(Path(folder).glob("*/config.json"))]
    if listed is not None:
        needed = ("config.json", "model.safetensors")
        folders = [f for f in folders if all(f / name in listed for name in needed)]
    found = [Router.load(folder) for folder in folders]
    by_system = {router.config.system: router for router in found}
    if len(by_system) < len(found):
        raise MlpMemError(
            f"router: {len(found)} folders hold lambdas of {', '.join(by_system)} alone; leave one "
            "a system, or download them or fit them again"
        )
    return {system: by_system[system] for system in PARTS if system in by_system}


DECAY = 0.9  # a token counts so much of what the next one does
LEAST_SURPRISE = -4.0  # nats; how much less probable a surprise was to a source says nothing
REACH = 96  # tokens back; those further away would count DECAY ** REACH, 4e-5


def gaps(lm: Tensor, other: Tensor, tokens: Tensor) -> Tensor:
    """Return by how many nats (R,) the other source gave tokens (R,) more, of log-probs (R, V).

    Clamped to +-LEAST_SURPRISE: a word that surprises both, such as a made-up one, counts nothing.
    """
    at = tokens.to(lm.device).unsqueeze(-1)
    ours, theirs = (x.gather(-1, at).squeeze(-1).clamp_min(LEAST_SURPRISE) for x in (lm, other))
    return theirs - ours


class Evidence:
    """The evidence of several texts, each read from its first token to its last."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._now: dict[Hashable, float] = {}
        self.seconds: dict[str, float] = {}  # what the sources took to read prompts

    def now(self, texts: Iterable[Hashable]) -> Tensor:
        """Return the evidence (R,) before the next token of each text, 0 where none was read."""
        return torch.tensor([self._now.get(text, 0.0) for text in texts])

    def read(self, texts: Sequence[Hashable], found: Tensor) -> Tensor:
        """Return the evidence (R,) before tokens of gaps `found` (R,), and read them one by one."""
        before = []
        for text, gap in zip(texts, found.tolist(), strict=True):
            before.append(self._now.get(text, 0.0))
            self._now[text] = DECAY * before[-1] + gap
        return torch.tensor(before)


def reached(ids: Sequence[int], wanted: bool = True) -> int:
    """Return how many of a prompt's last tokens are evidence; its first one never is."""
    return min(REACH, len(ids) - 1) if wanted else 0


def read_prompt(
    evidence: Evidence,
    model: Any,
    states: tuple[Tensor, Tensor],
    ids: Sequence[int],
    columns: Mapping[Any, str],
    store: Store | None,
) -> None:
    """Read a prompt's ids into the evidence of columns {name: system}, under their names.

    states are a decoder's hidden states and logits, (R, D) and (R, V); the first row stands before
    the first token that counts.
    """
    count = reached(ids, bool(columns))
    if not count:
        return
    parts = {part for system in columns.values() for part in PARTS[system]}
    hidden, logits = (state[:count] for state in states)
    sources = model.sources(hidden, logits, store, parts)
    for source, seconds in sources.seconds.items():
        evidence.seconds[source] = evidence.seconds.get(source, 0.0) + seconds
    tokens = torch.tensor(ids[-count:])
    for name, system in columns.items():
        evidence.read([name] * count, gaps(sources["lm"], sources[system], tokens))


def reach(documents: Documents, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions (R,) with the REACH ones before each in its passage, which are asked (R,)).

    ValueError unless the positions (P,) ascend and none is a passage's first token, which nothing
    comes before.
    """
    first = documents.offsets[documents.passage_at(positions)] + 1
    edges = np.zeros(len(documents.tokens) + 1, np.int64)
    np.add.at(edges, np.maximum(first, positions - REACH), 1)
    np.add.at(edges, positions + 1, -1)
    if (positions < first).any() or (np.diff(positions) <= 0).any():
        raise ValueError("positions must ascend, and leave out what begins a passage")
    wanted = np.flatnonzero(np.cumsum(edges))
    return wanted, np.isin(wanted, positions)
