"""A router: a tiny model that chooses lambda per token from the decoder and another source.

Its features are how sure both sources are, whether they agree, the nearest neighbour's distance,
and `Evidence`: which of the two has been right about the text so far. It never sees the next token.
R positions, F features.

Evidence weighs two experts by the probability each gave to the tokens already read. This is Bayes'
rule with older tokens forgotten gradually (dynamic model averaging: Raftery, Karny and Ettler 2010,
Technometrics 52(1)). It needs no model of its own: both sources are computed at every generated
token anyway, and at a prompt's tokens in its one pass.
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
from mlpmem.formats import check_kinds, parse_json
from mlpmem.retrieval.datastore import Store
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.own.words import prefixes

FLOOR = -20.0  # nats; anything less probable counts as impossible
LEAST = -80.0  # nats; below it float32 is subnormal and slow, and adds nothing to an entropy
MOST_UNITS, MOST_BYTES, MOST_STATE = (
    4096,
    2**22,
    2**16,
)  # more than is useful: a folder cannot request all memory
LARGEST, LEAST_SCALE = 1e6, 1e-6  # of a router's weights: within them no lambda is nan
FEATURES = (
    "lm_top", "other_top",  # log-prob of each source's most probable token
    "lm_entropy", "other_entropy",  # nats
    "lm_of_other", "other_of_lm",  # log-prob of the other source's most probable token
    "agree",  # 1 if those are the same token
    "nearest",  # log(1 + squared L2 to the nearest neighbour), 0 without a search
    "evidence",  # nats by which the other source was better on the text so far, see Evidence
)  # fmt: skip


def features(lm: Tensor, other: Tensor, evidence: Tensor, nearest: Tensor | None = None) -> Tensor:
    """Return FEATURES (R, F) float32 of log-probs (R, V), evidence and squared distances (R,)."""
    pair = torch.stack([lm, other]).float().clamp_min_(LEAST)  # (2, R, V)
    top, token = pair.max(dim=-1)
    entropy = -pair.exp().mul_(pair).sum(dim=-1)
    crossed = pair.gather(-1, token.flip(0).unsqueeze(-1)).squeeze(-1)
    agree = (token[0] == token[1]).float().unsqueeze(0)
    distance = torch.zeros_like(agree)
    if nearest is not None:  # infinite without a neighbour, and 0 * inf is nan
        distance = nearest.float().log1p().clamp_max(-LEAST).unsqueeze(0)
    evidence = evidence.to(agree).unsqueeze(0)
    columns = [top, entropy, crossed.clamp_min(FLOOR), agree, distance, evidence]
    return torch.cat(columns).T.contiguous()


@dataclass(frozen=True)
class RouterConfig:
    """The system whose lambda a router chooses, and the decoder it belongs to."""

    system: str  # a key of PARTS with parts: "memory", "knn" or "mixed"
    vocab_size: int  # V
    tokenizer_hash: str
    units: int = 0  # of one hidden layer, at most MOST_UNITS; 0 is a logistic regression
    # numbers of the hidden state, and of the context vectors behind it, that it reads besides the
    # features: what is asked about says whether a memory of facts has anything to do with it
    state_size: int = 0
    features: tuple[str, ...] = FEATURES  # that the weights were fitted to, in order
    # whether it reads evidence; without, a prompt's own tokens need not be scored by both sources,
    # and an answer begins as soon as the decoder's own
    evidence: bool = True

    def __post_init__(self) -> None:
        """Raise MlpMemError for a system without lambda, wrong sizes, or other features."""
        system, units = str(self.system)[:40], str(self.units)[:40]
        if not PARTS.get(system):
            raise MlpMemError(
                "router config: system must be memory, knn or mixed, as they have a lambda; got "
                f"{system!r}. Fit the router again"
            )
        if type(self.units) is not int or not 0 <= self.units <= MOST_UNITS:
            raise MlpMemError(
                f"router config: units must be a whole number from 0 to {MOST_UNITS}; got "
                f"{units!r}. Correct it, or fit the router again"
            )
        if type(self.state_size) is not int or not 0 <= self.state_size <= MOST_STATE:
            raise MlpMemError(
                f"router config: state_size must be a whole number from 0 to {MOST_STATE}; got "
                f"{str(self.state_size)[:40]!r}. Correct it, or fit the router again"
            )
        if type(self.vocab_size) is not int or not isinstance(self.tokenizer_hash, str):
            raise MlpMemError(
                "router config: vocab_size must be a whole number and tokenizer_hash a text; "
                "download the router or fit it again"
            )
        if type(self.evidence) is not bool:
            raise MlpMemError(
                f"router config: evidence must be true or false; got {str(self.evidence)[:40]!r}. "
                "Correct it, or fit the router again"
            )
        if tuple(self.features) != FEATURES:
            raise MlpMemError(
                f"router config: features must be {', '.join(FEATURES)}; got "
                f"{', '.join(map(str, self.features))[:200]}. Fit the router again "
                "(`python -m train router`)"
            )


class Router(nn.Module):
    """One or two layers from features, normalised to mean 0 and deviation 1, to logit(lmbda).

    Where config.state_size is not 0, that many numbers of the hidden state follow the features.
    """

    def __init__(self, config: RouterConfig) -> None:
        """Start at lambda 0.5 everywhere: the last layer is zero."""
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.scale: Tensor
        inputs = len(FEATURES) + config.state_size
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.hidden = nn.Linear(inputs, config.units) if config.units else None
        self.out = nn.Linear(config.units or inputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of lambda (R,) of features (R, F), with the state behind them if read."""
        x = (features - self.mean) / self.scale
        if self.hidden is not None:
            x = torch.tanh(self.hidden(x))
        return self.out(x).squeeze(-1)

    @torch.inference_mode()
    def lmbda(
        self,
        lm: Tensor,
        other: Tensor,
        evidence: Tensor | None,
        nearest: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return lambda (R,), 0 .. 1 float32, from the arguments of `features`.

        A router that reads evidence needs it, and one that reads the state needs hidden (R, K).
        """
        if not self.config.evidence:
            evidence = lm.new_zeros(len(lm))
        assert evidence is not None, "this router reads evidence"
        read = features(lm, other, evidence, nearest)
        if size := self.config.state_size:
            assert hidden is not None, "this router reads the hidden state"
            read = torch.cat([read, hidden[:, :size].to(read)], 1)
        return torch.sigmoid(self(read))

    def bind(self, decoder) -> "Router":
        """Return self on the decoder's device; MlpMemError if it was fitted to another decoder."""
        ours = self.config.vocab_size, self.config.tokenizer_hash
        theirs = decoder.vocab_size, decoder.tokenizer_hash
        if ours != theirs:
            raise MlpMemError(
                f"this router belongs to another decoder: vocabulary {ours[0]} and tokenizer "
                f"{ours[1][:12]}, not {theirs[0]} and {theirs[1][:12]}. Load the bundle it came "
                "with, or fit one for this decoder (`python -m train router`)"
            )
        if self.config.state_size > decoder.state_size:
            raise MlpMemError(
                f"this router reads {self.config.state_size} numbers of the hidden state, and the "
                f"decoder gives {decoder.state_size}; load it with the memory whose context it "
                "was fitted to, or fit one for this decoder (`python -m train router`)"
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
        """Return the frozen router of a folder; MlpMemError if it is damaged."""
        from safetensors import SafetensorError

        folder = Path(folder)
        known = {field.name for field in fields(RouterConfig)}
        check_kinds(folder, "router")
        try:
            with (folder / "config.json").open(encoding="utf-8") as file:
                row = parse_json(file.read(MOST_BYTES))
            row: dict[str, Any] = {name: value for name, value in row.items() if name in known}
            row["features"] = tuple(row["features"])
            router = cls(RouterConfig(**row))
            weights = _read_weights(folder / "model.safetensors", router.state_dict())
            router.load_state_dict(weights)
        except MlpMemError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
                SafetensorError) as error:  # fmt: skip
            raise MlpMemError(
                f"router: cannot read {folder.name} ({str(error)[:200]}); it is incomplete or "
                "altered. Download it or fit it again"
            ) from error
        return router.eval().requires_grad_(False)


def _read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a router's tensors by name; ValueError for a wrong name, shape or value."""
    from safetensors import safe_open

    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"its weights must have at most {MOST_BYTES:,} bytes; got {size:,}")
    shapes = {name: [*weight.shape] for name, weight in wanted.items()}
    with safe_open(path, "pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        for name in sorted(stored.keys() | shapes.keys()):
            if stored.get(name) != shapes.get(name):
                raise ValueError(
                    f"{name[:40]} must be {shapes.get(name, 'absent')} by its config.json; "
                    f"got {stored.get(name, 'nothing')}"
                )
        weights = {name: file.get_tensor(name) for name in shapes}
    for name, weight in weights.items():
        if not weight.is_floating_point() or not (weight.abs() <= LARGEST).all():  # false for nan
            raise ValueError(f"{name} must hold finite floats up to {LARGEST:.0e}")
    if weights["scale"].min() < LEAST_SCALE:
        raise ValueError(f"scale must be at least {LEAST_SCALE:.0e}")
    return weights


def load_routers(folder: str | Path, listed: Container[Path] | None = None) -> dict[str, Router]:
    """Return {system: Router} of a folder's subfolders, {} without any.

    With `listed`, only routers whose files it names are loaded. MlpMemError for an unusable router,
    or two of one system.
    """
    folders = [path.parent for path in sorted(Path(folder).glob("*/config.json"))]
    if listed is not None:
        needed = ("config.json", "model.safetensors")
        folders = [f for f in folders if all(f / name in listed for name in needed)]
    routers = [Router.load(folder) for folder in folders]
    by_system = {router.config.system: router for router in routers}
    if len(by_system) < len(routers):
        raise MlpMemError(
            f"router: {len(routers)} folders hold routers of only {', '.join(by_system)}; leave "
            "one folder per system, or download or fit the routers again"
        )
    return {system: by_system[system] for system in PARTS if system in by_system}


DECAY = 0.9  # weight of a token relative to the next one
LEAST_SURPRISE = -4.0  # nats; log-probs below it count as equal
REACH = 96  # tokens back; older ones would weigh less than DECAY ** REACH, 4e-5


def gaps(lm: Tensor, other: Tensor, tokens: Tensor) -> Tensor:
    """Return log p_other - log p_lm (R,) in nats of tokens (R,), from log-probs (R, V).

    Log-probs are clamped at LEAST_SURPRISE, so a word that surprises both sources, such as an
    invented one, counts nothing.
    """
    at = tokens.to(lm.device).unsqueeze(-1)
    return gaps_of(*(x.gather(-1, at).squeeze(-1) for x in (lm, other)))


def gaps_of(lm: Tensor, other: Tensor) -> Tensor:
    """Return `gaps` (R,) from the tokens' log-probs (R,)."""
    return other.clamp_min(LEAST_SURPRISE) - lm.clamp_min(LEAST_SURPRISE)


class Evidence:
    """The evidence of several texts, each read from its first token to its last."""

    def __init__(self) -> None:
        """Start with no text read."""
        self._now: dict[Hashable, float] = {}
        self.gaps: dict[Hashable, list[float]] = {}  # all that a text was read by
        self.seconds: dict[str, float] = {}  # per source, to read prompts

    def now(self, texts: Iterable[Hashable]) -> Tensor:
        """Return the evidence (R,) before the next token of each text, 0 for a new text."""
        return torch.tensor([self._now.get(text, 0.0) for text in texts])

    def read(self, texts: Sequence[Hashable], gaps: Tensor) -> Tensor:
        """Return the evidence (R,) before tokens with these gaps (R,), and add each in turn."""
        before = []
        for text, gap in zip(texts, gaps.tolist(), strict=True):
            before.append(self._now.get(text, 0.0))
            self._now[text] = DECAY * before[-1] + gap
            self.gaps.setdefault(text, []).append(gap)
        return torch.tensor(before)


def reached(ids: Sequence[int], wanted: bool = True) -> int:
    """Return how many of a prompt's last tokens are evidence; the first token never is."""
    return min(REACH, len(ids) - 1) if wanted else 0


def read_prompt(
    evidence: Evidence,
    model: Any,
    states: tuple[Tensor, Tensor],
    ids: Sequence[int],
    columns: Mapping[Any, str],
    store: Store | None,
    count: int,
) -> None:
    """Add the last `count` of a prompt's ids to the evidence of columns {name: system}.

    states are a decoder's hidden states (R, D) and logits (R, V); the first row precedes the first
    of these tokens.
    """
    if not count or not columns:
        return
    parts = {part for system in columns.values() for part in PARTS[system]}
    hidden, logits = (state[:count] for state in states)
    sources = model.sources(
        hidden, logits, store, parts, read=prefixes(ids, len(ids) - count, count)
    )
    for source, seconds in sources.seconds.items():
        evidence.seconds[source] = evidence.seconds.get(source, 0.0) + seconds
    tokens = torch.tensor(ids[-count:])
    for name, system in columns.items():
        evidence.read([name] * count, gaps(sources["lm"], sources[system], tokens))


def read_scores(evidence: Evidence, scores: Tensor, names: Iterable[Hashable]) -> None:
    """Add a prompt's last tokens to the evidence of columns that mix decoder and memory.

    scores (2, R) are the tokens' log-probs by both.
    """
    found = gaps_of(*scores)
    for name in names:
        evidence.read([name] * len(found), found)


def reach(documents: Documents, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (R,), the given (P,) and REACH before each, and which are given (R,).

    ValueError unless positions (P,) ascend and none is a passage's first token, which has no
    context.
    """
    first = documents.offsets[documents.passage_at(positions)] + 1
    edges = np.zeros(len(documents.tokens) + 1, np.int64)
    np.add.at(edges, np.maximum(first, positions - REACH), 1)
    np.add.at(edges, positions + 1, -1)
    if (positions < first).any() or (np.diff(positions) <= 0).any():
        raise ValueError("positions must ascend and exclude the first token of a passage")
    wanted = np.flatnonzero(np.cumsum(edges))
    return wanted, np.isin(wanted, positions)
