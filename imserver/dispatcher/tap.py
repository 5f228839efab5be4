"""`twistd im-dispatcher`."""

from __future__ import annotations

from twisted.application.service import IService

from imserver.ops.startup import ServerOptions, serve


class Options(ServerOptions):
    """Options of im-dispatcher."""


def makeService(options: Options) -> IService:
    """The service that twistd runs."""
    from twisted.internet import reactor

    from imserver.dispatcher.service import Dispatcher

    dispatcher = Dispatcher(reactor, options.configuration)
    return serve(reactor, "im-dispatcher", dispatcher.start, dispatcher.stop)
