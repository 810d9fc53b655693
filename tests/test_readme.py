"""The READMEs say what the shipped results say and name files and commands that exist."""

import json
import re
import subprocess
import sys

import pytest

from train.report.__main__ import BLOCK, READMES, ROOT, blocks, fill

PAGES = (*READMES, "mlpmem/README.md", "mlpmem/space/README.md", "tests/README.md")
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in PAGES}
RESULTS = json.loads((ROOT / "assets/atlas/results.json").read_text("utf-8"))
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FIRST_SCREEN = 12_288  # bytes


@pytest.mark.parametrize("name", READMES)
def test_tables_are_those_of_the_shipped_results(name):
    assert fill(TEXTS[name], RESULTS) == TEXTS[name], "run `python -m train.report`"


def test_every_block_stands_in_one_readme():
    found = [name for text in TEXTS.values() for name in BLOCK.findall(text)]
    assert sorted(found) == sorted(blocks(RESULTS))
    assert all(text.count(": begin -->") == len(BLOCK.findall(text)) for text in TEXTS.values())


def test_readme_is_short():
    assert len(TEXTS["README.md"].encode()) <= FIRST_SCREEN


def tree() -> list[str]:
    """Return the paths of the tree in mlpmem/README.md, with "/" at the end of a room."""
    lines = TEXTS["mlpmem/README.md"].split("## The tree")[1].split("```")[1].splitlines()
    rooms, paths = [], []
    for line in filter(None, lines):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        paths.append("".join(rooms[:depth]) + name)
        rooms[depth:] = [name] if name.endswith("/") else []
    return paths


def test_every_file_and_room_of_the_tree_exists():
    paths = tree()
    assert len(paths) > 150 and len({*paths}) == len(paths)
    wrong = [p for p in paths if (ROOT / p).is_dir() != p.endswith("/") or not (ROOT / p).exists()]
    assert not wrong


def test_every_module_has_a_line_in_the_tree():
    files = [p for top in ("mlpmem", "train") for p in (ROOT / top).rglob("*.py")]
    found = {p.relative_to(ROOT).as_posix() for p in files if not p.stem.startswith("__")}
    assert not found - {*tree()}


def test_where_to_change_something_names_what_the_file_has():
    table = TEXTS["mlpmem/README.md"].split("## Where to change something")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|", table, re.MULTILINE)
    assert len(rows) >= 15
    texts = {path: (ROOT / path).read_text("utf-8") for path, _ in rows if (ROOT / path).is_file()}
    lacks = [
        (path, name)
        for path, name in rows
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", texts.get(path, ""))
    ]
    assert not lacks


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    prose = FENCED.sub("", TEXTS[page])
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose):
        assert (ROOT / page).parent.joinpath(picture).is_file(), picture
    for link in LINK.findall(prose):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent.joinpath(path) if path else ROOT / page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_paths_name_what_exists(page):
    modules = re.findall(r"python -m ((?:mlpmem|train)(?:\.\w+)*)", TEXTS[page])
    places = [ROOT / module.replace(".", "/") for module in modules]
    files = [p / "__main__.py" if p.is_dir() else p.with_suffix(".py") for p in places]
    named = r"\b(?:mlpmem|train|tests|assets)/[\w/-]+\.(?:py|md|toml|json)\b"
    files += [ROOT / path for path in re.findall(named, TEXTS[page])]
    assert not [file for file in files if not file.is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_have_at_most_thirty_words(page):
    assert not [s for s in sentences(TEXTS[page]) if len(re.findall(r"[^\W_]\S*", s)) > 30]


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's paragraphs and lists; code and links count as one word."""
    text = re.sub(r"<[^>]*>", "\n", FENCED.sub("", text))
    text = re.sub(r"`[^`]*`", "code", LINK.sub("link", text))
    text = re.sub(r"^ *[|#!].*$", "", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^ *(-|\d\.) ", "\n\n", text, flags=re.MULTILINE))
    return [s for p in paragraphs for s in re.split(r"(?<=[.!?])[)*]*\s+", " ".join(p.split()))]


def test_the_workflow_runs_the_test_command_of_readme_where_it_says():
    workflow = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    assert (
        "- run: python tests/run.py\n" in workflow and "python tests/run.py" in TEXTS["README.md"]
    )
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in workflow
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow
    assert "Python 3.11 to 3.13" in TEXTS["README.md"]


@pytest.mark.slow
def test_the_example_of_readme_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXTS["README.md"], re.MULTILINE | re.DOTALL)
    assert len(code.split("\n\n", 1)[1].splitlines()) <= 10
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    answer, texts, perplexities = run.stdout.splitlines()
    assert answer.strip().startswith("Abuja"), run.stderr
    assert "'knn': ' Abuja'" in texts
    lm, memory = map(float, perplexities.split())
    assert memory < lm
