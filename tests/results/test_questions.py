"""Reviewers' questions: every study's findings become charts, figures and tables; none, nothing."""

import json
import random
from pathlib import Path

import made_findings
import pytest

from mlpmem.results.charts import tables
from mlpmem.results.findings import read
from mlpmem.results.questions import ASKED, questions
from mlpmem.ui.figures import studies
from mlpmem.ui.panels import results
from train.studies.registry import STUDIES

ROOT = Path(__file__).parents[2]
WRONG = (None, True, -1, 0, 10**400, float("nan"), float("inf"), 1e308, -1e308, 5e-324, "",
         "x" * 999,
         [], {}, {"a": []}, "<b>${1}</b>", "a\x00", "<a href='javascript:1'>x</a>")  # fmt: skip


def asked(study):
    """Return the one question of a study, measured alone."""
    rows = [row for row in made_findings.rows() if row["study"] == study]
    (found,) = questions({"findings": rows})
    return found


def values(chart, name):
    """Return {where: value} of a chart's series."""
    (one,) = (s for s in chart.series if s.name == name)
    return {p.at: p.value for p in one.points}


@pytest.mark.parametrize("study", ASKED)
def test_every_study_has_figures_with_its_command(study):
    found = asked(study)
    assert found.study == study and found.hows == [f"python -m train.studies {study} tiny"]
    for chart in found.charts:
        drawn = studies.draw(chart)
        assert json.loads(drawn.to_json())["data"] and studies.height(chart) > 100


def test_every_study_but_the_yes_or_no_one_and_those_of_chat_models_is_asked():
    assert set(STUDIES) - set(ASKED) == {"frozen", "chats", "own_text", "tuned"}


def test_what_was_not_measured_is_not_asked():
    for nothing in (None, {}, {"findings": []}, {"findings": "x"}, {"findings": [3, None, {}]}):
        assert questions(nothing) == []
    measured = json.loads((ROOT / "assets/atlas/results.json").read_text("utf-8"))
    there = {row["study"] for row in measured["findings"]}
    assert [q.study for q in questions(measured)] == [study for study in ASKED if study in there]


def test_a_number_of_neighbours_has_its_best_temperature_and_the_memory_its_best_lambda():
    _, over_k, *others = asked("mixing").charts
    assert values(over_k, "datastore") == {
        k: pytest.approx(4 - k / 128 + 1 / 40) for k in (1, 8, 128)
    }
    assert set(values(over_k, "memory, at its best λ").values()) == {3.1}
    assert [chart.title[-2:] for chart in others] == ["A2", "A2"]


def test_what_gets_worse_stands_left_of_what_gets_better():
    shares, nats = asked("worse").charts
    points = [p for p in shares.series[0].points if p.at == "name"]
    assert [p.value for p in points] == [-30.0, 20.0]
    assert all(p.low <= p.value <= p.high for p in (*points, *nats.series[1].points))


def test_what_tuning_bought_stands_in_a_row_for_every_setting():
    flop, learned, kept = asked("compute").charts
    rows = ["memory", *(f"decoder fine-tuned on A1+B, {n} epochs" for n in (2, 7))]
    assert flop.rows == learned.rows == kept.rows == rows
    assert values(flop, "TFLOP") == pytest.approx(dict(zip(rows, (100, 200, 300), strict=True)))
    assert values(learned, "B new")["memory"] == pytest.approx(90)
    assert values(kept, "A2 new")[rows[1]] == pytest.approx(65)


def test_an_update_is_told_by_way_and_its_figures_share_the_rows():
    recalled = asked("update").charts[1]
    assert recalled.rows[3] == "datastore, inserted"
    assert recalled.rows[-1] == "decoder with LoRA, taught with replay"
    assert [one.name for one in recalled.series] == ["seen", "new", "unseen form"]


def test_a_matrix_has_the_decoder_first_and_a_row_a_memory():
    ((head, *_),) = [tables(asked("domains").charts)]
    names, rows = head
    assert names == ["perplexity", *made_findings.DOMAINS]
    assert [row[0] for row in rows][:2] == ["decoder only", "memory of encyclopedia"]
    assert rows[1][1].startswith("24.00 (21.60 to 26.40)")
    drawn = studies.draw(asked("domains").charts[0]).data[0]
    assert list(drawn.z[0]) == [0, 0, 0] and drawn.z[1][0] < 0 < drawn.z[1][1]


def test_where_search_costs_as_much_as_the_memory_is_marked():
    chart, met, *_ = asked("cost").charts
    assert sorted(p.value for p in met.series[0].points) == [40e3, 60e3, 90e3]
    assert sorted(values(chart, "as fast as the memory")) == [40e3, 60e3, 90e3]
    assert set(values(chart, "as fast as the memory").values()) == {1.0}


def test_every_system_has_its_time_and_bytes_in_one_row():
    head, rows = tables(asked("cost").charts)[-1]
    assert [row[0] for row in rows] == ["decoder", "memory", "retrieval", "mine"]
    assert len(head) == 4 and rows[0][1:] == ["9.0 (8.1 to 9.9)", "5.0 (4.5 to 5.5)", "20"]


def test_charts_of_the_same_series_are_one_table():
    ((head, rows),) = tables(asked("routing").charts)
    assert head == ["", "one λ", "auto", "oracle"]
    assert rows[1][0] == "B new, exact match, %"
    assert rows[1][1:] == ["60.0 (54.0 to 66.0)", "70.0 (63.0 to 77.0)", "90.0 (81.0 to 99.0)"]
    assert rows[-1][0] == "B text, perplexity"


def test_a_name_is_shown_as_it_is():
    rows = [row | {"split": "<b>x</b>"} for row in made_findings.domains()]
    drawn = studies.draw(questions({"findings": rows})[0].charts[0]).to_json()
    assert "<b>" not in drawn and r"lt;b" in drawn


@pytest.mark.parametrize("seed", range(4))
def test_damaged_findings_never_raise(seed):
    luck = random.Random(seed)
    rows = made_findings.rows()
    for row in luck.sample(rows, len(rows) // 2):
        within = row["setting"] if row["setting"] and luck.random() < 0.5 else row
        key = luck.choice(list(within))
        within[key] = luck.choice(WRONG)
        if luck.random() < 0.2:
            del within[key]
    for one in luck.sample(range(len(rows)), 20):
        rows[one] = luck.choice(WRONG)
    for question in questions({"findings": rows}):
        for chart in question.charts:
            studies.draw(chart).to_json()
        assert all(
            len(row) <= len(head) for head, row_s in tables(question.charts) for row in row_s
        )


def test_an_interval_that_does_not_hold_its_value_is_dropped():
    row = made_findings.row("mixing", "knn", "B", "perplexity", 3.0) | {"low": 4.0}
    (found,) = read({"findings": [row]})
    assert (found.value, found.low, found.high) == (3.0, None, None)


def test_a_number_of_keys_that_cannot_be_is_left_out_of_a_logarithmic_axis():
    keys = (-5.0, 0.0, *(10.0**i for i in range(8)))
    rows = [made_findings.row("cost", "flat-fp32", "search", "ms_per_query", 2.0, keys=k)
            for k in keys]  # fmt: skip
    (chart,) = questions({"findings": rows})[0].charts
    assert list(studies.draw(chart).data[0].x) == list(keys[2:])


def test_labels_that_would_touch_on_a_phone_are_left_out():
    assert studies._apart([490e3, 1.4e6, 1.9e6, 5.9e6]) == [490e3, 1.4e6, 5.9e6]
    assert studies._apart([1.0, 10.0, 100.0]) == [1.0, 10.0, 100.0]


def test_the_tables_call_systems_by_the_pages_names():
    tuned = {"groups": "B", "lr": 0.004, "B_test": 0.98}
    shown = results._tuned({"forgetting": [tuned | {"rank": 0}, tuned | {"rank": 32.0}]})
    assert ">B</th>" in shown and ">B, LoRA of rank 32</th>" in shown
    rows = [made_findings.row("questions", name, "B/seen", "exact_match", 0.5)
            for name in ("lm", "rag", "mine")]  # fmt: skip
    shown = results._tasks({"findings": rows})
    heads = ("decoder", "decoder + retrieval", "mine")
    assert all(f'<th scope="col">{name}</th>' in shown for name in heads)


@pytest.mark.parametrize("study", ASKED)
def test_every_question_has_an_answer_in_one_sentence(study):
    answer = asked(study).answer
    assert any(letter.isdigit() for letter in answer) and 30 < len(answer) < 170
    assert answer[0].isupper() and not answer.endswith((".", "?")) and "nan" not in answer


def test_the_atlas_answers_say_what_its_numbers_say():
    measured = json.loads((ROOT / "assets/atlas/results.json").read_text("utf-8"))
    found = {q.study: q.answer.replace("\u00a0", " ") for q in questions(measured)}
    assert found["compute"].endswith("the memory has 99.1 % and 99 %")
    assert "perplexity 2.61 with the memory, 2.24 with the datastore" in found["mixing"]
    assert found["cost"] == (
        "The memory is faster from 10,000 to 130,000 keys on, by the kind of search"
    )
    assert "does more: alone, the largest has perplexity 5.39" in found["sizes"]


def test_an_answer_turns_with_its_numbers():
    def answer(rows):
        return questions({"findings": rows})[0].answer

    def routed(auto):
        row = made_findings.row
        return [row("routing", "memory", "B/test", "exact_match", value, None, lmbda=mode)
                for mode, value in (("fixed", 0.6), ("auto", auto))]  # fmt: skip

    assert "token helps: the memory has 70\u00a0% of new facts right" in answer(routed(0.7))
    assert "token does harm: " in answer(routed(0.5))
    assert "token makes no difference: " in answer(routed(0.6))
    assert answer(routed(0.7)[:1]) == "", "the other was not measured"


def test_what_is_nearly_all_is_not_called_all():
    from mlpmem.results import answers

    assert [answers._percent(x) for x in (1.0, 0.998, 0.98, 0.0)] == [
        "100\u00a0%", "99.8\u00a0%", "98\u00a0%", "0\u00a0%"]  # fmt: skip
    assert answers._change(-0.004) == "0\u00a0%" and answers._change(-0.2) == "\u221220\u00a0%"
