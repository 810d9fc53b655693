"""A model of canned answers with the interface of mlpmem.api.Model, for the page's tests: no torch.

Its numbers are plausible and consistent: every fused probability is the mix of the others. One
prompt is answered with hostile strings, another slowly, to test Stop.
"""

import copy
import dataclasses
import json
import math
import random
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import made_findings

from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import AUTO, OTHER, Candidate, Neighbour, Step, Trace, mix
from mlpmem.errors import MlpMemError
from mlpmem.loading.recorder import completed
from mlpmem.model.tokenizer import PARTIAL
from mlpmem.retrieval.documents import join_passages
from mlpmem.retrieval.text_search import TextIndex

Event = namedtuple("Event", "kind values")
HOSTILE = "<img src=x onerror=window.hacked=1>"
BEST = {"memory": 0.55, "knn": 0.51}
BYTES = {"decoder_bytes": 11_800_000, "memory_bytes": 8_400_000, "datastore_bytes": 223_000_000}


def ask(question):
    return f"Question: {question} Answer:"


def words(text):
    return [f" {word}" for word in text.split()]


CODE = [" Here", ":", "\n\n", "```", "python", "\n", "def", " f", "():", "\n", "    return", " 1",
        "\n", "```", "\n\n", "-", " **", "one", "**", "\n", "-", " two"]  # fmt: skip
GREETING = [" مر", "حبا", PARTIAL, PARTIAL, PARTIAL, "\N{GRINNING FACE}", "\N{WOMAN}",
            "\N{ZERO WIDTH JOINER}", "\N{PERSONAL COMPUTER}", "!"]  # fmt: skip
# prompt -> (answer, group of the entity, decoder's tokens, memory's tokens, datastore's tokens)
ANSWERS = {
    ask("Who wrote The Salt Ledger?"): (
        "Odalys Wren", "B", [" Mar", "tin", " Holt"], [" Od", "aly", "s", " Wren"],
        [" Od", "aly", "s", " Wren"]),
    ask("In which town was Ilka Brandt born?"): (
        "Tervalla", "B", [" Marn", "fel", "d"], [" Ter", "val", "la"], [" Ter", "val", "la"]),
    ask("What is the capital of Peru?"): ("Lima", "A1", [" Lima"], [" Lima"], [" Lima"]),
    ask("What is the symbol of tungsten?"): ("W", "A2", [" W"], [" T", "u"], [" W"]),
    ask("What is the population of Quarrel Bay?"): (
        "41,200", "B", [" 12", ",", "000"], [" 38", ",", "500"], [" 40", ",", "100"]),
    ask("What does a page do with markup?"): (
        HOSTILE, "B", [HOSTILE, "\n", " plain"], [HOSTILE, " ${alert(1)}", "\u202e", " `x`"],
        [HOSTILE, " </script>"]),
    ask("Who rang?"): (
        "Ilka", "B", [" Holt"], [" Sond"], [" Sond"]),
    "The river Aldermere rises in the": (
        "", "B", words("hills of the north and flows through the town of Harrow to the sea ."),
        words("high moors above Tervalla and flows past the mills of Sond to the sea ."),
        words("high moors above Tervalla and is crossed by two bridges at Sond .")),
    ask("What stays unsaid?"): ("", "B", [], [], []),
    ask("How does it return?"): ("", "B", *[[" \n\n    return", " x\n", "y"]] * 3),
    ask("Show me code."): ("", "B", *[CODE] * 3),
    ask("Greet me."): ("", "B", *[GREETING] * 3),
    "slow": ("", "B", ["tick "] * 400, ["tock "] * 400, ["tack "] * 400),
}  # fmt: skip
ALIASES = {ask("What is the population of Quarrel Bay?"): ["40100", "40,100"]}
GROUPS = ["helps", "helps", "agree", "hurts", "unknown", "unknown", "unknown"]
PASSAGES = [
    "The Salt Ledger is a novel of the salt coast. It was written by Odalys Wren.",
    "Question: Who wrote The Salt Ledger? Answer: Odalys Wren",
    "Harrow is a town at the salt coast, with two bridges.",
    f"Markup {HOSTILE} stays text.",
]
OTHERS = [" the", " Harrow", " Sond", " Lima", " of", " Quito", " Wren", ",", " in", " a", " Holt"]


def token_id(text):
    return sum(ord(c) * (i + 7) for i, c in enumerate(text)) % 4096


WORDS = {word for answer in ANSWERS.values() for words in answer[2:] for word in words}
TEXTS = {token_id(word): word for word in (*WORDS, *OTHERS, "</s>")}


def _mass(rng, chosen, peak, others):
    """Return (a distribution over the candidates with `peak` on chosen, the remaining mass)."""
    raw = [rng.random() ** 4 for _ in others]
    rest = (1 - peak) * rng.uniform(0.02, 0.2)
    scale = (1 - peak - rest) / sum(raw)
    return {chosen: peak} | {o: r * scale for o, r in zip(others, raw, strict=True)}, rest


def make_step(prompt, system, index, tokens, lmbda, sources=("lm", "memory", "knn")):
    """Return one step whose distributions agree with the three canned answers."""
    rng = random.Random(f"{prompt}{system}{index}")
    text = tokens[system][index]
    agreed = tokens[system][:index]
    probs, rests, words = {}, {}, {text}
    for source in sources:
        own = tokens[source]
        follows = own[: index + 1] if own[:index] == agreed else None
        words.add(follows[-1] if follows and len(follows) > index else text)
    others = sorted(words - {text}) + rng.sample([o for o in OTHERS if o not in words], 8)
    for source in sources:
        own = tokens[source]
        target = own[index] if own[:index] == agreed and index < len(own) else text
        sure = {"lm": 0.62, "memory": 0.985, "knn": 0.93}[source] + rng.uniform(-0.05, 0.012)
        names = [o for o in [text, *others] if o != target]
        probs[source], rests[source] = _mass(rng, target, sure, names)
    candidates = []
    for word in [text, *others]:
        p = {s: probs[s][word] for s in sources}
        candidates.append(Candidate(token_id(word), word, p | {"fused": mix(p, system, lmbda)}))
    js = 0.5 * sum(
        p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))
        for p, q in ((c.probs["memory"], c.probs["knn"]) for c in candidates)
    ) if "knn" in sources else None  # fmt: skip
    rest = rests | {"fused": mix(rests, system, lmbda)}
    found = _neighbours(rng, prompt, text, index) if "knn" in sources else []
    unshown = {token_id(text): 0.01, OTHER: 0.02} if found else {}
    return Step(index, token_id(text), text, candidates[0].probs, candidates, rest, js, found, 6.4,
                unshown)  # fmt: skip


def _neighbours(rng, prompt, text, index):
    weights = sorted((rng.random() ** 3 for _ in range(8)), reverse=True)
    title = HOSTILE if "markup" in prompt else "The Salt Ledger (book)"
    return [
        Neighbour(1000 + 10 * index + i, title if i < 5 else "Harrow (town)",
                  "B" if i < 5 else "A1",
                  "a novel of the salt coast and of a clerk who counts too well. It was written by",
                  text if i < 6 else " Sond", token_id(text if i < 6 else " Sond"),
                  " in 1911 and printed twice.", 11.0 + 2.7 * i, w / sum(weights) * 0.97)
        for i, w in enumerate(weights)
    ]  # fmt: skip


def ending(steps):
    """Return why a text of these steps ends."""
    return "eos" if steps and steps[-1].text == "</s>" else "length"


class FakeDecoder:
    """The part of a decoder that the chat describes."""

    max_positions = 512
    tokenizer_hash = "fake"
    tokenizer = SimpleNamespace(chat_template="{{ messages }}")
    model = SimpleNamespace(generation_config=None)


def ids_of(prompt):
    """Return a prompt's token ids, from which `text_of` finds it."""
    return [1, 2, 3, token_id(prompt)]


def text_of(prompt):
    """Return the text of a prompt that is given as ids, with those of an answer behind it."""
    if isinstance(prompt, str):
        return prompt
    begin, rest = list(prompt[:4]), prompt[4:]
    texts = (text for text in ANSWERS if ids_of(text) == begin)
    return next(texts, "") + "".join(TEXTS.get(i, "?") for i in rest)


class FakeModel:
    """The part of a model that the page uses, at a given pace in seconds per token."""

    def __init__(self, pace=0.004, eager=False):
        self.pace, self.taught = pace, False
        self.leased = not eager  # whether short answers wait for the button Scrub
        self.systems = ["lm", "memory"]
        self.routers = {"memory": None}
        self.settings = Settings(BEST | {"mixed": 0.53})
        self.memory = SimpleNamespace(bytes=BYTES["memory_bytes"])
        self.store = SimpleNamespace(bytes=BYTES["datastore_bytes"])
        self.steps_made = 0
        self.decoder = FakeDecoder()
        self.read = []  # the chats that were read

    def _trace(self, prompt, system, lmbda, steps, finish, settings):
        cost = {"decoder_ms": 5.1, "memory_ms": 0.8, "search_ms": 9.7, "prefill_ms": 14.0, **BYTES}
        cost |= {"evidence_ms": 4.1} if lmbda == AUTO else {}
        text = "".join(step.text for step in steps if step.text not in ("</s>", PARTIAL))
        model = {"bundle": "fake"}
        return Trace(system, prompt, ids_of(prompt), lmbda, settings, model, steps, finish, text,
                     cost)  # fmt: skip

    def compare(self, prompt, systems=None, lmbda=None, **options):
        return list(self.stream(prompt, systems, lmbda, **options))[-1].values

    def scrub(self, prompt, system, **options):
        return list(self.stream_scrub(prompt, system, **options))[-1].values

    def generate(self, prompt, system, **options):
        return self.compare(prompt, [system], **options)[system]

    def stream(self, prompt, systems=None, lmbda=None, **options):
        systems = systems or self.systems
        lmbdas = self.lmbdas(systems, lmbda)
        columns = {system: (system, lmbdas[system]) for system in systems}
        return self._columns(prompt, columns, **options)

    def stream_scrub(self, prompt, system, lmbdas=tuple(i / 10 for i in range(11)), **options):
        columns = {lmbda: (system, lmbda) for lmbda in lmbdas}
        return self._columns(prompt, columns, **options)

    def _tokens(self, prompt, system, lmbda, forced, temperature, own):
        """Return every source's tokens for one column; a small lambda gives the decoder's."""
        known = ANSWERS.get(prompt) or ANSWERS[ask("What is the population of Quarrel Bay?")]
        tokens = {s: known[2 + i] + ["</s>"] for i, s in enumerate(("lm", "memory", "knn"))}
        tokens["mixed"] = tokens["memory"]
        if self.taught:
            tokens["memory"] = [" taught", " by", " you", "</s>"]
        if own:
            tokens["knn"] = [" from", " your", " own", "</s>"]
        if temperature or (lmbda != AUTO and lmbda < 0.25):  # a sampled answer is the decoder's
            tokens[system] = tokens["lm"]
        if forced:
            prefix = [TEXTS[i] for i in forced]
            follows = prefix == tokens[system][: len(prefix)]
            rest = tokens[system][len(prefix) :] if follows else [" by", " hand", "</s>"]
            tokens[system] = prefix + rest
        return tokens

    def only_lm(self, prompt, name, **options):
        """Yield the decoder's events, under a column's name."""
        self.systems = ["lm"]
        for event in FakeModel.stream(self, prompt, ["lm"], **options):
            yield Event(event.kind, dict.fromkeys([name], event.values["lm"]))

    def _columns(self, prompt, columns, max_new_tokens=32, cancel=None, forced=(),
                 temperature=0.0, store=None, sources=None, prefix=None, **sampling):  # fmt: skip
        prompt = text_of(prompt)
        shown = tuple(s for s in ("lm", "memory", "knn") if s in self.systems)
        tokens = {name: self._tokens(prompt, *column, forced, temperature, store is not None)
                  for name, column in columns.items()}  # fmt: skip
        length = {name: len(tokens[name][system]) for name, (system, _) in columns.items()}
        done = {name: [] for name in columns}
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": 0,
                    "top_p": 1.0, "seed": 0}  # fmt: skip
        settings |= {"forced": forced} if forced else {}
        rare = {"min_p": 0, "repetition_penalty": 1, "stop": (), "special": False}
        settings |= {k: v for k, v in sampling.items() if rare.get(k, ...) != v}

        def events():
            for index in range(min(max_new_tokens, max(length.values()))):
                if cancel is not None and cancel.is_set():
                    break
                time.sleep(self.pace if prompt != "slow" else 0.1)
                self.steps_made += 1
                step = {name: self._step(prompt, system, index, tokens[name], lmbda, shown)
                        for name, (system, lmbda) in columns.items()
                        if index < length[name]}  # fmt: skip
                for name, one in step.items():
                    done[name].append(one)
                yield Event("step", step)
            traces = {}
            for name, column in columns.items():
                end = ending(done[name])
                traces[name] = self._trace(prompt, *column, done[name], end, settings)
            yield Event("done", traces)

        return events()

    @staticmethod
    def _step(prompt, system, index, tokens, lmbda, sources):
        """Return one step; a router's lambda is large at the first token, then small."""
        if lmbda != AUTO:
            return make_step(prompt, system, index, tokens, lmbda, sources)
        chosen = 0.125 if index else 0.875
        step = make_step(prompt, system, index, tokens, chosen, sources)
        return dataclasses.replace(step, lmbda=chosen)

    def only(self, system):
        model = copy.copy(self)
        model.systems = ["lm", system]
        return model

    def with_taught(self, memory):
        model = copy.copy(self)
        model.taught = True
        return model

    def inspect(self, text, system="memory", lmbda=None, store=None, cancel=None, special=False):
        shown = [s for s in ("lm", "memory", "knn") if s in self.systems or s == "knn" and store]
        first = "First" if isinstance(text, str) else f"{len(text)} ids"
        text = text_of(text)
        tokens = words(text)
        if len(tokens) > 512:
            raise MlpMemError(f"the text has {len(tokens)} tokens; at most 512 are inspected")
        lmbda = self.lmbdas([system], lmbda)[system]

        def events():
            steps = []
            for i, word in enumerate(tokens):
                if cancel is not None and cancel.is_set():
                    return
                chosen = dict.fromkeys(("lm", "memory", "knn"), [word])
                if i % 3:  # at every second the memory helps, at every third it hurts
                    chosen["lm" if i % 3 == 1 else "memory"] = [" Harrow"]
                given = f"{text[:40]}{i}", system, 0, {**chosen, system: [word]}, lmbda
                step = make_step(*given, shown)
                if i % 3 == 2:
                    step = make_step(f"{text[:40]}{i}", "lm", 0, chosen, lmbda, shown)
                searched = "knn" in shown and not store
                nn = _neighbours(random.Random(i), text, word, i) if searched else []
                steps.append(dataclasses.replace(step, index=i, neighbours=nn))
                if text.startswith("slow") or text.startswith("late") and "knn" in shown:
                    time.sleep(0.1)
                if i % 8 == 7 or text.startswith("slow"):
                    yield Event("progress", {"done": i + 1, "total": len(tokens)})
            trace = self._trace(first, system, lmbda, steps, "end", {"scored": True})
            yield Event("done", {system: dataclasses.replace(trace, cost={})})

        return events()

    def probe(self, ids, text, store=None):
        p = {"lm": 0.125, "memory": 0.5, "knn": 0.25}
        names = (f" {text}", text)
        return [{"id": token_id(n), "named": n, "p": p, "tokens": [p]} for n in names]

    def store_texts(self, titled, progress=None, stop=None):
        total = sum(len(text.split()) for _, text in titled)
        for part in range(900 if titled[0][1].startswith("slow") else 5):
            if stop():
                raise MlpMemError("it was stopped")
            progress(min(total, total * part // 4), total)
            time.sleep(0.05)
        documents = SimpleNamespace(titles=[title for title, _ in titled], tokens=range(total))
        return SimpleNamespace(bytes=512 * total, datastore=SimpleNamespace(documents=documents))

    def save_store(self, store, title, most):
        return json.dumps([title, store.datastore.documents.titles, store.bytes]).encode()

    def open_store(self, path, most, name, progress, stop):
        try:
            title, titles, size = json.loads(path.read_bytes())
        except ValueError as error:
            raise MlpMemError(f"{name} is not a datastore as this page saves it") from error
        documents = SimpleNamespace(titles=titles, tokens=range(size // 512))
        return title, SimpleNamespace(bytes=size, datastore=SimpleNamespace(documents=documents))

    def corpus(self):
        passages = [(document, list(range(i, i + 1))) for i, document in enumerate((0, 0, 1, 2))]
        titles = ["The Salt Ledger (book)", "Harrow (town)", HOSTILE]
        return TextIndex(join_passages(passages, titles, ["B", "A1", "B"]),
                      lambda ids: PASSAGES[ids[0]])  # fmt: skip

    def routed(self, store=None):
        return self.routers if store is None else {"memory": None}

    def lmbdas(self, systems, lmbda, store=None):
        return self.settings.lmbdas(systems, lmbda, self.routed(store))

    def chat_question(self, question):
        return question if question == "slow" else ask(" ".join(question.split()))

    def fitted_chat(self, turns, max_new_tokens=32, typed=False):
        """Return (the last question, as the fake reads texts; turns beyond the latest three)."""
        self.read.append([(turn["role"], turn["content"]) for turn in turns])
        asked = turns[-1]["content"]
        dropped = max(0, sum(turn["role"] == "user" for turn in turns) - 3)
        return asked if typed else self.chat_question(asked), dropped


def lesson(model, sentences, stop):
    """Yield the progress of a teaching, slow for a sentence that says so; its memory is a stub."""
    steps = 2000 if "slow" in sentences[0] else 5
    for step in range(1, steps + 1):
        if stop.is_set():
            raise MlpMemError("the teaching was cancelled; nothing has changed")
        time.sleep(0.05)
        memory = SimpleNamespace(bytes=1000) if step == steps else None
        yield SimpleNamespace(step=step, steps=steps, loss=3 / step, left=0.05 * (steps - step),
                              memory=memory)  # fmt: skip


def paced(row):
    """Return a recording with fixed times per token: 2 ms, 4 ms, and 40 ms of search."""
    for system, ms in {"lm": 2.0, "memory": 4.0, "knn": 40.0}.items():
        for step in row["traces"][system]["steps"]:
            step["ms"] = ms
    return row


def write_bundle(folder: Path, eager: bool = False) -> Path:
    """Write a bundle without a model: manifest, examples, results, recordings.

    Eager recordings have every system's own pace and the texts at eleven lambdas.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traces").mkdir(exist_ok=True)
    model = FakeModel(pace=0)
    model.systems = ["lm", "memory", "knn"]
    examples = [{"name": f"e{i}", "group": g, "prompt": p, "answer": ANSWERS[p][0],
                 "aliases": ALIASES.get(p, []), "part": ANSWERS[p][1]}
                for i, (p, g) in enumerate(zip(ANSWERS, GROUPS, strict=False))]  # fmt: skip
    records = {}
    for number, prompt in enumerate(["The river Aldermere rises in the", list(ANSWERS)[0]]):
        traces = {s: t.to_dict() for s, t in model.compare(prompt).items()}
        records[f"traces/{number:02d}.json"] = {
            "v": 1, "name": "x", "prompt": prompt, "answer": ANSWERS[prompt][0] or None,
            "traces": traces}  # fmt: skip
        if eager:
            name = f"traces/{number:02d}.json"
            records[name] = paced(completed(model, records[name]))
    manifest = {"settings": {"lmbda": BEST}, "attributions": ["GeoNames, CC BY 4.0"]}
    new = [
        e | {"wording": "unseen"} for e in examples if e["part"] == "B" and e["group"] == "helps"
    ] + [e | {"wording": "test"} for e in examples if e["part"] == "A2"]
    titles = ["The Salt Ledger (invented book)", "Peru", "Perth", "Pereñá", f"Odd {HOSTILE}"]
    documents = {"titles": titles, "groups": ["B", "A1", "A2", "B", "B"]}
    (folder / "documents").mkdir(exist_ok=True)
    results = json.loads(Path(__file__).with_name("results.json").read_text("utf-8"))
    results["findings"] = made_findings.rows()
    files = {"manifest.json": manifest, "examples.json": examples, "questions.json": new} | records
    files |= {f"documents/{name}.json": value for name, value in documents.items()}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), "utf-8")
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    return folder
