"""What a channel lets its clients do: which kinds of messages, and how many."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.http.problems import Problem, forbidden
from imserver.http.rates import Rates
from imserver.ops.metrics import Metrics


class Channels:
    """The limits of all channels on this server."""

    def __init__(self, channels: Mapping[str, config.Channel], clock: IReactorTime, metrics: Metrics) -> None:
        self._channels = channels
        self._rates = Rates(
            {name: (channel.messages_per_s, channel.messages_burst) for name, channel in channels.items()},
            clock,
            "messages",
        )
        self._refused = metrics.counter("messages_rate_limited", "Messages over their channel's rate.", ("channel",))
        for name in channels:
            self._refused.labels(name)

    def admit(self, channel: str) -> None:
        """Count a message; raises 429 when the channel has sent too many."""
        try:
            self._rates.admit(channel)
        except Problem:
            self._refused.labels(channel).inc()
            raise

    def fits(self, channel: str, *, to_shop: bool) -> None:
        """What the uplink does not take from a client's `send` is refused over HTTP too (contract: Channels)."""
        uplink = self._channels[channel].uplink
        if uplink == "journal":
            raise forbidden(f"Channel {channel} has a journal; nobody can be written to.")
        if uplink == "direct" and to_shop:
            raise forbidden(f"Channel {channel} has no conversations; write `to` a uid.")
