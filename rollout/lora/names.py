"""vLLM's names of adapters and of the weights that have adapters around them."""

from __future__ import annotations


def adapter_id(version: int) -> int:
    """vLLM's number of the adapter of a policy version. It counts from 1."""
    return version + 1


def adapter_name(version: int) -> str:
    """vLLM's name of the adapter of a policy version. The prefix cache keeps names apart, so no version's cache serves
    another."""
    return f"policy-{version}"


def plain_name(name: str) -> str:
    """The name that a weight has in a vLLM model without adapters."""
    return name.replace(".base_layer.", ".")
