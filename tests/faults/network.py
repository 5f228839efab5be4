"""The network between the processes of a test: TCP links that can be cut, reset, silenced and slowed."""

from __future__ import annotations

import asyncio  # noqa: TID251 (an application of its own, on purpose without anything of ours)
from collections import deque

HIGH_WATER = 1 << 18


class Link:
    """A port that leads to one or several others, taken in turn; a target that refuses is passed over."""

    def __init__(self, name: str, *targets: int) -> None:
        self.name = name
        self.port = 0
        self.delay_s = 0.0
        self.cut = False
        """Open connections are reset, new ones too."""
        self.silent = False
        """Nothing passes, nobody is told; what was under way passes later."""
        self._targets = targets
        self._next = 0
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self), "127.0.0.1", 0, backlog=200)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for task in list(self._opening):
            task.cancel()
        self.reset()

    def reset(self) -> None:
        """Reset every connection."""
        for end in list(self._ends):
            end.abort()

    def cut_off(self) -> None:
        """Reset every connection, and each new one, until healed."""
        self.cut = True
        self.reset()

    def silence(self) -> None:
        """Let nothing pass, until healed."""
        self.silent = True
        self._healed.clear()
        for end in self._ends:
            end.flow()

    def heal(self) -> None:
        """As if nothing had been."""
        self.cut = self.silent = False
        self.delay_s = 0.0
        self._healed.set()
        for end in list(self._ends):
            end.flow()

    def accepted(self, end: _End) -> None:
        """A connection from outside: find a target for it."""
        if self.cut:
            end.abort()
            return
        task = asyncio.get_running_loop().create_task(self._open(end))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, near: _End) -> None:
        if self.silent:
            await self._healed.wait()
        loop = asyncio.get_running_loop()
        for _ in self._targets:
            self._next = (self._next + 1) % len(self._targets)
            try:
                _, far = await loop.create_connection(lambda: _End(self, near), "127.0.0.1", self._targets[self._next])
            except OSError:
                continue
            near.other = far
            if near.transport.is_closing():
                far.abort()
                return
            far.flow()
            near.flow()
            return
        near.abort()


class _End(asyncio.Protocol):
    """One side of a connection that passes through."""

    transport: asyncio.Transport

    def __init__(self, link: Link, other: _End | None = None) -> None:
        self.other = other
        self._link = link
        self._outer = other is None
        self._full = False
        self._ended = False
        self._late: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._link._ends.add(self)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        if self._outer:
            transport.pause_reading()
            self._link.accepted(self)

    def data_received(self, data: bytes) -> None:
        self._pass(data)

    def eof_received(self) -> bool:
        self._pass(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._link._ends.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self.other is not None:
            if exc is None:
                self.other.transport.close()
            else:
                self.other.transport.abort()

    def pause_writing(self) -> None:
        self._full = True
        if self.other is not None:
            self.other.flow()

    def resume_writing(self) -> None:
        self._full = False
        if self.other is not None:
            self.other.flow()

    def abort(self) -> None:
        """Reset it."""
        self.transport.abort()

    def flow(self) -> None:
        """Read, unless the network is silent or the other side is full."""
        if self.transport.is_closing():
            return
        if self.other is None or self._link.silent or self.other._full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _pass(self, data: bytes | None) -> None:
        if self._link.delay_s == 0 and not self._late:
            self._write(data)
            return
        loop = asyncio.get_running_loop()
        self._late.append((loop.time() + self._link.delay_s, data))
        if self._timer is None:
            self._timer = loop.call_at(self._late[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._late and self._late[0][0] <= loop.time():
            self._write(self._late.popleft()[1])
        if self._late:
            self._timer = loop.call_at(self._late[0][0], self._due)

    def _write(self, data: bytes | None) -> None:
        if self.other is None or self.other.transport.is_closing():
            return
        if data is not None:
            self.other.transport.write(data)
        else:
            self._ended = True
            if self.other._ended:
                self.transport.close()
                self.other.transport.close()
            else:
                self.other.transport.write_eof()
