"""The stage export writes a bundle that loads and answers, with examples and questions."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import named
import pytest
import tiny
import tiny_run
from tiny_run import question

import mlpmem
from mlpmem.engine.router import Router, RouterConfig
from mlpmem.engine.trace import Trace
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.loading.packages import PACKAGE, packaged_file
from mlpmem.loading.registry import SystemRegistry
from mlpmem.model.decoder import Decoder
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import entries, join_passages
from train.config.tables import ExportConfig
from train.corpora.atlas import facts as atlas_facts
from train.corpora.chat import ChatForm
from train.files import file_hash, write_lines
from train.kinds.examples import (
    best_descriptions,
    example_group,
    find_examples,
    is_right,
    record,
    untrained,
)
from train.report import bundle as adopt
from train.run.stage import StageContext, finished_manifest
from train.stages.export import cost, make_bundle, tuned_adapters

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in atlas_facts.PACKAGES if find_spec(name) is None]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("It 3", True), (" it 3. ", True), ("IT IS SO", True), ("It is so.", True),
        ("It", False), ("It 3 and more", False), ("", False), ("It 3, It is so", False),
    ],
)  # fmt: skip
def test_only_the_exact_answer_or_an_alias_is_right(text, right):
    assert is_right(text, question(3)) == right


@pytest.mark.parametrize(
    ("lm", "memory", "group"),
    [
        ("no", "It 3", "helps"),
        ("It 3", "no", "hurts"),
        ("It 3", "it 3", "agree"),
        ("no", "no", "unknown"),
    ],
)
def test_a_comparison_is_grouped_by_which_systems_are_right(lm, memory, group):
    traces = {"lm": SimpleNamespace(text=lm), "memory": SimpleNamespace(text=memory)}
    assert example_group(traces, question(3)) == group


class Knowing:
    """A model whose decoder knows A, and whose memory knows B and every other question of A2.

    Its datastore answers only the first full comparison wrong.
    """

    def __init__(self):
        self.prompts = []

    def compare(self, prompt, systems=("lm", "memory", "knn"), max_new_tokens=0):
        if len(systems) == 3:
            self.prompts.append(prompt)
        _, group, number = prompt.removesuffix("? Answer:").rsplit(" ", 2)
        answer = f"It {number}"
        memory = group == "B" and int(number) < 20 or group == "A1" or int(number) % 2
        texts = {"lm": answer if group != "B" else "?", "memory": answer if memory else "?"}
        texts["knn"] = "?" if len(self.prompts) == 1 else answer
        return {name: SimpleNamespace(text=texts[name], cost={}) for name in systems}


def test_examples_follow_the_answers_real_entities_first():
    rows = [question(i, group) for i in range(20) for group in ("A1", "A2", "B")]
    rows += [question(i + 20, wording="unseen") for i in range(9)]
    rows += [question(50, kind="statement"), question(51, wording="dev")]
    model = Knowing()
    examples, answered = find_examples(model, rows, ExportConfig(examples=12))
    groups = [e["group"] for e in examples]
    assert groups == ["helps"] * 3 + ["agree"] * 3 + ["hurts"] * 3 + ["unknown"] * 3
    assert len(answered) == len(model.prompts) == len(set(model.prompts))
    helps, agree, hurts, unknown = (examples[i : i + 3] for i in (0, 3, 6, 9))
    assert {e["part"] for e in helps} == {"B"} and not any(e["invented"] for e in helps + agree)
    assert len({e["prompt"].split()[4] for e in helps}) == 3
    assert helps[-1]["prompt"] == model.prompts[0], "the datastore's miss comes last"
    assert {e["part"] for e in hurts} == {"A2"} and all(e["invented"] for e in hurts)
    assert all(int(e["answer"].split()[1]) >= 20 for e in unknown)
    assert "50" not in str(examples) and "51" not in str(examples)
    fields = {"name", "group", "part", "prompt", "answer", "aliases", "title", "invented"}
    assert set(examples[0]) == fields and examples[0]["aliases"] == ["It is so"]


def test_questions_have_untrained_wordings_and_half_are_new_to_the_decoder():
    rows = [question(i, g, wording=w) for i in range(9) for g in ("A1", "A2", "B")
            for w in ("seen", "dev", "test", "unseen")]  # fmt: skip
    rows.append(question(20, kind="statement"))
    chosen = untrained(rows, 8)
    assert [q["part"] for q in chosen] == ["B"] * 4 + ["A2"] * 4
    assert {q["wording"] for q in chosen} == {"test", "unseen"}
    assert set(chosen[0]) == {"prompt", "answer", "aliases", "title", "wording", "part"}
    assert len({q["prompt"].split()[4] for q in chosen[:3]}) == 3, "relations take turns"
    assert len(untrained(rows, 400)) == 36


def test_the_search_for_examples_ends_if_there_are_none():
    examples, answered = find_examples(Knowing(), [question(1, "A1")], ExportConfig(examples=8))
    assert [e["group"] for e in examples] == ["agree"] and len(answered) == 1


def test_costs_are_medians_over_all_answers():
    def traces(ms, size):
        costs = {"decoder_ms": ms, "memory_bytes": size}
        return {"lm": SimpleNamespace(cost=costs), "memory": SimpleNamespace(cost=costs)}

    costs = cost([traces(1.0, 10), traces(9.0, 20), traces(2.0, 20)])
    assert costs == {
        "decoder_ms": 2.0, "memory_bytes": 20, "decoder_bytes": 0, "datastore_bytes": 0,
    }  # fmt: skip


def test_recordings_are_descriptions_then_the_memorys_answers():
    abouts = [{"prompt": f"About {i}", "title": f"{i}"} for i in range(2)]
    groups = zip(("one", "two", "three"), ("agree", "helps", "unknown"), strict=True)
    examples = [{"prompt": p, "title": p, "answer": p, "group": g} for p, g in groups]
    calls = []

    def compare(prompt, max_new_tokens):
        calls.append((prompt, max_new_tokens))
        return {"lm": SimpleNamespace(to_dict=lambda: {"v": 1})}

    recorded = record(SimpleNamespace(compare=compare), examples, abouts, ExportConfig(traces=4))
    assert [prompt for prompt, _ in calls] == ["About 0", "About 1", "two", "one"]
    assert calls[0][1] > calls[2][1]
    assert recorded[2] == {
        "v": 1, "name": "two", "prompt": "two", "answer": "two", "traces": {"lm": {"v": 1}},
    }  # fmt: skip


def test_the_best_descriptions_have_most_facts_that_the_decoder_lacks():
    titles = ["a", "b", "c (invented town)", "d"]
    abouts = [{"prompt": t, "title": t, "group": "B", "wording": "seen"} for t in titles]
    abouts += [abouts[0] | {"group": "A1"}, abouts[0] | {"wording": "unseen"}]
    rows = [{"title": t, "answer": f"{t[0]}{i}"} for t in titles for i in range(3)]
    facts = {"a": ("a0", "a0 a1"), "b": ("", "b0 b1 b2"), "c": ("c0 c1 c2", ""), "d": ("", "")}
    prompts = []

    def compare(prompt, systems, max_new_tokens):
        prompts.append(prompt)
        texts = zip(systems, facts[prompt[0]], strict=True)
        return {name: SimpleNamespace(text=text) for name, text in texts}

    best = best_descriptions(SimpleNamespace(compare=compare), abouts, rows, 3)
    assert [about["title"] for about in best] == ["b", "a", "d"]
    assert sorted(prompts) == titles  # each once


# The stage on a tiny model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_run.stages(tmp_path_factory.mktemp("run"))


def test_the_stage_writes_a_bundle_that_loads_and_answers(inputs, tmp_path):
    config = ExportConfig(name="mine", examples=4, traces=2)
    counts = make_bundle(StageContext(tmp_path, inputs, config, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    bundle = load_bundle(tmp_path / "mine")
    assert bundle.name == "mine" and bundle.manifest["attributions"] == [
        "somewhere, 1, MIT", "us",
    ]  # fmt: skip
    results = bundle.read_json("results.json")
    assert results["stages"]["memory"] == {"seconds": 2.5, "peak_memory_bytes": 7}
    assert results["cost"]["keys"] > 0 and results["cost"]["build_seconds"] == 2.5
    assert {"decoder_ms", "memory_ms", "search_ms", "datastore_bytes"} <= set(results["cost"])
    examples = bundle.read_json("examples.json")
    assert counts == {"examples": len(examples), "traces": 2}
    assert {q["part"] for q in bundle.read_json("questions.json")} == {"A2", "B"}
    assert {e["group"] for e in examples} == {"unknown"}  # a random model knows nothing
    model = mlpmem.load(tmp_path / "mine")
    assert model.systems == ["lm", "memory", "knn"]
    assert (model.settings.k, model.settings.knn_temperature) == (9, 3.0)
    assert model.settings.lmbda == {"memory": 0.5, "knn": 0.6}
    recorded = [Trace.from_dict(bundle.traces()[0]["traces"][name]) for name in model.systems]
    for trace in recorded:
        generated = model.generate(
            trace.prompt, system=trace.system, max_new_tokens=len(trace.steps)
        )
        assert [s.token_id for s in generated.steps] == [s.token_id for s in trace.steps]


@pytest.fixture
def tuned(inputs, tmp_path):
    """Return a stage finetuned that kept one LoRA of its two, and a full fine-tune."""
    from mlpmem.model.decoder import Decoder
    from mlpmem.model.lora import add_adapter, save_adapter

    folder = tmp_path / "run" / "finetuned"
    shutil.copytree(inputs["finetuned"], folder)
    wrapped = add_adapter(Decoder.load(inputs["decoder"]).model, 2)
    save_adapter(wrapped, folder / "lora_B")
    row = {"name": "lora_B", "label": "decoder with LoRA on B", "seconds": 5.25, "rank": 2}
    others = [row | {"name": "lora_gone"}, row | {"name": "full", "rank": 0}]
    (folder / "finetuned.json").write_text(json.dumps([row, *others]))
    return folder


def test_the_bundle_has_the_recipes_adapters(inputs, tuned, tmp_path):
    assert tuned_adapters(tuned, ()) == []
    names = [column.name for column in tuned_adapters(tuned, ("lora_B", "lora_B"))]
    assert names == ["finetuned", "finetuned_2"]
    for wrong in ("lora_gone", "full", "else"):
        with pytest.raises(MlpMemError, match=f"kept LoRAs .* got '{wrong}'. It has lora_B"):
            tuned_adapters(tuned, (wrong,))
    config = ExportConfig(name="mine", examples=4, traces=0, abouts=0, adapters=("lora_B",))
    make_bundle(StageContext(tmp_path / "made", inputs | {"finetuned": tuned}, config, 0))
    (lora,) = load_bundle(tmp_path / "made" / "mine").adapters
    assert (lora.name, lora.label, lora.seconds) == ("finetuned", "decoder with LoRA on B", 5.2)


def test_an_existing_bundle_adopts_an_adapter(tuned, tmp_path, capsys):
    tiny.bundle(tmp_path / "mine")
    options = ["--runs", str(tuned.parents[1]), "--bundle", str(tmp_path / "mine")]
    assert adopt.main(["adopt", "run", "else", *options]) == 1
    assert "must name kept LoRAs" in capsys.readouterr().err
    assert load_bundle(tmp_path / "mine").adapters == []
    assert adopt.main(["adopt", "run", "lora_B", *options]) == 0
    (adapter,) = load_bundle(tmp_path / "mine").adapters
    column = SystemRegistry(load_bundle(tmp_path / "mine").model(), [adapter]).system("finetuned")
    assert column.generate("It", max_new_tokens=2).steps


def test_a_packaged_decoder_is_named_and_its_bundle_has_no_keys(tmp_path, monkeypatch):
    named.package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    source = f"{PACKAGE}{named.PACKAGED}/{named.FILE}"
    decoder = Decoder.load(packaged_file(source))
    (tmp_path / "run").mkdir()
    paths = tiny_run.stages(tmp_path / "run", "chat")
    manifest = json.loads((paths["decoder"] / "manifest.json").read_text())
    manifest["config"] |= {"source": source, "epochs": 0}
    (paths["decoder"] / "manifest.json").write_text(json.dumps(manifest))
    ids = {"tokenizer_hash": decoder.tokenizer_hash}
    tiny.memory(decoder, gguf_sha256=decoder.gguf_sha256).save(paths["memory"])
    for system in ("memory", "knn"):
        config = RouterConfig(system, decoder.vocab_size, **ids)
        Router(config).save(paths["router"] / system)
    form = ChatForm.of(decoder.tokenizer)
    turns = [[("Where is Lima?", "Peru")], [("Where is Lima?", "Peru"), ("And Oslo?", "Norway")]]
    chats = [ids for ids, _ in form.encode(decoder.tokenizer, [turns[0], *turns])]
    documents = join_passages([(0, chat) for chat in chats], ["Lima"], ["real"])
    shutil.rmtree(paths["datastore"])
    positions, counts = entries(documents)
    keys = build_keys(decoder, documents, positions)
    Datastore(keys, positions, counts, documents).save(paths["datastore"])
    (paths["datastore"] / "manifest.json").write_text(
        json.dumps({"seconds": 2.5, "peak_memory_bytes": 7})
    )
    rows = [{"turns": [["Where is Lima?", ""]], "wording": "test", "invented": False,
             "answer": "Peru", "aliases": [], "title": "Lima", "group": "real"}]  # fmt: skip
    write_lines(paths["corpus"] / "questions.jsonl", rows)
    config = ExportConfig(name="mine", examples=1, traces=1, hub=f"someone/tiny@{'0' * 40}")
    make_bundle(StageContext(tmp_path / "out", paths, config, 0))
    bundle = load_bundle(tmp_path / "out" / "mine")
    assert bundle.manifest["form"] == "chat" and not bundle.searches
    assert bundle.decoder_file.sha256 == decoder.gguf_sha256
    assert (bundle.decoder_file.hub, bundle.decoder_file.revision) == ("someone/tiny", "0" * 40)
    model = bundle.model()
    assert model.systems == ["lm", "memory"] and list(model.routers) == ["memory"]
    texts = model.corpus().passages
    assert len(texts) == 1 and len(texts[0]) == 1, "one turn, once, without the template"
    assert "Where is Lima?" in texts[0][0] and "Peru" in texts[0][0]
    (recorded,) = bundle.traces()
    assert recorded["prompt"] == "Where is Lima?"
    for name, row in recorded["traces"].items():
        ids = model.chat_ids("Where is Lima?", 24)
        trace = model.generate(ids, name, max_new_tokens=len(row["steps"]))
        assert [s.token_id for s in trace.steps] == [step["id"] for step in row["steps"]]
    with pytest.raises(MlpMemError, match="commit of 40 digits"):
        ExportConfig(hub="someone/tiny@main")


# All stages


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"data packages missing: {MISSING}")
def test_the_tiny_recipe_makes_a_bundle_and_a_second_run_does_nothing(tmp_path):
    from train.run.pipeline import STAGES

    command = [sys.executable, "-m", "train", "all", "tiny", "--runs", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}

    def run():
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=1200
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    run()
    root = tmp_path / "tiny"
    stages = [p.name for p in root.iterdir() if not p.name.startswith(".")]
    assert sorted(stages) == sorted(STAGES)
    manifests = {name: finished_manifest(root / name) for name in STAGES}
    for name, manifest in manifests.items():
        assert manifest["stage"] == name and set(manifest["inputs"]) == set(STAGES[name].inputs)
        took = manifest["seconds"] > 0 or name in ("controls", "finetuned")  # tiny may have none
        assert took and manifest["peak_memory_bytes"] > 2**20
        hashes = {
            p.relative_to(root / name).as_posix(): file_hash(p)
            for p in (root / name).rglob("*")
            if p.is_file()
            and p not in (root / name / "manifest.json", root / name / "identity.json")
        }
        assert manifest["outputs"] == hashes
    assert all(manifests[n]["tokens_per_second"] > 0 for n in ("decoder", "datastore", "memory"))
    files = [p for p in root.rglob("*") if p.is_file()]
    assert not [p for p in files if p.name in ("job.json", "checkpoint.safetensors")]
    assert not [p for p in files if p.suffix == ".new"]

    model = mlpmem.load(root / "export/tiny")
    assert model.systems == ["lm", "memory", "knn"]
    assert model.generate("Question: What is the capital of Peru? Answer:", max_new_tokens=4).steps
    results = json.loads((root / "export/tiny/results.json").read_text(encoding="utf-8"))
    names = ["lm", "memory", "knn", "auto", "auto_knn"]
    assert [s["name"] for s in results["systems"]] == names
    assert len(results["forgetting"]) == 1

    times = {p: p.stat().st_mtime_ns for p in files}
    output = run()
    assert all(f"{name}: already finished" in output for name in STAGES)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == times
