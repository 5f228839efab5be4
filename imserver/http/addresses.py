"""Where a client calls from."""

from __future__ import annotations

from collections.abc import Sequence


def client_address(peer: str, forwarded: str | None, trusted: Sequence[str]) -> str:
    """Whose address counts: the peer's, or what a trusted proxy says in the last place of X-Forwarded-For."""
    if forwarded is None or peer not in trusted:
        return peer
    return forwarded.rpartition(",")[2].strip() or peer
