"""The agent loop over a scripted engine and a byte-level chat: sampled tokens are trained as they are, and a failure is
attributed to the policy or to the infrastructure."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.errors import InfrastructureError
from rollout.agent.loop import run_agent, run_group
from rollout.contracts import EpisodeEnded, Observation, ToolSpec
from rollout.types import OBSERVED, Completion, Group, SamplingParams, Task, Trajectory
from tests.rollout.agent.agent_support import (
    ASSISTANT,
    CONFIG,
    STOP,
    TASK,
    USER,
    ByteChat,
    Counter,
    Counters,
    ScriptedEngine,
    act,
    agent,
)

pytestmark = pytest.mark.timeout(60)

ADD = "CALL add {}"
TOOL = {"type": "function", "function": {"name": "add"}}


def test_a_solved_task() -> None:
    trajectory, _, (environment,) = act([f"{ADD}\n{ADD}", "2"])
    assert (trajectory.outcome, trajectory.stop_reason) == ("scored", "answered")
    assert (trajectory.reward, trajectory.reward_parts) == (1.0, {"right": 1.0, "counted": 2.0})
    assert environment.closed == 1 and environment.answers == ["2"]
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    expected = {"turns": 2, "tool_calls": 2, "tool_errors": 0, "tokens_sampled": 26, "infra_retries": 0}
    assert {name: trajectory.metrics[name] for name in expected} == expected
    assert trajectory.metrics["tokens_observed"] == len(trajectory.samples[0].token_ids) - 26
    assert [s.name for s in trajectory.spans] == [
        *("generate", "environment", "environment"),
        *("generate", "environment", "reward"),
    ]
    assert all(s.end >= s.start for s in trajectory.spans)


def test_every_sampling_parameter_is_sent_and_ids_are_unique() -> None:
    _, engine, _ = act([ADD, ADD, ADD, "3"])
    prompts = [len(prompt) for _, prompt, _, _ in engine.seen]
    for (_, _, sampling, _), length in zip(engine.seen, prompts, strict=True):
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 1.0, 0)
        assert sampling.stop_token_ids == (STOP,)
        assert sampling.max_tokens == min(100, CONFIG.max_context - length)
    assert len({sampling.seed for _, _, sampling, _ in engine.seen}) == len(set(engine.requests)) == 4
    _, again, _ = act([ADD, ADD, ADD, "3"])
    seeds = [sampling.seed for _, _, sampling, _ in engine.seen]
    assert [sampling.seed for _, _, sampling, _ in again.seen] == seeds
    _, other, _ = act([ADD, ADD, ADD, "3"], seed=6)
    assert not {sampling.seed for _, _, sampling, _ in other.seen} & set(seeds), "the run's seed counts"


speech = st.lists(st.integers(0, 255), max_size=12).map(bytes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(speech, st.booleans()), min_size=1, max_size=4))
def test_sampled_tokens_are_the_trained_tokens(turns: list[tuple[bytes, bool]]) -> None:
    """Whatever bytes are sampled, valid UTF-8 or not, the sample holds the prompt, the completions and what was shown
    between them, all unchanged."""
    script = [[*said, *(b"\nCALL add {}" if calls else b""), STOP] for said, calls in turns] + ["done"] * 4
    trajectory, engine, _ = act(script)
    (sample,) = trajectory.samples
    covered = np.zeros(len(sample), bool)
    for _, prompt, _, completion in engine.seen:
        assert sample.token_ids[: len(prompt)].tolist() == prompt
        span = slice(len(prompt), len(prompt) + len(completion.token_ids))
        assert tuple(sample.token_ids[span].tolist()) == completion.token_ids
        assert np.array_equal(sample.logprobs[span], np.float32(completion.logprobs))
        assert np.array_equal(sample.versions[span], completion.versions)
        covered[span] = True
    assert np.array_equal(sample.loss_mask == 1, covered)
    assert (sample.versions[~covered] == OBSERVED).all() and not sample.logprobs[~covered].any()


def test_a_malformed_call_is_the_policys_failure() -> None:
    trajectory, engine, (environment,) = act(["CALL add {", "never asked"])
    assert (trajectory.outcome, trajectory.stop_reason, trajectory.reward) == ("scored", "malformed", 0.0)
    assert environment.answers == [None] and len(engine.seen) == 1
    assert "malformed" in trajectory.messages[-1]
    assert trajectory.samples[0].trained_tokens == len("CALL add {") + 1


def test_an_unknown_tool_is_an_observation() -> None:
    trajectory, _, _ = act(["CALL fly {}", "0"])
    assert (trajectory.stop_reason, trajectory.reward) == ("answered", 1.0)
    assert trajectory.metrics["tool_errors"] == 1


def test_a_turn_cut_by_its_budget_is_truncated_and_trained() -> None:
    trajectory, _, (environment,) = act(["2" * 500])
    assert (trajectory.outcome, trajectory.stop_reason, trajectory.reward) == ("truncated", "token_limit", 0.0)
    assert environment.answers == [None] and trajectory.samples[0].trained_tokens == 100


def test_the_turn_limit() -> None:
    trajectory, engine, (environment,) = act([ADD] * 9)
    assert (trajectory.outcome, trajectory.stop_reason) == ("truncated", "turn_limit")
    assert environment.count == len(engine.seen) == CONFIG.max_turns  # the last turn's call was made
    assert environment.answers == [None]
    assert trajectory.samples[0].loss_mask[-1] == 1


@pytest.mark.parametrize("room", range(12, 80))
def test_the_context_is_never_exceeded(room: int) -> None:
    trajectory, engine, _ = act([ADD] * 9, config=CONFIG.model_copy(update={"max_context": room}))
    assert len(trajectory.samples[0].token_ids) <= room
    for _, prompt, sampling, _ in engine.seen:
        assert sampling.max_tokens >= 1 and len(prompt) + sampling.max_tokens <= room


def test_a_prompt_that_does_not_fit_is_nobodys_reward() -> None:
    trajectory, engine, _ = act(["2"], config=CONFIG.model_copy(update={"max_context": 8}))
    assert trajectory.outcome == "infra_error" and "rollout.max_context" in str(trajectory.error)
    assert engine.requests == []


def end() -> None:
    raise EpisodeEnded


def test_an_environment_may_end_the_episode() -> None:
    trajectory, _, (environment,) = act([f"{ADD}\nCALL trouble {{}}", "2"], trouble=end)
    assert (trajectory.outcome, trajectory.stop_reason) == ("scored", "environment")
    assert environment.answers == [None] and trajectory.reward_parts["counted"] == 1.0


def crash() -> None:
    raise KeyError("lost")


@pytest.mark.parametrize("error", [InfrastructureError("engine died"), RuntimeError("boom"), TimeoutError("slow")])
def test_an_engine_failure_is_retried_afresh(error: Exception) -> None:
    def first_try_fails(request_id: str) -> Any:
        return error if request_id == "g/0/0/1" else "1"

    trajectory, engine, (first, second) = act([ADD, first_try_fails])
    assert (trajectory.outcome, trajectory.reward) == ("scored", 1.0)
    assert trajectory.metrics["infra_retries"] == 1
    assert (first.count, second.count) == (1, 1) and (first.closed, second.closed) == (1, 1)
    assert trajectory.samples[0].trained_tokens == len(ADD) + len("1") + 2
    assert len(engine.requests) == len(set(engine.requests)) == 4


@pytest.mark.parametrize(
    ("script", "how", "says"),
    [
        ([RuntimeError("engine died")], {}, "RuntimeError: engine died"),
        (["CALL trouble {}"], {"trouble": crash}, "KeyError: 'lost'"),
    ],
)
def test_a_failure_is_data_never_a_reward(script: list[Any], how: dict[str, Any], says: str) -> None:
    trajectory, _, made = act(script, **how)
    assert (trajectory.outcome, trajectory.stop_reason, trajectory.reward) == ("infra_error", "aborted", None)
    assert trajectory.samples == () and trajectory.reward_parts == {}
    assert str(trajectory.error).count(says) == CONFIG.infra_retries + 1 == len(made)
    assert [environment.closed for environment in made] == [1, 1]


def attempt(engine: ScriptedEngine, environment: type[Counter] = Counter) -> Trajectory:
    source = Counters(environment=environment)
    return asyncio.run(run_agent(agent(engine), source, TASK, "g", "r"))  # type: ignore[arg-type]


def test_an_aborted_completion_is_an_infrastructure_failure() -> None:
    class Aborting(ScriptedEngine):
        async def generate(self, request_id: str, prompt_token_ids: list[int], sampling: SamplingParams) -> Completion:
            return Completion(token_ids=(65,), logprobs=(-1.0,), versions=(0,), finish_reason="abort")

    trajectory = attempt(Aborting([]))
    assert trajectory.outcome == "infra_error" and "aborted" in str(trajectory.error)


def test_a_scorer_that_fails_gives_no_reward() -> None:
    class Unscored(Counter):
        async def score(self, answer: str | None) -> dict[str, float]:
            return {"right": float("nan")}

    trajectory = attempt(ScriptedEngine(["2"]), Unscored)
    assert trajectory.outcome == "infra_error" and "finite" in str(trajectory.error)


def test_cancellation_closes_the_environment_and_propagates() -> None:
    async def cancelled() -> Counter:
        source = Counters()
        running = asyncio.create_task(
            run_agent(agent(ScriptedEngine([(30.0, "1")])), source, TASK, "g", "r")  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return source.made[0]

    assert asyncio.run(cancelled()).closed == 1


def group_of(engine: ScriptedEngine) -> Group:
    return asyncio.run(run_group(agent(engine), Counters(), TASK, "g7"))  # type: ignore[arg-type]


def test_a_group_has_all_members_and_a_failure_leaves_it() -> None:
    engine = ScriptedEngine([lambda r: RuntimeError("lost") if r.startswith("g7/1/") else ADD, "1"])
    group = group_of(engine)
    assert (group.id, group.task, len(group.trajectories)) == ("g7", TASK, 3)
    assert [t.outcome for t in group.trajectories] == ["scored", "infra_error", "scored"]
    assert [(t.reward, t.success) for t in group.usable] == [(1.0, True), (1.0, True)]
    assert group.trajectories[1].success is None
    assert len(set(engine.requests)) == len(engine.requests)
    assert len({sampling.seed for _, _, sampling, _ in engine.seen}) == len(engine.seen)


def test_the_prompt_of_a_group_is_rendered_once_for_each_set_of_tools() -> None:
    class Alternating(Counters):
        def make(self, task: Task) -> Counter:
            self.how = {"tools": (TOOL,) * (len(self.made) % 2)}
            return super().make(task)

    shared = agent(ScriptedEngine(["1"]))
    group = asyncio.run(run_group(shared, Alternating(), TASK, "g7"))  # type: ignore[arg-type]
    assert [t.outcome for t in group.trajectories] == ["scored"] * 3
    assert isinstance(shared.chat, ByteChat)
    opened = [tools for what, tools, *_ in shared.chat.asked if what == "open"]
    assert opened == [(), (TOOL,)]
    for trajectory in group.trajectories:
        assert trajectory.samples[0].token_ids[: trajectory.turns[0].start].tolist() == [
            *b"count to 2",
            ASSISTANT,
        ]


def test_tools_that_an_environment_changes_in_place_are_rendered_anew() -> None:
    tools: list[ToolSpec] = []
    shared = agent(ScriptedEngine([]))
    shared.open(TASK.messages, tools)
    tools.append(TOOL)
    shared.open(TASK.messages, tools)
    assert isinstance(shared.chat, ByteChat) and len(shared.chat.asked) == 2


def test_a_user_may_speak_after_an_answer() -> None:
    trajectory, engine, (environment,) = act(["1", "2", "3"], replies=["not yet", "once more"])
    assert (trajectory.stop_reason, environment.answers) == ("answered", ["3"])
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    (sample,) = trajectory.samples
    assert engine.seen[1][1][-len("not yet") - 2 :] == [USER, *b"not yet", ASSISTANT]
    assert sample.trained_tokens == 3 * len("1") + 3


def test_an_environment_may_end_the_episode_after_an_answer() -> None:
    trajectory, _, (environment,) = act(["1", "0"], replies=["go on", EpisodeEnded()])
    assert (trajectory.outcome, trajectory.stop_reason) == ("scored", "environment")
    assert environment.answers == ["0"], "what was said last is the answer"


def test_an_edited_history_goes_on_in_a_new_sample_and_every_token_is_trained_once() -> None:
    trajectory, engine, _ = act([ADD, "one", ADD, "two"], replies=["fork: again"])
    first, second = trajectory.samples
    assert engine.seen[2][1] == [ord("c"), USER, *b"fork: again", ASSISTANT], "the whole new prompt, and no more"
    assert list(second.token_ids[: len(engine.seen[2][1])]) == engine.seen[2][1]
    sampled = [token for _, _, _, completion in engine.seen for token in completion.token_ids]
    trained = [t for s in (first, second) for t, mask in zip(s.token_ids, s.loss_mask, strict=True) if mask]
    assert trained == sampled and len(sampled) == trajectory.metrics["tokens_sampled"]
    assert [(turn.sample, len(turn)) for turn in trajectory.turns] == [(0, 12), (0, 4), (1, 12), (1, 4)]
    assert trajectory.reward == 0.0, "one trajectory, one reward, however many samples"


def test_only_a_fork_that_a_broken_rendering_forced_is_counted() -> None:
    for reply, breaks in (("fork: again", 0.0), ("fork! again", 1.0), ("go on", 0.0)):
        trajectory, _, _ = act(["one", "two"], replies=[reply])
        assert trajectory.metrics["bridge_breaks"] == breaks


def test_a_bridge_is_told_the_whole_conversation_and_the_tools() -> None:
    engine, source = ScriptedEngine([ADD, "one", "two"]), Counters(how={"replies": ["again"]})
    playing = agent(engine)
    asyncio.run(run_agent(playing, source, TASK, "g", "g/0"))
    spoken = [{"role": "assistant", "token_ids": completion.token_ids} for *_, completion in engine.seen]
    first = (*TASK.messages, spoken[0])
    second = (*first, {"role": "tool", "content": "count is 1"}, spoken[1])
    assert playing.chat.histories == [(first, Counter.tools), (second, Counter.tools)]


def test_turns_are_where_the_policy_spoke_and_know_their_reward_and_state() -> None:
    trajectory, _, _ = act([f"{ADD}\n{ADD}", ADD, "3"], replies=[])
    (sample,) = trajectory.samples
    for turn in trajectory.turns:
        assert all(sample.loss_mask[turn.start : turn.stop])
    assert sum(len(turn) for turn in trajectory.turns) == sample.trained_tokens
    assert [turn.reward for turn in trajectory.turns] == [1.0, 0.5, None], "of all calls of a turn together"
    assert [turn.state_key for turn in trajectory.turns] == ["s0", "s2", "s3"]


def test_a_reply_may_say_what_the_turn_earned() -> None:
    trajectory, _, _ = act(["1", "2"], replies=[Observation("warm", reward=-0.25, state_key="near")])
    assert [(turn.reward, turn.state_key) for turn in trajectory.turns] == [(-0.25, "s0"), (None, "near")]


def test_a_fork_that_does_not_fit_ends_the_trajectory() -> None:
    config = CONFIG.model_copy(update={"max_context": 40})
    trajectory, engine, _ = act(["1", "never asked"], config=config, replies=["fork: " + "x" * 60])
    assert (trajectory.outcome, trajectory.stop_reason) == ("truncated", "token_limit")
    assert len(trajectory.samples) == 1 and len(engine.seen) == 1
