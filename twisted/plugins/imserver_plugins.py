"""The servers as ``twistd`` commands.

Nothing else belongs here: twistd imports this file for every ``twistd --help``, and what is imported here
could install a reactor.
"""

from twisted.application.service import ServiceMaker

worker = ServiceMaker(
    "imserver worker",
    "imserver.worker.tap",
    "Hold the clients' connections and push messages to them.",
    "im-worker",
)

dispatcher = ServiceMaker(
    "imserver dispatcher",
    "imserver.dispatcher.tap",
    "Take messages from backends, find the receivers and route to their workers.",
    "im-dispatcher",
)

business = ServiceMaker(
    "imserver business server",
    "imserver.business.tap",
    "Conversations, assignment of agents, word filter and archive.",
    "im-business",
)
