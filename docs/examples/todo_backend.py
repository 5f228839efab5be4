"""A business server of another kind: a to-do list that only pushes.

It knows nothing of WebSockets, workers or Redis. When a to-do is due it calls `POST /v1/push` with its channel's
API key, and the message reaches the person now or when they next connect. A to-do is marked as told only after
the 202, so a crash in between repeats the call; the id of the to-do is its `cid`, so nobody sees it twice.

    DISPATCHER=http://127.0.0.1:8081 API_KEY=... python docs/examples/todo_backend.py [ENDPOINT] [DATABASE]
    curl -d '{"who": "ann", "what": "Call the hotel", "in_s": 5}' http://127.0.0.1:8400/todos
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import sys
import time
from typing import Any

import treq
from twisted.internet import defer, endpoints, reactor, task
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.web import resource, server
from twisted.web.http_headers import Headers

log = Logger()
PUSH = os.environ["DISPATCHER"] + "/v1/push"
HEADERS = Headers({"Authorization": [f"Bearer {os.environ['API_KEY']}"], "Content-Type": ["application/json"]})
ENDPOINT = sys.argv[1] if len(sys.argv) > 1 else "tcp:8400:interface=127.0.0.1"
DATABASE = sqlite3.connect(sys.argv[2] if len(sys.argv) > 2 else "todos.sqlite", isolation_level=None)
DATABASE.execute("CREATE TABLE IF NOT EXISTS todos (id TEXT PRIMARY KEY, who TEXT, what TEXT, due REAL, told INT)")


class Todos(resource.Resource):
    """`POST /todos`: remember one."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        """{`who`, `what`, `in_s`}: 201 {`id`}."""
        todo = json.load(request.content)
        id, due = secrets.token_hex(8), time.time() + todo.get("in_s", 0)
        DATABASE.execute("INSERT INTO todos VALUES (?, ?, ?, ?, 0)", (id, todo["who"], todo["what"], due))
        request.setResponseCode(201)
        return json.dumps({"id": id}).encode() + b"\n"


async def tell_due() -> None:
    """Push what is due and not told yet; what fails is still not told at the next turn."""
    rows = DATABASE.execute("SELECT id, who, what FROM todos WHERE told = 0 AND due <= ?", (time.time(),)).fetchall()
    for id, who, what in rows:
        push = {"to": who, "type": "todo", "body": {"id": id, "text": what}, "cid": id}
        try:
            answer = await treq.post(PUSH, json.dumps(push).encode(), headers=HEADERS, timeout=5)
            text = await answer.text()
        except Exception as error:  # whatever a call over the network fails with
            log.warn("to-do {id} is tried again: {error}", id=id, error=error)
            continue
        told = {202: 1, 422: -1}.get(answer.code, 0)  # 422 will not get better; all else is tried again
        DATABASE.execute("UPDATE todos SET told = ? WHERE id = ?", (told, id))
        log.info("to-do {id}: {code} {text}", id=id, code=answer.code, text=text)


if __name__ == "__main__":
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    endpoints.serverFromString(reactor, ENDPOINT).listen(server.Site(Todos()))
    task.LoopingCall(lambda: defer.Deferred.fromCoroutine(tell_due())).start(1.0)
    reactor.run()  # type: ignore[attr-defined]
