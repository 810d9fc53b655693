"""Fill the READMEs' sentences: their numbers come from findings and are never typed.

A template in train/readme is Markdown with placeholders:

    {imitation memory B kl: .3f}                       study, system, split, metric, and the format
    {routing memory B/test exact_match lmbda=auto: %}  with a setting; "%" and ".1%" are per cent
    {compute lora B/test exact_match "label=a b": %}   a setting with spaces stands in quotes
    {best mixing knn B perplexity k=512: .2f}          the least of several; {most ...}: the largest
    {cost lm systems in_memory: MB}                    bytes as megabytes
    {imitation memory B kl: n}                         how many tokens or questions were measured
    {system auto B/test: .1%}                          of the main table, or of a tuned decoder
    {how imitation}   {table update}   {table cost 2}  the command; a study's tables, or the second

Text that begins with {if STUDY}, {if STUDY METRIC} or {if STUDY SYSTEM} is left out until that is
measured. It ends at the next empty line, list item or {if}. Any other placeholder must match
exactly one finding.
"""

import re
import shlex
from collections.abc import Sequence

from mlpmem.errors import MlpMemError
from mlpmem.results.charts import tables
from mlpmem.results.findings import Found, read
from mlpmem.results.questions import questions

PLACE = re.compile(r"\{([^{}]+)\}")
ONLY = re.compile(r"\{if ([^\s{}]+)(?: ([^\s{}]+))?\}")


def filled(template: str, results: dict) -> str:
    """Return a template filled from a results.json; MlpMemError if a figure is missing."""
    rows, lines, shown = read(results), [], True
    for line in template.splitlines():
        if condition := ONLY.match(line):
            shown = any(_is_about(row, *condition.groups()) for row in rows)
            line = line[condition.end() :]
        elif not line or line.startswith("- "):
            shown = True
        if shown:
            lines.append(PLACE.sub(lambda place: _rendered(place[1], rows, results), line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with its numbers aligned right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def _is_about(row: Found, study: str, metric_or_system: str | None) -> bool:
    return row.study == study and metric_or_system in (None, row.metric, row.system)


def _rendered(place: str, rows: list[Found], results: dict) -> str:
    """Return the text of a placeholder."""
    kind, *rest = place.split()
    if kind == "how":
        return f"`{_how(place, rest, rows)}`"
    if kind == "table":
        return _tables(place, rest, results)
    name, _, form = place.partition(":")
    terms = shlex.split(name)
    if kind == "system":
        return _percent(_share(place, terms[1], terms[2], results), form.strip())
    pick = {"best": min, "most": max}.get(terms[0])
    matches = _matches(terms[1:] if pick else terms, rows)
    if not matches or len(matches) > 1 and not pick:
        raise MlpMemError(
            f"README: {{{place}}} must match one finding; got {len(matches)} findings. Correct the "
            "template in train/readme, or measure it and put the findings into the bundle"
        )
    return _number((pick or min)(matches, key=lambda row: row.value), form.strip())


def _matches(terms: list[str], rows: list[Found]) -> list[Found]:
    """Return the findings of a study, system, split, metric and settings."""
    plain = tuple(word for word in terms if "=" not in word)
    setting = dict(word.split("=", 1) for word in terms if "=" in word)
    return [
        row
        for row in rows
        if (row.study, row.system, row.split, row.metric) == plain
        and all(_text(row.setting.get(key)) == value for key, value in setting.items())
    ]


def _text(value: object) -> str:
    """Return a setting as templates write it: 512, 0.5, auto."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(row: Found, form: str) -> str:
    """Return a finding's value, or the number of its questions or tokens, in a format."""
    if form == "n":
        return f"{row.n:,}"
    if form == "MB":
        return f"{row.value / 1e6:,.0f}"
    return _percent(row.value, form) if form.endswith("%") else format(row.value, form)


def _percent(share: float, form: str) -> str:
    return format(100 * share, f"{form[:-1] or '.0'}f") + " %"


def _share(place: str, name: str, cell: str, results: dict) -> float:
    """Return the share (0..1) of a cell that a system or a tuned decoder answers."""
    for row in results.get("systems", ()):
        if row["name"] == name and cell in row["accuracy"]:
            count = row["accuracy"][cell]
            return count["right"] / max(1, count["n"])
    for row in results.get("forgetting", ()):
        if row["name"] == name and cell.replace("/", "_") in row:
            return row[cell.replace("/", "_")]
    raise MlpMemError(f"README: the table has no {{{place}}}; correct the template")


def _how(place: str, terms: list[str], rows: list[Found]) -> str:
    """Return the command that measured a study."""
    for row in rows:
        if [row.study] == terms and row.how:
            return row.how
    raise MlpMemError(
        f"README: no finding matches {{{place}}}; measure it, or remove it from the template"
    )


def _tables(place: str, terms: list[str], results: dict) -> str:
    """Return a study's tables in Markdown, or only one of them, numbered from 1."""
    study, *number = terms
    chosen = [t for q in questions(results) if q.study == study for t in tables(q.charts)]
    if number:
        chosen = chosen[int(number[0]) - 1 : int(number[0])]
    if not chosen:
        raise MlpMemError(f"README: {{{place}}} has no table to show; measure {study} first")
    return "\n".join(markdown(*table) for table in chosen).rstrip()
