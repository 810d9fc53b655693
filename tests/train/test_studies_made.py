"""Studies that train something, on tiny runs: new facts are learned, old ones replayed."""

import dataclasses
import json
import shutil

import made_findings
import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.api import Model
from mlpmem.engine.settings import Settings
from mlpmem.engine.systems import ModelSystem
from mlpmem.errors import MlpMemError
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore, build_keys
from mlpmem.retrieval.documents import entries, join_documents
from mlpmem.retrieval.passages import forward_positions
from mlpmem.retrieval.retriever import ExactRetriever
from train.config.corpus import AtlasOptions, CorpusConfig
from train.config.studies import StudiesConfig
from train.config.tables import (
    DecoderConfig,
    EvaluateConfig,
    MemoryFitConfig,
    Recipe,
    TargetsConfig,
)
from train.corpora.atlas.passages import build_atlas
from train.corpora.atlas.wordings import AtlasConfig
from train.files import read_json, write_json
from train.measure.batches import score_continuations
from train.measure.text import measure_golds, perplexity
from train.studies.mixing import mixing
from train.studies.run import Run
from train.studies.training import compute as compute_module
from train.studies.training import context as context_module
from train.studies.training import sensitivity as sensitivity_module
from train.studies.training import teach
from train.studies.training.domains import beginning, domains
from train.studies.training.sensitivity import sensitivity
from train.studies.training.sizes import sizes, spread
from train.studies.training.teach import (
    WORDINGS,
    Lesson,
    add_lora,
    make_facts,
    sample_passages,
    teach_decoder,
    teach_memory,
)
from train.studies.training.update import insert, update

pytestmark = pytest.mark.slow
TINY = {"epochs": 2, "batch": 16, "dtype": "float32", "processes": 1, "validation_rows": 0}
RECIPE = Recipe(
    "tiny",
    corpus=CorpusConfig(scale=0.01, shares=(0.2, 0.2), atlas=AtlasOptions(strangers=0.0)),
    decoder=DecoderConfig(row=80, dtype="float32", processes=1),
    targets=TargetsConfig(k=5, temperature=3.0, easy_share=1.0),
    memory=MemoryFitConfig(blocks=1, intermediate_size=16, **TINY),
    evaluate=EvaluateConfig(window=24, stride=12, ks=(2, 4), temperatures=(2.0, 8.0)),
    studies=StudiesConfig(
        positions=40, questions=3, facts=4, passes=2, update_batch=100, epochs=2, depths=(-2,),
        ks=(2, 4), temperatures=(2.0, 8.0), domain_epochs=2, domain_rows=1.0,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(params=["atlas", "text"])
def root(request, tmp_path):
    return stages(tmp_path, request.param)


def stages(root, kind="atlas"):
    """Return a run of a corpus kind, with rows of targets."""
    root.mkdir(exist_ok=True)
    paths = tiny_run.stages(root, kind)
    rows = np.arange(0, len(Datastore.load(paths["datastore"])), 2)
    np.save(paths["targets"] / "rows.npy", rows)
    stored = {"config": dataclasses.asdict(RECIPE.targets) | {"rows": "searched"}}
    keyed = {"config": {"depth": -1}, "counts": {"entries": 40, "tokens": 60}}
    for name, more in (("targets", stored), ("datastore", keyed)):
        path = paths[name] / "manifest.json"
        write_json(path, read_json(path) | more)
    results = tiny_run.RESULTS | {
        "lmbda": {"memory": 0.5, "knn": 0.5},
        "config": {"k": 4, "temperature": 2.0},
    }
    write_json(paths["evaluate"] / "results.json", results)
    return root


def new_facts(tokenizer):
    """Return tiny.documents with other tokens, without questions."""
    documents = tiny.documents(tokenizer)
    shifted = np.where(documents.tokens > 40, documents.tokens - 1, documents.tokens)
    return dataclasses.replace(documents, tokens=shifted)


# New facts


def test_new_facts_have_new_names_and_separate_wordings(tokenizer):
    new = make_facts(RECIPE, tokenizer, 10, 5)
    options = dataclasses.asdict(RECIPE.corpus.atlas)
    old = build_atlas(AtlasConfig(seed=RECIPE.seed, scale=RECIPE.corpus.scale, **options))
    names = {entity.name for entity in old.entities}
    assert new.facts >= 10 and not names & {row["entity"] for row in new.questions.rows}
    assert set(new.questions.cells) == set(WORDINGS)
    assert all(new.questions.cells.count(cell) <= 5 for cell in WORDINGS)
    learned = [tokenizer.decode(new.documents.passage(p)) for p in range(len(new.documents))]
    for row, cell in zip(new.questions.rows, new.questions.cells, strict=True):
        stated = any(f"{row['prompt']} {row['answer']}" in text for text in learned)
        assert stated == (cell == "new/seen"), (cell, row["prompt"])
        assert any(row["answer"] in text and row["entity"] in text for text in learned)


def test_inserting_documents_equals_building_from_all_documents(tokenizer):
    bound = tiny.decoder()
    store, more = tiny.datastore(bound), new_facts(tokenizer)
    extended = insert(bound, store, more)
    documents = join_documents(store.documents, more)
    positions, counts = entries(documents)
    assert len(extended) > len(store) and np.array_equal(extended.counts, counts)
    assert np.array_equal(extended.positions, positions)
    keys = build_keys(bound, documents, positions)
    assert np.allclose(extended.keys[:].astype(float), keys.astype(float), atol=2e-3)


def test_a_memory_learns_new_entries_and_replays_old_ones(tokenizer, tmp_path):
    bound = tiny.decoder()
    run = Run(
        dataclasses.replace(RECIPE, studies=StudiesConfig(passes=20, update_batch=16)),
        stages(tmp_path),
        "update",
    )
    store = insert(bound, run.store, new_facts(tokenizer))
    old = len(run.store)
    keys = torch.from_numpy(store.keys[:].astype(np.float32))
    values = torch.from_numpy(store.values.astype(np.int64))

    def nll(memory):
        log_probs = memory(keys).log_softmax(-1).gather(1, values[:, None])[:, 0]
        return -log_probs[old:].mean().item(), -log_probs[run_rows].mean().item()

    run_rows = np.load(tmp_path / "targets" / "rows.npy")
    memories = {replay: tiny.memory(bound) for replay in (0.0, 2.0)}
    before = nll(memories[0.0])
    rows = {replay: teach_memory(run, m, store, old, replay) for replay, m in memories.items()}
    new = len(store) - old
    assert rows == {0.0: new, 2.0: new + min(len(run_rows), 2 * new)}
    new_only, replaying = (nll(memory) for memory in memories.values())
    assert new_only[0] < before[0] - 1 and replaying[0] < before[0] - 1
    assert replaying[1] < new_only[1]  # replayed rows are forgotten less


@pytest.mark.parametrize("system", ["finetuned", "lora"])
def test_a_decoder_learns_the_documents(system, tokenizer, tmp_path):
    run = Run(
        dataclasses.replace(RECIPE, studies=StudiesConfig(passes=8, update_batch=64)),
        stages(tmp_path),
        "update",
    )
    tiny.documents(tokenizer).save(tmp_path / "corpus" / "decoder_00")
    bound, documents = tiny.decoder(), new_facts(tokenizer)

    def nll():
        total = 0.0
        for p in range(len(documents)):
            ids = torch.from_numpy(documents.passage(p).astype(np.int64))[None]
            log_probs = bound.forward(ids).logits.log_softmax(-1)[0, :-1]
            total -= log_probs.gather(1, ids[0, 1:, None]).sum().item()
        return total

    before = nll()
    initial = {n: p.clone() for n, p in bound.model.named_parameters()}
    tokens = teach_decoder(run, bound, documents, Lesson(system, 1e-2, 1.0))
    assert nll() < before and tokens >= 2 * len(documents.tokens) - 40
    same = [torch.equal(initial[n.replace(".base_layer", "")], p)
            for n, p in bound.model.named_parameters() if "lora_" not in n]  # fmt: skip
    assert all(same) if system == "lora" else not any(same)


def test_lora_begins_as_the_decoder_and_skips_its_head():
    bound, plain = tiny.decoder(), tiny.decoder()
    add_lora(bound.model, 4)
    ids = torch.arange(20)[None]
    assert torch.equal(bound.forward(ids).logits, plain.forward(ids).logits)
    learned = [n for n, p in bound.model.named_parameters() if p.requires_grad]
    assert len(learned) == 2 * 7 * tiny.LAYERS and not any("lm_head" in n for n in learned)


def test_update_without_peft_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(teach, "find_spec", lambda name: None)
    with pytest.raises(MlpMemError, match="pip install peft"):
        next(update(Run(RECIPE, stages(tmp_path), "update")))


def test_replayed_passages_are_whole_and_have_the_requested_tokens(tokenizer):
    documents = tiny.documents(tokenizer)
    sample = sample_passages(documents, 50, 0)
    whole = {tuple(documents.passage(p)) for p in range(len(documents))}
    assert {tuple(sample.passage(p)) for p in range(len(sample))} <= whole
    assert 50 <= len(sample.tokens) < 50 + int(np.diff(documents.offsets).max())
    assert len(sample_passages(documents, 10**6, 0)) == len(documents)


def test_update_measures_every_system_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.SHAPES["llama"], "max_position_embeddings", 200)
    run = Run(RECIPE, stages(tmp_path), "update")
    tiny.documents().save(tmp_path / "corpus" / "decoder_00")
    findings = list(update(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    cells: dict[tuple, set[str]] = {}
    for finding in findings:
        if finding.metric == "exact_match":
            way = tuple(finding.setting.get(key) for key in ("way", "replay", "lr"))
            cells.setdefault((finding.system, *way), set()).add(finding.split)
    taught = {
        (system, "taught", replay, lr)
        for system, lr in (("finetuned", 1e-3), ("lora", 4e-3))
        for replay in (0.0, 1.0)
    }
    taught |= {("memory", "taught", replay, None) for replay in (0.0, 1.0)}
    before = {(system, "before", None, None) for system in ("lm", "memory", "knn")}
    assert cells.keys() == taught | before | {("knn", "inserted", None, None)}
    assert all({"new/test", "A2/test", "B/test"} <= splits for splits in cells.values())
    timed = [f for f in findings if f.metric == "seconds"]
    assert len(timed) == 7 and all(f.value > 0 and f.n > 0 for f in timed)


# Domains and sensitivity


def test_every_memory_is_measured_on_every_domain_at_its_own_lambda(tmp_path):
    texts = {
        "sea": "The sea is deep and blue. A fish swims.",
        "sums": "1 + 1 = 2. 2 + 2 = 4. 3 + 3 = 6.",
    }
    rows = []
    for name, text in texts.items():
        path = tmp_path / f"{name}.txt"
        lines = [f"# {i}\n{text} And {i} more of it." for i in range(20)]
        path.write_text("\n".join(lines) + "\nhalf a li", encoding="utf-8")
        rows.append((name, str(path), "^# (.*)$", ""))
    studies = dataclasses.replace(RECIPE.studies, domains=tuple(rows))
    run = Run(
        dataclasses.replace(RECIPE, studies=studies), stages(tmp_path / "run", "text"), "domains"
    )
    findings = list(domains(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    pairs = {(f.system, f.split, f.setting.get("of")) for f in findings}
    both = [(row, column) for row in texts for column in texts]
    assert pairs == {("lm", name, None) for name in texts} | {
        (system, column, row) for system in ("memory", "knn") for row, column in both
    }
    for system in ("memory", "knn"):
        for row in texts:
            lambdas = {f.setting["lmbda"] for f in findings
                       if f.system == system and f.setting["of"] == row}  # fmt: skip
            assert len(lambdas) == 1
    assert list(domains(run)) == findings  # nothing is trained twice
    path.write_text("Another text.", encoding="utf-8")
    with pytest.raises(MlpMemError, match="sums was made from another text than the recipe's"):
        list(domains(run))


def test_a_domain_is_the_first_whole_lines_of_its_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\nthree", encoding="utf-8")
    assert beginning(path, 9) == "one\ntwo\n"
    assert beginning(path, 100) == "one\ntwo\nthree"


def test_sensitivity_trains_one_memory_per_value_and_depth(root, monkeypatch):
    monkeypatch.setattr(sensitivity_module, "CELLS", {"alpha": (0.0, 0.3), "head": ("tied",)})
    studies = dataclasses.replace(RECIPE.studies, targets=((2, 3.0),))
    run = Run(dataclasses.replace(RECIPE, studies=studies), root, "sensitivity")
    findings = list(sensitivity(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    trained = {
        key: f.setting[key] for f in findings
        for key in ("recipe", "alpha", "head", "depth", "targets") if key in f.setting
    }  # fmt: skip
    assert trained.pop("targets") == "k 2, temperature 3"
    assert trained == {"recipe": "own", "alpha": 0.0, "head": "tied", "depth": -2}
    searched = read_json(root / "studies" / "targets-2-3" / "targets" / "manifest.json")["config"]
    assert (searched["k"], searched["temperature"]) == (2, 3.0)
    assert Memory.load(root / "studies" / "depth-2" / "memory").config.depth == -2
    assert (
        json.loads((root / "studies/alpha-0.0/memory/manifest.json").read_text())["config"]["alpha"]
        == 0
    )


def test_the_words_so_far_are_read_by_memories_and_by_a_datastore(root, monkeypatch):
    read = {"none": ((), "words", "text"), "2": ((2.0,), "tell", "text")}
    monkeypatch.setattr(context_module, "READ", read)
    monkeypatch.setattr(context_module, "KNN_WEIGHTS", (0.0, 1.0))
    memory = dataclasses.replace(RECIPE.memory, start="identity")
    run = Run(dataclasses.replace(RECIPE, memory=memory), root, "context")
    findings = list(context_module.context(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    assert {f.setting["read"] for f in findings if f.system == "memory"} == {"none", "2"}
    assert {f.setting["weight"] for f in findings if f.system == "knn"} == {0.0, 1.0}
    assert Memory.load(root / "studies" / "context-1" / "memory").config.context == (2.0,)
    with pytest.raises(MlpMemError, match='use a recipe with "free"'):
        list(context_module.context(Run(RECIPE, root, "context")))


def test_a_datastores_context_stands_behind_its_keys_and_is_the_decoders():
    decoder = tiny.decoder()
    store = tiny.datastore(decoder)
    size = store.keys.shape[1]
    joined = context_module.with_context(decoder, store, 2.0)
    states, words = np.split(joined.keys.astype(float), [size], 1)
    assert np.array_equal(states, store.keys[:].astype(float))
    assert np.isclose(words.var(0).sum(), 4 * states.var(0).sum(), rtol=0.01)
    keys = build_keys(decoder, joined.documents, joined.positions, dtype=np.float32)
    read = np.concatenate(
        [
            places.hidden.numpy()
            for places in forward_positions(decoder, joined.documents, joined.positions[:1])
        ]
    )
    assert keys.shape[1] == size and np.allclose(read, joined.keys[:1], atol=0.02, rtol=0.01)


def test_fine_tuning_gets_the_memorys_whole_compute(tmp_path):
    root, tuned = stages(tmp_path / "run"), (("A1+B", 1e-3, 2, 0), ("B", 1e-3, 1, 2))
    results = read_json(root / "evaluate" / "results.json")
    cells = dict.fromkeys(compute_module.CELLS, {"n": 4, "right": 3})
    systems = [{"name": n, "accuracy": cells} for n in ("lm", "memory", "knn", "auto")]
    config = {"config": {"questions": RECIPE.finetuned.questions}}
    write_json(root / "evaluate" / "results.json", results | config | {"systems": systems})
    write_json(root / "finetuned" / "finetuned.json", [])
    shutil.copytree(root / "decoder", tmp_path / "run-plain" / "decoder")
    studies = dataclasses.replace(RECIPE.studies, tuned=tuned)
    run = Run(dataclasses.replace(RECIPE, studies=studies), root, "compute")
    findings = list(compute_module.compute(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    rows = {(f.setting["label"], f.metric, f.split): f for f in findings}
    labels = list(dict.fromkeys(label for label, *_ in rows))
    assert labels[:3] == [label for _, label, _ in compute_module.OWN.values()]
    assert labels[3] == compute_module.PLAIN and rows[labels[3], "exact_match", "B/test"].n == 4
    assert labels[-2:] == [
        "decoder fine-tuned on A1+B, lr 0.001, 2 epochs",
        "decoder with LoRA of rank 2 on B, lr 0.001, 1 epoch",
    ]
    assert rows[labels[1], "exact_match", "B/test"].value == 0.75
    assert rows[labels[-2], "flop", "training"].value > rows[labels[-1], "flop", "training"].value
    fewer = dataclasses.replace(RECIPE.finetuned, questions=1)
    run = Run(dataclasses.replace(RECIPE, studies=studies, finetuned=fewer), root, "compute")
    with pytest.raises(MlpMemError, match="Make them equal"):
        list(compute_module.compute(run))
    run = Run(RECIPE, root, "compute")
    with pytest.raises(MlpMemError, match="has no settings"):
        list(compute_module.compute(run))


def test_every_size_has_a_memory_and_the_largest_teaches_the_smaller(root):
    studies = dataclasses.replace(RECIPE.studies, decoders=((8, 1), (16, 2)), epochs=1)
    run = Run(dataclasses.replace(RECIPE, studies=studies), root, "sizes")
    findings = list(sizes(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    systems = {(f.setting["hidden_size"], f.system, f.setting.get("teacher")) for f in findings}
    own = {(hidden, system, None) for hidden in (8, 16) for system in ("lm", "knn", "memory")}
    assert systems == own | {(8, "memory", "16x2")}
    parameters = {(f.setting["hidden_size"], f.system): f.setting["parameters"] for f in findings}
    assert parameters[8, "lm"] == parameters[8, "knn"] < parameters[8, "memory"]
    assert {f.setting["lmbda"] for f in findings if f.system == "lm"} == {0.0}
    small, large = (root / "studies" / "sizes" / name for name in ("8x1", "16x2"))
    (at,) = small.glob("taught-*")
    taught, keyed = (Memory.load(folder / "memory") for folder in (at, small))
    assert any(
        not torch.equal(a, b) for a, b in zip(taught.parameters(), keyed.parameters(), strict=True)
    )
    config = {f: read_json(f / "targets" / "manifest.json")["config"] for f in (at, small, large)}
    assert config[at]["teacher"] == str((large / "datastore").resolve())
    k, reference = RECIPE.targets.k, spread(run.store, RECIPE.targets.k)
    for folder, keys in ((small, small), (large, large), (at, large)):
        scale = spread(Datastore.load(keys / "datastore"), k) / reference
        assert config[folder]["temperature"] == round(RECIPE.targets.temperature * scale, 3)
    assert read_json(small / "decoder" / "manifest.json")["config"]["row"] == 256
    assert list(sizes(run)) == findings  # nothing is trained twice


def test_the_spread_of_keys_is_the_median_distance_to_the_kth_neighbour():
    keys = np.arange(40, dtype=np.float16)[:, None] ** 2  # k-th neighbours by brute force
    store = dataclasses.replace(tiny.datastore(tiny.decoder()), keys=keys,
                                positions=np.arange(40), counts=np.ones(40, np.int32))  # fmt: skip
    distances = np.sort((keys.astype(float) - keys.T) ** 2, 1)[:, 3]
    assert spread(store, 3) == pytest.approx(np.sort(distances)[19])  # torch's median, the lower


def test_mixing_equals_the_library_at_every_lambda_k_and_temperature(root):
    run = Run(RECIPE, root, "mixing")
    findings = list(mixing(run))
    assert all(made_findings.charted(findings)), "every chart has data"
    golds = measure_golds(run.decoder, run.memory, run.store, run.text(), 4)
    for finding in findings:
        if finding.split == "all" and "k" in finding.setting:
            k, temperature, lmbda = (finding.setting[x] for x in ("k", "temperature", "best_lmbda"))
            other = golds.knn(k, temperature)
            assert finding.value == pytest.approx(perplexity(golds.lm, other, lmbda))
            assert finding.value <= perplexity(golds.lm, other, 0.5) + 1e-9
    dev = [f for f in findings if f.split == "dev"]
    assert len(dev) == (4 if run.kind.name == "atlas" else 0)
    prompts = [run.decoder.encode(row["prompt"]) for row in run.dev.rows] if dev else []
    passages = [run.dev.documents.passage(p).tolist() for p in range(len(prompts))]
    pairs = [(ids, both[len(ids) :]) for ids, both in zip(prompts, passages, strict=True)]
    for finding in dev:  # against the library's answers
        k, temperature, lmbda = (finding.setting[x] for x in ("k", "temperature", "best_lmbda"))
        settings = Settings({"knn": lmbda}, k=k, knn_temperature=temperature)
        model = Model(run.decoder, None, settings)
        model.attach_datastore(run.store, ExactRetriever(run.store.keys))
        scores = score_continuations(ModelSystem(model, "knn", lmbda), pairs)
        assert finding.n == 6 and finding.value == pytest.approx(scores.exact().mean())
    ends = {f.setting["lmbda"]: f.value for f in findings
            if f.system == "memory" and f.split == "all" and "lmbda" in f.setting}  # fmt: skip
    assert ends[0.0] == pytest.approx(np.exp(golds.lm.mean()))
    assert ends[1.0] == pytest.approx(np.exp(golds.memory.mean()))
