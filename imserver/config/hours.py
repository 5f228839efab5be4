"""Opening hours, as the configuration writes them: `mon-fri 09:00-18:00`. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(_DAYS)
_SPAN = re.compile(rf"({_DAY})(?:-({_DAY}))? ([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")


class OpeningHours:
    """When a shop is open; always, if no hours are given."""

    def __init__(self, hours: Sequence[str], zone: str) -> None:
        """`ValueError` if one of `hours` is none, or there is no such time zone."""
        self._spans = [_span(text) for text in hours]
        try:
            self._zone = ZoneInfo(zone)
        except (OSError, LookupError) as error:  # whatever zoneinfo raises for a name it does not like
            raise ValueError(f"there is no time zone {zone!r}") from error

    def open_at(self, ts: int) -> bool:
        """Whether it is open at a time in milliseconds since the epoch."""
        at = datetime.fromtimestamp(ts / 1000, UTC).astimezone(self._zone)
        minute = at.hour * 60 + at.minute
        return not self._spans or any(
            at.weekday() in days and start <= minute < end for days, start, end in self._spans
        )


def _span(text: str) -> tuple[frozenset[int], int, int]:
    """The weekdays (0 is Monday), and from which minute of the day to which."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not like 'mon-fri 09:00-18:00'")
    first = _DAYS.index(found[1])
    count = (_DAYS.index(found[2] or found[1]) - first) % 7 + 1
    start = int(found[3]) * 60 + int(found[4])
    end = int(found[5]) * 60 + int(found[6]) if found[5] else 24 * 60
    if start >= end:
        raise ValueError(f"{text!r} ends before it begins; hours past midnight are two entries")
    return frozenset((first + day) % 7 for day in range(count)), start, end
