"""Where the parts of a demo listen: ports counted from one, or any that are free; all on the loopback."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

HOST = "127.0.0.1"
WORKERS_MAX = 64
_TRIES = 1000
_LOWEST = 10240
_EPHEMERAL = 32768
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class DemoError(Exception):
    """Why the demo cannot run: one line that says what would do."""


class PortTaken(DemoError):
    """Somebody else has a port: others may be free."""


class WorkerPorts(msgspec.Struct, frozen=True):
    """The three ports of one worker."""

    ws: int
    http: int
    rpc: int


class Addresses(msgspec.Struct, frozen=True):
    """The ports of one demo; they stay the same while it runs, whatever is started again."""

    web: int
    dispatcher: int
    business: int
    redis: int
    workers: tuple[WorkerPorts, ...]

    def ports(self) -> list[int]:
        """All of them."""
        first = [self.web, self.dispatcher, self.business, self.redis]
        return first + [port for worker in self.workers for port in (worker.ws, worker.http, worker.rpc)]


def choose(port: int, workers: int, pick: Callable[[int, int], int] = random.randint) -> Addresses:
    """Ports from `port` on, or free ones for 0; `DemoError` if one of them is taken.

    From a given P: P the page, P+1 the dispatcher, P+2 the business server, P+3 Valkey, and from P+10 on
    three for each worker: WebSocket, HTTP, Perspective Broker.
    """
    if not 1 <= workers <= WORKERS_MAX:
        raise DemoError(f"--workers {workers}: give 1 to {WORKERS_MAX}")
    if port == 0:
        return _named(_free(4 + 3 * workers, pick))
    last = port + 9 + 3 * workers
    if not 1 <= port <= 65535 or last > 65535:
        raise DemoError(f"--port {port}: the ports {port} to {last} are not all valid; give 1 to {65535 - last + port}")
    chosen = _named(iter([port, port + 1, port + 2, port + 3, *range(port + 10, last + 1)]))
    for number in chosen.ports():
        with socket.socket() as probe:
            try:
                _bind(probe, number)
            except OSError as error:
                raise PortTaken(busy(number, error)) from None
    return chosen


def busy(port: int, error: OSError) -> str:
    """The one line that says that a port cannot be had."""
    why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return f"port {port} of {HOST} {why}; choose others with --port, or --port 0 for any that are free"


def _named(ports: Iterator[int]) -> Addresses:
    web, dispatcher, business, redis, *rest = ports
    workers = tuple(WorkerPorts(*rest[i : i + 3]) for i in range(0, len(rest), 3))
    return Addresses(web, dispatcher, business, redis, workers)


def _free(count: int, pick: Callable[[int, int], int]) -> Iterator[int]:
    """Free ports below those that the kernel gives to outgoing connections.

    One of the latter could be taken by any connection while the server that listens there is being started
    again; a client that keeps trying to reach it may even be connected to itself.
    """
    try:
        ephemeral = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        ephemeral = _EPHEMERAL
    found: list[int] = []
    with ExitStack() as probes:
        for attempt in range(_TRIES):
            probe = probes.enter_context(socket.socket())
            anywhere = ephemeral <= _LOWEST + count or attempt > _TRIES // 2
            try:
                _bind(probe, 0 if anywhere else pick(_LOWEST, ephemeral - 1))
            except OSError:
                continue
            found.append(probe.getsockname()[1])
            if len(found) == count:
                return iter(found)
    raise DemoError(f"there are no {count} free ports on {HOST}")


def _bind(probe: socket.socket, port: int) -> None:
    """As a server does, so that what a closed connection leaves behind is no obstacle."""
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind((HOST, port))
    probe.listen(1)
