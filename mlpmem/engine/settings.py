"""The numbers a model or a call is used with; each is checked where it is set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.errors import MlpMemError
from mlpmem.formats import is_number


def lambda_grid(parts: int, *more: float) -> tuple[float, ...]:
    """Return lambdas from 0 to 1 in equal parts, and some more values among them, ascending."""
    return tuple(sorted({i / parts for i in range(parts + 1)} | set(more)))


@dataclass(frozen=True)
class Settings:
    """How the sources are used unless a call says otherwise."""

    lmbda: Mapping[str, float] = field(default_factory=lambda: {"memory": 0.5, "knn": 0.5})
    k: int = 64  # neighbours
    knn_temperature: float = 20.0  # of squared L2 distances
    memory_temperature: float = 1.0  # of the memory's logits
    auto: bool = False  # where a router is there, it chooses lambda unless a call names one

    def __post_init__(self) -> None:
        """Raise MlpMemError for values outside their range."""
        if not isinstance(self.lmbda, Mapping):
            raise MlpMemError(f"settings: lmbda is {self.lmbda!r}; give a number by source")
        for source, value in self.lmbda.items():
            check_lmbda(value, source)
        if not isinstance(self.auto, bool):
            raise MlpMemError(f"settings: auto is {self.auto!r}; it must be true or false")
        above = [
            _is_number(self.k, 1),
            _is_number(self.knn_temperature, 1e-9),
            _is_number(self.memory_temperature, 1e-9),
        ]
        if not all(above) or not isinstance(self.k, Integral):
            raise MlpMemError(
                f"settings: k {self.k} must be a whole number from 1, temperatures "
                f"{self.knn_temperature} and {self.memory_temperature} numbers above 0; correct "
                "the bundle's manifest or the arguments"
            )

    def of(self, system: str) -> float:
        """Return a system's lambda: its own, or the mean of its parts'."""
        if system in self.lmbda:
            return self.lmbda[system]
        parts = [self.lmbda.get(part, 0.5) for part in PARTS.get(system, ())]
        return sum(parts) / len(parts) if parts else 0.5

    def lmbdas(
        self,
        systems: Sequence[str],
        lmbda: float | str | Mapping[str, float | str] | None,
        routed: Collection[str],
    ) -> dict[str, float | str]:
        """Return every system's lambda, a number or AUTO: the given one, else these settings'.

        It is 0 for "lm"; where `auto` is set, AUTO is the settings' for the `routed`. MlpMemError
        for AUTO of a system that is not among these.
        """
        given = lmbda if isinstance(lmbda, Mapping) else dict.fromkeys(systems, lmbda)
        for system, value in given.items():
            if system not in PARTS:
                raise MlpMemError(f"lmbda names {system!r}; systems are {', '.join(PARTS)}")
            _check_given(system, value, routed)
        chosen = {}
        for system in systems:
            value = given.get(system)
            if value is None:
                value = AUTO if self.auto and system in routed else self.of(system)
            chosen[system] = 0.0 if system == "lm" else value if value == AUTO else float(value)
        return chosen


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen, and when to end; all of it acts on the mix."""

    max_new_tokens: int = 32
    temperature: float = 0.0  # 0 takes the most probable token
    top_k: int = 0  # 0 leaves all in
    top_p: float = 1.0
    min_p: float = 0.0  # leaves out what has less than this share of the likeliest token's mass
    repetition_penalty: float = 1.0  # log-probs of tokens that were read or written, times this
    seed: int = 0
    stop: Sequence[str] = ()  # texts that end the answer; it is kept up to the first one
    forced: Sequence[int] = ()  # token ids that are given rather than chosen, the first ones

    def __post_init__(self) -> None:
        """Raise MlpMemError for the first value outside its range."""
        most, some = 2**63 - 1, 1e-9
        ranges = {
            "max_new_tokens": (Integral, 1, most, "a whole number from 1"),
            "temperature": (Real, 0, most, "0 (greedy) or above, such as 0.8"),
            "top_k": (Integral, 0, most, "a whole number; 0 leaves all tokens in"),
            "top_p": (Real, some, 1, "above 0 and at most 1, which leaves all tokens in"),
            "min_p": (Real, 0, 1, "from 0, which leaves all tokens in, to 1"),
            "repetition_penalty": (Real, some, 100, "above 0, such as 1.1; 1 changes nothing"),
            "seed": (Integral, 0, most, "a whole number from 0"),
        }
        for name, (kind, low, high, allowed) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                raise MlpMemError(f"{name} is {value!r}; it must be {allowed}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        if len(self.forced) > self.max_new_tokens:
            raise MlpMemError(
                f"forced has {len(self.forced)} tokens; they count among max_new_tokens, which is "
                f"{self.max_new_tokens}. Ask for more tokens or force fewer"
            )


def _stop_strings(stop: Any) -> tuple[str, ...]:
    """Return stop strings as a tuple; MlpMemError unless they are texts with a character each."""
    texts = (stop,) if isinstance(stop, str) else stop
    try:
        found = tuple(texts or ())
    except TypeError:
        found = (stop,)
    if not all(isinstance(text, str) and text for text in found):
        raise MlpMemError(
            f"stop is {stop!r}; it must be a text or a list of texts that end the answer, such as "
            '["\\n"]. To cancel a run, give cancel= an object with is_set()'
        )
    return found


def default_settings(memory: Any) -> Settings:
    """Return settings from what a memory's config says of its own use."""
    if memory is None:
        return Settings()
    config = memory.config
    return Settings(
        lmbda={"memory": config.lmbda, "knn": 0.5},
        k=config.knn_k or 64,
        knn_temperature=config.knn_temperature or 20.0,
        memory_temperature=config.temperature,
    )


def _check_given(system: str, value: Any, routed: Collection[str]) -> None:
    """Raise MlpMemError unless value is None, a number in range, or AUTO with a router."""
    if isinstance(value, str) and value == AUTO:
        if system != "lm" and system not in routed:
            raise MlpMemError(
                f'lmbda is "auto", but no router chooses it for {system!r} here (there is '
                f"{', '.join(routed) or 'none'}); give a number from 0 to 1, or fit one with "
                "`python -m train router`"
            )
    elif value is not None:
        check_lmbda(value)


def check_lmbda(value: Any, name: str = "lmbda") -> float:
    """Return value; MlpMemError unless it is a number from 0 to 1."""
    if not _is_number(value, 0) or value > 1:
        raise MlpMemError(
            f"{name} is {value!r}; it must be a number from 0 (decoder alone) to 1 "
            "(memory or datastore alone)"
        )
    return value


def _is_number(value: Any, low: float) -> bool:
    """Return whether value is a finite number of at least low."""
    return is_number(value) and value >= low
