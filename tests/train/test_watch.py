"""A run stops where its loss is no number or stays far too high, and says at which step."""

import pytest
import torch

from mlpmem.errors import MlpMemError
from train.fit.loop import PATIENCE, WINDOW, Watch


def feed(watch, losses, first=0, rows=4.0):
    """Give the watch one step a loss, each a mean over `rows` rows."""
    for step, loss in enumerate(losses, first):
        counts = torch.tensor([rows, rows * loss, rows * loss / 2, 0, 0, 0, 0, 1.5])
        watch.add(step, counts, ["loss", "ce"])
    watch.look()


def test_figures_are_means_over_rows_and_the_norm():
    watch = Watch([])
    feed(watch, [6.0, 3.0])
    assert watch.figures == {"loss": 3.0, "ce": 1.5, "norm": 1.5}
    assert watch.rows == 8.0


def test_a_step_is_looked_at_when_the_next_one_is_under_way():
    watch = Watch([])
    watch.add(0, torch.tensor([1.0, float("nan"), 0.0]), ["loss"])
    with pytest.raises(MlpMemError, match="step 1: the loss is no number"):
        watch.add(1, torch.tensor([1.0, 2.0, 0.0]), ["loss"])


def test_a_loss_far_above_its_median_for_several_steps_stops_the_run():
    watch = Watch([])
    feed(watch, [3.0] * WINDOW)
    with pytest.raises(
        MlpMemError, match=rf"step {WINDOW + PATIENCE}: .*from step {WINDOW + 1} on"
    ):
        feed(watch, [30.0] * 100, WINDOW)


def test_a_spike_of_fewer_steps_passes_and_is_forgotten():
    watch = Watch([])
    feed(watch, [3.0] * WINDOW + ([30.0] * (PATIENCE - 1) + [3.0]) * 5)
    assert watch.high == 0 and max(watch.usual) == 3.0


def test_a_high_loss_is_no_spike_before_there_is_a_usual_one():
    feed(Watch([]), [1.0] * (WINDOW - PATIENCE) + [50.0] * PATIENCE)


def test_the_usual_losses_of_a_killed_run_count_in_the_next():
    before = Watch([])
    feed(before, [2.0] * WINDOW)
    with pytest.raises(MlpMemError, match="far above the 2.000 it was"):
        feed(Watch(list(before.usual)), [20.0] * PATIENCE)
