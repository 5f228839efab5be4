"""An agent is online if a worker says so at the moment of assignment, whatever the records in Redis say."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint

from imserver.rpc.server import server_factory
from tests.business.shop import ShopCase


class PresenceTests(ShopCase):
    """Records and leases that still tell of a worker that is gone."""

    async def test_dead_worker(self) -> None:
        """A worker that just died has its lease for some seconds: its agents get nobody until it is back."""
        await self.start(cluster={"rpc_timeout_s": 0.3})
        await self.agent("alice")
        first = await self.say(self.token("bob"), shop="s1")
        self.assertEqual(first["agent"], "alice")
        port = self.rpc.getHost().port
        await self.rpc.stopListening()
        for broker in self.brokers:
            broker.transport.abortConnection()
        sent = await self.say(self.token("carl"), shop="s1")
        self.assertEqual((sent["state"], sent["agent"]), ("waiting", None))
        (agent,) = (await self.good("GET", "/v1/shops/s1/agents"))["agents"]
        self.assertFalse(agent["online"])
        factory: Any = server_factory(self.worker, self.settings.cluster.secret)
        back = await TCP4ServerEndpoint(reactor, port, interface="127.0.0.1").listen(factory)
        self.addCleanup(back.stopListening)
        await self.until(lambda: self.dispatcher.states("carl")[-1:] == [("assigned", "alice", None)])

    async def test_stale_record(self) -> None:
        """A record whose connection its worker does not know counts for nothing."""
        await self.start()
        await self.agent("alice")
        self.worker.connected.clear()
        sent = await self.say(self.token("bob"), shop="s1")
        self.assertEqual(sent["state"], "waiting")
        asked = self.worker.asked
        await self.connect("alice")
        await self.until(lambda: self.inbox("alice"))
        self.assertGreater(self.worker.asked, asked)
