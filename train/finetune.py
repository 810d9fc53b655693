"""The comparison: the same decoder fine-tuned on the facts instead of given a memory."""

import json
import time

import numpy as np
import torch

from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, join_passages
from train.decoder import finetune
from train.grid import Sources
from train.recipe import Decoder as DecoderRecipe
from train.recipe import fill
from train.stage import Context, finished_manifest, write_json


def compare_finetuned(context: Context, test) -> list[dict]:
    """Return what each fine-tuned decoder of the configuration knows and has forgotten.

    Every finished setting is kept in the stage's folder, so a killed run goes on after it.
    """
    rows = []
    for groups, lr, epochs in context.config.finetune:
        path = context.folder / f"finetuned_{groups}_{lr:g}_{epochs}.json"
        if not path.is_file():
            write_json(path, _one(context, test, groups, lr, epochs))
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    return rows


def _one(context: Context, test, groups: str, lr: float, epochs: int) -> dict:
    """Return one setting's measurements: trained from the decoder, measured alone."""
    started = time.perf_counter()
    torch.manual_seed(context.seed)
    manifest = finished_manifest(context.inputs["decoder"])["config"]
    recipe = fill(DecoderRecipe, {k: v for k, v in manifest.items() if k != "seed"}, "decoder")
    documents = Documents.load(context.inputs["corpus"] / "memory")
    decoder = Decoder.load(context.inputs["decoder"])
    model = decoder.model.requires_grad_(True).to(getattr(torch, recipe.dtype))
    checkpoint = context.folder / "finetune.safetensors"
    checkpoint.unlink(missing_ok=True)
    finetune(model, _of_groups(documents, groups.split("+")), recipe, lr, epochs, checkpoint)
    checkpoint.unlink()
    seconds = time.perf_counter() - started
    model.float().requires_grad_(False)
    measured = test.measure(Sources(decoder))
    return {
        "name": f"finetuned_{groups}_{lr:g}_{epochs}",
        "label": f"fine-tuned on {groups}, lr {lr:g}, {epochs} epoch{'s' * (epochs > 1)}",
        "groups": groups,
        "lr": lr,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        "measured": {
            "accuracy": measured.accuracy("lm", 0.0),
            "ppl": measured.perplexity("lm", 0.0),
        },
    }


def _of_groups(documents: Documents, groups: list[str]) -> Documents:
    """Return the passages of some groups."""
    mine = np.isin(np.array(documents.groups)[documents.document_of], groups)
    pairs = [
        (int(documents.document_of[p]), documents.passage(p).tolist()) for p in np.flatnonzero(mine)
    ]
    return join_passages(pairs, documents.titles, documents.groups)
