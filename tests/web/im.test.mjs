// Unit tests of imserver/web/im.js against a fake WebSocket, clock and chance. Run: node --test tests/web/im.test.mjs

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

// Imported as text, so that no package.json is needed to call it a module.
const source = await readFile(new URL("../../imserver/web/im.js", import.meta.url), "utf8");
const { IMClient, deviceName } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const START = 1_700_000_000_000;

/** One client with everything around it in our hands. */
function setting(options = {}) {
  let time = START;
  let serial = 0;
  const timers = new Map();
  const sockets = [];
  class Socket {
    constructor(url, protocol) {
      Object.assign(this, { url, protocol, frames: [], closed: null });
      sockets.push(this);
    }
    send(text) { this.frames.push(JSON.parse(text)); }
    close(code) { this.closed = code; }
    // what the test does to it
    say(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
    end(code, reason = "") { this.onclose({ code, reason }); }
    sent(op) { return this.frames.filter((frame) => frame.op === op); }
    welcome(more = {}) {
      this.onopen();
      this.say({ op: "welcome", conn: "c1", uid: "ann", device: "d", ts: time, heartbeat_s: 60, resumed: true, ...more });
    }
  }
  const env = {
    WebSocket: Socket,
    now: () => time,
    random: () => 0.5,
    setTimeout: (action, wait) => (timers.set(++serial, { action, at: time + wait }), serial),
    clearTimeout: (id) => timers.delete(id),
  };
  const { chance, ...rest } = options;
  if (chance) env.random = chance;
  const client = new IMClient({ urls: ["ws://a/ws"], getToken: () => "token", device: "d", env, ...rest });
  const got = [];
  client.on("message", (message) => got.push(message.id));
  /** Let promises settle. */
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  return {
    client, sockets, timers, got, settle,
    get ws() { return sockets[sockets.length - 1]; },
    /** Move the clock; what falls due runs in its order. */
    async pass(ms) {
      const end = time + ms;
      for (;;) {
        const due = [...timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
        if (!due) break;
        timers.delete(due[0]);
        time = Math.max(time, due[1].at);
        due[1].action();
        await settle();
      }
      time = end;
      await settle();
    },
    /** Wait for the next connection, or for 40 s in vain. */
    async retry() {
      const before = sockets.length;
      for (let n = 0; n < 400 && sockets.length === before; n++) await this.pass(100);
    },
    async online(more) {
      client.connect();
      await settle();
      this.ws.welcome(more);
      await settle();
      return this.ws;
    },
  };
}

let serial = 0;
const message = (more = {}) => {
  const n = ++serial;
  return { op: "message", cursor: `1-${n}`, id: `m${n}`, from: "bob", to: "ann", channel: "demo", type: "text",
    body: { text: `${n}` }, ts: START, ...more };
};
const jwt = (claims) => `x.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.y`;

test("hello carries token, device and platform, and no cursor at first", async () => {
  const it = setting();
  const ws = await it.online();
  assert.equal(ws.protocol, "im.v1");
  assert.deepEqual(ws.frames[0], { op: "hello", token: "token", device: "d", platform: "web" });
  assert.equal(it.client.status, "online");
  assert.equal(it.client.uid, "ann");
});

test("one ack covers what came within 200 ms", async () => {
  const it = setting();
  const ws = await it.online();
  const last = [message(), message(), message()].map((frame) => (ws.say(frame), frame)).pop();
  assert.equal(ws.sent("ack").length, 0);
  await it.pass(200);
  assert.deepEqual(ws.sent("ack"), [{ op: "ack", cursor: last.cursor }]);
  await it.pass(1000);
  assert.equal(ws.sent("ack").length, 1);
});

test("twenty messages are acknowledged at once", async () => {
  const it = setting();
  const ws = await it.online();
  let last;
  for (let n = 0; n < 20; n++) ws.say((last = message()));
  assert.deepEqual(ws.sent("ack"), [{ op: "ack", cursor: last.cursor }]);
  await it.pass(1000);
  assert.equal(ws.sent("ack").length, 1);
});

test("a retransmission is dropped, acknowledged again, and does not move the cursor back", async () => {
  const it = setting();
  const ws = await it.online();
  const [one, two] = [message(), message()];
  ws.say(one);
  ws.say(two);
  await it.pass(200);
  ws.say({ ...one, attempt: 2 });
  await it.pass(200);
  assert.deepEqual(it.got, [one.id, two.id]);
  assert.deepEqual(ws.sent("ack").map((frame) => frame.cursor), [two.cursor, two.cursor]);
});

test("a message without cursor is shown and not acknowledged", async () => {
  const it = setting();
  const ws = await it.online();
  const { cursor, ...frame } = message();
  ws.say(frame);
  await it.pass(1000);
  assert.deepEqual(it.got, [frame.id]);
  assert.equal(ws.sent("ack").length, 0);
});

test("a new connection resumes behind the last message and shows nothing twice", async () => {
  const it = setting();
  const [one, two] = [message(), message()];
  (await it.online()).say(one);
  it.ws.end(1006);
  assert.equal(it.client.status, "waiting");
  await it.retry();
  assert.equal(it.sockets.length, 2);
  it.ws.welcome();
  assert.equal(it.ws.frames[0].since, one.cursor);
  it.ws.say(one);
  it.ws.say(two);
  assert.deepEqual(it.got, [one.id, two.id]);
});

test("the ids it remembers are bounded", async () => {
  const it = setting({ remembered: 2 });
  const ws = await it.online();
  const frames = [message(), message(), message()];
  frames.forEach((frame) => ws.say(frame));
  ws.say(frames[2]);
  ws.say(frames[0]);
  assert.equal(it.got.length, 4);
});

test("backoff has full jitter between 0.5 s and a doubling ceiling of at most 30 s", async () => {
  for (const [chance, expected] of [[0, [500, 500, 500, 500]], [1, [1000, 2000, 4000, 8000, 16000, 30000, 30000]]]) {
    const it = setting({ chance: () => chance, urls: () => "ws://a/ws" });
    const delays = [];
    it.client.on("status", (status) => status.status === "waiting" && delays.push(status.delay));
    it.client.connect();
    for (const delay of expected) {
      await it.settle();
      it.ws.end(1006);
      await it.pass(delay);
    }
    assert.deepEqual(delays, expected);
  }
});

test("only a connection that lasted starts the backoff anew", async () => {
  const it = setting({ chance: () => 0.999999, urls: () => "ws://a/ws" });
  const delays = [];
  it.client.on("status", (status) => status.status === "waiting" && delays.push(status.delay));
  await it.online();
  it.ws.end(1013);
  await it.pass(1000);
  it.ws.welcome();
  it.ws.end(4413);
  await it.pass(2000);
  it.ws.welcome();
  await it.pass(10_000);
  it.ws.end(4429);
  assert.deepEqual(delays, [1000, 2000, 1000]);
});

test("workers are tried in turn", async () => {
  const it = setting({ urls: ["ws://a/ws", "ws://b/ws"] });
  it.client.connect();
  for (let n = 0; n < 3; n++) {
    await it.settle();
    it.ws.end(1006);
    await it.retry();
  }
  const urls = it.sockets.map((ws) => ws.url);
  assert.equal(new Set(urls.slice(0, 2)).size, 2);
  assert.equal(urls[0], urls[2]);
});

for (const code of [1000, 1001, 1006, 1011, 1013, 4408, 4413, 4429]) {
  test(`close code ${code} reconnects`, async () => {
    const it = setting();
    (await it.online()).end(code);
    await it.retry();
    assert.equal(it.sockets.length, 2);
  });
}

for (const code of [4400, 4403, 4409]) {
  test(`close code ${code} is final, and says so to whoever waits`, async () => {
    const it = setting();
    const ws = await it.online();
    const waiting = assert.rejects(it.client.send({ to: "bob", body: {} }), { code: "stopped" });
    ws.end(code);
    await waiting;
    await it.pass(300_000);
    assert.equal(it.client.status, "stopped");
    assert.equal(it.sockets.length, 1);
    assert.equal(it.timers.size, 0);
    await assert.rejects(it.client.history("c"), { code: "stopped" });
  });
}

test("a 4403 tells until when", async () => {
  const it = setting();
  const seen = [];
  it.client.on("status", (status) => seen.push(status.until));
  (await it.online()).end(4403, "suspended until 2030-01-01T00:00:00Z");
  assert.equal(seen.pop(), Date.UTC(2030, 0, 1));
  it.client.connect();
  await it.settle();
  it.ws.end(4403, "blacklisted for good");
  assert.equal(seen.pop(), null);
});

test("4401 asks for a new token, and gives up when new ones are refused too", async () => {
  let asked = 0;
  const it = setting({ getToken: async () => `token${++asked}` });
  await it.online();
  it.ws.end(4401);
  await it.retry();
  it.ws.onopen();
  assert.equal(it.ws.frames[0].token, "token2");
  for (let n = 0; n < 10; n++) {
    it.ws.end(4401);
    await it.retry();
  }
  assert.equal(it.client.status, "stopped");
  assert.equal(asked, 6);
});

test("other losses keep the token they have, unless it has expired", async () => {
  let asked = 0;
  const it = setting({ getToken: () => (asked++, jwt({ exp: START / 1000 + 3600 })) });
  await it.online();
  it.ws.end(1006);
  await it.retry();
  assert.equal(asked, 1);
});

test("a token is refreshed before it expires, on the same connection", async () => {
  let asked = 0;
  const tokens = [jwt({ exp: START / 1000 + 100 }), jwt({ exp: START / 1000 + 200 }), "other"];
  const it = setting({ getToken: () => tokens[asked++] });
  const ws = await it.online({ heartbeat_s: 1000 });
  await it.pass(79_000);
  assert.equal(asked, 1);
  await it.pass(1000);
  assert.deepEqual(ws.sent("refresh"), [{ op: "refresh", token: tokens[1] }]);
  assert.equal(it.client.token, tokens[1]);
  await it.pass(96_000);
  assert.equal(asked, 3);
  assert.equal(it.sockets.length, 1);
});

test("a getToken that fails is tried again later", async () => {
  let asked = 0;
  const it = setting({ getToken: async () => { if (!asked++) throw new Error("offline"); return "token"; } });
  it.client.connect();
  await it.settle();
  assert.equal(it.client.status, "waiting");
  await it.pass(1000);
  it.ws.welcome();
  assert.equal(it.client.status, "online");
});

test("a worker that drains is left at the time it gave, for the url it gave", async () => {
  const it = setting();
  const ws = await it.online();
  ws.say(message());
  ws.say({ op: "reconnect", after_ms: 150, url: "ws://other/ws" });
  await it.pass(149);
  assert.equal(it.sockets.length, 1);
  await it.pass(1);
  assert.equal(ws.sent("ack").length, 1);
  assert.equal(ws.closed, 1000);
  assert.equal(it.ws.url, "ws://other/ws");
});

test("a draining worker that closes early is still waited for", async () => {
  const it = setting();
  const ws = await it.online();
  ws.say({ op: "reconnect", after_ms: 5000 });
  ws.end(1001);
  await it.pass(4999);
  assert.equal(it.sockets.length, 1);
  await it.pass(1);
  assert.equal(it.sockets.length, 2);
});

test("send resolves with what the server answered", async () => {
  const it = setting();
  const ws = await it.online();
  const sent = it.client.send({ shop: "tea", body: { text: "hi" } });
  const [frame] = ws.sent("send");
  assert.equal(frame.ref, frame.cid);
  assert.match(frame.cid, /^[0-9a-f]{32}$/);
  assert.deepEqual([frame.shop, frame.type, frame.body], ["tea", "text", { text: "hi" }]);
  ws.say({ op: "sent", ref: frame.ref, id: "x", ts: 1, conversation: "c", seq: 1 });
  assert.equal((await sent).seq, 1);
});

test("a send survives connections with its cid, and keeps its place in the order", async () => {
  const it = setting();
  const first = it.client.send({ shop: "tea", body: { n: 1 } });
  const second = it.client.send({ shop: "tea", body: { n: 2 } });
  const ws = await it.online();
  assert.deepEqual(ws.sent("send").map((frame) => frame.body.n), [1]);
  const { cid } = ws.sent("send")[0];
  ws.end(1006);
  await it.pass(1000);
  it.ws.welcome();
  assert.deepEqual(it.ws.sent("send").map((frame) => [frame.body.n, frame.cid]), [[1, cid]]);
  it.ws.say({ op: "sent", ref: cid, id: "a", ts: 1, duplicate: true });
  assert.equal((await first).duplicate, true);
  assert.deepEqual(it.ws.sent("send").map((frame) => frame.body.n), [1, 2]);
  it.ws.say({ op: "sent", ref: it.ws.sent("send")[1].ref, id: "b", ts: 1 });
  assert.equal((await second).id, "b");
});

test("places do not wait for each other", async () => {
  const it = setting();
  const ws = await it.online();
  it.client.send({ shop: "tea", body: {} });
  it.client.send({ conversation: "c", body: {} });
  it.client.send({ body: {} });
  it.client.send({ body: {} });
  assert.equal(ws.sent("send").length, 4);
});

test("unavailable is tried again with the same cid, other errors are final", async () => {
  const it = setting();
  const ws = await it.online();
  const sent = it.client.send({ shop: "tea", body: {} });
  const { ref, cid } = ws.sent("send")[0];
  ws.say({ op: "error", ref, code: "unavailable", reason: "away" });
  await it.pass(2000);
  assert.deepEqual(ws.sent("send").map((frame) => frame.cid), [cid, cid]);
  ws.say({ op: "error", ref, code: "blocked_content", reason: "no", field: "body" });
  await assert.rejects(sent, { name: "IMError", code: "blocked_content", field: "body" });
});

test("an answer that never comes is asked for again, a bounded number of times", async () => {
  const it = setting({ tries: 3 });
  const ws = await it.online();
  const sent = assert.rejects(it.client.send({ shop: "tea", body: {} }), { code: "unavailable" });
  await it.pass(30_000);
  await sent;
  assert.equal(new Set(ws.sent("send").map((frame) => frame.cid)).size, 1);
  assert.equal(ws.sent("send").length, 3);
});

test("our own message in the backlog settles the send whose answer got lost", async () => {
  const it = setting();
  const ws = await it.online();
  const sent = it.client.send({ shop: "tea", body: {} });
  const { cid } = ws.sent("send")[0];
  ws.end(1006);
  await it.pass(1000);
  it.ws.welcome();
  const own = message({ from: "ann", cid, seq: 7, conversation: "c" });
  it.ws.say(own);
  it.ws.say({ op: "sent", ref: cid, id: own.id, ts: 1, duplicate: true });
  assert.equal((await sent).seq, 7);
  assert.deepEqual(it.got, []);
  await it.pass(200);
  assert.deepEqual(it.ws.sent("ack"), [{ op: "ack", cursor: own.cursor }]);
});

test("our own message that comes back after sent is acknowledged, not shown", async () => {
  const it = setting();
  const ws = await it.online();
  it.client.send({ shop: "tea", body: {} });
  const own = message({ from: "ann", cid: ws.sent("send")[0].cid });
  ws.say({ op: "sent", ref: own.cid, id: own.id, ts: 1 });
  ws.end(1006);
  await it.pass(1000);
  it.ws.welcome();
  it.ws.say(own);
  await it.pass(200);
  assert.deepEqual(it.got, []);
  assert.deepEqual(it.ws.sent("ack"), [{ op: "ack", cursor: own.cursor }]);
});

test("the queue is bounded, and a frame too large never leaves", async () => {
  const it = setting({ queue: 2 });
  it.client.send({ shop: "tea", body: {} });
  it.client.send({ shop: "tea", body: {} });
  await assert.rejects(it.client.send({ shop: "tea", body: {} }), { code: "queue_full" });
  await assert.rejects(it.client.send({ shop: "tea", body: { text: "é".repeat(33_000) } }), { code: "too_large" });
});

test("the same cid again while it waits is the same call", async () => {
  const it = setting();
  const ws = await it.online();
  it.client.send({ shop: "tea", cid: "mine", body: {} });
  it.client.send({ shop: "tea", cid: "mine", body: {} });
  assert.equal(ws.sent("send").length, 1);
});

test("history and conversations resolve by ref, whatever the order of the answers", async () => {
  const it = setting();
  const ws = await it.online();
  const [page, list] = [it.client.history("c", { before: 9, limit: 5 }), it.client.conversations({ limit: 3 })];
  const [asked] = ws.sent("history");
  assert.deepEqual([asked.conversation, asked.before, asked.limit], ["c", 9, 5]);
  ws.say({ op: "conversations", ref: ws.sent("conversations")[0].ref, conversations: [], more: false });
  ws.say({ op: "history", ref: asked.ref, messages: [1], more: true });
  assert.deepEqual((await page).messages, [1]);
  assert.deepEqual((await list).conversations, []);
});

test("a read while offline leaves with the next connection, once, the highest only", async () => {
  const it = setting();
  it.client.read("c", 4);
  it.client.read("c", 3);
  const ws = await it.online();
  assert.deepEqual(ws.sent("read"), [{ op: "read", conversation: "c", seq: 4 }]);
});

test("typing is throttled, and a message starts it anew", async () => {
  const it = setting();
  const ws = await it.online();
  it.client.typing("c");
  it.client.typing("c");
  assert.equal(ws.sent("typing").length, 1);
  await it.pass(3000);
  it.client.typing("c");
  assert.equal(ws.sent("typing").length, 2);
  it.client.send({ conversation: "c", body: {} });
  it.client.typing("c");
  assert.equal(ws.sent("typing").length, 3);
});

test("a connection gone silent is asked for a sign of life, then replaced", async () => {
  const it = setting();
  const ws = await it.online({ heartbeat_s: 60 });
  await it.pass(60_000);
  assert.equal(ws.sent("ping").length, 1);
  ws.say({ op: "pong", ts: 1 });
  await it.pass(60_000);
  assert.equal(ws.sent("ping").length, 2);
  await it.pass(11_000);
  assert.equal(it.sockets.length, 2);
});

test("a server that never welcomes is given up", async () => {
  const it = setting();
  it.client.connect();
  await it.settle();
  const ws = it.ws;
  await it.pass(11_000);
  assert.equal(ws.closed, 1000);
  assert.equal(it.sockets.length, 2);
});

test("close leaves nothing running, keeps the queue, and connect goes on", async () => {
  const it = setting();
  const ws = await it.online();
  const got = message();
  ws.say(got);
  it.client.close();
  assert.equal(ws.sent("ack").length, 1);
  assert.equal(it.timers.size, 0);
  it.client.send({ shop: "tea", body: {} });
  await it.online();
  assert.equal(it.sockets.length, 2);
  assert.equal(it.ws.frames[0].since, got.cursor);
  assert.equal(it.ws.sent("send").length, 1);
});

test("connect while waiting tries at once", async () => {
  const it = setting();
  (await it.online()).end(1006);
  it.client.connect();
  await it.settle();
  assert.equal(it.sockets.length, 2);
  await it.pass(5000);
  assert.equal(it.sockets.length, 2);
});

test("read, typing and state become events, and so does an error that answers nothing", async () => {
  const it = setting();
  const ws = await it.online();
  const seen = [];
  for (const type of ["read", "typing", "state", "error"]) it.client.on(type, (detail) => seen.push([type, detail]));
  ws.say({ op: "read", conversation: "c", from: "bob", seq: 3 });
  ws.say({ op: "typing", conversation: "c", from: "bob" });
  ws.say({ op: "state", conversation: "c", state: "waiting", agent: null, position: 1, ts: 1 });
  ws.say({ op: "error", code: "rate_limited", reason: "slowly" });
  assert.deepEqual(seen.map(([type]) => type), ["read", "typing", "state", "error"]);
  assert.equal(seen[3][1].code, "rate_limited");
});

test("a device keeps its name, and has one even where nothing can be stored", () => {
  const shelf = new Map();
  globalThis.localStorage = { getItem: (key) => shelf.get(key) ?? null, setItem: (key, value) => shelf.set(key, value) };
  const name = deviceName("k");
  assert.equal(deviceName("k"), name);
  assert.match(name, /^[A-Za-z0-9_.:-]{1,64}$/);
  globalThis.localStorage = { getItem() { throw new Error("SecurityError"); } };
  assert.equal(deviceName("other"), deviceName("other"));
});
