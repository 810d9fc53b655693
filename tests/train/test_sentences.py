"""The READMEs' sentences: numbers come from findings, and a missing finding is an error."""

import json

import made_findings
import pytest

from mlpmem.errors import MlpMemError
from train.files import write_json
from train.report.__main__ import ROOT, TEMPLATES, fill, main
from train.report.sentences import filled

RESULTS = {"findings": made_findings.rows()}


def test_a_placeholder_becomes_the_finding_it_names():
    template = (
        "{routing memory B/test exact_match lmbda=auto: %}, {worse knn B nats_won: .2f}, "
        "{mixing knn B perplexity k=8 temperature=20: .3f}, {imitation lm all kl: n}, "
        "{routing lm B/seen exact_match: .1%} by {how routing}"
    )
    expected = "70 %, 1.50, 4.438, 100, 50.0 % by `python -m train.studies routing tiny`\n"
    assert filled(template, RESULTS) == expected


def test_settings_with_spaces_are_quoted_and_bytes_become_megabytes():
    fields = {"study": "compute", "system": "lora", "split": "A2/test", "metric": "exact_match",
            "how": "", "n": 1000}  # fmt: skip
    rows = [fields | {"value": v, "setting": {"label": f"LoRA, {v:g}"}} for v in (0.25, 0.5)]
    rows += [fields | {"study": "cost", "metric": "in_memory", "value": 1234.4e6, "setting": {}}]
    template = '{compute lora A2/test exact_match "label=LoRA, 0.5": %}, '
    template += "{cost lora A2/test in_memory: MB} MB"
    assert filled(template, {"findings": rows}) == "50 %, 1,234 MB\n"
    with pytest.raises(MlpMemError, match="got 0 findings"):
        filled('{compute lora A2/test exact_match "label=LoRA": %}', {"findings": rows})


def test_a_system_of_the_main_table_is_read_by_cell():
    systems = [{"name": "auto", "accuracy": {"B/test": {"n": 8, "right": 7}}}]
    results = {"systems": systems, "forgetting": [{"name": "lora", "A2_test": 0.25}]}
    assert filled("{system auto B/test: .1%} {system lora A2/test: %}", results) == "87.5 % 25 %\n"
    with pytest.raises(MlpMemError, match="the table has no {system lora B/test: %}"):
        filled("{system lora B/test: %}", results)


def test_best_and_most_choose_among_several_findings():
    assert filled("{best mixing knn B perplexity k=128: .3f}", RESULTS) == "3.025\n"
    assert float(filled("{most mixing knn B perplexity k=128: .3f}", RESULTS)) > 3.025
    with pytest.raises(MlpMemError, match="2 findings"):
        filled("{mixing knn B perplexity k=128: .3f}", RESULTS)


@pytest.mark.parametrize(
    "wrong",
    ["{worse rag B worse: %}", "{worse memory B worse k=3: %}", "{how frozen}", "{table frozen}",
     "{table cost 9}", "{nothing}"],
)  # fmt: skip
def test_a_placeholder_without_a_finding_is_an_error(wrong):
    with pytest.raises(MlpMemError, match="README"):
        filled(f"It is {wrong}.", RESULTS)


def test_text_about_unmeasured_studies_is_left_out():
    template = "{if frozen}- It {how frozen}\n  goes on.\n- Stays.\n{if worse nothing}Gone.\n\nEnd."
    assert filled(template, RESULTS) == "- Stays.\n\nEnd.\n"
    assert filled("{if worse won}a\n{if worse}b\nc", RESULTS) == "b\nc\n"
    assert filled("{if worse rag}a\n{if worse knn}b\nc", RESULTS) == "b\nc\n"


def test_gathered_studies_fill_the_template_and_a_changed_number_shows():
    template = (TEMPLATES / "asked.md").read_text("utf-8")
    later = [r for r in RESULTS["findings"] if r["study"] in ("update", "domains", "sensitivity",
                                                               "cost", "ledger")]  # fmt: skip
    text = filled(template, {"findings": later})
    assert "200 new facts" in text and "| memory of stories |" in text and "| alpha 0 |" in text
    assert "| datastore, inserted | 1 | 34 (32 to 35) |" in text and "| exact, torch |" in text
    changed = [r | {"value": 0.33} if r["system"] == "memory" else r for r in RESULTS["findings"]]
    line = "{worse memory B worse: %}"
    assert filled(line, {"findings": changed}) != filled(line, RESULTS)


def test_an_unknown_block_is_an_error_that_names_the_known_ones():
    results = json.loads((ROOT / "assets/atlas/results.json").read_text("utf-8"))
    with pytest.raises(MlpMemError, match="block nonsense has no content; use one of results, "):
        fill("<!-- nonsense: begin -->\n<!-- nonsense: end -->", results)


def test_filling_readme_undoes_changes_by_hand():
    results = json.loads((ROOT / "assets/atlas/results.json").read_text("utf-8"))
    readme = (ROOT / "assets/README.md").read_text("utf-8")
    touched = readme.replace("% of B's tokens lose", "% of B's  tokens lose")
    assert touched != readme and fill(touched, results) == readme


@pytest.mark.parametrize("name", ["nope.json", "notes.md", "other.json"])
def test_a_file_that_is_not_results_is_refused_without_a_traceback(name, tmp_path, capsys):
    (tmp_path / "notes.md").write_text("# Notes")
    write_json(tmp_path / "other.json", {"cost": 3})
    assert main([str(tmp_path / name)]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"report: {tmp_path / name} is not the results.json of a bundle (")
    assert text.count("\n") == 1
