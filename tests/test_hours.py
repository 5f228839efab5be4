"""Opening hours."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from twisted.trial.unittest import SynchronousTestCase

from imserver.config import OpeningHours

BERLIN = ZoneInfo("Europe/Berlin")


def at(day: int, hour: int, minute: int = 0, month: int = 6) -> int:
    """A time in Berlin, in milliseconds; 1 June and 7 December 2026 are Mondays."""
    return int(datetime(2026, month, day, hour, minute, tzinfo=BERLIN).timestamp() * 1000)


class HoursTests(SynchronousTestCase):
    """When it is open."""

    def test_week(self) -> None:
        """Days and minutes, the last one not included, in the zone's own time in summer and winter."""
        hours = OpeningHours(["mon-fri 09:00-18:00", "sat 10:00-14:00"], "Europe/Berlin")
        for month, monday in ((6, 1), (12, 7)):
            for day, hour, minute, expected in (
                (0, 8, 59, False),
                (0, 9, 0, True),
                (4, 17, 59, True),
                (4, 18, 0, False),
                (5, 13, 59, True),
                (5, 9, 0, False),
                (6, 12, 0, False),
            ):
                ts = at(monday + day, hour, minute, month)
                self.assertEqual(hours.open_at(ts), expected, (month, day, hour, minute))

    def test_over_the_weekend_and_midnight(self) -> None:
        """A range of days may pass Sunday; a night is two entries."""
        hours = OpeningHours(["fri-mon 20:00-24:00", "sat-tue 00:00-02:00"], "Europe/Berlin")
        cases = ((5, 23, True), (6, 1, True), (6, 3, False), (8, 21, True), (9, 1, True), (9, 21, False))
        for day, hour, expected in cases:
            self.assertEqual(hours.open_at(at(day, hour)), expected, (day, hour))

    def test_always(self) -> None:
        """No hours: always open."""
        self.assertTrue(OpeningHours([], "UTC").open_at(0))

    def test_nonsense(self) -> None:
        """What is none is a mistake."""
        for text in ("", "mon", "mon 9-18", "mon 09:00-25:00", "mon 18:00-09:00", "mon 09:00-09:00", "xyz 09:00-10:00"):
            self.assertRaises(ValueError, OpeningHours, [text], "UTC")
        for zone in ("", "Mars/Base", "../x", "/etc/passwd"):
            self.assertRaises(ValueError, OpeningHours, [], zone)
