"""Bodies travel as they were written, from whoever sends to every device and into the history, up to the largest."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import ANSWER_S, Client, Demo
from tests.integration.test_conversation import name

LARGE = """
[messages]
body_max = 262144

[connection]
max_frame = 1048576
"""
BODY_MAX = 262144

BODIES = {
    "text": rb'{"text":"caf\u00e9 \/ \ud83d\ude00 caf' + "é 😀".encode() + rb'\u2028"}',
    "image": b'{ "url" : "https://img.example/a.png",  "width":1e2 ,"height":7.50, "alt":"" }',
    "file": b'{"url":"https://files.example/a.pdf","name":"a.pdf","size":12345678901234567890}',
    "card": b'{"title":"Kettle","price":68.0,"currency":"EUR","sku":"007"}',
    "order": b'{"order":{"id":"7","lines":[ {"n":-0.0},\t{"n":1E+2} ,{"n":0.10}]}}',
    "x-own_type": b'{"":null,"b":[],"a":{},"z":true}',
    "empty": b"{}",
}

_shared: list[Demo] = []


def large_demo() -> Demo:
    """A demo that takes the largest bodies, for the tests of this module."""
    if not _shared:
        _shared.append(Demo(config=LARGE))
    return _shared[0]


class BodyCase(SynchronousTestCase):
    """A shop with an agent, and a customer who has written to it."""

    def setUp(self) -> None:
        """Both are connected, the agent's second device on the other worker."""
        self.demo = large_demo()
        self.shop, self.a, self.c = name("shop"), name("agent"), name("customer")
        self.demo.agent(self.a, self.shop)
        self.agent = self.client(self.a, "merchant")
        self.agent2 = self.client(self.a, "merchant", worker=1, device="d2")
        self.customer = self.client(self.c)
        first = self.customer.ask("sent", op="send", cid="first", shop=self.shop, type="text", body={})
        self.conversation = first["conversation"]
        self.agent.message()
        self.agent2.message()
        self.token = self.demo.token(self.c)

    def client(self, uid: str, role: str = "customer", **more: Any) -> Client:
        """A client that is closed after the test."""
        client = self.demo.client(uid, role, **more)
        self.addCleanup(client.close)
        return client

    def post(self, type: str, body: bytes, key: str, **more: str) -> Any:
        """`POST /v1/messages` with a body as it is: the status and the answer."""
        fields = {"cid": name("cid"), "type": type, "conversation": self.conversation, **more}
        text = json.dumps(fields)[:-1].encode() + b',"body":' + body + b"}"
        return self.demo.business("POST", "/v1/messages", text, key)

    def next(self, client: Client, type: str) -> bytes:
        """The next message of a type as it came, acknowledged."""
        while True:
            text = str(client.socket.recv(ANSWER_S))
            frame = json.loads(text)
            if frame["op"] == "message" and frame["type"] == type:
                client.send(op="ack", cursor=frame["cursor"])
                return text.encode()

    def history(self, query: str = "limit=200") -> bytes:
        """The conversation's messages, as the answer has them."""
        request = urllib.request.Request(
            f"{self.demo.ready['business']}/v1/conversations/{self.conversation}/messages?{query}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            found: bytes = answer.read()
            return found

    def archived(self, id: str) -> None:
        """Wait until a message is in the archive."""
        deadline = time.monotonic() + ANSWER_S
        while not self.demo.business("GET", f"/v1/messages/{id}")[1].get("archived"):
            self.assertLess(time.monotonic(), deadline, "it is not archived")
            time.sleep(0.05)


class BitForBitTests(BodyCase):
    """No byte of a body changes, whatever its type: numbers, spacing, escapes, the order of names."""

    def test_over_http(self) -> None:
        """From `POST /v1/messages` to every device, to the history from the journal and from the archive."""
        id = ""
        for type, body in BODIES.items():
            status, answer = self.post(type, body, self.token)
            self.assertEqual(status, 202, answer)
            id = answer["id"]
            for client in (self.agent, self.agent2):
                self.assertIn(b'"body":' + body, self.next(client, type))
        for _ in ("journal", "archive"):
            found = self.history()
            for body in BODIES.values():
                self.assertIn(b'"body":' + body, found)
            self.archived(id)

    def test_over_websocket(self) -> None:
        """From a `send`, and in the list of conversations."""
        for type, body in BODIES.items():
            head = {"op": "send", "ref": type, "cid": name("cid"), "type": type, "conversation": self.conversation}
            self.customer.socket.send(json.dumps(head)[:-1] + ',"body":' + body.decode() + "}")
            self.assertEqual(self.customer.until("sent")["ref"], type)
            self.assertIn(b'"body":' + body, self.next(self.agent, type))
        self.agent.send(op="conversations", ref="r")
        while '"op":"conversations"' not in (text := str(self.agent.socket.recv(ANSWER_S))):
            pass
        self.assertIn('"body":' + body.decode(), text)

    def test_other_ways(self) -> None:
        """From a push, through a `direct` channel, and into a journal."""
        keys = self.demo.ready["channels"]
        direct = self.client(name("u"), channel="demo-direct")
        to = direct.welcome["uid"]
        journal = self.client(name("u"), channel="demo-journal")
        for type, body in BODIES.items():
            text = json.dumps({"to": self.c, "type": type})[:-1].encode() + b',"body":' + body + b"}"
            self.assertEqual(self.demo.dispatcher("POST", "/v1/push", text)[0], 202)
            self.assertIn(b'"body":' + body, self.next(self.customer, type))
            other = self.client(to, channel="demo-direct", device=name("d"), since="$")
            for client, target in ((direct, {"to": to}), (journal, {})):
                head = {"op": "send", "ref": 1, "cid": name("cid"), "type": type, **target}
                client.socket.send(json.dumps(head)[:-1] + ',"body":' + body.decode() + "}")
                client.until("sent")
            self.assertIn(b'"body":' + body, self.next(other, type))
        request = urllib.request.Request(
            f"{self.demo.ready['dispatcher']}/v1/journal?limit=1000",
            headers={"Authorization": f"Bearer {keys['demo-journal']['api_key']}"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            found = answer.read()
        for body in BODIES.values():
            self.assertIn(b'"body":' + body, found)


class RecallTests(BodyCase):
    """What is taken back while a device is away."""

    def test_offline_device(self) -> None:
        """It gets the message and its recall, in order; history shows `recalled`, before and after it is archived."""
        away = self.client(self.c, device="away")
        away.message()
        away.close()
        _, sent = self.post("image", b'{"url":"https://img.example/oops.png"}', self.demo.token(self.a, "merchant"))
        body = json.dumps({"seq": sent["seq"]}).encode()
        status, recall = self.post("recall", body, self.demo.token(self.a, "merchant"))
        self.assertEqual(status, 202, recall)
        back = self.client(self.c, device="away")
        first, second = back.message(), back.message()
        self.assertEqual((first["type"], first["seq"]), ("image", sent["seq"]))
        self.assertEqual((second["type"], second["body"]), ("recall", {"seq": sent["seq"]}))
        for _ in ("journal", "archive"):
            messages = json.loads(self.history())["messages"]
            self.assertEqual([m["type"] for m in messages], ["text", "recalled", "recall"])
            self.assertEqual(messages[1]["body"], {})
            self.assertEqual(messages[1]["id"], sent["id"])
            self.archived(recall["id"])

    def test_archived_already(self) -> None:
        """The archive forgets the body of what is taken back later."""
        _, sent = self.post("text", b'{"text":"my number is 1234"}', self.token)
        self.archived(sent["id"])
        self.assertIn(b"1234", self.history())
        _, recall = self.post("recall", json.dumps({"seq": sent["seq"]}).encode(), self.token)
        for _ in ("journal", "archive"):
            self.assertNotIn(b"1234", self.history())
            self.archived(recall["id"])


class LargestTests(BodyCase):
    """Whatever is accepted arrives: the largest body, the deepest one, with the most receivers."""

    def largest(self) -> list[bytes]:
        """Bodies of exactly `body_max` bytes: plain, all escapes, not ASCII, all spaces."""
        made = []
        for piece in (b"x", rb"\u00e9", "é".encode(), rb"\""):
            room = BODY_MAX - len(b'{"t":""}')
            made.append(b'{"t":"' + piece * (room // len(piece)) + b"x" * (room % len(piece)) + b'"}')
        made.append(b"{" + b" " * (BODY_MAX - 2) + b"}")
        assert {len(body) for body in made} == {BODY_MAX}
        return made

    def test_largest(self) -> None:
        """To customer, agent and a third who writes, all at once, on both workers; and into the history."""
        backend = name("backend")
        third = self.client(backend)
        bodies = self.largest()
        id = ""
        for body in bodies:
            status, answer = self.post("big", body, self.demo.ready["api_key"], **{"from": backend})
            self.assertEqual(status, 202, answer)
            id = answer["id"]
        for client in (self.customer, self.agent, self.agent2, third):
            for body in bodies:
                self.assertIn(b'"body":' + body, self.next(client, "big"))
        self.archived(id)
        for seq, body in enumerate(bodies, 2):
            self.assertIn(b'"body":' + body, self.history(f"after={seq - 1}&limit=1"))
        for body in bodies:
            text = (
                json.dumps({"to": [self.c, self.a, backend], "type": "big"})[:-1].encode() + b',"body":' + body + b"}"
            )
            self.assertEqual(self.demo.dispatcher("POST", "/v1/push", text)[0], 202)
            self.assertIn(b'"body":' + body, self.next(self.agent, "big"))
        over = b'{"t":"' + b"x" * (BODY_MAX - 7) + b'"}'
        self.assertEqual(self.post("big", over, self.token)[0], 422)

    def test_largest_over_websocket(self) -> None:
        """A client's own."""
        for body in self.largest():
            head = {"op": "send", "ref": 1, "cid": name("cid"), "type": "big", "conversation": self.conversation}
            self.customer.socket.send(json.dumps(head)[:-1] + ',"body":' + body.decode() + "}")
            self.assertEqual(self.customer.until("sent")["op"], "sent")
            self.assertIn(b'"body":' + body, self.next(self.agent2, "big"))

    def test_long_history(self) -> None:
        """More bodies than a page can carry come in several pages, newest first, none left out."""
        body = self.largest()[0]
        for _ in range(9):
            self.assertEqual(self.post("big", body, self.token)[0], 202)
        found: list[int] = []
        page = self.customer.ask("history", op="history", conversation=self.conversation, limit=4)
        while True:
            self.assertEqual(page["op"], "history", page)
            found = [message["seq"] for message in page["messages"]] + found
            if not page["more"]:
                break
            page = self.customer.ask("history", op="history", conversation=self.conversation, limit=4, before=found[0])
        self.assertEqual(found, list(range(1, 11)))
        forward: list[int] = []
        while True:
            after = forward[-1] if forward else 0
            page = self.customer.ask("history", op="history", conversation=self.conversation, limit=4, after=after)
            forward += [message["seq"] for message in page["messages"]]
            if not page["more"]:
                break
        self.assertEqual(forward, found)

    def test_deepest(self) -> None:
        """A body nested as deep as the server reads arrives; one deeper is refused at once, over WebSocket too."""
        deepest = b'{"a":' * 98 + b"{}" + b"}" * 98
        status, answer = self.post("deep", deepest, self.token)
        self.assertEqual(status, 202, answer)
        for client in (self.agent, self.agent2):
            self.assertIn(b'"body":' + deepest, self.next(client, "deep"))
        self.archived(answer["id"])
        self.assertIn(b'"body":' + deepest, self.history())
        for levels in (99, 300, 900):
            body = b'{"a":' * levels + b"{}" + b"}" * levels
            status, answer = self.post("deep", body, self.token)
            self.assertEqual((status, answer["code"]), (400, "invalid_json"))
            head = {"op": "send", "ref": 1, "cid": name("cid"), "type": "deep", "conversation": self.conversation}
            self.customer.socket.send(json.dumps(head)[:-1] + ',"body":' + body.decode() + "}")
            self.assertEqual(self.customer.until("error")["code"], "invalid_json")
