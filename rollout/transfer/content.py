"""The content of a set of weights as one hash, from the digests of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def content_hash(digests: Mapping[str, str]) -> str:
    """The hash of named tensors, from the digest of each. The order of the names makes no difference."""
    lines = "".join(f"{name} {found}\n" for name, found in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
