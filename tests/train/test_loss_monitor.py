"""A run stops at a loss that is not finite or stays far too high, and names the step."""

import pytest
import torch

from mlpmem.errors import MlpMemError
from train.fit.loop import PATIENCE, WINDOW, LossMonitor


def feed(monitor, losses, first=0, rows=4.0):
    """Add one step per loss, each a mean over `rows` rows."""
    for step, loss in enumerate(losses, first):
        counts = torch.tensor([rows, rows * loss, rows * loss / 2, 0, 0, 0, 0, 1.5])
        monitor.add(step, counts, ["loss", "ce"])
    monitor.read()


def test_figures_are_means_over_rows_and_the_norm():
    monitor = LossMonitor([])
    feed(monitor, [6.0, 3.0])
    assert monitor.figures == {"loss": 3.0, "ce": 1.5, "norm": 1.5}
    assert monitor.rows == 8.0


def test_a_step_is_checked_when_the_next_one_is_added():
    monitor = LossMonitor([])
    monitor.add(0, torch.tensor([1.0, float("nan"), 0.0]), ["loss"])
    with pytest.raises(MlpMemError, match="step 1: the loss must be finite; got .*nan"):
        monitor.add(1, torch.tensor([1.0, 2.0, 0.0]), ["loss"])


def test_a_loss_far_above_its_median_for_several_steps_stops_the_run():
    monitor = LossMonitor([])
    feed(monitor, [3.0] * WINDOW)
    with pytest.raises(
        MlpMemError, match=rf"step {WINDOW + PATIENCE}: .*from step {WINDOW + 1} on"
    ):
        feed(monitor, [30.0] * 100, WINDOW)


def test_a_spike_of_fewer_steps_passes_and_is_not_a_usual_loss():
    monitor = LossMonitor([])
    feed(monitor, [3.0] * WINDOW + ([30.0] * (PATIENCE - 1) + [3.0]) * 5)
    assert monitor.spikes == 0 and max(monitor.usual) == 3.0


def test_a_high_loss_is_not_a_spike_before_there_is_a_usual_loss():
    feed(LossMonitor([]), [1.0] * (WINDOW - PATIENCE) + [50.0] * PATIENCE)


def test_the_usual_losses_of_a_killed_run_count_in_the_resumed_run():
    before = LossMonitor([])
    feed(before, [2.0] * WINDOW)
    with pytest.raises(MlpMemError, match="above 5.000 for .* recent median is 2.000"):
        feed(LossMonitor(list(before.usual)), [20.0] * PATIENCE)
