"""The four public endpoints for programs, with the page's limits and its lock."""

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from mlpmem.engine.trace import AUTO, SOURCES
from mlpmem.errors import MlpMemError, public_text
from mlpmem.model.tokenizer import PARTIAL
from mlpmem.ui import models
from mlpmem.ui.context import MODEL
from mlpmem.ui.models import PageModel
from mlpmem.ui.recordings import saved
from mlpmem.ui.request import columns, inputs, stream
from mlpmem.ui.request.limits import Deadline

PERIOD = 0.25  # seconds between partial results
NEIGHBOUR = ("entry", "title", "group", "left", "target", "target_id", "right", "distance",
             "weight")  # fmt: skip


def build(served: Sequence[PageModel]) -> None:
    """Publish the endpoints; their calls wait in the models' queue."""
    endpoints = Endpoints(served)
    for endpoint in (endpoints.generate, endpoints.score, endpoints.distributions,
                     endpoints.neighbours):  # fmt: skip
        run = endpoints.generate_stream if endpoint.__name__ == "generate" else None
        call = as_generator(endpoint, run)
        gr.api(call, api_name=endpoint.__name__, **MODEL)


def as_generator(endpoint: Callable[..., dict], run: Callable[..., Iterator[dict]] | None = None):
    """Return the endpoint as a generator with public error messages; Gradio can stop generators.

    `run` yields the endpoint's partial values. Gradio closes the generator, and thus stops `run`,
    when its job is cancelled or its client disconnects.
    """

    @functools.wraps(endpoint)  # /info shows its parameters and its value
    def call(*args: Any, **kwargs: Any) -> Iterator[dict]:
        stop = Deadline()
        try:
            with stream.turn(stop):
                if run is None:
                    yield endpoint(*args, **kwargs)
                else:
                    bound = inspect.signature(endpoint).bind(*args, **kwargs)
                    bound.apply_defaults()
                    yield from run(stop, **bound.arguments)
        except MlpMemError as error:
            raise gr.Error(public_text(error), print_exception=False) from error
        finally:
            stop.set()

    bounds = {"2,000": f"{inputs.MAX_CHARACTERS:,}", "128": f"{inputs.MAX_NEW_TOKENS:,}"}
    for default, number in bounds.items():
        call.__doc__ = (call.__doc__ or "").replace(default, number)
    return call


class Endpoints:
    """The endpoints' functions; /info prints their docstrings down to "Parameters:"."""

    def __init__(self, served: Sequence[PageModel]) -> None:
        """Use the page's models and recordings."""
        self._models = served

    def generate(
        self,
        prompt: str,
        systems: list[str] | None = None,
        lmbda: float | str | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: list[str] | None = None,
        model: str | None = None,
    ) -> dict:
        """Generate with several systems at once and return the run that the page would save.

        A prompt has at most 2,000 characters, an answer at most 128 tokens. While it runs,
        {"texts": {system: partial text}} is sent several times per second.

        Parameters:
            prompt: a question or the start of a text, at most 2,000 characters.
            systems: of "lm", "memory", "knn" and the page's extra columns; null takes the available
                ones of the first three.
            lmbda: weight of memory or datastore, 0 to 1; "auto" lets a router choose it for every
                token ("lmbda" of a step); null takes the bundle's own.
            max_new_tokens: 1 to 128 tokens.
            temperature: 0 (the likeliest token) to 2.
            top_p: 0.01 to 1, the probability mass to sample from.
            top_k: 0 (all) to 100,000, the number of tokens to sample from.
            seed: 0 to 2,147,483,647.
            min_p: 0 to 1; tokens below this fraction of the likeliest token's probability are
                excluded.
            repetition_penalty: 0.1 to 10; multiplies the log-probabilities of tokens in the prompt
                or the answer.
            stop: up to 8 texts; the answer ends before the first of them.
            model: the name of one of the page's models; null takes the first.
        Returns:
            {"v", "prompt", "answer", "aliases", "part", "lmbda", "traces"}: per system a trace with
            "text" and "steps". A step has "i", "id", "s", "p" (probabilities of its token by
            source), "cand" ([id, text, lm, memory, knn]), "rest" (mass outside the candidates),
            "js" (Jensen-Shannon divergence of memory and datastore, nats), "nn" (neighbours), "ms".
        """
        *_, last = self.generate_stream(
            Deadline(), prompt, systems, lmbda=lmbda, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, model=model,
        )  # fmt: skip
        return last

    def generate_stream(
        self, deadline: Deadline, prompt: str, systems: list[str] | None, **options: Any
    ) -> Iterator[dict]:
        """Yield partial texts, then what `generate` returns; options are `generate`'s."""
        found = models.find(self._models, options.pop("model", None))
        service, recorded = found.service, found.recorded
        text = recorded.as_prompt(inputs.check_text(prompt))
        tokens = options.pop("max_new_tokens")
        checked = inputs.check_options(tokens=tokens, **options)
        chosen = columns.choose(service, systems, None)
        if absent := sorted({*(systems or ())} - {*chosen.batch, *chosen.separate}):
            raise MlpMemError(f"{', '.join(absent)} is not available. Leave it out.")
        asked = columns.asked(service.model, text, checked.max_new_tokens, recorded.chat_form)
        events = columns.answers(service, chosen, asked, checked.as_arguments(), deadline)
        texts: dict[str, str] = {}
        last = time.monotonic()
        for kind, traces in events:
            if kind == "failed":
                raise MlpMemError("; ".join(traces.values()))
            if kind == "step":
                texts |= {name: texts.get(name, "") + s.text for name, s in traces.items()}
                if time.monotonic() - last >= PERIOD:
                    last = time.monotonic()
                    yield {"texts": {n: t.replace(PARTIAL, "") for n, t in texts.items()}}
        deadline.check()
        lmbda = None if checked.lmbda == AUTO else checked.lmbda
        chat = {"chat": True} if recorded.chat_form else {}
        yield saved.record(text, recorded.known(text), lmbda, traces) | chat

    def score(self, text: str, lmbda: float | str | None = None, model: str | None = None) -> dict:
        """Score a text: the negative log likelihood of each of its tokens under every source.

        A text has at most 2,000 characters.

        Parameters:
            text: at most 2,000 characters, at least two tokens.
            lmbda: weight of memory or datastore in "perplexity", 0 to 1; "auto" lets a router
                choose it for every token; null takes the bundle's own.
            model: the name of one of the page's models; null takes the first.
        Returns:
            {"ids", "tokens", "bytes", "offsets", "nll", "lmbda", "perplexity"}: "bytes" has the
            UTF-8 of every token, "offsets" its start and end in the text's UTF-8; "nll" has, per
            source, the negative log likelihood in nats of every token but the first; "perplexity"
            is that of the decoder ("lm") and of its mixes with "memory" and "knn" at "lmbda".
        """
        text = inputs.check_text(text, "text")
        weight = inputs.check_lmbda(lmbda)
        loaded = models.find(self._models, model).service.model
        score = loaded.score(text)
        lmbdas = columns.lambdas(loaded, list(score.nll), weight)
        return {
            "ids": score.ids,
            "tokens": score.tokens,
            "bytes": [list(part) for part in score.token_bytes],
            "offsets": [list(span) for span in score.offsets],
            "nll": {name: [_finite(v) for v in nll.tolist()] for name, nll in score.nll.items()},
            "lmbda": lmbdas,
            "perplexity": {s: _finite(score.perplexity(s, lmbda)) for s, lmbda in lmbdas.items()},
        }

    def distributions(
        self,
        prompt: str,
        system: str = "memory",
        lmbda: float | str | None = None,
        model: str | None = None,
    ) -> dict:
        """Return every source's distribution of the token after a prompt, and that of their mix.

        A prompt has at most 2,000 characters.

        Parameters:
            prompt: a question or the start of a text, at most 2,000 characters.
            system: whose mix "fused" is: "lm", "memory" or "knn".
            lmbda: its weight in the mix, 0 to 1; "auto" lets a router choose it; null takes the
                bundle's own.
            model: the name of one of the page's models; null takes the first.
        Returns:
            {"prompt", "system", "lmbda", "candidates", "rest", "js"}: the candidates are the union
            of every source's eight likeliest tokens, each with "token_id", "text" and its exact
            probability (0 to 1) by "lm", "memory", "knn" and "fused"; "rest" is the mass outside
            them; "js" the Jensen-Shannon divergence of memory and datastore in nats (0 to 0.693).
        """
        trace, step = self._next(prompt, system, lmbda, model)
        rows = []
        for candidate in step.candidates:
            probs = {s: candidate.probs.get(s) for s in (*SOURCES, "fused")}
            rows.append({"token_id": candidate.token_id, "text": candidate.text, **probs})
        return {
            "prompt": trace.prompt,
            "system": system,
            "lmbda": trace.lmbda if step.lmbda is None else step.lmbda,
            "candidates": rows,
            "rest": dict(step.rest),
            "js": step.js,
        }

    def neighbours(self, prompt: str, model: str | None = None) -> dict:
        """Return the datastore entries with the most weight for the next token after a prompt.

        A prompt has at most 2,000 characters.

        Parameters:
            prompt: a question or the start of a text, at most 2,000 characters.
            model: the name of one of the page's models; null takes the first.
        Returns:
            {"prompt", "neighbours"}: up to eight entries, each with "entry", "title", "group",
            "left", "target", "target_id", "right", "distance" (squared L2) and "weight" (its share
            of the datastore's mass, 0 to 1).
        """
        trace, step = self._next(prompt, "knn", 1.0, model)  # pure datastore, no mix
        rows = [{name: getattr(n, name) for name in NEIGHBOUR} for n in step.neighbours]
        return {"prompt": trace.prompt, "neighbours": rows}

    def _next(
        self, prompt: str, system: str, lmbda: float | str | None, name: str | None
    ) -> tuple[Any, Any]:
        """Return (a system's trace of one token, that token's step)."""
        found = models.find(self._models, name)
        model, recorded = found.service.model, found.recorded
        text = recorded.as_prompt(inputs.check_text(prompt))
        asked = columns.asked(model, text, 1, recorded.chat_form)
        system = inputs.check_systems([system], model.systems)[0]
        own = columns.lambdas(model, [system], inputs.check_lmbda(lmbda))
        shown = columns.sources(model)
        trace = model.generate(asked, system, lmbda=own, max_new_tokens=1, sources=shown)
        return trace, trace.steps[0]


def _finite(value: float) -> float | None:
    """Return a finite number, None for others, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
