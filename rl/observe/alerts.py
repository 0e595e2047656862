"""Alerts: what usually kills a run, told on the console and through the tracker as soon as a step shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rl.observe.config import AlertsConfig

Send = Callable[[str, str], None]
"""Called with a title and a text."""


class Alerts:
    """Watches the metrics of each step. An alert is sent once, and again after the metric has been fine meanwhile."""

    def __init__(self, config: AlertsConfig, send: Send) -> None:
        self._config, self._send = config, send
        self._first_entropy: float | None = None
        self._told: set[str] = set()

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Look at the metrics of a step. One that a step does not have changes nothing."""
        config = self._config
        entropy = values.get("policy/entropy")
        if self._first_entropy is None:
            self._first_entropy = entropy
        lowest = None
        if config.entropy_share is not None and self._first_entropy is not None:
            lowest = config.entropy_share * self._first_entropy
        self._watch(number, "mismatch", values.get("mismatch/logprob_abs_mean"), above=config.mismatch)
        self._watch(number, "entropy", entropy, below=lowest)
        self._watch(number, "failures", values.get("error/infra_share"), above=config.failures)

    def _watch(
        self, number: int, name: str, value: float | None, *, above: float | None = None, below: float | None = None
    ) -> None:
        if value is None or (above is None and below is None):
            return
        if not ((above is not None and value > above) or (below is not None and value < below)):
            self._told.discard(name)
        elif name not in self._told:
            self._told.add(name)
            bound = f"above {above:g}" if above is not None else f"below {below:.3g}"
            self._send(_TITLES[name], f"step {number}: {_WORDS[name]} is {value:.3g}, {bound} (alerts.{_KEYS[name]})")


_TITLES = {
    "mismatch": "engine and trainer disagree",
    "entropy": "the policy's entropy has collapsed",
    "failures": "many trajectories are lost to infrastructure",
}
_WORDS = {
    "mismatch": "mismatch/logprob_abs_mean",
    "entropy": "policy/entropy",
    "failures": "error/infra_share",
}
_KEYS = {"mismatch": "mismatch", "entropy": "entropy_share", "failures": "failures"}
