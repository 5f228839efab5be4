"""`twistd im-worker`: its options and its service."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from twisted.application.service import IService
from twisted.python import usage

from imserver.ops.startup import ServerOptions, serve
from imserver.protocol.syntax import Shop, valid


class Options(ServerOptions):
    """Holds the WebSocket connections of clients, pushes to them, and sees to it that they acknowledge."""

    synopsis = "[options]"
    optParameters: ClassVar[list[list[Any]]] = [
        ["listen", "l", None, "Where clients connect, a Twisted endpoint string; instead of [worker] listen."],
        ["id", "i", None, "This worker's name, the same after a restart; default: the host's name and the port."],
    ]

    def postOptions(self) -> None:
        """Put the options over the configuration."""
        super().postOptions()
        if self["id"] is not None and not valid(Shop, self["id"]):
            raise usage.UsageError("--id has 1-64 characters of A-Za-z0-9_.:-")
        if self["listen"] is not None:
            worker = msgspec.structs.replace(self.configuration.worker, listen=self["listen"])
            self.configuration = msgspec.structs.replace(self.configuration, worker=worker)


def makeService(options: Options) -> IService:
    """The worker as a service; importing what it is made of waits until the reactor has been chosen."""
    from twisted.internet import reactor

    from imserver.worker.service import Worker

    worker = Worker(reactor, options.configuration, options["id"])
    return serve(reactor, "im-worker", worker.start, worker.stop)
