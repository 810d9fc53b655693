"""Bundle the page's ES modules into one classic script, which runs inline and from file://.

A module may use two forms of module syntax, each at the start of a line: `import { a, b } from
"./x.js";` and `export const|function|class name`. Circular imports are an error. Each module
becomes a function that returns its exports, so its names are private. Comment lines are removed.
"""

import os
import re
from pathlib import Path

IMPORT = re.compile(r'^import \{ (\w+(?:, \w+)*) \} from "(\.{1,2}/[\w./-]+\.js)";$', re.M)
EXPORT = re.compile(r"^export (?=(?:const|class|(?:async )?function) (\w+))", re.M)
COMMENT = re.compile(r"^ *(?://.*|/\*(?:[^*]|\*(?!/))*\*/)\n", re.M)
LEFT = re.compile(r"^(?:import|export)\b.*", re.M)  # neither of the two forms


def bundle(entry: Path) -> str:
    """Return the script of an entry module and all its imports, imported modules first."""
    order: dict[Path, str] = {}
    _add(entry, order, ())
    names = {p: "$" + "$".join(p.relative_to(entry.parent).with_suffix("").parts) for p in order}
    parts = [_wrapped(path, text, names) for path, text in order.items()]
    return "\n".join(['(() => {\n"use strict";', *parts, "})();\n"])


def imports(path: Path, text: str) -> list[Path]:
    """Return the modules that a module imports, in order."""
    return [_imported(path, match) for match in IMPORT.finditer(text)]


def _imported(path: Path, match: re.Match) -> Path:
    """Return the path that an import statement in a module names."""
    return Path(os.path.normpath(path.parent / match[2]))


def _add(path: Path, order: dict[Path, str], above: tuple[Path, ...]) -> None:
    """Append a module to `order` after its imports; `above` is the chain of its importers."""
    if path in above:
        circle = " -> ".join(module.name for module in (*above[above.index(path) :], path))
        raise ValueError(f"modules import each other in a circle: {circle}")
    if path in order:
        return
    text = path.read_text("utf-8")
    for other in imports(path, text):
        _add(other, order, (*above, path))
    order[path] = text


def _wrapped(path: Path, text: str, names: dict[Path, str]) -> str:
    """Return a module as a function called once that returns its exports."""

    def bound(match: re.Match) -> str:
        return f"const {{ {match[1]} }} = {names[_imported(path, match)]};"

    exports = ", ".join(EXPORT.findall(text))
    body = EXPORT.sub("", IMPORT.sub(bound, COMMENT.sub("", text)))
    left = LEFT.search(body)
    if left:
        raise ValueError(f"{path.name}: the bundler does not know {left[0]!r}; see modules.py")
    return f"const {names[path]} = (() => {{\n{body}return {{ {exports} }};\n}})();"
