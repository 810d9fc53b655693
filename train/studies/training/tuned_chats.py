"""What does a chat model answer after fine-tuning on the memory's chats, for the memory's compute?

Each setting of [studies] `tuned` trains all weights, or LoRA, on what the memory learned from: the
chats, of which answers alone are targets, and the decoder's own answers to what must stay as it is.
It has the FLOP of keys, targets and memory together, and at most its own epochs. What is measured
are whole answers, as in the study "chats"; the setting's groups are not used.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from mlpmem.api import Model
from mlpmem.engine.systems import ModelSystem
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import WEIGHTS as ADAPTER
from mlpmem.model.lora import add_adapter, load_adapter, save_adapter
from mlpmem.retrieval.documents import Documents, join_documents
from train.files import print_line
from train.fit.checkpoint import discard
from train.measure.findings import Finding
from train.run.needs import needs
from train.stages.decoder import finetune, save
from train.studies.chats import answers, asked, kept
from train.studies.run import Run
from train.studies.training.compute import STAGES

Setting = tuple[str, float, int, int]  # groups, learning rate, epochs, rank (0: all weights)


def tuned_chats(run: Run) -> Iterator[Finding]:
    """Yield answers by cell, requests left unchanged and perplexity of every tuned decoder."""
    if run.kind.name != "chat" or not run.config.tuned:
        raise MlpMemError(
            f'tuned: recipe {run.recipe.name} must have [corpus] kind = "chat" and in [studies] a '
            'list tuned = [["all", learning rate, epochs, rank], ...], rank 0 for all weights'
        )
    rows, prompts = asked(run)
    for setting in run.config.tuned:
        _, lr, epochs, rank = setting
        decoder = tuned_decoder(run, setting)
        name = "lora" if rank else "finetuned"
        how = {"lr": lr, "epochs": epochs} | ({"rank": rank} if rank else {})
        system = ModelSystem(Model(decoder), "lm", None, name)
        yield from answers(run, name, system, rows, prompts, how)
        plain = ModelSystem(Model(run.decoder), "lm", None)
        found = kept(run, {"lm": (plain, {}), name: (system, how)})
        yield from (finding for finding in found if finding.system == name)


def tuned_decoder(run: Run, setting: Setting) -> Decoder:
    """Return a tuned decoder; it is trained unless an earlier run did."""
    _, lr, epochs, rank = setting
    folder = run.root / "studies" / "tuned" / f"{lr:g}_{epochs}_{rank}"
    checkpoint = folder.with_name(f"{folder.name}.safetensors")  # a name has a point of its own
    if not (folder / (ADAPTER if rank else "model.safetensors")).is_file():
        _train(run, setting, folder, checkpoint)
    discard(checkpoint)
    base = Decoder.load(run.root / "decoder")
    return load_adapter(base, folder) if rank else Decoder.load(folder)


def _train(run: Run, setting: Setting, folder: Path, checkpoint: Path) -> None:
    """Fine-tune the decoder and write its weights, or its adapter's, into a folder."""
    _, lr, epochs, rank = setting
    decoder = Decoder.load(run.root / "decoder")
    config = replace(run.recipe.decoder, batch=run.config.update_batch)
    torch.manual_seed(run.recipe.seed)
    model = decoder.model.requires_grad_(True).to(getattr(torch, config.dtype))
    # forward and backward; with LoRA the frozen weights get no gradient
    flop_per_token = (4.0 if rank else 6.0) * sum(p.numel() for p in model.parameters())
    needed = needs(run.recipe, run.root)
    most = int(sum(needed[stage].flops for stage in STAGES) / flop_per_token)
    wrapped = add_adapter(model, rank) if rank else None
    corpus = run.root / "corpus"
    texts = join_documents(*map(Documents.load, (corpus / "memory", corpus / "kept" / "train")))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    print_line(f"tuned: {most} tokens at most, {len(texts.tokens)} in a pass")
    finetune(model, texts, config, lr, epochs, checkpoint, most)
    if wrapped is None:
        save(model, decoder.tokenizer, folder)
    else:
        save_adapter(wrapped, folder)
