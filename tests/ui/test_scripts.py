"""The page's scripts: modules whose imports run downwards, bundled, typed and linted."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlpmem.engine.trace import _PLAIN, Step
from mlpmem.ui import modules
from mlpmem.ui.components import STATIC

# imports run to the left
ROOMS = ("core", "live", "drawer", "view", "circuit", "tools", "tabs", "chat", "site")
PAGES = ("main.js", "site.js")
ENTRIES = (*PAGES, "worker.js")
TOOLS = Path(__file__).parents[1] / "js"
MODULES = sorted(STATIC.rglob("*.js"))
TEXTS = {path: path.read_text("utf-8") for path in MODULES}


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.js").write_text(text + "\n", "utf-8")
    return folder / "main.js"


def floor(path: Path) -> int:
    room = path.relative_to(STATIC).parts[0]
    return len(ROOMS) if room in ENTRIES else ROOMS.index(room)


def run(script: str) -> str:
    node = shutil.which("node") or pytest.skip("node is not installed")
    return subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout


def test_a_bundle_runs_each_module_once_after_its_imports(tmp_path):
    entry = write(
        tmp_path,
        main='import { b } from "./b.js";\nimport { a } from "./a.js";\n'
        'console.log("main", a, b());',
        b='// @ts-check\nimport { a } from "./a.js";\nconsole.log("b");\nconst own = 2;\n'
        "/* a comment */\nexport function b() {\n  return a + own;\n}",
        a='console.log("a");\nconst own = 1;\nexport const a = own; // kept\nexport class C {}',
    )
    script = modules.bundle(entry)
    assert "a comment" not in script and "kept" in script
    assert run(script).split("\n") == ["a", "b", "main 1 3", ""]


def test_circular_imports_and_unknown_forms_are_errors(tmp_path):
    entry = write(
        tmp_path, main='import { a } from "./a.js";', a='import { a as b } from "./main.js";'
    )
    with pytest.raises(ValueError, match="a.js: the bundler does not know 'import { a as b }"):
        modules.bundle(entry)
    for text in ("export default 1;", "export { x };", "export let x = 1;", 'import "./a.js";',
                 'import * as a from "./a.js";'):  # fmt: skip
        with pytest.raises(ValueError, match="does not know"):
            modules.bundle(write(tmp_path, main=text))
    write(tmp_path, a='import { b } from "./main.js";\nexport const a = 1;')
    with pytest.raises(ValueError, match="circle: main.js -> a.js -> main.js"):
        modules.bundle(write(tmp_path, main='import { a } from "./a.js";\nexport const b = 1;'))


def test_every_module_belongs_to_an_entry_and_every_export_is_imported():
    reached, imported = set(), {}
    waiting = [STATIC / name for name in ENTRIES]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        waiting += modules.imports(path, TEXTS[path])
        for other, found in zip(
            modules.imports(path, TEXTS[path]), modules.IMPORT.findall(TEXTS[path]), strict=True
        ):
            imported.setdefault(other, set()).update(found[0].split(", "))
    assert reached == set(MODULES)
    typed = set(re.findall(r'import\("[\w./]+"\)\.(\w+)', "".join(TEXTS.values())))
    typed |= set(re.findall(r"import type \{ (\w+) \}", (STATIC / "core/types.d.ts").read_text()))
    for test in TOOLS.glob("*.test.mjs"):  # pure functions that a test calls
        for names, place in re.findall(r'^import \{ (.+) \} from "(.+)";$', test.read_text(), re.M):
            if place.startswith("."):
                imported.setdefault((TOOLS / place).resolve(), set()).update(names.split(", "))
    for path, text in TEXTS.items():
        unused = set(modules.EXPORT.findall(text)) - imported.get(path, set()) - typed
        assert not unused, f"{path.name} has unused exports: {unused}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_a_module_is_type_checked_imports_downwards_and_sets_no_global(path):
    text = TEXTS[path]
    assert text.startswith("// @ts-check\n/* "), "it begins with @ts-check and a description"
    for other in modules.imports(path, text):
        assert floor(other) <= floor(path), f"{path.name} imports {other.name} from above"
        assert other.name not in ENTRIES
    assert not re.search(r"\bimport[(.]", modules.COMMENT.sub("", text)), "no dynamic imports"
    shared = re.findall(r"(?:window|globalThis|self)\.(\w+) \??\|?\|?= ", text)
    assert shared == (["MLPMEM"] if path.name in PAGES else [])
    assert path.name in PAGES or "MLPMEM" not in text


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_fits_into_one_inline_script(entry):
    script = modules.bundle(STATIC / entry)
    assert "</script" not in script and ("window.MLPMEM = " in script) is (entry in PAGES)


def test_scripts_offer_every_function_that_python_calls():
    (exported,) = re.findall(r"window\.MLPMEM = \{([^}]+)\}", TEXTS[STATIC / "main.js"])
    sources = [path.read_text("utf-8") for path in STATIC.parent.rglob("*.py")]
    called = set(re.findall(r"MLPMEM\.(mount\w+)\(", "".join(sources)))
    assert called == {name for name in re.findall(r"\w+", exported) if name.startswith("mount")}


def fields(name: str) -> set[str]:
    """Return the names of an interface's fields in types.d.ts."""
    text = (STATIC / "core/types.d.ts").read_text("utf-8")
    body = re.search(rf"^export interface {name}\b[^{{]*\{{\n?(.*?)\}}$", text, re.M | re.S)[1]
    return set(re.findall(r"(\w+)\??: ", re.sub(r"\{.*?\}", "", body)))


def test_the_types_match_a_traces_fields():
    step = Step(0, 1, "a", {"lm": 1.0}, [], {}, None, [], 1.0, lmbda=0.5, top=10)
    assert fields("Step") == set(step.to_dict())
    assert fields("Trace") | fields("Opening") == {"v", "steps", *_PLAIN}


@pytest.mark.parametrize("check", ["types", "lint", "unit"])
def test_types_and_lint_are_clean_and_unit_tests_pass(check):
    if not (TOOLS / "node_modules").is_dir() or not shutil.which("npm"):
        pytest.skip("no checker: npm ci --prefix tests/js")
    done = subprocess.run(
        [shutil.which("npm"), "run", "--silent", check],
        cwd=TOOLS, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
