"""How fast a channel may call: a token bucket for each, on each server. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from imserver.http.problems import rate_limited


class Bucket:
    """A token bucket: `rate` a second, `burst` at once. Times are seconds.

    Whoever wants more than the whole bucket gets it when the bucket is full, and it is paid off afterwards; otherwise
    a call larger than the burst could never be made.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._since = now

    def take(self, amount: int, now: float) -> int:
        """0 if `amount` may pass; else nothing is taken and the answer is after how many seconds to try again."""
        self._left = min(self._burst, self._left + max(0.0, now - self._since) * self._rate)
        self._since = now
        missing = min(amount, self._burst) - self._left
        if missing > 0:
            return max(1, math.ceil(missing / self._rate))
        self._left -= amount
        return 0


class Rates:
    """The buckets of all channels: made from {channel: (rate, burst)}; `what` is told to whoever wants more."""

    def __init__(self, limits: Mapping[str, tuple[float, float]], clock: IReactorTime, what: str) -> None:
        now = clock.seconds()
        self._rates = {name: rate for name, (rate, _) in limits.items()}
        self._buckets = {name: Bucket(rate, burst, now) for name, (rate, burst) in limits.items()}
        self._clock = clock
        self._what = what

    def admit(self, channel: str, amount: int = 1) -> None:
        """Raises 429 with `Retry-After` when it is too much; then nothing is taken."""
        wait_s = self._buckets[channel].take(amount, self._clock.seconds())
        if wait_s:
            raise rate_limited(wait_s, f"This channel may have {self._rates[channel]} {self._what} a second.")
