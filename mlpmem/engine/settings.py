"""Settings of a model and options of a call, checked when they are made."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number


def lambda_grid(parts: int, *more: float) -> tuple[float, ...]:
    """Return lambdas from 0 to 1 in equal parts, with `more` values, ascending."""
    return tuple(sorted({i / parts for i in range(parts + 1)} | set(more)))


@dataclass(frozen=True)
class Settings:
    """Defaults of a model, for calls that name no others."""

    lmbda: Mapping[str, float] = field(default_factory=lambda: {"memory": 0.5, "knn": 0.5})
    k: int = 64  # neighbours
    knn_temperature: float = 20.0  # of squared L2 distances
    memory_temperature: float = 1.0  # of the memory's logits
    auto: bool = False  # whether routers choose lambda if a call names none

    def __post_init__(self) -> None:
        """Raise MlpMemError for values outside their range."""
        if not isinstance(self.lmbda, Mapping):
            raise MlpMemError(f"settings: lmbda must be numbers by source; got {self.lmbda!r}")
        for source, value in self.lmbda.items():
            check_lmbda(value, source)
        if not isinstance(self.auto, bool):
            raise MlpMemError(f"settings: auto must be true or false; got {self.auto!r}")
        valid = [
            _is_number(self.k, 1),
            _is_number(self.knn_temperature, 1e-9),
            _is_number(self.memory_temperature, 1e-9),
        ]
        if not all(valid) or not isinstance(self.k, Integral):
            raise MlpMemError(
                "settings: k must be a whole number from 1 and temperatures numbers above 0; got "
                f"{self.k}, {self.knn_temperature} and {self.memory_temperature}. Correct the "
                "bundle's manifest or the arguments"
            )

    def of(self, system: str) -> float:
        """Return a system's lambda: its own, or the mean of its parts' lambdas."""
        if system in self.lmbda:
            return self.lmbda[system]
        parts = [self.lmbda.get(part, 0.5) for part in PARTS.get(system, ())]
        return sum(parts) / len(parts) if parts else 0.5

    def lmbdas(
        self,
        systems: Sequence[str],
        lmbda: float | str | Mapping[str, float | str] | None,
        routed: Collection[str],
        usual: Collection[str] = (),
    ) -> dict[str, float | str]:
        """Return lambda by system, a number or AUTO: the requested one, else these settings'.

        It is 0 for "lm", and AUTO by default for systems in `usual`, and for those in `routed` if
        `auto` is set. MlpMemError for AUTO of a system that is not in `routed`.
        """
        requested = lmbda if isinstance(lmbda, Mapping) else dict.fromkeys(systems, lmbda)
        for system, value in requested.items():
            if system not in PARTS:
                raise MlpMemError(f"lmbda must name {', '.join(PARTS)}; got {system!r}")
            _check_requested(system, value, routed)
        lmbdas = {}
        for system in systems:
            value = requested.get(system)
            if value is None:
                auto = system in usual or (self.auto and system in routed)
                value = AUTO if auto else self.of(system)
            lmbdas[system] = 0.0 if system == "lm" else value if value == AUTO else float(value)
        return lmbdas


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are sampled from the mix, and when generation ends."""

    max_new_tokens: int = 32
    temperature: float = 0.0  # 0 takes the most probable token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0  # drops tokens below this share of the most probable token's mass
    repetition_penalty: float = 1.0  # factor on the log-probs of tokens read or written
    seed: int = 0
    stop: Sequence[str] = ()  # texts that end the answer, which is cut before the first one
    forced: Sequence[int] = ()  # ids of the first tokens, given rather than chosen

    def __post_init__(self) -> None:
        """Raise MlpMemError for the first value outside its range."""
        most, some = 2**63 - 1, 1e-9
        ranges = {
            "max_new_tokens": (Integral, 1, most, "a whole number from 1"),
            "temperature": (Real, 0, most, "0 (greedy) or above, such as 0.8"),
            "top_k": (Integral, 0, most, "a whole number from 0, which keeps all tokens"),
            "top_p": (Real, some, 1, "above 0 and at most 1, which keeps all tokens"),
            "min_p": (Real, 0, 1, "from 0, which keeps all tokens, to 1"),
            "repetition_penalty": (Real, some, 100, "above 0, such as 1.1; 1 changes nothing"),
            "seed": (Integral, 0, most, "a whole number from 0"),
        }
        for name, (kind, low, high, allowed) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                raise MlpMemError(f"{name} must be {allowed}; got {value!r}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        if len(self.forced) > self.max_new_tokens:
            raise MlpMemError(
                f"forced must have at most max_new_tokens = {self.max_new_tokens} tokens; got "
                f"{len(self.forced)}. Raise max_new_tokens or force fewer"
            )


def _stop_strings(stop: Any) -> tuple[str, ...]:
    """Return stop strings as a tuple; MlpMemError unless each is a text that is not empty."""
    texts = (stop,) if isinstance(stop, str) else stop
    try:
        strings = tuple(texts or ())
    except TypeError:
        strings = (stop,)
    if not all(isinstance(text, str) and text for text in strings):
        raise MlpMemError(
            'stop must be a text or a list of texts that end the answer, such as ["\\n"]; got '
            f"{stop!r}. To cancel a run, give cancel= an object with is_set()"
        )
    return strings


def default_settings(memory: Any) -> Settings:
    """Return the settings in a memory's config, or plain ones without a memory."""
    if memory is None:
        return Settings()
    config = memory.config
    return Settings(
        lmbda={"memory": config.lmbda, "knn": 0.5},
        k=config.knn_k or 64,
        knn_temperature=config.knn_temperature or 20.0,
        memory_temperature=config.temperature,
    )


def _check_requested(system: str, value: Any, routed: Collection[str]) -> None:
    """Raise MlpMemError unless value is None, a number from 0 to 1, or AUTO with a router."""
    if isinstance(value, str) and value == AUTO:
        if system != "lm" and system not in routed:
            raise MlpMemError(
                f'lmbda "auto" needs a router for {system!r}; there are routers for '
                f"{', '.join(routed) or 'no system'}. Give a number from 0 to 1, or fit a router "
                "with `python -m train router`"
            )
    elif value is not None:
        check_lmbda(value)


def check_lmbda(value: Any, name: str = "lmbda") -> float:
    """Return value; MlpMemError unless it is a number from 0 to 1."""
    if not _is_number(value, 0) or value > 1:
        raise MlpMemError(
            f"{name} must be a number from 0 (only the decoder) to 1 (only memory or datastore); "
            f"got {value!r}"
        )
    return value


def _is_number(value: Any, low: float) -> bool:
    """Return whether value is a finite number, low or above."""
    return is_number(value) and value >= low
