"""Identifiers: of messages, conversations and connections."""

from __future__ import annotations

import secrets
from hashlib import blake2b


def message_id(secret: str, channel: str, sender: str, cid: str | None) -> str:
    """32 lower-case hex characters; the same for the same (channel, sender, cid), random without a cid.

    A keyed hash, so that being the same costs no memory and nobody without the cluster's secret can make one.
    """
    if cid is None:
        return secrets.token_hex(16)
    text = "\0".join((channel, sender, cid)).encode()
    return blake2b(text, key=secret.encode()[:64], digest_size=16, person=b"im message").hexdigest()


def conversation_id(channel: str, customer: str, shop: str) -> str:
    """The one thread between a customer and a shop in a channel: 32 hex characters, known without a look-up."""
    return blake2b("\0".join((channel, customer, shop)).encode(), digest_size=16, person=b"im conversation").hexdigest()


def incarnation(worker: str) -> str:
    """A worker's name for this one run of it: unique over all restarts."""
    return f"{worker}.{secrets.token_hex(4)}"
