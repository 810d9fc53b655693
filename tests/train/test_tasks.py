"""Tasks: metrics against cases worked by hand, exact prompts, and every task on a few rows."""

import csv
import json
import shutil
from functools import cache

import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.engine.rag import Rag
from mlpmem.engine.systems import ModelSystem
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.retriever import BulkRetriever
from mlpmem.retrieval.text_search import Passages
from train.corpora.tokenizer import train_tokenizer
from train.files import read_json, read_lines, write_json, write_lines
from train.measure.batches import ContinuationScores
from train.tasks import TASKS, answers, atlas, detection, knn_prompt, truthfulqa
from train.tasks import task as task_module
from train.tasks.__main__ import main
from train.tasks.cloze import lama_prompt
from train.tasks.halueval import prompt as halueval_prompt
from train.tasks.open_qa import long_prompt, short_prompt
from train.tasks.task import MissingData, TaskInput

# Metrics


@pytest.mark.parametrize(
    "text, right, exact, score, within",
    [
        ("The Beatles!", ["beatles"], True, 1.0, True),
        ("a  cat, the dog", ["Cat Dog"], True, 1.0, True),
        ("Lima is big", ["Lima"], False, 0.5, True),  # precision 1/3, recall 1
        ("new york city", ["york new"], False, 0.8, False),  # same words, other order
        ("limestone", ["lime"], False, 0.0, False),  # only a part of a word
        ("red red blue", ["red blue blue"], False, 2 / 3, False),
        ("x", ["no", "y x"], False, 2 / 3, False),  # the best of two answers
        ("", ["Lima"], False, 0.0, False),
        ("the", ["a"], True, 1.0, False),  # nothing remains of either
    ],
)
def test_answer_metrics_equal_cases_worked_by_hand(text, right, exact, score, within):
    assert answers.exact_match(text, right) is exact
    assert answers.f1(text, right) == pytest.approx(score)
    assert answers.contains(text, right) is within


def test_a_generated_answer_ends_at_its_stop_strings():
    assert answers.first_line(" Lima\nQuestion: x") == "Lima"
    assert answers.first_line("Lima, Peru. Yes", ("\n", ".", ",")) == "Lima"
    assert answers.first_line("\nLima") == "", "cut before stripping, as published"


def test_multiple_choice_equals_a_case_worked_by_hand():
    true, false = np.log([0.2, 0.5, 0.1]), np.log([0.15, 0.05])
    scores = truthfulqa.measure(true, false, best=0)
    assert scores["mc1"] == 1.0 and scores["mc2"] == pytest.approx(0.8)
    assert scores["mc3"] == pytest.approx(2 / 3)
    assert scores["mean"] == pytest.approx((1 + 0.8 + 2 / 3) / 3)
    assert truthfulqa.measure(true, false, best=2)["mc1"] == 0.0
    far = truthfulqa.measure(np.array([-2000.0]), np.array([-2000.0 - np.log(3)]), 0)
    assert far["mc2"] == pytest.approx(0.75)  # exp(-2000) underflows to 0


def test_the_likelier_of_two_by_sum_and_per_token():
    scores = ContinuationScores(
        np.array([-1.0, -1.0, -1.0, -1.5, -0.5]), np.zeros(5, bool), np.array([0, 0, 1, 2, 3])
    )
    likelier = detection.likelier(scores)  # right: -2 of two tokens, -1; wrong: -1.5, -0.5
    assert likelier["accuracy"].tolist() == [False, False]
    assert likelier["accuracy_per_token"].tolist() == [True, False]


# Prompts


def test_prompts_are_the_published_ones():
    assert short_prompt("Who won") == "Answer these questions:\nQuestion: who won?\nAnswer:"
    assert long_prompt("who won?") == ("Answer the questions:\n\nQuestion: who won? The answer is:")
    assert halueval_prompt("Who? ") == "Question: Who?\nAnswer:"
    shots = truthfulqa.prompt("Why?")
    assert shots.startswith("Q: What is human life expectancy in the United States?\nA: Human life")
    assert shots.endswith("in Barcelona, Spain.\n\nQ: Why?\nA:") and shots.count("Q: ") == 7


def test_the_six_shots_equal_the_harness():
    yaml = pytest.importorskip("yaml")
    lm_eval = pytest.importorskip("lm_eval")
    from pathlib import Path

    from jinja2 import Template

    path = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    theirs = Template(yaml.safe_load(path.read_text())["doc_to_text"]).render(question="Why?")
    assert " ".join(truthfulqa.prompt("Why?").split()) == " ".join(theirs.split())


def test_only_templates_that_end_in_the_object_are_used():
    row = {"template": "[X] was born in [Y] .", "sub": "Ada"}
    assert lama_prompt(row) == "Ada was born in"
    assert lama_prompt(row | {"template": "[Y] is the home of [X] ."}) is None


# Domain-conditional PMI


def test_domain_conditional_pmi_equals_a_case_worked_by_hand(monkeypatch):
    probs = np.array([(0.6, 0.1, 0.1), (0.5, 0.2, 0.05)])  # after the domain, after a premise
    ids = {" x": [0], " y": [1], " z": [2], " long": [3, 4]}
    monkeypatch.setattr(knn_prompt, "plain_ids", lambda tokenizer, text: ids[text])
    monkeypatch.setattr(
        knn_prompt, "next_tokens", lambda system, prompts, ids: np.log(probs[:, ids])
    )
    dataset = knn_prompt.Dataset("", None, (" x", " y"), "d", ((" x",), (" y",)))
    predicted = knn_prompt.predictions(
        tiny.systems(model())[0], ["p"], dataset, [(" x", " long"), (" y", " z")]
    )
    assert predicted["lm"].tolist() == [0]  # 0.5 > 0.2
    assert predicted["dcpmi"].tolist() == [1]  # log 5/6 < log 2
    # label 1: log 2 + log 1/2 = 0 > log 5/6; " long" has two tokens and does not count
    assert predicted["fuzzy_dcpmi"].tolist() == [1]


def test_words_of_several_tokens_are_scored_whole():
    bound = tiny.systems(model())[0]
    prompts = [bound.decoder.encode(text) for text in ("Gold", "The capital of")]
    scores = knn_prompt.word_scores(bound, prompts, [[5], [7, 9, 11]])
    for row, ids in zip(scores, prompts, strict=True):
        one = bound.log_probs(ids)[0, 5].exp() + knn_prompt.FLOOR
        three = bound.log_probs([*ids, 7, 9], last=3)[range(3), [7, 9, 11]].sum()
        assert row == pytest.approx([float(one.log()), float(three)], abs=1e-3)


# Every task on a few rows


@cache
def model():
    """Return a tiny model with decoder, memory and datastore."""
    return tiny.model(k=8)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, rows)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write invented rows in the published formats."""
    root = tmp_path_factory.mktemp("data")
    lines(root / "nq_open/NQ-open.dev.jsonl", [{"question": "who won", "answer": ["We"]}])
    trivia = [{"question": "Who?", "golden_answers": ["Us", "We"]}]
    lines(root / "qa_subsample/triviaqa.test.jsonl", trivia)
    pairs = {
        "knowledge": "k", "question": "Who?", "right_answer": "We", "hallucinated_answer": "Them",
    }  # fmt: skip
    lines(root / "halueval/qa_one-turn_data.json", [pairs, pairs])
    fact = {"src": "T", "relation": "P1", "sub": "Ada", "obj": "Rome", "template": "[X] in [Y] ."}
    lines(root / "lama/lama_cloze.jsonl", [fact, fact | {"template": "[Y] has [X] ."}])
    for name in ("webquestions", "counterfact_zsre", "truthfulqa", "wikitext-2"):
        (root / name).mkdir()
    write_json(root / "webquestions/test.json", [{"qText": "who?", "answers": ["We"]}])
    edit = {"prompt": "Ada lives in", "ground_truth": "Rome", "target_new": "Lima"}
    write_json(root / "counterfact_zsre/counterfact-val.json", [edit])
    row = {"Question": "Who?", "Best Answer": "We", "Correct Answers": "We; Us.",
           "Incorrect Answers": "Them"}  # fmt: skip
    table(root / "truthfulqa/TruthfulQA.csv", [row])
    (root / "wikitext-2/test.txt").write_text("The capital of Peru is Lima. " * 20)
    tasks = root / "knn_prompt_tasks"
    for name in ("mr", "cr", "hyp"):
        table(tasks / f"{name}/test.csv", [{"label": 1, "text": "fine"}, {"label": 0, "text": "x"}])
    lines(tasks / "rotten_tomatoes/test.jsonl", [{"input": "fine", "output": "positive"}])
    entail = {"premise": "p", "hypothesis": "h", "label": "entailment"}
    lines(tasks / "cb/dev.jsonl", [entail])
    lines(tasks / "rte/val.jsonl", [entail])
    table(tasks / "agn/test.csv", [{"Class Index": 2, "Title": "t", "Description": "d"}])
    (tasks / "sst2").mkdir()
    (tasks / "sst2/test.tsv").write_text("__label__1\tbad\n__label__3\tso\n__label__5\tgood\n")
    (tasks / "sst2/label_names_sentidict.txt").write_text("a, b\nc, d, e\n")
    (tasks / "agn/label_names_kb.txt").write_text("a\nb\nc\nd\n")
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write a stage corpus of kind atlas."""
    return stages(tmp_path_factory.mktemp("run"))["corpus"]


def stages(root):
    """Write a run whose statements have other answers of the same relation."""
    paths = tiny_run.stages(root)
    more = [
        tiny_run.question(n, group, prompt=f"{group} {n} is", kind="statement")
        for n in (3, 4)
        for group in ("A1", "A2", "B")
    ]
    write_lines(paths["corpus"] / "questions.jsonl", tiny_run.questions() + more)
    return paths


def inputs(data=None, corpus=None, **options):
    """Return the input of a task, with one system of every type."""
    rag = Rag(ModelSystem(model()), Passages(tiny.documents(), model().decoder))
    systems = [*tiny.systems(model()), rag]
    return TaskInput(systems, data, corpus, options.pop("limit", 0), "how", **options)


NUMBERS = {
    "questions": ("exact_match", "f1", "substring_match", "contradicts", "passage_has_answer"),
    "detection": ("accuracy", "accuracy_per_token"),
    "cloze": ("exact_match", "log_prob"),
    "lama": ("exact_match", "log_prob"),
    "counterfact": ("exact_match", "log_prob", "prefers_true"),
    **dict.fromkeys(("nq", "webqa", "triviaqa"), ("exact_match", "f1", "substring_match")),
    "halueval": ("accuracy", "accuracy_per_token"),
    "truthfulqa": ("mc1", "mc2", "mc3", "mean"),
    "knn_prompt": ("lm", "dcpmi", "fuzzy_dcpmi"),
    **dict.fromkeys(("perplexity", "text_perplexity"), ("perplexity",)),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_measures_every_system_with_its_metrics(name, data, corpus):
    findings = TASKS[name].run(inputs(data, corpus))
    assert {f.metric for f in findings} == set(NUMBERS[name])
    readers = {"lm", "memory", "knn"} | ({"rag"} if "perplexity" not in name else set())
    assert {f.system for f in findings} == readers
    assert all(f.how == "how" and f.n > 0 for f in findings)
    few = {f.split for f in findings if f.low is None}  # too few documents for an interval
    assert not few or name == "perplexity"
    assert all(f.low <= f.value <= f.high for f in findings if f.low is not None)


def test_rag_reports_whether_the_passage_has_the_answer(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Passages, "search", lambda self, query, count: [0])  # ... Peru is Lima.
    shutil.copytree(corpus, tmp_path / "corpus")
    rows = [row | {"aliases": []} for row in read_lines(corpus / "questions.jsonl")]
    rows = [row | {"answer": ("Lima", "Oslo")[i % 2]} for i, row in enumerate(rows)]
    write_lines(tmp_path / "corpus" / "questions.jsonl", rows)
    findings = TASKS["questions"].run(inputs(corpus=tmp_path / "corpus"))
    for group in ("A1", "A2", "B"):
        true = [
            r["answer"] == "Lima"
            for r in rows
            if (r["kind"], r["group"], r["wording"]) == ("question", group, "test")
        ]
        at = (f"{group}/test", "passage_has_answer")
        (finding,) = (f for f in findings if (f.split, f.metric) == at)
        assert (finding.system, finding.n, finding.value) == ("rag", len(true), np.mean(true))
    assert 0 < finding.value < 1


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_its_data_names_the_option(name):
    option = "--run" if TASKS[name].about == "atlas" else "--data"
    with pytest.raises(MissingData, match=option):
        TASKS[name].run(inputs())


def test_the_perplexity_of_a_text_equals_the_models_score(data):
    findings = TASKS["text_perplexity"].run(inputs(data))
    text = (data / "wikitext-2/test.txt").read_text()
    ids = model().decoder.encode(text)
    nll = {name: [] for name in ("lm", "memory")}
    # a window is BOS and at most 95 tokens; each further window scores only its new tokens
    spans, start, done = [], 1, 1
    while done < len(ids):
        spans.append((start, done, min(start + 95, len(ids))))
        start, done = start + 48, spans[-1][2]
    for start, first, end in spans:
        score = model().score([0, *ids[start:end]])
        for name in nll:
            nll[name] += score.mixed(name)[first - start :].tolist()
    for f in findings:
        if f.system in nll:
            assert f.value == pytest.approx(np.exp(np.mean(nll[f.system])), rel=1e-3)


def test_text_of_another_tokenizer_is_refused(tmp_path):
    folder = stages(tmp_path)["corpus"]
    train_tokenizer(["another text"], 300).save_pretrained(folder / "tokenizer")
    with pytest.raises(MlpMemError, match="its tokenizer differs from the decoder's"):
        TASKS["perplexity"].run(inputs(corpus=folder))


def test_a_wrong_ending_is_a_fact_of_the_same_relation_and_group(corpus):
    every = read_lines(corpus / "questions.jsonl")
    facts = {(r["relation"], r["group"], r["title"]): r["answer"] for r in every}
    rows = atlas.load(inputs(corpus=corpus), "statement", ("test", "unseen"))
    assert any(row["rivals"] for row in rows)
    for row in rows:
        ground = (row["relation"], row["group"])
        own = [answer for (*place, _), answer in facts.items() if tuple(place) == ground]
        right = {row["answer"], *row["aliases"]}
        assert sorted(row["rivals"]) == sorted(a for a in own if a not in right)


def test_knn_prompt_runs_only_the_tasks_whose_files_exist(data, tmp_path):
    shutil.copytree(data / "knn_prompt_tasks/cb", tmp_path / "knn_prompt_tasks/cb")
    findings = TASKS["knn_prompt"].run(inputs(tmp_path))
    assert {f.split for f in findings} == {"cb"}


def test_splits_are_by_cell_by_entity_and_by_facts_per_answer(corpus):
    rows = atlas.load(inputs(corpus=corpus), "question", ("test", "unseen"))
    assert all(row["answer"] not in row["others"] for row in rows)
    assert all(set(row["aliases"]).isdisjoint(row["others"]) for row in rows)
    findings = atlas.splits(rows)
    assert len(findings["B/test"]) == 2 and findings["B/test/real"] != findings["B/test/invented"]
    assert sorted(findings["B/test/real"] + findings["B/test/invented"]) == findings["B/test"]
    assert "B/answer of 2-9 facts" in findings  # "It 0" answers one question in each group
    one = tiny_run.question(5, answer="Alone") | {"facts": 1}
    assert "B/answer of 1 fact" in atlas.splits([one])
    many = tiny_run.question(5) | {"facts": 4000}
    assert "B/answer of 100 or more facts" in atlas.splits([many])


def test_a_limit_samples_the_same_rows_in_order():
    rows = list(range(100))
    sample = inputs(limit=7).sample(rows, "cell")
    assert len(sample) == 7 and sample == sorted(sample) == inputs(limit=7).sample(rows, "cell")
    assert sample != inputs(limit=7).sample(rows, "other") and inputs().sample(rows, "cell") == rows


def test_files_in_another_format_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("{no")
    with pytest.raises(MlpMemError, match="x.jsonl: the file must have the published format"):
        task_module.json_lines(tmp_path / "x.jsonl")
    (tmp_path / "x.csv").write_text("label,text\n")
    with pytest.raises(MlpMemError, match="no rows"):
        task_module.table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes("label,text\n1,caf\u00e9\n".encode("latin1"))
    with pytest.raises(MlpMemError, match="x.csv: .*utf-8"):
        task_module.table(tmp_path / "x.csv")
    rows = [{"template": "", "sub": "", "obj": ""}, {"template": ""}]
    with pytest.raises(MlpMemError, match="no sub, obj in row 2"):
        task_module.need(tmp_path / "y", rows, "template", "sub", "obj")
    with pytest.raises(MlpMemError, match="no template in row 1"):
        task_module.need(tmp_path / "y", ["text"], "template")


def test_the_best_answer_comes_first_and_duplicates_stay():
    assert truthfulqa.best_first("b.", ["a.", "b.", "c.", "a."]) == ["b.", "a.", "c.", "a."]
    assert truthfulqa.best_first("b.", ["a."]) == ["b.", "a."]


def test_unseen_questions_are_split_by_whether_the_corpus_has_their_words(tmp_path):
    folder = tiny_run.stages(tmp_path)["corpus"]
    questions = [  # tiny.documents have "The capital of Peru is Lima."
        {"prompt": "The capital of Xyz is?", "entity": "xyz", "wording": "unseen"},
        {"prompt": "Please, the capital of Peru", "entity": "Peru", "wording": "unseen"},
        {"prompt": "Please, the capital of Peru", "entity": "Peru", "wording": "test"},
    ]
    write_lines(folder / "questions.jsonl", [tiny_run.question() | row for row in questions])
    rows = atlas.load(inputs(corpus=folder), "question", ("test", "unseen"))
    assert [row.get("readable") for row in rows] == [None, True, False]
    findings = atlas.splits(rows)
    assert findings["B/unseen/known-words"] == [1] and findings["B/unseen/new-word"] == [2]


# The command


@pytest.fixture
def run_folder(tmp_path):
    """Return a run with a kept LoRA setting, a control and a plain decoder."""
    paths = stages(tmp_path)
    (tmp_path / "controls").mkdir()
    bound = tiny.decoder()
    from mlpmem.model.lora import add_adapter, save_adapter

    save_adapter(add_adapter(tiny.decoder().model, 2), paths["finetuned"] / "lora_B")
    row = {"name": "lora_B", "label": "decoder with LoRA", "seconds": 5.0, "rank": 2}
    write_json(paths["finetuned"] / "finetuned.json", [row, row | {"name": "lora_worse"}])
    tiny.memory(bound, seed=3).save(tmp_path / "controls" / "alpha_0")
    row = {"name": "alpha_0", "label": "alpha 0", "seconds": 7.0, "lmbda": 0.4}
    write_json(tmp_path / "controls" / "controls.json", [row])
    plain = tmp_path.with_name(f"{tmp_path.name}-plain") / "decoder"
    shutil.copytree(paths["decoder"], plain)  # with its manifest: 2.5 seconds
    return tmp_path


def test_the_command_measures_all_systems_and_saves_findings(run_folder, tiny_bundle, capsys):
    options = ["--bundle", str(tiny_bundle.folder), "--run", str(run_folder)]
    assert main(["detection", *options, "--json"]) == 0
    output = capsys.readouterr().out
    findings = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    systems = ["lm", "memory", "knn", "rag", "mixed", "rag_memory", "lora", "memory_alpha_0",
                "plain"]  # fmt: skip
    assert list(dict.fromkeys(f["system"] for f in findings)) == systems
    assert findings == read_json(run_folder / "findings/detection.json")
    assert findings[0]["how"].startswith("python -m train.tasks detection --bundle")
    by = {f["system"]: f["value"] for f in findings if f["metric"] == "accuracy"}
    assert by["lora"] == by["plain"] == by["lm"]  # an untrained adapter changes nothing
    assert main(["all", *options, "--systems", "lm,rag", "--limit", "1"]) == 0
    output = capsys.readouterr()
    assert "nq is skipped" in output.err and "B/test" in output.out
    assert (run_folder / "findings/questions.json").is_file()


def test_the_commands_help_names_the_tasks(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(name in output for name in TASKS)


def test_the_command_takes_a_decoder_by_path(run_folder, data, tmp_path, capsys):
    options = ["--decoder", str(run_folder / "decoder"), "--memory", str(run_folder / "memory")]
    options += ["--data", str(data), "--out", str(tmp_path / "out"), "--lmbda", "1.0"]
    assert main(["halueval", *options]) == 0
    assert "halueval/qa" in capsys.readouterr().out and (tmp_path / "out/halueval.json").is_file()
    assert main(["nq", *options, "--systems", "knn"]) == 1
    error = capsys.readouterr().err
    assert "system must be one of lm, memory" in error and "got 'knn'" in error
    assert main(["nq", "--memory", "x"]) == 1 and "give --decoder" in capsys.readouterr().err
    both = ["nq", "--decoder", "x", "--bundle", "y"]
    assert main(both) == 1 and "give only one" in capsys.readouterr().err


def test_bulk_search_equals_the_retriever(tiny_model):
    store = tiny_model.store
    queries = torch.from_numpy(np.asarray(store.datastore.keys[:5], np.float32)) + 0.01
    bulk = BulkRetriever(store.datastore.keys, "cpu").search(queries, 4)
    true = store.retriever.search(queries, 4)
    np.testing.assert_allclose(bulk.distances, true.distances, atol=1e-3)
