// @ts-check
/** What the customer's and the agent's side have in common: a client, a thread, a composer, and what they say. */

import { byId, el, icon } from "./elements.js";
import { IMClient, deviceName, newId } from "./im.js";
import { Thread, countable } from "./thread.js";
import { WireLog } from "./wirelog.js";

const PAGE = 40;
const MOST = 1000; // messages of a thread kept on the page while more arrive
const TYPING_MS = 5000;
const AT_END = 60; // pixels from the end that still count as the end

/** The pane one last touched. Only there do messages become read, as if the other one were another window.
 * @type {Pane | null} */
let attended = null;

const REASONS = {
  4400: "The server closed the connection: too many frames it could not read.",
  4401: "The server refused the token.",
  4403: "This user or address is blocked.",
  4409: "This connection was replaced or ended by the shop.",
};

const WORDS = {
  online: "Online", connecting: "Connecting", waiting: "Reconnecting", closed: "Offline", stopped: "Stopped",
};

/** Something small kept over reloads; without storage, not. */
export const shelf = {
  /** @param {string} key @param {any} otherwise */
  get(key, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`im.demo.${key}`) ?? "null") ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  /** @param {string} key @param {any} value */
  set(key, value) {
    try {
      localStorage.setItem(`im.demo.${key}`, JSON.stringify(value));
    } catch { /* private windows and full disks: the page works without */ }
  },
};

export class Pane {
  /** @type {Thread | null} */ thread = null;
  ready = false;
  #wasAtEnd = true;
  /** @type {any} */ #tick = 0;
  /** @type {any} */ #typingTimer = 0;
  /** @type {any} */ #syncTimer = 0;

  /** @param {"customer" | "agent"} side @param {import("./demo.js").Session} session */
  constructor(side, session) {
    const part = (/** @type {string} */ name) => byId(`${side}-${name}`);
    this.side = side;
    this.session = session;
    this.me = session.current[side].uid;
    this.root = byId(side);
    this.input = part("input");
    this.submit = part("send");
    this.banner = part("banner");
    this.connection = part("connection");
    this.scroller = part("thread");
    this.messages = part("messages");
    this.earlier = part("earlier");
    this.jump = part("jump");
    this.typingSign = part("typing");
    this.toasts = part("toasts");
    this.client = new IMClient({
      urls: session.workersFor(side),
      getToken: () => session.token(side),
      device: deviceName("im.demo.device", "sessionStorage"), // each tab is a device of its own
    });
    this.log = new WireLog(part("wire"), this.client);
    this.client.on("status", (status) => this.showStatus(status));
    this.client.on("welcome", () => this.catchUp());
    this.client.on("message", (message) => this.received(message));
    this.client.on("state", (state) => this.changed(state));
    this.client.on("read", (read) => this.wasRead(read));
    this.client.on("typing", (typing) => this.typed(typing));
    this.client.on("error", (error) => this.toast(error.message));
    part("composer").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.sendText();
    });
    this.input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      // Enter that ends the choice of a character is not meant for us (229: Safari).
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.sendText();
    });
    this.input.addEventListener("input", () => {
      this.fit();
      if (this.thread?.conversation && this.input.value.trim()) this.client.typing(this.thread.conversation);
    });
    this.connection.addEventListener("click", () =>
      ["online", "connecting"].includes(this.client.status) ? this.client.close() : this.client.connect());
    this.earlier.addEventListener("click", () => this.loadEarlier());
    this.jump.addEventListener("click", () => this.toEnd(true));
    this.scroller.addEventListener("scroll", () => {
      this.#wasAtEnd = this.atEnd();
      this.attend();
    }, { passive: true });
    // A drawer that opens, a picture that arrives, a window that shrinks: the newest message stays in sight.
    const sizes = new ResizeObserver(() => this.#wasAtEnd && this.toEnd(true));
    sizes.observe(this.scroller);
    sizes.observe(this.messages);
    for (const type of ["pointerdown", "focusin"]) this.root.addEventListener(type, (event) => this.take(event));
    document.addEventListener("visibilitychange", () => this.attend());
    addEventListener("online", () => this.client.status === "waiting" && this.client.connect());
    addEventListener("pagehide", () => this.client.close());
    addEventListener("pageshow", (event) => event.persisted && this.client.connect());
    this.fit();
  }

  // What the two sides do differently

  /** How things stand now: asked after each (re)connect. @returns {Promise<void>} */
  async sync() {}
  /** @param {any} message */
  received(message) {}
  /** @param {any} state */
  changed(state) {}
  /** Where the next message of a thread goes. @param {Thread} thread @returns {any} */
  target(thread) {
    return { conversation: thread.conversation };
  }
  /** A message of one's own was accepted. @param {Thread} thread @param {any} sent @param {any} message */
  accepted(thread, sent, message) {}
  /** One has read the thread. @param {Thread} thread */
  hasRead(thread) {}
  /** How many messages of a thread one has not read. @param {Thread} thread */
  unreadOf(thread) {
    return 0;
  }
  /** @param {string} uid */
  nameOf(uid) {
    return uid;
  }
  unread() {
    return 0;
  }

  // Threads

  /** @param {string} conversation */
  newThread(conversation) {
    const thread = new Thread({
      conversation, me: this.me, now: () => this.client.now(), nameOf: (uid) => this.nameOf(uid),
      onrecall: (seq) => this.recall(thread, seq),
      onretry: (item) => this.deliver(thread, item),
    });
    thread.readUpTo = shelf.get(`read.${this.me}.${conversation}`, 0);
    return thread;
  }

  /** Show a thread, or none. @param {Thread | null} thread */
  show(thread) {
    if (thread === this.thread) return;
    if (this.thread) this.thread.draft = this.input.value;
    this.thread = thread;
    this.messages.replaceChildren(...(thread ? [thread.el] : []));
    this.input.value = thread?.draft ?? "";
    this.typingSign.hidden = true;
    this.fit();
    this.toEnd(true);
  }

  /** Bring a thread up to date: its newest page at first, later what is missing behind what is here.
   * @param {Thread} thread */
  async load(thread) {
    if (!thread.loaded) {
      const page = await this.client.history(thread.conversation, { limit: PAGE });
      thread.loaded = true;
      thread.more = page.more;
      this.keepingPlace(() => {
        thread.add(...page.messages);
        thread.divide(this.unreadOf(thread)); // before looking at it makes them read
      });
    } else {
      await this.fill(thread, thread.highest);
    }
    await this.mend(thread);
    this.refreshThread();
  }

  /** @param {Thread} thread @param {number} after */
  async fill(thread, after) {
    for (let more = true; more;) {
      const page = await this.client.history(thread.conversation, { after, limit: 200 });
      this.keepingPlace(() => thread.add(...page.messages));
      more = page.more && page.messages.length > 0;
      after = page.messages.at(-1)?.seq ?? after;
    }
  }

  /** Fetch what a thread lacks between its messages, once and for all. @param {Thread} thread */
  async mend(thread) {
    const hole = thread.loaded && thread.hole();
    if (hole) await this.fill(thread, hole);
  }

  async loadEarlier() {
    const thread = this.thread;
    if (!thread?.more) return;
    this.earlier.disabled = true;
    try {
      const page = await this.client.history(thread.conversation, { before: thread.lowest, limit: PAGE });
      thread.more = page.more && page.messages.length > 0;
      const fromEnd = this.scroller.scrollHeight - this.scroller.scrollTop;
      thread.add(...page.messages);
      this.refreshThread();
      this.scroller.scrollTop = this.scroller.scrollHeight - fromEnd;
    } catch (error) {
      this.toast(`Could not load earlier messages: ${error.message}`);
    } finally {
      this.earlier.disabled = false;
    }
  }

  /** What arrived for a thread. @param {Thread} thread @param {any} message */
  arrived(thread, message) {
    if (message.seq && message.seq < thread.lowest && thread.more) return; // comes with its page of history
    const counts = countable(message, this.me);
    if (message.seq && counts && !this.attentive(thread) && !thread.divider) thread.divider = message.seq;
    this.keepingPlace(() => {
      thread.add(message);
      if (thread.size > MOST && thread.loaded && (thread !== this.thread || this.atEnd())) thread.trim(MOST / 2);
    });
    if (counts && thread === this.thread) this.typingSign.hidden = true;
    if (thread.hole()) setTimeout(() => this.mend(thread).catch((error) => this.toast(error.message)), 500);
    this.attend();
  }

  /** Whether one is looking at the newest messages of this thread. @param {Thread} thread */
  attentive(thread) {
    return thread === this.thread && attended === this && document.visibilityState === "visible" && this.atEnd();
  }

  /** One turned to this pane; a press on its list of conversations is not yet a look at the open one.
   * @param {Event} event */
  take(event) {
    if (attended !== this) {
      const before = attended;
      attended = this;
      before?.left();
    }
    if (!/** @type {Element} */ (event.target).closest("aside")) this.attend();
  }

  left() {
    if (this.thread?.divider && !this.unreadOf(this.thread)) this.thread.divide(0);
  }

  /** Mark as read what is being looked at. */
  attend() {
    this.jump.hidden = this.atEnd();
    const thread = this.thread;
    if (thread?.conversation && thread.highest && this.unreadOf(thread) && this.attentive(thread)) {
      this.client.read(thread.conversation, thread.highest);
      this.hasRead(thread);
    }
    this.session.showTitle();
  }

  /** @param {{conversation: string, from: string, seq: number}} read @returns {Thread | null | undefined} */
  threadOf({ conversation }) {
    return this.thread?.conversation === conversation ? this.thread : null;
  }

  /** @param {{conversation: string, from: string, seq: number}} read */
  wasRead(read) {
    if (read.from === this.me) return this.syncSoon();
    const key = `read.${this.me}.${read.conversation}`;
    shelf.set(key, Math.max(read.seq, shelf.get(key, 0)));
    this.threadOf(read)?.markRead(read.seq);
  }

  async catchUp() {
    try {
      await this.sync();
    } catch (error) {
      this.toast(`Could not load the conversations: ${error.message}`);
    }
    this.ready = this.client.status === "online";
    this.session.showReady();
  }

  /** Ask again how things stand, once for many reasons. */
  syncSoon() {
    this.#syncTimer ||= setTimeout(() => {
      this.#syncTimer = 0;
      if (this.client.status === "online") this.catchUp();
    }, 150);
  }

  /** @param {{conversation: string, from: string}} typing */
  typed({ conversation, from }) {
    if (from === this.me || this.thread?.conversation !== conversation) return;
    this.typingSign.querySelector(".who").textContent = `${this.nameOf(from)} is typing`;
    this.keepingPlace(() => (this.typingSign.hidden = false));
    clearTimeout(this.#typingTimer);
    this.#typingTimer = setTimeout(() => (this.typingSign.hidden = true), TYPING_MS);
  }

  // Writing

  sendText() {
    const text = this.input.value.trim();
    if (!text || !this.thread || this.input.disabled) return;
    this.input.value = "";
    this.fit();
    this.post("text", { text });
  }

  /** @param {string} type @param {any} body */
  post(type, body) {
    const thread = this.thread;
    if (!thread) return;
    const message = { cid: newId(), type, body };
    thread.start(message);
    if (thread.divider) thread.divide(0);
    this.refreshThread();
    this.toEnd(true);
    this.deliver(thread, message);
  }

  /** Send, or send again with the same cid: what arrived the first time is not said twice.
   * @param {Thread} thread @param {{cid: string, type: string, body: any}} message */
  async deliver(thread, { cid, type, body }) {
    thread.fail(cid, null);
    try {
      const { channel } = this.session.current;
      const sent = await this.client.send({ ...this.target(thread), channel, cid, type, body });
      this.accepted(thread, sent, { type, body, from: this.me, ...sent });
      this.keepingPlace(() => thread.confirm(cid, sent));
    } catch (error) {
      thread.fail(cid, error);
    }
  }

  /** @param {Thread} thread @param {number} seq */
  async recall(thread, seq) {
    try {
      const { channel } = this.session.current;
      const { conversation } = thread;
      const sent = await this.client.send({ conversation, channel, type: "recall", body: { seq } });
      thread.note(sent.seq);
      thread.recall(seq);
    } catch (error) {
      this.toast(`Could not take it back: ${error.message}`);
    }
  }

  /** Make the composer as high as its text. */
  fit() {
    this.input.style.height = "auto";
    const border = this.input.offsetHeight - this.input.clientHeight; // the height of a box has it, scrollHeight has not
    this.input.style.height = `${this.input.scrollHeight + border}px`;
    this.submit.disabled = !this.input.value.trim() || this.input.disabled;
  }

  // Looks

  refreshThread() {
    this.earlier.hidden = !this.thread?.more;
    this.root.toggleAttribute("data-empty", !this.thread?.size);
    this.attend();
  }

  atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < AT_END;
  }

  /** @param {boolean} [always] */
  toEnd(always = false) {
    if (always || this.atEnd()) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.attend();
  }

  /** Change what is shown; who was at the end stays there. @param {() => any} change */
  keepingPlace(change) {
    const atEnd = this.atEnd();
    change();
    this.refreshThread();
    if (atEnd) this.toEnd(true);
  }

  /** @param {string} text */
  toast(text) {
    const toast = el("p", { class: "toast" }, icon("bell"), el("span", {}, text));
    this.toasts.append(toast);
    while (this.toasts.childElementCount > 3) this.toasts.firstElementChild.remove();
    setTimeout(() => toast.remove(), 8000);
  }

  /** @param {any} detail of the client's `status` event */
  showStatus({ status, code, reason, until, url }) {
    clearInterval(this.#tick);
    this.connection.dataset.status = status;
    this.connection.querySelector(".label").textContent = WORDS[status];
    this.connection.title = status === "online" ? `Connected to ${url}. Click to go offline and see what happens.` :
      "Click to connect.";
    if (status === "connecting") return; // the banner of before stays until this one succeeded
    if (status !== "online") this.ready = false;
    this.banner.hidden = status === "online";
    this.banner.dataset.status = status;
    const count = el("span", { "aria-hidden": "true", class: "countdown" });
    const say = (/** @type {string} */ text, /** @type {string} */ label) => this.banner.replaceChildren(
      el("span", {}, text, " ", count),
      el("button", { type: "button", onclick: () => this.client.connect() }, label));
    if (status === "waiting") {
      say("Connection lost; what you write waits here.", "Try now");
      const show = () => (count.textContent = `Next try in ${Math.max(Math.ceil((until - Date.now()) / 1000), 0)} s`);
      show();
      this.#tick = setInterval(show, 500);
    } else if (status === "closed") {
      say("You are offline; what you write waits here.", "Go online");
    } else if (status === "stopped") {
      const end = until ? ` Until ${new Date(until).toLocaleString()}.` : "";
      say(`${REASONS[code] ?? "The connection has ended."}${end || (reason ? ` (${reason})` : "")}`, "Connect again");
    }
    this.session.showReady();
  }
}
