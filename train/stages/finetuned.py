"""Stage finetuned: the decoder fine-tuned on the facts instead of using a memory, for comparison.

It tries full fine-tuning and LoRA, and keeps the weights of the best setting of each.
"""

import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import add_adapter, load_adapter, save_adapter
from mlpmem.retrieval.documents import Documents, join_passages
from train.config.load import fill
from train.config.tables import DecoderConfig
from train.files import read_json, write_json
from train.fit.checkpoint import discard, used_seconds
from train.fit.workers import detach_from_launcher
from train.measure.atlas import CHOOSING, GROUPS, MeasuredModel, Test, shares
from train.run.kinds import kind_of
from train.run.machine import peak_memory
from train.run.stage import StageContext, finished_manifest
from train.stages.decoder import finetune, save

Setting = tuple[str, float, int, int]  # groups, learning rate, epochs, rank (0: all weights)


def compare_finetuned(context: StageContext) -> dict:
    """Return counts; writes finetuned.json: what each decoder learned and forgot.

    It also keeps the best full decoder (a folder in half precision) and the best adapter. On a CPU
    several settings train at once, one thread each. A killed run resumes after the last finished
    setting.
    """
    config = context.config
    workers = 1 if torch.cuda.is_available() else config.processes
    # A corpus without questions has one group, which the decoder has learned already.
    has_questions = kind_of(context.inputs["corpus"]).has_questions
    settings = [(*s, 0) for s in config.settings] + list(config.lora) if has_questions else []
    with ProcessPoolExecutor(workers, get_context("spawn"), detach_from_launcher) as pool:
        finished = list(pool.map(_run_setting, [context] * len(settings), settings))
    rows = [row for row, _ in finished]
    write_json(context.folder / "finetuned.json", rows)
    peak = sum(sorted(used for _, used in finished)[-workers:])
    kept = keep_best(context.folder, rows)
    return {"settings": len(rows), "kept": kept, "workers_memory": peak}


def keep_best(folder: Path, rows: list[dict]) -> list[str]:
    """Return the best full and the best LoRA setting; delete the weights of all others.

    The best has the highest accuracy on dev wordings, averaged over new and old groups.
    """
    kept = []
    for lora in (False, True):
        alike = [row for row in rows if bool(row["rank"]) == lora]
        if alike:
            best = max(alike, key=lambda row: np.mean([row[f"{g}_{CHOOSING}"] for g in GROUPS]))
            kept.append(best["name"])
    for row in rows:
        if row["name"] not in kept:
            shutil.rmtree(folder / row["name"], ignore_errors=True)
    return kept


def _run_setting(context: StageContext, setting: Setting) -> tuple[dict, int]:
    """Return a setting's row, trained unless an earlier run did, and this process's peak bytes."""
    path = context.folder / f"{name_of(setting)}.json"
    if not path.is_file():
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        write_json(path, _measure(context, setting))
    return read_json(path), peak_memory()


def name_of(setting: Setting) -> str:
    """Return a setting's name: "finetuned_B_0.001_4", "lora_A1+B_0.002_2_32"."""
    groups, lr, epochs, rank = setting
    return (
        f"lora_{groups}_{lr:g}_{epochs}_{rank}" if rank else f"finetuned_{groups}_{lr:g}_{epochs}"
    )


def _measure(context: StageContext, setting: Setting) -> dict:
    """Return a setting's row: the decoder is fine-tuned, then measured without memory."""
    started = time.perf_counter()
    groups, lr, epochs, rank = setting
    name, corpus = name_of(setting), context.inputs["corpus"]
    torch.manual_seed(context.seed)
    documents = _in_groups(Documents.load(corpus / "memory"), groups.split("+"))
    checkpoint = context.folder / f"{name}.safetensors"
    earlier = used_seconds(checkpoint)
    decoder = _train(context, documents, setting, checkpoint)
    discard(checkpoint)
    test = Test.load(corpus, decoder.tokenizer, context.config.questions, context.seed)
    seconds = earlier + time.perf_counter() - started
    measured = test.measure(MeasuredModel(decoder))
    parameters = sum(p.numel() for p in decoder.model.parameters())
    plural = "s" * (epochs > 1)
    how = f"with LoRA of rank {rank}" if rank else "fine-tuned"
    return {
        "name": name,
        "label": f"decoder {how} on {groups}, lr {lr:g}, {epochs} epoch{plural}",
        "groups": groups,
        "lr": lr,
        "epochs": epochs,
        "rank": rank,
        "seconds": round(seconds, 1),
        # forward and backward; with LoRA the frozen weights get no gradient
        "flops": (4.0 if rank else 6.0) * parameters * epochs * len(documents.tokens),
        **shares(measured.accuracy("lm", 0.0)),
        **{f"ppl_{g}": p for g, p in measured.perplexity("lm", 0.0).items()},
    }


def _train(
    context: StageContext, documents: Documents, setting: Setting, checkpoint: Path
) -> Decoder:
    """Return the fine-tuned decoder; writes its weights, or its adapter's, into a folder."""
    _, lr, epochs, rank = setting
    manifest = finished_manifest(context.inputs["decoder"])["config"]
    recipe = fill(DecoderConfig, {k: v for k, v in manifest.items() if k != "seed"}, "decoder")
    decoder = Decoder.load(context.inputs["decoder"])
    model = decoder.model.requires_grad_(True).to(getattr(torch, recipe.dtype))
    wrapped = add_adapter(model, rank) if rank else None
    finetune(model, documents, recipe, lr, epochs, checkpoint)
    folder = context.folder / name_of(setting)
    if wrapped is None:
        save(model, decoder.tokenizer, folder)
        return Decoder.load(folder)
    save_adapter(wrapped, folder)
    return load_adapter(Decoder.load(context.inputs["decoder"]), folder)


def _in_groups(documents: Documents, groups: list[str]) -> Documents:
    """Return the passages of some groups."""
    mask = np.isin(np.array(documents.groups)[documents.document_of], groups)
    pairs = [
        (int(documents.document_of[p]), documents.passage(p).tolist()) for p in np.flatnonzero(mask)
    ]
    return join_passages(pairs, documents.titles, documents.groups)
