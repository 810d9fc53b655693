"""Stage finetuned: the same decoder trained on the facts instead of given a memory, to compare.

In full or by LoRA. The weights of the best setting of either kind are kept, so that it can answer
beside the others.
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
from train.fit.loop import used_seconds
from train.fit.workers import come_apart
from train.measure.atlas import CHOOSING, GROUPS, MeasuredModel, Test, shares
from train.run.kinds import kind_of
from train.run.machine import peak_memory
from train.run.stage import StageContext, finished_manifest
from train.stages.decoder import finetune, save

Setting = tuple[str, float, int, int]  # groups, learning rate, epochs, rank (0: all weights)


def compare_finetuned(context: StageContext) -> dict:
    """Return counts; writes finetuned.json: what each decoder learned and what it forgot.

    Beside it stand the weights of the best of each kind: a decoder's folder in half precision, an
    adapter's folder. On a CPU several settings are trained at once, a thread each. Every finished
    one is kept, so a killed run goes on after it.
    """
    config = context.config
    workers = 1 if torch.cuda.is_available() else config.processes
    # Without questions there is one group, which the decoder was trained on: nothing to learn.
    asks = kind_of(context.inputs["corpus"]).asks
    settings = [(*s, 0) for s in config.settings] + list(config.lora) if asks else []
    with ProcessPoolExecutor(workers, get_context("spawn"), come_apart) as pool:
        made = list(pool.map(_kept_or_made, [context] * len(settings), settings))
    rows = [row for row, _ in made]
    write_json(context.folder / "finetuned.json", rows)
    used = sum(sorted(peak for _, peak in made)[-workers:])
    kept = keep_best(context.folder, rows)
    return {"settings": len(rows), "kept": kept, "workers_memory": used}


def keep_best(folder: Path, rows: list[dict]) -> list[str]:
    """Return the names of the best full and the best LoRA setting; the others' weights go.

    Best is the mean accuracy on dev wordings over the groups: what was learned and what was kept.
    """
    kept = []
    for lora in (False, True):
        mine = [row for row in rows if bool(row["rank"]) == lora]
        if mine:
            best = max(mine, key=lambda row: np.mean([row[f"{g}_{CHOOSING}"] for g in GROUPS]))
            kept.append(best["name"])
    for row in rows:
        if row["name"] not in kept:
            shutil.rmtree(folder / row["name"], ignore_errors=True)
    return kept


def _kept_or_made(context: StageContext, setting: Setting) -> tuple[dict, int]:
    """Return one setting's row, read if a killed run had finished it, and this process's peak."""
    path = context.folder / f"{name_of(setting)}.json"
    if not path.is_file():
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        write_json(path, _made(context, setting))
    return read_json(path), peak_memory()


def name_of(setting: Setting) -> str:
    """Return a setting's name: "finetuned_B_0.001_4", "lora_A1+B_0.002_2_32"."""
    groups, lr, epochs, rank = setting
    return (
        f"lora_{groups}_{lr:g}_{epochs}_{rank}" if rank else f"finetuned_{groups}_{lr:g}_{epochs}"
    )


def _made(context: StageContext, setting: Setting) -> dict:
    """Return one setting's measurements: trained from the decoder, measured alone."""
    started = time.perf_counter()
    groups, lr, epochs, rank = setting
    name, corpus = name_of(setting), context.inputs["corpus"]
    torch.manual_seed(context.seed)
    documents = _of_groups(Documents.load(corpus / "memory"), groups.split("+"))
    checkpoint = context.folder / f"{name}.safetensors"
    earlier = used_seconds(checkpoint)
    decoder = _trained(context, documents, setting, checkpoint)
    checkpoint.unlink()
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
        # forward and backward; an adapter's own weights are few, the others get no gradient
        "flops": (4.0 if rank else 6.0) * parameters * epochs * len(documents.tokens),
        **shares(measured.accuracy("lm", 0.0)),
        **{f"ppl_{g}": p for g, p in measured.perplexity("lm", 0.0).items()},
    }


def _trained(
    context: StageContext, documents: Documents, setting: Setting, checkpoint: Path
) -> Decoder:
    """Return the decoder trained on documents, its weights (or its adapter's) in its own folder."""
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


def _of_groups(documents: Documents, groups: list[str]) -> Documents:
    """Return the passages of some groups."""
    mine = np.isin(np.array(documents.groups)[documents.document_of], groups)
    pairs = [
        (int(documents.document_of[p]), documents.passage(p).tolist()) for p in np.flatnonzero(mine)
    ]
    return join_passages(pairs, documents.titles, documents.groups)
