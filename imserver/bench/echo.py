"""The plain measure beside ours: an echo server as Autobahn comes, with every option at its default."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol

from imserver.bench.orders import serve
from imserver.demo.addresses import HOST
from imserver.ops.startup import raise_file_limit


class _Echo(WebSocketServerProtocol):  # type: ignore[misc]
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


class _Server:
    """What the bench may ask of it."""

    async def do_listen(self) -> dict[str, Any]:
        """Listen on a free port; which one."""
        from twisted.internet import reactor

        raise_file_limit()
        factory = WebSocketServerFactory()
        factory.protocol = _Echo
        factory.noisy = False
        port: Any = reactor.listenTCP(0, factory, backlog=1024, interface=HOST)  # type: ignore[attr-defined]
        return {"port": port.getHost().port}


if __name__ == "__main__":
    serve(_Server())
