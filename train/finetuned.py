"""Stage finetuned: the same decoder trained on the facts instead of given a memory, to compare."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from mlpmem.decoder import Decoder
from mlpmem.documents import Documents, join_passages
from train.decoder import finetune
from train.grid import Sources
from train.launch import die_with_parent
from train.loop import used_seconds
from train.measure import Test, shares
from train.recipe import Decoder as DecoderRecipe
from train.recipe_file import fill
from train.stage import Context, finished_manifest, read_json, write_json


def compare_finetuned(context: Context) -> dict:
    """Return counts; writes finetuned.json: what each decoder learned and what it forgot.

    On a CPU several settings are trained at once, a thread each. Every finished one is kept, so a
    killed run goes on after it.
    """
    workers = 1 if torch.cuda.is_available() else context.config.processes
    kind = finished_manifest(context.inputs["corpus"])["config"]["kind"]
    # A text corpus has one group, which its decoder was trained on: nothing to learn or forget.
    settings = context.config.settings if kind == "atlas" else ()
    with ProcessPoolExecutor(workers, get_context("spawn"), die_with_parent) as pool:
        rows = list(pool.map(_kept_or_made, [context] * len(settings), settings))
    write_json(context.folder / "finetuned.json", rows)
    return {"settings": len(rows)}


def _kept_or_made(context: Context, setting: tuple[str, float, int]) -> dict:
    """Return one setting's row, read if a killed run had finished it."""
    groups, lr, epochs = setting
    name = f"{groups}_{lr:g}_{epochs}"
    path = context.folder / f"{name}.json"
    if not path.is_file():
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        write_json(path, _made(context, name, *setting))
    return read_json(path)


def _made(context: Context, name: str, groups: str, lr: float, epochs: int) -> dict:
    """Return one setting's measurements: trained from the decoder, measured alone."""
    started = time.perf_counter()
    torch.manual_seed(context.seed)
    manifest = finished_manifest(context.inputs["decoder"])["config"]
    recipe = fill(DecoderRecipe, {k: v for k, v in manifest.items() if k != "seed"}, "decoder")
    documents = Documents.load(context.inputs["corpus"] / "memory")
    decoder = Decoder.load(context.inputs["decoder"])
    model = decoder.model.requires_grad_(True).to(getattr(torch, recipe.dtype))
    checkpoint = context.folder / f"{name}.safetensors"
    earlier = used_seconds(checkpoint)
    finetune(model, _of_groups(documents, groups.split("+")), recipe, lr, epochs, checkpoint)
    checkpoint.unlink()
    corpus, most = context.inputs["corpus"], context.config.questions
    test = Test.load(corpus, decoder.tokenizer, most, context.seed)
    seconds = earlier + time.perf_counter() - started
    model.float().requires_grad_(False)
    measured = test.measure(Sources(decoder))
    plural = "s" * (epochs > 1)
    return {
        "name": f"finetuned_{name}",
        "label": f"decoder fine-tuned on {groups}, lr {lr:g}, {epochs} epoch{plural}",
        "groups": groups,
        "lr": lr,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        **shares(measured.accuracy("lm", 0.0)),
        **{f"ppl_{g}": p for g, p in measured.perplexity("lm", 0.0).items()},
    }


def _of_groups(documents: Documents, groups: list[str]) -> Documents:
    """Return the passages of some groups."""
    mine = np.isin(np.array(documents.groups)[documents.document_of], groups)
    pairs = [
        (int(documents.document_of[p]), documents.passage(p).tolist()) for p in np.flatnonzero(mine)
    ]
    return join_passages(pairs, documents.titles, documents.groups)
