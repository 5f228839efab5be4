// @ts-check
/**
 * The JavaScript SDK of imserver: one class, no dependencies, for browsers and for Node 22 and later.
 *
 *     const client = new IMClient({ urls: ["wss://im.example/ws"], getToken: () => fetchToken() });
 *     client.on("message", (message) => show(message));
 *     client.connect();
 *     const { id, conversation, seq } = await client.send({ shop: "tea", body: { text: "Hello" } });
 *
 * Events: `status`, `welcome`, `message`, `read`, `typing`, `state`, `error` (one that answers no call) and `frame`
 * (every frame as it crosses the wire). A message is delivered once and in order, whatever happens to connections.
 */

/** @typedef {{cursor?: string, id: string, from: string, to: string, channel: string, type: string, body: any,
 *   ts: number, conversation?: string, seq?: number, cid?: string, attempt?: number}} Message */
/** @typedef {{id: string, ts: number, conversation?: string, seq?: number, cursor?: string,
 *   duplicate?: boolean}} Sent */
/** @typedef {{conversation: string, shop: string, customer: string, agent: string | null, state: string,
 *   with: {uid: string, info: any}, last: Message | null, unread: number, ts: number}} Conversation */
/** @typedef {"closed" | "connecting" | "online" | "waiting" | "stopped"} Status */
/** @typedef {{text: string, ref: string, lane: string, tries: number, out: boolean, timer: any, promise: Promise<any>,
 *   resolve: (frame: any) => void, reject: (error: Error) => void}} Call */

export const PROTOCOL = "im.v1";

/** What every limit and wait is unless the constructor is told otherwise; milliseconds where it is a time. */
export const DEFAULTS = {
  platform: "web",
  minDelay: 500, maxDelay: 30_000, // between two attempts to connect
  stableAfter: 10_000, // a connection that lived this long starts the backoff anew
  openTimeout: 10_000, // from the start of an attempt to `welcome`
  answerTimeout: 10_000, // a call without an answer is sent again, with the same ref and cid
  ackDelay: 200, ackCount: 20, // an `ack` leaves after so long or so many messages
  queue: 200, tries: 20, // calls that wait at once; how often one of them may be sent
  remembered: 5000, // message ids kept to drop duplicates
  typingEvery: 3000,
};

const FINAL_CODES = new Set([4400, 4403, 4409]);
const TRY_AGAIN = new Set(["unavailable", "rate_limited"]);
const TOKEN_REFUSALS = 5;
const LONGEST_TIMER = 2 ** 31 - 1;

/** Why a call failed: `code` is one of the contract's, or `queue_full` or `stopped` from this side. */
export class IMError extends Error {
  /** @param {string} code @param {string} [reason] @param {string} [field] */
  constructor(code, reason, field) {
    super(reason || code);
    this.name = "IMError";
    this.code = code;
    this.field = field;
  }
}

/** 32 random hexadecimal digits: a `cid`, a `ref`, a device name. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @type {Map<string, string>} */
const unsaved = new Map();

/**
 * The name of this installation, made once and kept; without storage, for as long as the page lives.
 * @param {string} [key] @param {"localStorage" | "sessionStorage"} [storage]
 */
export function deviceName(key = "im.device", storage = "localStorage") {
  const made = unsaved.get(key) ?? newId();
  try {
    const kept = globalThis[storage].getItem(key);
    if (!kept) globalThis[storage].setItem(key, made);
    return kept || made;
  } catch {
    unsaved.set(key, made); // storage is forbidden, full, or not there at all
    return made;
  }
}

/** When a token ends, in milliseconds since the epoch; 0 when it does not say. @param {string} token */
function expiry(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp * 1000 || 0;
  } catch {
    return 0;
  }
}

export class IMClient extends EventTarget {
  /** @type {Status} */ status = "closed";
  uid = "";
  /** What the server's clock is ahead of ours, in milliseconds. */
  skew = 0;
  #turn = 0; // rises with every attempt and every loss, so that what belongs to an older one can tell
  #attempt = 0;
  #refusals = 0;
  #welcomedAt = 0;
  #heardAt = 0;
  #moveAt = 0;
  #moveTo = "";
  #maxFrame = 65_536;
  #cursor = "";
  #unacked = 0;
  #token = "";
  /** @type {any} */ #ws = null;
  /** @type {Map<string, any>} */ #timers = new Map();
  /** @type {Map<string, string>} message id to cursor, oldest first */ #seen = new Map();
  /** @type {Map<string, Call>} */ #calls = new Map();
  /** @type {Map<string, number>} */ #unsentReads = new Map();
  #typed = { conversation: "", at: 0 };

  /**
   * @param {Partial<typeof DEFAULTS> & {urls: string[] | (() => string | Promise<string>),
   *   getToken: () => string | Promise<string>, device?: string, since?: string, env?: any}} options
   *   `urls`: workers to try in turn, or a function that gives the next one. `getToken` is asked at the start, before
   *   the token expires and after a 4401. `since`: a `cursor` kept from before; without one the server sends what this
   *   device has not acknowledged.
   *   `env`: another WebSocket, clock and chance, for tests.
   */
  constructor({ urls, getToken, device = deviceName(), since = "", env = {}, ...limits }) {
    super();
    this.device = device;
    this.limits = { ...DEFAULTS, ...limits };
    this.#cursor = since;
    this.getToken = getToken;
    this.env = {
      WebSocket: globalThis.WebSocket, now: Date.now, random: Math.random,
      setTimeout: globalThis.setTimeout.bind(globalThis), clearTimeout: globalThis.clearTimeout.bind(globalThis),
      ...env,
    };
    let turn = Array.isArray(urls) ? Math.floor(this.env.random() * urls.length) : 0;
    this.nextUrl = Array.isArray(urls) ? () => urls[turn++ % urls.length] : urls;
  }

  /** Listen; the callback gets the event's detail. @returns {() => void} what ends it
   * @param {string} type @param {(detail: any) => void} callback */
  on(type, callback) {
    const listener = (/** @type {any} */ event) => callback(event.detail);
    this.addEventListener(type, listener);
    return () => this.removeEventListener(type, listener);
  }

  /** The token in use, for calls to the business server over HTTP. */
  get token() {
    return this.#token;
  }

  /** How far this inbox has been delivered. */
  get cursor() {
    return this.#cursor;
  }

  /** The server's time now. */
  now() {
    return this.env.now() + this.skew;
  }

  /** Connect and stay connected, until `close` or a close code that forbids it. While waiting: try at once. */
  connect() {
    if (this.status === "connecting" || this.status === "online") return;
    if (this.status !== "waiting") this.#attempt = this.#refusals = 0;
    this.#open();
  }

  /** Disconnect. What waits in the queue stays there for the next `connect`. */
  close() {
    this.#sendAck();
    this.#release();
    this.#become({ status: "closed" });
  }

  /**
   * Send a message and wait until the server has accepted it, over as many connections as that takes. Messages to one
   * place leave one after the other, so that a retry is never overtaken. Rejects with an `IMError`.
   * @param {{to?: string, shop?: string, conversation?: string, channel?: string, type?: string, body: object,
   *   cid?: string, skill?: string}} message @returns {Promise<Sent>}
   */
  send({ type = "text", cid = newId(), ...message }) {
    if (message.conversation === this.#typed.conversation) this.#typed.at = 0;
    return this.#call({ op: "send", ...message, type, cid }, cid,
      message.conversation || message.shop || message.to || "");
  }

  /** A page of a conversation, in `seq` order.
   * @param {string} conversation @param {{before?: number, after?: number, limit?: number}} [page]
   * @returns {Promise<{messages: Message[], more: boolean}>} */
  history(conversation, page = {}) {
    return this.#call({ op: "history", conversation, ...page });
  }

  /** One's conversations, newest first. @param {{before?: number, limit?: number}} [page]
   * @returns {Promise<{conversations: Conversation[], more: boolean}>} */
  conversations(page = {}) {
    return this.#call({ op: "conversations", ...page });
  }

  /** Say that everything up to `seq` has been read; while offline, as soon as possible.
   * @param {string} conversation @param {number} seq */
  read(conversation, seq) {
    if (this.status === "online") return this.#write({ op: "read", conversation, seq });
    this.#unsentReads.set(conversation, Math.max(seq, this.#unsentReads.get(conversation) ?? 0));
    if (this.#unsentReads.size > this.limits.queue) this.#unsentReads.delete([...this.#unsentReads.keys()][0]);
  }

  /** Say that one is writing: call it at every key, it leaves every few seconds. @param {string} conversation */
  typing(conversation) {
    const now = this.env.now();
    if (this.status !== "online") return;
    if (this.#typed.conversation === conversation && now - this.#typed.at < this.limits.typingEvery) return;
    this.#typed = { conversation, at: now };
    this.#write({ op: "typing", conversation });
  }

  /** Get a new token and go on with it. Happens by itself well before the old one expires. */
  async refresh() {
    this.#token = await this.getToken();
    if (this.status === "online") this.#write({ op: "refresh", token: this.#token });
  }

  // Connecting

  async #open() {
    const turn = ++this.#turn;
    this.#become({ status: "connecting" });
    this.#cancel("retry");
    this.#after("open", this.limits.openTimeout, () => this.#lost(1006, "no answer in time"));
    try {
      const ends = expiry(this.#token);
      const token = this.#token && (!ends || ends > this.now()) ? this.#token : await this.getToken();
      const url = this.#moveTo || (await this.nextUrl());
      if (turn !== this.#turn) return;
      this.#token = token;
      this.#moveTo = "";
      const ws = new this.env.WebSocket(url, PROTOCOL);
      this.#ws = ws;
      ws.onopen = () => ws === this.#ws && this.#write({
        op: "hello", token, device: this.device, platform: this.limits.platform, since: this.#cursor || undefined,
      });
      ws.onmessage = (/** @type {any} */ event) => ws === this.#ws && this.#receive(event.data);
      ws.onclose = (/** @type {any} */ event) => ws === this.#ws && this.#lost(event.code, event.reason);
      this.url = url;
    } catch (error) {
      if (turn === this.#turn) this.#lost(1006, String(error));
    }
  }

  /** Let go of the socket and of every timer; calls that were out wait again. */
  #release() {
    const ws = this.#ws;
    this.#turn++;
    this.#ws = null;
    this.#unacked = 0;
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    for (const call of this.#calls.values()) this.#rest(call);
    ws?.close(1000);
  }

  /** The connection is gone, or never came: decide by the close code what happens now.
   * @param {number} code @param {string} [reason] */
  #lost(code, reason = "") {
    const now = this.env.now();
    if (this.status === "online" && now - this.#welcomedAt >= this.limits.stableAfter) this.#attempt = 0;
    this.#release();
    if (code === 4401) this.#token = "";
    if (FINAL_CODES.has(code) || (code === 4401 && ++this.#refusals > TOKEN_REFUSALS)) {
      for (const call of [...this.#calls.values()]) {
        this.#settle(call, new IMError("stopped", reason || `closed with ${code}`));
      }
      // The reason of a 4403 ends with the time until which, or with "for good".
      const until = code === 4403 ? Date.parse(reason.split(" ").pop() || "") || null : null;
      return this.#become({ status: "stopped", code, reason, until });
    }
    const delay = this.#moveAt ? Math.max(this.#moveAt - now, 0) : this.#backoff(this.#attempt++);
    this.#moveAt = 0;
    this.#become({ status: "waiting", code, reason, delay, until: now + delay });
    this.#after("retry", delay, () => this.#open());
  }

  /** Full jitter: anything between the shortest delay and a ceiling that doubles. @param {number} attempt */
  #backoff(attempt) {
    const { minDelay, maxDelay } = this.limits;
    const ceiling = Math.min(maxDelay, minDelay * 2 ** Math.min(attempt + 1, 30));
    return Math.round(minDelay + this.env.random() * (ceiling - minDelay));
  }

  /** @param {any} frame */
  #welcomed(frame) {
    const now = this.env.now();
    this.#cancel("open");
    this.#welcomedAt = now;
    this.#refusals = 0;
    this.#moveAt = 0;
    this.#maxFrame = frame.max_frame || this.#maxFrame;
    this.uid = frame.uid;
    this.skew = frame.ts - now;
    this.#watch((frame.heartbeat_s || 60) * 1000);
    this.#planRefresh();
    this.#become({ status: "online", url: this.url, conn: frame.conn });
    this.#emit("welcome", frame);
    for (const [conversation, seq] of this.#unsentReads) this.#write({ op: "read", conversation, seq });
    this.#unsentReads.clear();
    this.#pump();
  }

  /** Notice a connection that died silently: after a quiet while, ask for a sign of life. @param {number} quiet */
  #watch(quiet) {
    this.#after("watch", Math.max(this.#heardAt + quiet - this.env.now(), 0), () => {
      const asked = this.env.now();
      if (asked - this.#heardAt < quiet) return this.#watch(quiet);
      this.#write({ op: "ping" });
      this.#after("watch", this.limits.answerTimeout, () =>
        this.#heardAt < asked ? this.#lost(1006, "the server went silent") : this.#watch(quiet));
    });
  }

  #planRefresh() {
    const ends = expiry(this.#token);
    if (!ends) return;
    const wait = Math.min(Math.max((ends - this.now()) * 0.8, 5000), LONGEST_TIMER);
    this.#after("refresh", wait, () =>
      this.refresh().catch((error) => this.#emit("error", error)).finally(() => this.#ws && this.#planRefresh()));
  }

  // Frames in

  /** @param {string} text */
  #receive(text) {
    this.#heardAt = this.env.now();
    this.#emit("frame", { direction: "in", text, ts: this.#heardAt });
    const frame = JSON.parse(text);
    const call = this.#calls.get(frame.ref);
    if (frame.op === "welcome") this.#welcomed(frame);
    else if (frame.op === "message") this.#message(frame);
    else if (frame.op === "reconnect") this.#move(frame);
    else if (frame.op === "error" && call) this.#refused(call, frame);
    else if (frame.op === "error") this.#emit("error", new IMError(frame.code, frame.reason, frame.field));
    else if (call) this.#settle(call, frame);
    else if (!("ref" in frame)) this.#emit(frame.op, frame); // read, typing, state, and what a newer server adds
  }

  /** @param {Message} message */
  #message(message) {
    const { id, cursor } = message;
    const fresh = !this.#seen.has(id);
    if (cursor) {
      // Frames come in cursor order, so a cursor not met before is the latest; one met before was sent again.
      if (this.#seen.get(id) !== cursor) this.#cursor = cursor;
      this.#unacked++;
    }
    this.#remember(id, cursor);
    if (fresh) {
      const call = message.from === this.uid && message.cid && this.#calls.get(message.cid);
      if (call) this.#settle(call, message); // ours, accepted before the answer got lost
      else this.#emit("message", message);
    }
    if (this.#unacked >= this.limits.ackCount) this.#sendAck();
    else if (this.#unacked && !this.#timers.has("ack")) this.#after("ack", this.limits.ackDelay, () => this.#sendAck());
  }

  #sendAck() {
    this.#cancel("ack");
    if (this.#unacked && this.#ws) this.#write({ op: "ack", cursor: this.#cursor });
    this.#unacked = 0;
  }

  /** @param {string} id @param {string} [cursor] */
  #remember(id, cursor) {
    this.#seen.set(id, cursor ?? this.#seen.get(id) ?? "");
    if (this.#seen.size > this.limits.remembered) this.#seen.delete(this.#seen.keys().next().value ?? "");
  }

  /** The worker is about to leave: stay until the time it gave us. @param {{after_ms: number, url?: string}} frame */
  #move({ after_ms, url = "" }) {
    this.#moveAt = this.env.now() + after_ms;
    this.#moveTo = url;
    this.#after("move", after_ms, () => {
      this.#sendAck();
      this.#lost(1001, "the worker is leaving");
    });
  }

  // Calls: frames with a ref, sent again until they are answered. All of them may be repeated without harm.

  /** @param {any} frame @param {string} [ref] @param {string} [lane] calls of one lane go one at a time
   * @returns {Promise<any>} */
  #call(frame, ref = newId(), lane = "") {
    const known = this.#calls.get(ref);
    if (known) return known.promise;
    const text = JSON.stringify({ ...frame, ref });
    const size = new TextEncoder().encode(text).length;
    if (size > this.#maxFrame) return Promise.reject(new IMError("too_large", `${size} of ${this.#maxFrame} bytes`));
    if (this.status === "stopped") return Promise.reject(new IMError("stopped", "the server ended this connection"));
    if (this.#calls.size >= this.limits.queue) return Promise.reject(new IMError("queue_full", "too much is waiting"));
    const call = /** @type {Call} */ ({ text, ref, lane, tries: 0, out: false });
    call.promise = new Promise((resolve, reject) => Object.assign(call, { resolve, reject }));
    this.#calls.set(ref, call);
    this.#pump();
    return call.promise;
  }

  #pump() {
    if (this.status !== "online") return;
    const busy = new Set();
    for (const call of [...this.#calls.values()]) {
      if (!call.out && !busy.has(call.lane)) this.#try(call);
      if (call.lane) busy.add(call.lane);
    }
  }

  /** @param {Call} call */
  #try(call) {
    if (++call.tries > this.limits.tries) return this.#settle(call, new IMError("unavailable", "no answer"));
    call.out = true;
    call.timer = this.env.setTimeout(() => this.#try(call), this.limits.answerTimeout);
    this.#write(call.text);
  }

  /** @param {Call} call @param {{code: string, reason?: string, field?: string}} frame */
  #refused(call, { code, reason, field }) {
    if (!TRY_AGAIN.has(code)) return this.#settle(call, new IMError(code, reason, field));
    this.env.clearTimeout(call.timer);
    call.timer = this.env.setTimeout(() => this.#try(call), this.#backoff(call.tries));
  }

  /** @param {Call} call */
  #rest(call) {
    this.env.clearTimeout(call.timer);
    call.out = false;
  }

  /** @param {Call} call @param {any} outcome the answer, or an error */
  #settle(call, outcome) {
    this.#rest(call);
    this.#calls.delete(call.ref);
    if (outcome instanceof Error) call.reject(outcome);
    else call.resolve(outcome);
    if (outcome.op === "sent") this.#remember(outcome.id); // should a resume bring our own message back
    this.#pump();
  }

  // Small things

  /** @param {any} frame an object, or one already encoded */
  #write(frame) {
    const text = typeof frame === "string" ? frame : JSON.stringify(frame);
    this.#emit("frame", { direction: "out", text, ts: this.env.now() });
    this.#ws.send(text);
  }

  /** @param {{status: Status, [more: string]: any}} detail */
  #become(detail) {
    this.status = detail.status;
    this.#emit("status", detail);
  }

  /** @param {string} type @param {any} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** @param {string} name @param {number} wait @param {() => void} action */
  #after(name, wait, action) {
    this.#cancel(name);
    this.#timers.set(name, this.env.setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, wait));
  }

  /** @param {string} name */
  #cancel(name) {
    this.env.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
