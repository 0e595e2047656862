"""The estimate of the time left, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from rl.observe.forecast import RECENT, Forecast

NOTHING_ELSE: dict[str, int] = {}


def step(seconds: float, **parts: float) -> dict[str, float]:
    """A step's metrics. `seconds` include its parts."""
    return {"time/step_s": seconds} | {f"time/{name}_s": took for name, took in parts.items()}


def test_the_first_step_is_all_that_is_known() -> None:
    assert Forecast(11, NOTHING_ELSE).left_after(1, step(3.0)) == 30.0


def test_the_first_step_is_forgotten_when_there_is_another() -> None:
    forecast = Forecast(10, NOTHING_ELSE)
    forecast.left_after(1, step(60.0))
    assert forecast.left_after(2, step(2.0)) == 8 * 2.0
    assert forecast.left_after(3, step(4.0)) == 7 * 3.0


def test_a_resumed_run_counts_from_the_step_that_it_goes_on_with() -> None:
    forecast = Forecast(100, NOTHING_ELSE)
    assert forecast.left_after(91, step(5.0)) == 9 * 5.0


def test_steps_that_take_turns_count_with_their_mean() -> None:
    forecast = Forecast(9, NOTHING_ELSE)
    for number, seconds in enumerate((9.0, 1.0, 1.0, 1.0), start=1):
        forecast.left_after(number, step(seconds))
    assert forecast.left_after(5, step(9.0)) == 4 * (1 + 1 + 1 + 9) / 4


def test_a_run_that_changes_its_speed_is_followed() -> None:
    forecast = Forecast(1000, NOTHING_ELSE)
    for number in range(1, 50):
        forecast.left_after(number, step(10.0))
    for number in range(50, 50 + RECENT - 1):
        forecast.left_after(number, step(2.0))
    assert forecast.left_after(50 + RECENT, step(2.0)) == (950 - RECENT) * 2.0


def test_evaluations_and_checkpoints_are_taken_out_of_the_steps_and_added_where_they_are_due() -> None:
    """12 steps of 2 s, a checkpoint of 3 s every 5 steps, an evaluation of 7 s every 4 steps, and both at the end."""
    forecast = Forecast(12, {"checkpoint": 5, "eval": 4})
    forecast.note("eval", 7.0)  # before the first step
    # After step 1: 11 steps, evaluations after steps 4, 8 and 12. What a checkpoint takes is not known yet.
    assert forecast.left_after(1, step(2.0)) == 11 * 2 + 3 * 7
    for number in (2, 3):
        forecast.left_after(number, step(2.0))
    # The evaluation after step 4 comes after its line.
    assert forecast.left_after(4, step(2.0)) == 8 * 2 + 3 * 7
    forecast.note("eval", 7.0)
    assert forecast.left_after(5, step(9.0, eval=7.0)) == 7 * 2 + 2 * 7
    forecast.note("checkpoint", 3.0)
    # Checkpoints after steps 10 and 12, evaluations after steps 8 and 12.
    assert forecast.left_after(6, step(5.0, checkpoint=3.0, train=1.0)) == 6 * 2 + 2 * 7 + 2 * 3
    # One more of each after the last step.
    assert forecast.left_after(12, step(2.0)) == 7 + 3


@pytest.mark.parametrize("every", [0, 100])
def test_what_comes_only_at_the_end_comes_once(every: int) -> None:
    forecast = Forecast(12, {"eval": every})
    forecast.note("eval", 7.0)
    assert forecast.left_after(3, step(2.0)) == 9 * 2 + 7
