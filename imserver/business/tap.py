"""twistd im-business."""

from __future__ import annotations

from twisted.application.service import IService

from imserver.business.service import BusinessServer
from imserver.ops.startup import ServerOptions, serve


class Options(ServerOptions):
    """Options of im-business."""

    synopsis = "--config FILE"
    longdesc = "The business server: conversations, agents, words and the archive."


def makeService(options: Options) -> IService:
    """The service of one business server."""
    from twisted.internet import reactor

    server = BusinessServer(reactor, options.configuration)
    return serve(reactor, "im-business", server.start, server.stop)
