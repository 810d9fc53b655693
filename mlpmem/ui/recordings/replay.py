"""Write recorded runs as a static site: `python -m mlpmem.ui.recordings.replay FOLDER`.

It has the page's view and scripts and needs no server: it opens from a disk and from any host. With
a model's files (mlpmem/space/live.py) it also answers, in a worker of the visitor's browser.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from mlpmem.engine.trace import SOURCES
from mlpmem.errors import MlpMemError
from mlpmem.ui import components
from mlpmem.ui.door.preview import Preview
from mlpmem.ui.recordings import value
from mlpmem.ui.recordings.recorded import Recorded, read
from mlpmem.ui.recordings.rounds import rounds
from mlpmem.ui.recordings.words import chat_texts, is_atlas

STATIC = components.STATIC
TITLE, PREVIEW = "MLP Memory, live", STATIC / "preview.png"
SITE = "MLPMEM.site({});\n"


def values(recorded: Recorded, live: dict[str, Any] | None = None) -> dict:
    """Return the site's values, `Values` of static/site/desk.js; live lists a model's files."""
    form = {"chat": True} if recorded.chat_form else {}
    runs = [{**run, **recorded.known(run["prompt"]), **form} for run in recorded.comparisons]
    own = {
        "runs": runs,
        "examples": recorded.examples,
        "first": (recorded.first() or {}).get("prompt"),
        "defaults": recorded.defaults(),
        "context": recorded.context,
        "rounds": rounds(recorded),
        "systems": list(SOURCES),
        "live": live,
    }
    if live is None:
        prompts = {run["prompt"] for run in runs}
        examples = [e for e in recorded.examples if e["prompt"] in prompts]
        return {**own, "examples": examples, "questions": []}
    return {
        **own,
        "questions": recorded.questions,
        "titles": recorded.titles,
        "text": recorded.text(),
        "chat": chat_texts(recorded),
    }


def write(recorded: Recorded, folder: Path, live: dict[str, Any] | None = None) -> list[Path]:
    """Write the site into a folder and return its files; MlpMemError without a recording.

    live is the listing of a model's files that are in the folder already.
    """
    if not recorded.comparisons:
        raise MlpMemError(
            "replay: the bundle has no readable recorded run in traces/; give --bundle a folder "
            "that python -m train export wrote"
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = (STATIC / "header.html").read_text("utf-8")
    head = head.replace("<!-- value -->", value.markup(recorded))
    site = {name: (STATIC / f"site.{name}").read_text("utf-8") for name in ("html", "css")}
    picture = PREVIEW if is_atlas(recorded) else None
    texts = {
        "index.html": site["html"]
        .replace("<!-- masthead -->", head)
        .replace("<!-- preview -->", Preview(TITLE, value.plain(recorded), picture).tags(".")),
        "style.css": site["css"] + components.style(),
        "script.js": components.script("site.js"),
        "recordings.js": SITE.replace("{}", json.dumps(values(recorded, live))),
    }
    if live is not None:
        texts["worker.js"] = components.script("worker.js")
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    pictures = ("favicon.svg", *([picture.name] if picture else []))
    for name in pictures:
        shutil.copyfile(STATIC / name, folder / name)
    return [folder / name for name in (*texts, *pictures)]


def main(argv: list[str] | None = None) -> int:
    """Write the site; returns the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the site's folder")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder (default: the embedded one)")
    args = parser.parse_args(argv)
    try:
        files = write(read(args.bundle or _embedded()), args.folder)
    except (MlpMemError, OSError) as error:
        sys.stderr.write(f"mlpmem: {error}\n")
        return 2
    size = sum(path.stat().st_size for path in files)
    sys.stdout.write(f"{args.folder / 'index.html'}: {len(files)} files, {size / 1e6:.1f} MB\n")
    return 0


def _embedded() -> Path:
    """Return the embedded bundle's folder, with a late import, which is heavy."""
    from mlpmem.loading.bundle import default_bundle_path

    return default_bundle_path()


if __name__ == "__main__":
    sys.exit(main())
