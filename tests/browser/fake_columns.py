"""Extra columns for the page's tests: the fake model fine-tuned, and a damaged one."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

from fake import ANSWERS, Event, FakeModel

from mlpmem.errors import MlpMemError
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.ui.service.offers import Extras


class Tuned(FakeModel):
    """A fine-tuned decoder, which knows B and has forgotten the rest."""

    system, label = "lm", "decoder tuned on B"

    def _tokens(self, prompt, *rest):
        known = ANSWERS.get(prompt)
        tokens = known[3] if known and known[1] == "B" else [" Os"]
        return dict.fromkeys(("lm", "memory", "knn"), [*tokens, "</s>"])

    def stream(self, prompt, **options):
        """Yield its events as a system does; forced tokens are an error."""
        if options.get("forced"):
            raise MlpMemError("the column cannot continue from there; generate again")
        about = {"bundle": "fake", "column": "finetuned", "label": self.label}
        for event in self.only_lm(prompt, "finetuned", **options):
            values = event.values
            if event.kind == "done":
                values = {n: dataclasses.replace(t, model=about) for n, t in values.items()}
            yield Event(event.kind, values)


class FakeExtras(Extras):
    """Offers of a fine-tuned column, a damaged one, and both sources mixed."""

    def __init__(self):
        """List them."""
        tuned = ExtraColumn("finetuned", Path("tuned"), "adapter", "decoder with LoRA on B", 158.0)
        super().__init__([tuned, ExtraColumn("broken", Path("odd"), "decoder")], mixed=True)

    def _registry_of(self, model):
        def system(name):
            if name == "broken":
                raise MlpMemError("decoder: its weights are damaged; make them again")
            return Tuned(model.pace)

        return SimpleNamespace(model=model, system=system)
