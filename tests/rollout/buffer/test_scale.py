"""`benchmarks.scale_simulation` against cases with an answer in closed form, and against the product's bound."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale import predict
from benchmarks.scale_simulation import EngineSpeed, Run, Simulation, Step, Turn

GROUP, TOKENS = 4, 100
FAST = EngineSpeed(step_s=1e-6)


def same(*turns: Turn) -> Callable[[random.Random], Sequence[Turn]]:
    return lambda numbers: turns


ONE_TURN = same(Turn(observed=10, sampled=TOKENS, tools_s=0.0))


def run_of(**changes: object) -> Run:
    plain = Run(
        engines=1,
        speed=FAST,
        groups_per_step=5,
        group_size=GROUP,
        max_staleness=1,
        slots=1000,
        trajectory=ONE_TURN,
        train_s=lambda tokens, trajectories: 0.0,
        push_s=0.0,
        pause_s=0.0,
        handling_s=0.0,
        recompute=False,
        steps=40,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def later(run: Run) -> list[Step]:
    """The steps after those that fill the buffer."""
    return Simulation(run).go()[run.max_staleness + 1 :]


def mean_s(steps: Sequence[Step]) -> float:
    return sum(step.step_s for step in steps) / len(steps)


def test_where_the_engine_is_slow_a_step_is_its_tokens_over_the_engines_speed() -> None:
    """A decoding step that costs 2 ms for each request gives 500 tokens/s, however many requests share it."""
    speed = EngineSpeed(step_s=0.0, step_s_per_request=0.002)
    run = run_of(speed=speed, train_s=lambda tokens, trajectories: 0.5)
    assert mean_s(later(run)) == pytest.approx(run.groups_per_step * GROUP * TOKENS * 0.002, rel=0.03)
    paused = replace(run, push_s=3.0, pause_s=3.0)
    assert mean_s(later(paused)) == pytest.approx(mean_s(later(run)) + 3.0, rel=0.03)


def test_where_the_trainer_is_slow_a_step_is_handling_training_and_push() -> None:
    run = run_of(train_s=lambda tokens, trajectories: tokens * 0.01, push_s=2.0, pause_s=1.0, handling_s=0.05)
    trajectories = run.groups_per_step * GROUP
    expected = trajectories * 0.05 + trajectories * (TOKENS + 10) * 0.01 + 2.0
    steps = later(run)
    assert mean_s(steps) == pytest.approx(expected, rel=1e-4)
    assert all(step.mean_age == 1.0 for step in steps), "each step trains what was sampled a version before"


def test_on_policy_a_step_is_sampling_then_training_then_the_push() -> None:
    """All requests of a step share every decoding step, and nothing is sampled meanwhile. A tool's time adds up."""
    speed = EngineSpeed(step_s=0.01, step_s_per_request=0.001, prompt_s_per_token=0.0002)
    run = run_of(
        max_staleness=0, speed=speed, train_s=lambda tokens, trajectories: 7.0, push_s=3.0, pause_s=3.0, ending_s=0.5
    )
    asked = run.groups_per_step * GROUP
    sampling = TOKENS * (0.01 + asked * 0.001) + asked * 10 * 0.0002
    steps = later(run)
    assert mean_s(steps) == pytest.approx(sampling + 0.5 + 7.0 + 3.0, rel=1e-6)
    assert {step.mean_age for step in steps} == {0.0}
    two = same(Turn(observed=10, sampled=50, tools_s=20.0), Turn(observed=0, sampled=50, tools_s=1.0))
    assert mean_s(later(replace(run, trajectory=two))) == pytest.approx(sampling + 21.0 + 0.5 + 10.0, rel=1e-6)


def test_requests_wait_for_room_in_the_cache() -> None:
    """Room for eight of twenty contexts: three waves of at most eight requests."""
    speed = EngineSpeed(step_s=0.01, cache_tokens=8 * (TOKENS + 10))
    simulation = Simulation(run_of(max_staleness=0, speed=speed))
    assert mean_s(simulation.go()) == pytest.approx(3 * TOKENS * 0.01)
    assert simulation.use.queued == pytest.approx(40 * (8 * 1.0 + 4 * 2.0))


def test_contexts_that_the_cache_lost_are_computed_again() -> None:
    speed = EngineSpeed(step_s=0.01, prompt_s_per_token=0.001)
    turns = same(*[Turn(observed=10, sampled=TOKENS, tools_s=5.0)] * 3)
    wide = Simulation(run_of(speed=speed, trajectory=turns))
    narrow = Simulation(run_of(speed=replace(speed, cache_tokens=2000), trajectory=turns))
    assert wide.go() and wide.use.lost == 0.0
    assert narrow.go() and narrow.use.lost > 0.0


def test_a_seed_decides_everything() -> None:
    def long_tailed(numbers: random.Random) -> list[Turn]:
        return [Turn(observed=5, sampled=round(numbers.expovariate(0.02)) + 1, tools_s=numbers.random())]

    run = run_of(trajectory=long_tailed, speed=EngineSpeed(step_s=0.01))
    first, second, other = (Simulation(replace(run, seed=seed)).go() for seed in (1, 1, 2))
    assert first == second != other


@given(
    staleness=st.integers(0, 3),
    groups=st.integers(1, 4),
    slots=st.integers(1, 30),
    engines=st.integers(1, 3),
    train_s=st.sampled_from([0.0, 1.0, 30.0]),
    tail=st.sampled_from([0.6, 1.2, 3.0]),
    seed=st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_no_token_is_older_than_the_bound(
    staleness: int, groups: int, slots: int, engines: int, train_s: float, tail: float, seed: int
) -> None:
    def heavy(numbers: random.Random) -> list[Turn]:
        return [
            Turn(
                observed=3, sampled=min(500, int(10 * numbers.paretovariate(tail))), tools_s=numbers.paretovariate(tail)
            )
            for _ in range(2)
        ]

    run = run_of(
        engines=engines,
        groups_per_step=groups,
        max_staleness=staleness,
        slots=slots,
        trajectory=heavy,
        speed=EngineSpeed(step_s=0.01),
        train_s=lambda tokens, trajectories: train_s,
        push_s=0.5,
        pause_s=0.2,
        recompute=True,
        seed=seed,
        steps=12,
    )
    steps = Simulation(run).go()
    assert max(step.oldest for step in steps) <= staleness
    assert all(step.mean_age <= step.oldest and step.trajectories == groups * GROUP for step in steps)


def test_with_few_trajectories_glm_45_waits_for_its_engines() -> None:
    found = predict(128, 768, 6)
    assert found.bottleneck().startswith("engines") and found.share("wait_s") > 0.2
    assert found.mean("oldest") <= 2
