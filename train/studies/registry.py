"""The studies by name. A new study is a function of a Run that yields findings, and a row here."""

from collections.abc import Callable, Iterator
from importlib import import_module

from train.measure.findings import Finding
from train.studies.run import Run

STUDIES = {
    "imitation": "train.studies.imitation:imitation",
    "ledger": "train.studies.ledger:ledger",
    "frozen": "train.studies.frozen:frozen",
    "cost": "train.studies.answer_cost:answer_cost",
    "chats": "train.studies.chats:chats",
    "own_text": "train.studies.own_text:own_text",
    "mixing": "train.studies.mixing:mixing",
    "worse": "train.studies.worse:worse",
    "update": "train.studies.training.update:update",
    "compute": "train.studies.training.compute:compute",
    "context": "train.studies.training.context:context",
    "domains": "train.studies.training.domains:domains",
    "sensitivity": "train.studies.training.sensitivity:sensitivity",
    "sizes": "train.studies.training.sizes:sizes",
    "tuned": "train.studies.training.tuned_chats:tuned_chats",
}


def load_study(name: str) -> Callable[[Run], Iterator[Finding]]:
    """Return a study's function, importing its module on demand."""
    module, function = STUDIES[name].split(":")
    return getattr(import_module(module), function)
