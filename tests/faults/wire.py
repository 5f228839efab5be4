"""HTTP and Redis as anybody would speak them, in a few lines and with nothing of ours."""

from __future__ import annotations

import asyncio  # noqa: TID251
import json
from collections.abc import AsyncIterator
from typing import Any


class NoAnswer(Exception):
    """The connection failed, or the answer did not come in time."""


async def call(
    method: str, port: int, path: str, body: Any = None, key: str = "", timeout: float = 5.0
) -> tuple[int, Any]:
    """One HTTP call: status and decoded answer; `NoAnswer`."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_request(method, path, body, key))
            status, length = await _head(reader)
            data = await reader.read(-1) if length is None else await reader.readexactly(length)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        raise NoAnswer(f"{type(error).__name__} {error}") from None
    finally:
        if writer is not None:
            writer.close()
    try:
        return status, json.loads(data) if data else None
    except ValueError:
        return status, data


async def events(port: int, path: str, key: str, last: str = "") -> AsyncIterator[dict[str, Any]]:
    """The frames of a stream of Server-Sent Events, until it ends; `NoAnswer` if it is not one."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            more = f"Last-Event-ID: {last}\r\n" if last else ""
            writer.write(_request("GET", path, None, key, more))
            status, _ = await _head(reader)
        if status != 200:
            raise NoAnswer(f"status {status}")
        while line := await reader.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    except (OSError, TimeoutError, ValueError) as error:
        raise NoAnswer(f"{type(error).__name__} {error}") from None
    finally:
        if writer is not None:
            writer.transport.abort()


def _request(method: str, path: str, body: Any, key: str, more: str = "") -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if body is not None else ""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{method} {path} HTTP/1.0\r\nHost: test\r\n{authorization}{kind}{more}\r\n".encode() + data


async def _head(reader: asyncio.StreamReader) -> tuple[int, int | None]:
    line = await reader.readline()
    if not line.startswith(b"HTTP/1."):
        raise ValueError(f"not HTTP: {line[:40]!r}")
    status, length = int(line.split()[1]), None
    while (line := await reader.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, length


async def redis(port: int, *args: str | int) -> Any:
    """One command to a Redis: its answer as bytes, int, None or a list of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        parts = [str(arg).encode() for arg in args]
        writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        return await _reply(reader)
    finally:
        writer.close()


async def _reply(reader: asyncio.StreamReader) -> Any:
    line = (await reader.readline()).rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return (await reader.readexactly(int(rest) + 2))[:-2] if int(rest) >= 0 else None
    if kind == b"*":
        return [await _reply(reader) for _ in range(int(rest))]
    return rest
