"""The reward `http`: a service computes it. A request is a POST of

    {"prompts": [[messages]], "completions": [[messages]], "columns": {"answer": ["4"]}}

and the answer is `{"rewards": [0.5]}`, with null where the reward does not apply. Runs in a process of its own
(`rewards.scorers.function`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from rewards.scorers.config import HttpSettings
from rewards.scorers.remote import Again, api_key, remote_of, retry_after_s

_CHARACTERS = 200


class HttpReward:
    """The reward, as a function in TRL's signature."""

    Settings = HttpSettings

    def __init__(self, settings: HttpSettings) -> None:
        key = api_key(settings)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._url = settings.url
        self._client = httpx.AsyncClient(timeout=settings.timeout_s, headers=headers, limits=httpx.Limits())
        self._remote = remote_of(settings)

    async def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[Any]:
        given = {name: value for name, value in columns.items() if not callable(value) and name != "environments"}
        content = {"prompts": prompts, "completions": completions, "columns": given}
        found: list[Any] = await self._remote(lambda: self._ask(content))
        return found

    async def _ask(self, content: Mapping[str, Any]) -> list[Any]:
        try:
            response = await self._client.post(self._url, json=content)
        except httpx.HTTPError as error:
            raise Again(f"{self._url}: {type(error).__name__} {error}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise Again(f"{self._url} answered {response.status_code}", retry_after_s(response.headers))
        if response.status_code != 200:
            raise ValueError(f"{self._url} answered {response.status_code}: {response.text[:_CHARACTERS]}")
        answer = response.json()
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            raise ValueError(f"{self._url} answered without a list of rewards: {response.text[:_CHARACTERS]}")
        return rewards
