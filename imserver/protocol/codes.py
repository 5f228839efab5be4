"""Close codes of a WebSocket and error codes of frames and problems (contract: Close codes)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

GOING_AWAY: Final = 1001
BINARY: Final = 1003
OVERLOADED: Final = 1013
BAD_FRAMES: Final = 4400
TOKEN: Final = 4401
BANNED: Final = 4403
TIMEOUT: Final = 4408
KICKED: Final = 4409
SLOW_READER: Final = 4413
TOO_MANY_FRAMES: Final = 4429

ErrorCode = Literal[
    "invalid_json",
    "invalid_frame",
    "unknown_op",
    "not_allowed",
    "not_found",
    "conflict",
    "too_large",
    "rate_limited",
    "blocked_content",
    "no_agent",
    "unavailable",
    "internal",
]


class FrameError(Exception):
    """A frame that is answered with `error`.

    `bad` tells a frame that is not valid, which counts towards close code 4400, from a valid one that is refused.
    """

    def __init__(
        self, code: ErrorCode, reason: str, *, field: str | None = None, ref: str | int | None = None, bad: bool = True
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.code: ErrorCode = code
        self.reason = reason
        self.field = field
        self.ref = ref
        self.bad = bad


def banned_until(until_ts: int | None) -> str:
    """How the reason of a 4403 ends: the time until which, ISO 8601 UTC, or `for good` (contract: Close codes)."""
    if until_ts is None:
        return "for good"
    return datetime.fromtimestamp(-(-until_ts // 1000), UTC).strftime("until %Y-%m-%dT%H:%M:%SZ")
