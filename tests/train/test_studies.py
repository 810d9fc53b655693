"""Studies on tiny runs: their findings equal a slow reference's."""

import dataclasses
import math
import shutil

import made_findings
import numpy as np
import pytest
import tiny
import tiny_run
import torch

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.documents import join_passages
from train.config.studies import StudiesConfig
from train.config.tables import Recipe
from train.files import digest, file_hash, read_json, read_lines, write_json
from train.measure.findings import load
from train.studies import __main__ as command
from train.studies.__main__ import table
from train.studies.frozen import frozen, weights_hash
from train.studies.imitation import bands, faithfulness, imitation, prefix_hashes
from train.studies.ledger import ledger
from train.studies.registry import STUDIES, load_study
from train.studies.run import Run
from train.studies.worse import kinds_of, worse

RECIPE = Recipe("tiny", studies=StudiesConfig(positions=60, examples=3))
UNSEEN = [("Oslo", "A2", "Oslo was a town."), ("Vellmar", "B", "Where is Vellmar? In 1200 hills.")]


def unseen_documents(words):
    """Return two passages that the tiny datastore does not hold."""
    pairs = [(i, [*words.encode(text), words.eos_token_id]) for i, (*_, text) in enumerate(UNSEEN)]
    return join_passages(pairs, [t for t, *_ in UNSEEN], [g for _, g, _ in UNSEEN])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a run with the k of the memory's targets and with file hashes in its manifests."""
    root = tmp_path_factory.mktemp("run")
    paths = tiny_run.stages(root)
    bound = tiny.decoder()
    tiny.memory(bound, knn_k=9, knn_temperature=3.0).save(paths["memory"])
    unseen_documents(bound.tokenizer).save(paths["corpus"] / "heldout")
    outputs = {
        p.name: file_hash(p) for p in paths["decoder"].iterdir() if p.name != "manifest.json"
    }
    for stage, more in (
        ("decoder", {"outputs": outputs}),
        ("memory", {"inputs": {"decoder": digest(outputs)}}),
        ("datastore", {"counts": {"tokens": 99, "entries": 50}}),
        ("targets", {"counts": {"tokens": 5, "mean_support": 2.0}}),
    ):
        path = paths[stage] / "manifest.json"
        write_json(path, read_json(path) | more)
    return root


def run(root, study="study", **studies):
    """Return a Run of the tiny recipe."""
    return Run(
        dataclasses.replace(RECIPE, studies=dataclasses.replace(RECIPE.studies, **studies)),
        root,
        study,
    )


def value(findings, **fields):
    """Return the value of the only finding with these fields."""
    (match,) = (
        f for f in findings if all(getattr(f, key) == value for key, value in fields.items())
    )
    return match.value


def slow_sources(root):
    """Return [(token, group, lm, memory, knn)] of the held-out tokens; the last three are (V,)."""
    bound, store = tiny.decoder(), tiny.datastore(tiny.decoder())
    memory = tiny.memory(bound)
    rows = []
    for (_, group, _), p in zip(UNSEEN, range(2), strict=True):
        ids = unseen_documents(bound.tokenizer).passage(p)
        for t in range(1, len(ids)):
            output = bound.forward(torch.tensor(ids[None, :t].astype(np.int64)))
            hidden = output.hidden[0, -1]
            knn = np.zeros(bound.vocab_size)
            distances = ((store.keys.astype(np.float64) - hidden.double().numpy()) ** 2).sum(1)
            for i in np.argsort(distances)[:9]:
                weight = math.exp(-(distances[i] - distances.min()) / 3.0)
                knn[store.values[i]] += store.counts[i] * weight
            lm = output.logits[0, -1].double().softmax(-1).numpy()
            mem = memory(hidden).double().softmax(-1).numpy()
            rows.append((int(ids[t]), group, lm, mem, knn / knn.sum()))
    return rows


# The studies


def test_faithfulness_equals_the_definitions_of_kl_js_and_agreement():
    p = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    q = np.array([[0.25, 0.5, 0.25], [0.6, 0.3, 0.1]])

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    computed = faithfulness(*(torch.from_numpy(x).float().log() for x in (p, q)))
    for row, agree in ((0, 0.0), (1, 0.0)):
        middle = (p[row] + q[row]) / 2
        js = (kl(p[row], middle) + kl(q[row], middle)) / 2
        assert computed[row] == pytest.approx([kl(p[row], q[row]), js, agree], abs=1e-5)
    same = torch.from_numpy(q).float().log()
    assert faithfulness(same, same) == pytest.approx(np.array([[0, 0, 1.0]] * 2), abs=1e-6)


def test_bands_hold_every_value_once_and_keep_equal_values_together():
    values = np.array([3, 1, 1, 1, 1, 1, 7, 9, 12, 2.0])
    parts = bands(values)
    assert np.array_equal(sum(mask.astype(int) for *_, mask in parts), np.ones(10))
    for low, high, mask in parts:
        assert low <= values[mask].min() and values[mask].max() <= high
    assert parts[0][2].sum() == 5 and len(parts) < 4 + 1
    ((low, high, mask),) = bands(np.full(3, 5.0))
    assert low == high == 5.0 and mask.all()


def test_prefix_hashes_are_equal_exactly_if_prefixes_are():
    documents = tiny.documents()
    hashes, prefixes = prefix_hashes(documents), []
    for p in range(len(documents)):
        ids = documents.passage(p).tolist()
        prefixes += [tuple(ids[:t]) for t in range(len(ids))]
    pairs = set(zip(prefixes, hashes.tolist(), strict=True))
    assert len(pairs) == len(set(prefixes)) == len(set(hashes.tolist()))


def test_imitation_equals_a_slow_reference_on_unseen_text(root):
    findings = list(imitation(run(root, "imitation")))
    assert all(made_findings.charted(findings))

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    rows = [r for i, r in enumerate(slow_sources(root)) if i not in firsts()]
    for system, column in (("memory", 3), ("lm", 2)):
        slow = np.mean([kl(row[4], row[column]) for row in rows])
        assert value(findings, system=system, split="all", metric="kl") == pytest.approx(
            slow, rel=1e-3
        )
        agree = np.mean([row[4].argmax() == row[column].argmax() for row in rows])
        agreement = value(findings, system=system, split="all", metric="agreement")
        assert agreement == pytest.approx(agree)
    for split in ("frequency", "distance"):
        parts = [f for f in findings if (f.system, f.split, f.metric) == ("lm", split, "kl")]
        assert sum(f.n for f in parts) == len(rows)


def firsts():
    """Return the held-out tokens that begin a passage: the datastore has their prefix."""
    length = len(tiny.tokenizer().encode(UNSEEN[0][2])) + 1
    return 0, length - 1


def test_words_are_names_numbers_function_words_and_others():
    bound = tiny.decoder()
    text = "Question: In which year was Old Ryn built? Answer: 1789, in Peru."
    ids = bound.encode(text) + [bound.tokenizer.eos_token_id]
    documents = join_passages([(0, ids)], ["t"], ["B"])
    kinds = kinds_of(bound, documents)
    spelled = {}
    for kind, token in zip(kinds.tolist(), ids, strict=True):
        piece = "|" if token in bound.special_ids else bound.pieces[token]
        spelled[kind] = spelled.get(kind, "") + piece
    assert spelled == {
        "end": "||",
        "other word": "Question year built Answer",  # a sentence's first word may not be a name
        "punctuation": ":?:,.",
        "function word": " In which was in",
        "name": " Old Ryn Peru",
        "number": " 1789",
    }


def test_worse_tokens_are_counted_in_nats_by_group_with_the_worst_examples(root):
    findings = list(worse(run(root, "worse")))
    assert all(made_findings.charted(findings))
    rises = []
    for token, group, lm, mem, _ in slow_sources(root):
        rises.append((group, math.log(lm[token]) - math.log(0.5 * lm[token] + 0.5 * mem[token])))
    for split in ("all", "A2", "B"):
        nats = np.array([rise for group, rise in rises if split in ("all", group)])
        at = {"system": "memory", "split": split}
        assert value(findings, **at, metric="worse") == pytest.approx((nats > 0.1).mean())
        lost = np.maximum(nats, 0).mean()
        assert value(findings, **at, metric="nats_lost") == pytest.approx(lost, rel=1e-3)
        assert value(findings, **at, metric="nats_change") == pytest.approx(nats.mean(), rel=1e-3)
    first, *others = read_lines(root / "findings" / "worse.jsonl")
    worst = max(rise for _, rise in rises)
    assert math.log(first["lm"] / first["fused"]) == pytest.approx(worst, rel=1e-3)
    assert len(others) == 2 and first["title"] in ("Oslo", "Vellmar")


def test_the_decoder_is_frozen_and_a_change_to_it_is_detected(root, tmp_path):
    findings = list(frozen(run(root)))
    gap = [f.value for f in findings if f.metric == "lambda_0_largest_difference"]
    assert gap == [0.0]
    assert {f.value for f in findings if f.metric != "lambda_0_largest_difference"} == {1.0}
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    path = copy / "decoder" / "generation_config.json"
    path.write_text(path.read_text() + " ", encoding="utf-8")
    changed = list(frozen(run(copy)))
    for metric in ("as_made", "as_memory_was_trained_on"):
        assert value(changed, metric=metric) == 0.0
    bound = tiny.decoder()
    before = weights_hash(bound.model)
    with torch.no_grad():
        bound.head_weight[3, 5] += 1e-6
    assert weights_hash(bound.model) != before


def test_the_ledger_has_the_manifests_figures_and_fine_tuning(root):
    row = {"groups": "B", "lr": 0.1, "epochs": 3, "rank": 0, "seconds": 7.5, "flops": 6e9}
    adapter = row | {"rank": 4, "seconds": 2.0, "flops": 4e9}
    shutil.copytree(root / "finetuned", root / "saved")
    write_json(root / "finetuned" / "finetuned.json", [row, adapter])
    findings = list(ledger(run(root, "ledger")))
    charts = list(made_findings.charted(findings))
    shutil.rmtree(root / "finetuned")
    (root / "saved").rename(root / "finetuned")
    assert all(charts)
    assert value(findings, split="memory", metric="seconds") == 2.5
    assert value(findings, split="datastore", metric="peak_memory") == 7
    documents = tiny.documents()
    of_b = sum(len(documents.passage(p)) for p in (2, 3))
    for system, seconds, flops in (("finetuned", 7.5, 6e9), ("lora", 2.0, 4e9)):
        tuned = {"system": system, "split": "decoder"}
        assert value(findings, **tuned, metric="seconds") == seconds
        assert value(findings, **tuned, metric="tokens") == 3 * of_b
        assert value(findings, **tuned, metric="flop") == flops, "as the stage counted them"


# The command


def test_a_study_is_saved_and_printed(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "tiny")
    assert command.main(["frozen", "tiny", "--runs", str(tmp_path)]) == 0
    assert "lambda_0_bit_identical" in capsys.readouterr().out
    rows = load(tmp_path / "tiny" / "findings")
    assert {row["how"] for row in rows} == {"python -m train.studies frozen tiny"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_without_its_stages_names_the_command(name, tmp_path, capsys):
    assert command.main([name, "tiny", "--runs", str(tmp_path)]) == 1
    assert "there is no run" in capsys.readouterr().err
    (tmp_path / "tiny").mkdir()
    assert command.main([name, "tiny", "--runs", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "python -m train" in message or "[studies]" in message
    assert load_study(name).__doc__.startswith("Yield")
    assert not (tmp_path / "tiny" / "findings").exists()


def test_a_table_has_one_line_per_system_split_and_setting(root):
    at = run(root)
    lines = table(
        [
            at.finding("lm", "B", "kl", {"value": 0.25, "n": 4, "low": 0.125, "high": 0.5}, k=8),
            at.finding("lm", "B", "js", 123456.7, k=8),
            at.finding("knn", "B", "js", 1),
        ]
    )
    assert lines[1].endswith("k 8      0.25 [0.125, 0.5]  123,457")
    assert len(lines) == 3 and lines[0].split() == ["system", "split", "setting", "kl", "js"]


def test_a_missing_stage_is_named_with_its_command(tmp_path):
    with pytest.raises(MlpMemError, match=r"python -m train memory tiny"):
        run(tmp_path).manifest("memory")
