// @ts-check
/**
 * The messages of one conversation and how they look. Numbered messages stand in `seq` order, those without a number
 * (a backend's push) where their time puts them, those still on their way at the end.
 */

import { content } from "./content.js";
import { avatar, dayName, dayOf, el, icon, summary, timeOf } from "./elements.js";

export const RECALL_MS = 120_000;
const TOGETHER_MS = 5 * 60_000; // messages of one sender this close form one group
const UNCOUNTED = new Set(["system", "recall", "recalled"]);

/** Whether a message counts as unread for `uid` (contract: What holds for every connection, 4).
 * @param {any} message @param {string} uid */
export const countable = (message, uid) => message.from !== uid && !UNCOUNTED.has(message.type);

const STATUS = {
  sending: ["clock", "Sending"], sent: ["check", "Sent"], read: ["checks", "Read"], failed: ["alert", "Not sent"],
};

export class Thread {
  lowest = Infinity;
  highest = 0;
  more = false;
  loaded = false;
  /** Read by the other side up to this seq. */ readUpTo = 0;
  /** The first message that was new when one came back; 0 for none. */ divider = 0;
  draft = "";
  /** @type {Map<string, any>} by id, or by cid while there is none */ #items = new Map();
  /** @type {Set<number>} */ #seqs = new Set();
  /** @type {Map<string, any>} */ #days = new Map();
  #line = el("li", { class: "new-line", role: "separator" }, el("span", {}, "New"));

  /** @param {{conversation: string, me: string, now: () => number, nameOf: (uid: string) => string,
   *   onrecall: (seq: number) => void, onretry: (item: any) => void}} options */
  constructor(options) {
    this.conversation = options.conversation;
    this.options = options;
    this.el = el("ol", { class: "messages", role: "log", "aria-live": "polite", "aria-label": "Messages" });
  }

  get size() {
    return this.#items.size;
  }

  /** Take in messages from the wire or from history; those already here change nothing.
   * @param {any[]} messages @returns {any[]} those that were new and are to be seen */
  add(...messages) {
    const added = messages.filter((message) => this.#take(message));
    this.render();
    return added;
  }

  /** A message of one's own on its way. @param {{cid: string, type: string, body: any}} message */
  start({ cid, type, body }) {
    const message = { cid, type, body, from: this.options.me, ts: this.options.now() };
    this.#items.set(cid, { ...message, status: "sending" });
    this.render();
  }

  /** The server accepted it. @param {string} cid @param {any} sent */
  confirm(cid, { id, ts, conversation, seq }) {
    const item = this.#items.get(cid);
    if (!item) return;
    this.#items.delete(cid);
    item.row?.remove();
    if (!this.#items.has(id)) this.#take({ ...item, status: undefined, row: undefined, id, ts, conversation, seq });
    this.render();
  }

  /** It did not go out, or goes out again. @param {string} cid @param {Error | null} error */
  fail(cid, error) {
    const item = this.#items.get(cid);
    if (!item) return;
    Object.assign(item, { status: error ? "failed" : "sending", error });
    this.#draw(item);
  }

  /** One's message `seq` was taken back. @param {number} seq */
  recall(seq) {
    for (const item of this.#items.values()) {
      if (item.seq === seq) Object.assign(item, { type: "recalled", body: {} });
    }
    this.render(true);
  }

  /** The other side has read up to `seq`. @param {number} seq */
  markRead(seq) {
    if (seq <= this.readUpTo) return;
    this.readUpTo = seq;
    for (const item of this.#items.values()) if (item.from === this.options.me && item.seq) this.#draw(item);
  }

  /** Put the line before the oldest of the newest `unread` messages of others. @param {number} unread */
  divide(unread) {
    const others = this.#ordered().filter((item) => item.seq && countable(item, this.options.me));
    this.divider = unread ? others[Math.max(others.length - unread, 0)]?.seq ?? 0 : 0;
    this.render();
  }

  /** @param {string} cid */
  #discard(cid) {
    this.#items.delete(cid);
    this.render();
  }

  /** Forget all but the newest; the rest is history again. @param {number} kept */
  trim(kept) {
    for (const item of this.#ordered().slice(0, -kept)) this.#items.delete(item.id ?? item.cid);
    this.lowest = Math.min(...[...this.#items.values()].map((item) => item.seq ?? Infinity));
    for (const seq of this.#seqs) if (seq < this.lowest) this.#seqs.delete(seq);
    this.more = true;
    this.render();
  }

  /** A message number counts as known, though nothing is shown for it. @param {number} [seq] */
  note(seq) {
    if (!seq) return;
    this.#seqs.add(seq);
    this.lowest = Math.min(this.lowest, seq);
    this.highest = Math.max(this.highest, seq);
  }

  /** The last number before the first hole; 0 without a hole. */
  hole() {
    for (let seq = this.lowest; seq < this.highest; seq++) if (!this.#seqs.has(seq + 1)) return seq;
    return 0;
  }

  /** @param {any} message @returns {boolean} whether it is new and to be seen */
  #take(message) {
    const { id, seq, type, from, cid } = message;
    this.note(seq);
    if (type === "recall") {
      this.recall(message.body?.seq);
      return false;
    }
    const known = this.#items.get(id);
    if (known) {
      if (type === "recalled" && known.type !== type) this.recall(seq);
      return false;
    }
    if (from === this.options.me && cid && this.#items.has(cid)) {
      this.confirm(cid, message); // accepted, and heard of from elsewhere before the answer came
      return false;
    }
    this.#items.set(id, { ...message });
    return true;
  }

  #ordered() {
    const all = [...this.#items.values()];
    const result = all.filter((item) => item.seq).sort((a, b) => a.seq - b.seq);
    for (const item of all.filter((each) => !each.seq && !each.status).sort((a, b) => a.ts - b.ts)) {
      const place = result.findIndex((other) => other.ts > item.ts);
      result.splice(place < 0 ? result.length : place, 0, item);
    }
    return result.concat(all.filter((item) => item.status));
  }

  /** Bring the list on the page into line with what is known; rows that stay are not touched.
   * @param {boolean} [redraw] */
  render(redraw = false) {
    /** @type {any[]} */ const rows = [];
    let day = "";
    let previous = null;
    for (const item of this.#ordered()) {
      const broken = dayOf(item.ts) !== day || item.seq === this.divider;
      if (dayOf(item.ts) !== day) rows.push(this.#day(item.ts));
      if (this.divider && item.seq === this.divider) rows.push(this.#line);
      day = dayOf(item.ts);
      if (!item.row || redraw) this.#draw(item);
      const joins = !broken && previous && !isNote(previous) && !isNote(item) &&
        previous.from === item.from && item.ts - previous.ts < TOGETHER_MS;
      item.row.toggleAttribute("data-joins", Boolean(joins));
      previous?.row.toggleAttribute("data-joined", Boolean(joins));
      item.row.toggleAttribute("data-joined", false);
      rows.push(item.row);
      previous = item;
    }
    let next = this.el.firstChild;
    for (const row of rows) {
      if (row === next) next = next.nextSibling;
      else this.el.insertBefore(row, next);
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
  }

  /** @param {number} ts */
  #day(ts) {
    const key = dayOf(ts);
    if (!this.#days.has(key)) {
      this.#days.set(key, el("li", { class: "day", role: "separator" }, el("span", {}, dayName(ts))));
    }
    return this.#days.get(key);
  }

  /** Fill the row of a message, making it when there is none. @param {any} item */
  #draw(item) {
    const { id, from, seq, ts, type, cid } = item;
    const { me, nameOf, now, onrecall, onretry } = this.options;
    const mine = from === me;
    const name = nameOf(from);
    item.row ??= el("li", {});
    const row = item.row;
    const status = item.status ?? (seq && seq <= this.readUpTo ? "read" : "sent");
    row.className = `message ${isNote(item) ? type === "system" ? "system" : "notice" : mine ? "mine" : "theirs"}`;
    row.dataset.from = from;
    row.dataset.type = type;
    if (id) row.dataset.messageId = id;
    if (seq) row.dataset.seq = seq;
    if (cid) row.dataset.cid = cid;
    if (mine) row.dataset.status = status;

    if (type === "system") return row.replaceChildren(el("span", { class: "note" }, summary(item)));
    const time = el("time", { datetime: new Date(ts).toISOString(), title: new Date(ts).toLocaleString() }, timeOf(ts));
    const meta = el("span", { class: "meta" }, time);
    if (mine && type !== "recalled") {
      const [sign, label] = STATUS[status];
      meta.append(el("span", { class: "ticks", role: "img", "aria-label": label, title: label }, icon(sign)));
    }
    if (isNote(item)) {
      return row.replaceChildren(el("div", { class: "bubble" },
        el("div", { class: "notice-head" }, icon("bell"), name || `Channel ${item.channel}`),
        content(item, name), meta));
    }
    const parts = [
      el("span", { class: "visually-hidden" }, mine ? "You: " : `${name}: `),
      el("div", { class: "bubble" }, content(item, mine ? "You" : name), meta)];
    if (!mine) parts.unshift(avatar(from, name));
    const left = seq && mine && type !== "recalled" ? ts + RECALL_MS - now() : 0;
    if (left > 0) {
      const button = el("button", { class: "recall", type: "button", title: "Take this message back",
        onclick: () => onrecall(seq) }, icon("undo"), el("span", {}, "Take back"));
      setTimeout(() => button.remove(), left);
      parts.push(button);
    }
    if (status === "failed") {
      parts.push(el("p", { class: "failure" }, `Not sent: ${item.error.message}. `,
        el("button", { type: "button", class: "link", onclick: () => onretry(item) }, "Try again"), " · ",
        el("button", { type: "button", class: "link", onclick: () => this.#discard(cid) }, "Discard")));
    }
    row.replaceChildren(...parts);
  }
}

/** Neither side's word in the conversation: a system message, or a push from outside of it. @param {any} item */
const isNote = (item) => item.type === "system" || (!item.conversation && !item.status && item.type !== "recalled");
