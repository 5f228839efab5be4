// @ts-check
/** The agent's console: the list of conversations, and the one that is open. */

import { avatar, briefTime, byId, el, summary } from "./elements.js";
import { Pane } from "./pane.js";
import { countable } from "./thread.js";

const PAGE = 50;
const THREADS = 30; // kept in memory besides the open one

export class Agent extends Pane {
  /** @type {Map<string, any>} */ #entries = new Map();
  /** @type {Map<string, import("./thread.js").Thread>} */ #threads = new Map();
  #oldest = 0;

  /** @param {import("./demo.js").Session} session */
  constructor(session) {
    super("agent", session);
    this.list = byId("agent-conversations");
    this.older = byId("agent-older");
    this.closing = byId("agent-close");
    this.transfer = byId("agent-transfer");
    this.list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#walk(event));
    this.older.addEventListener("click", () => this.#loadOlder().catch((error) => this.toast(error.message)));
    this.closing.addEventListener("click", () => this.#act("close", {}));
    const others = session.current.agents ?? [];
    this.transfer.append(...others.map((uid) => el("option", { value: uid }, uid)));
    this.transfer.addEventListener("change", () => {
      this.#act("transfer", { agent: this.transfer.value });
      this.transfer.value = "";
    });
    this.#draw();
  }

  async sync() {
    const { conversations, more } = await this.client.conversations({ limit: PAGE });
    this.#merge(conversations);
    if (!this.#oldest) this.#setOlder(conversations, more);
    if (!this.thread && conversations.length) this.open(conversations[0].conversation);
    else if (this.thread) await this.load(this.thread);
    this.#draw();
  }

  /** @param {string} conversation */
  open(conversation) {
    let thread = this.#threads.get(conversation);
    if (!thread) {
      thread = this.newThread(conversation);
      this.#threads.set(conversation, thread);
      const spare = [...this.#threads.keys()].find((key) => key !== conversation && key !== this.thread?.conversation);
      if (this.#threads.size > THREADS && spare) this.#threads.delete(spare);
    }
    this.show(thread);
    if (thread.loaded) thread.divide(this.unreadOf(thread));
    this.load(thread).catch((error) => this.toast(`Could not load the messages: ${error.message}`))
      .finally(() => thread === this.thread && this.toEnd(true));
    this.#draw();
  }

  received(message) {
    const { conversation } = message;
    if (!conversation) return this.toast(`${message.from || message.channel}: ${summary(message)}`);
    const entry = this.#entries.get(conversation);
    if (entry) {
      if (message.seq > entry.counted) {
        entry.counted = message.seq;
        entry.ts = message.ts;
        if (message.type !== "recall") entry.last = message;
        if (countable(message, this.me)) entry.unread++;
      }
      const thread = this.#threads.get(conversation);
      if (thread) this.arrived(thread, message);
    }
    if (!entry || message.type === "recall") this.syncSoon();
    this.#draw();
  }

  changed(state) {
    const entry = this.#entries.get(state.conversation);
    if (!entry) return this.syncSoon();
    Object.assign(entry, { state: state.state, agent: state.agent, position: state.position });
    this.#draw();
  }

  accepted(thread, sent, message) {
    const entry = this.#entries.get(thread.conversation);
    if (!entry || sent.seq <= entry.counted) return;
    Object.assign(entry, { last: message, ts: sent.ts, counted: sent.seq });
    this.#draw();
  }

  hasRead(thread) {
    const entry = this.#entries.get(thread.conversation);
    if (entry) entry.unread = 0;
    this.#draw();
  }

  unreadOf(thread) {
    return this.#entries.get(thread.conversation)?.unread ?? 0;
  }

  unread() {
    return [...this.#entries.values()].reduce((sum, entry) => sum + entry.unread, 0);
  }

  threadOf({ conversation }) {
    return this.#threads.get(conversation);
  }

  nameOf(uid) {
    const entry = [...this.#entries.values()].find((each) => each.with?.uid === uid);
    return entry?.with.info?.name ?? uid ?? "";
  }

  /** @param {any[]} conversations */
  #merge(conversations) {
    for (const each of conversations) {
      const known = this.#entries.get(each.conversation);
      const position = known?.state === each.state ? known?.position : undefined;
      this.#entries.set(each.conversation, { row: known?.row, position, ...each, counted: each.last?.seq ?? 0 });
    }
  }

  /** @param {any[]} conversations @param {boolean} more */
  #setOlder(conversations, more) {
    this.#oldest = conversations.at(-1)?.ts ?? 0;
    this.older.hidden = !more;
  }

  async #loadOlder() {
    const { conversations, more } = await this.client.conversations({ limit: PAGE, before: this.#oldest });
    this.#merge(conversations);
    this.#setOlder(conversations, more);
    this.#draw();
  }

  /** Close or transfer the open conversation: calls to the business server, with the agent's own token.
   * @param {"close" | "transfer"} action @param {any} body */
  async #act(action, body) {
    const conversation = this.thread?.conversation;
    if (!conversation) return;
    this.closing.disabled = true;
    try {
      const { business } = this.session.current;
      const answer = await fetch(`${business}/v1/conversations/${encodeURIComponent(conversation)}/${action}`, {
        method: "POST", body: JSON.stringify(body),
        headers: { "Authorization": `Bearer ${this.client.token}`, "Content-Type": "application/json" },
      });
      if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.detail ?? `status ${answer.status}`);
      this.syncSoon();
    } catch (error) {
      this.toast(`Could not ${action} the conversation: ${error.message}`);
    } finally {
      this.#draw();
    }
  }

  #draw() {
    const entries = [...this.#entries.values()].sort((a, b) => b.ts - a.ts);
    entries.forEach((entry, index) => {
      this.#drawRow(entry);
      if (this.list.children[index] !== entry.row) this.list.insertBefore(entry.row, this.list.children[index] ?? null);
    });
    const open = this.#entries.get(this.thread?.conversation ?? "");
    const waiting = entries.filter((entry) => entry.state === "waiting").length;
    byId("agent-count").textContent = waiting ? `${waiting} waiting` : String(entries.length || "");
    byId("agent-none").hidden = entries.length > 0;
    byId("agent-name").textContent = open ? this.nameOf(open.with?.uid ?? open.customer) : "No conversation";
    const state = byId("agent-state");
    state.hidden = !open;
    state.dataset.state = open?.state ?? "";
    state.textContent = open ? describe(open, this.me) : "";
    this.closing.hidden = !open;
    this.closing.disabled = open?.state === "closed";
    this.transfer.hidden = !open || this.transfer.options.length < 2 || open.state !== "assigned";
    this.input.disabled = !open;
    this.input.placeholder = !open ? "Choose a conversation" :
      open.state === "closed" ? "Closed. A message opens it again" : "Write a reply";
    this.fit();
    this.session.showTitle();
  }

  /** @param {any} entry */
  #drawRow(entry) {
    const { conversation, last, unread, state, ts } = entry;
    const uid = entry.with?.uid ?? entry.customer;
    const name = entry.with?.info?.name ?? uid;
    if (!entry.row) {
      const button = el("button", { type: "button", class: "entry", "data-conversation": conversation,
        onclick: () => this.open(conversation) });
      entry.row = el("li", {}, button);
    }
    const button = entry.row.firstChild;
    const current = conversation === this.thread?.conversation;
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.dataset.state = state;
    button.dataset.unread = unread;
    const preview = last ? `${last.from === this.me ? "You: " : ""}${summary(last)}` : "No message yet";
    button.replaceChildren(
      avatar(uid, name),
      el("span", { class: "entry-line" },
        el("span", { class: "entry-name" }, name), el("time", { class: "entry-time" }, briefTime(ts))),
      el("span", { class: "entry-line" },
        el("span", { class: "entry-preview" }, preview),
        state === "assigned" ? null : el("span", { class: "entry-state" }, state),
        unread ? el("span", { class: "badge", "aria-label": `${unread} unread` }, unread > 99 ? "99+" : String(unread))
          : null));
  }

  /** Up and down go through the list. @param {KeyboardEvent} event */
  #walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...this.list.querySelectorAll("button")];
    const place = buttons.indexOf(/** @type {any} */ (document.activeElement));
    if (!step || place < 0) return;
    event.preventDefault();
    buttons[Math.min(Math.max(place + step, 0), buttons.length - 1)].focus();
  }
}

/** @param {any} entry @param {string} me */
function describe({ state, agent, position }, me) {
  if (state === "waiting") return position ? `Waiting · number ${position}` : "Waiting";
  if (state === "assigned") return agent === me || !agent ? "Assigned to you" : `Assigned to ${agent}`;
  return "Closed";
}
