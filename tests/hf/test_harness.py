"""EleutherAI's harness, unchanged, gives the same results as our own scoring."""

import json
import math
from pathlib import Path

import pytest
import tiny

from mlpmem.hf.model import MlpMemoryForCausalLM

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = [
    ("The capital of Peru is", ["Lima", "Au", "a town"], 0),
    ("Gold has the symbol", ["Lima.", "Au", "hills"], 1),
    ("Vellmar is an invented", ["symbol", "cafe", "town"], 2),
    ("Question: What is the capital of Peru? Answer:", ["small", "Lima", "Au"], 1),
]
TEXTS = ["The capital of Peru is Lima.", "Vellmar is small. 金", "Gold has hills; Peru is a town."]
TASKS = """
task: ours_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
---
task: ours_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rolling.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""


def write_tasks(folder: Path) -> None:
    questions = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    kinds = {"choice": questions, "rolling": [{"text": text} for text in TEXTS]}
    texts = TASKS.format(folder=folder.as_posix()).split("---")
    for (name, rows), text in zip(kinds.items(), texts, strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def nll_after(model, system: str, lmbda: float, context: list[int], text: str) -> float:
    """Return the nll of a text's tokens after a context, in nats."""
    ids = model.decoder.tokenizer.encode(text, add_special_tokens=False)
    return float(model.score([*context, *ids]).mixed(system, lmbda)[len(context) - 1 :].sum())


@pytest.mark.parametrize("system", ["memory", "knn"])
def test_perplexity_and_choices_of_lm_eval_equal_ours(system, tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path)
    model, lmbda = tiny.model(), 0.6
    MlpMemoryForCausalLM.of(model, system, lmbda).save_pretrained(tmp_path / "fused")
    results = lm_eval.simple_evaluate(
        model=HFLM(str(tmp_path / "fused"), device="cpu", batch_size=2, add_bos_token=False),
        tasks=["ours_choice", "ours_rolling"],
        task_manager=lm_eval.tasks.TaskManager(
            include_path=str(tmp_path), include_defaults=False, verbosity="ERROR"
        ),
        bootstrap_iters=0,
    )
    words, start = model.decoder.tokenizer, [model.decoder.tokenizer.bos_token_id]
    nll = sum(nll_after(model, system, lmbda, start, text) for text in TEXTS)
    rolling, choice = (results["results"][f"ours_{kind}"] for kind in ("rolling", "choice"))
    size = sum(len(text.encode()) for text in TEXTS)
    assert rolling["byte_perplexity,none"] == pytest.approx(math.exp(nll / size), rel=1e-4)
    correct = 0
    for sample, (question, choices, answer) in zip(
        results["samples"]["ours_choice"], QUESTIONS, strict=True
    ):
        context = words.encode(question, add_special_tokens=False)
        ours = [-nll_after(model, system, lmbda, context, f" {text}") for text in choices]
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
        correct += max(range(3), key=ours.__getitem__) == answer
    assert choice["acc,none"] == pytest.approx(correct / len(QUESTIONS))
