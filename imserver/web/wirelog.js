// @ts-check
/** What goes over the wire: the last frames of one connection, both ways; tokens are left out. */

import { el } from "./elements.js";

const KEPT = 200;

export class WireLog {
  #shown = 0;
  #total = 0;
  /** @type {{direction: string, text: string, ts: number}[]} */ #frames = [];

  /** @param {any} details the <details> that becomes the drawer
   *  @param {{on: (type: string, callback: (detail: any) => void) => any}} client */
  constructor(details, client) {
    this.details = details;
    this.count = el("span", { class: "wire-count" });
    this.list = el("ol", { class: "wire-frames", tabindex: "0", "aria-label": "Frames, newest last" });
    details.append(
      el("summary", {}, el("span", { class: "wire-title" }, "What goes over the wire"), this.count), this.list);
    details.addEventListener("toggle", () => this.#show());
    client.on("frame", (frame) => this.add(frame));
    client.on("status", ({ status, code, reason }) => {
      if (code) this.add({ direction: "note", text: `closed with ${code} ${reason}; now ${status}`, ts: Date.now() });
    });
    this.#count();
  }

  /** @param {{direction: string, text: string, ts: number}} frame */
  add(frame) {
    this.#frames.push(frame);
    this.#total++;
    if (this.#frames.length > KEPT) this.#frames.shift();
    this.#count();
    if (this.details.open) this.#show();
  }

  #count() {
    this.count.textContent = this.#total === 1 ? "1 frame" : `${this.#total} frames`;
  }

  /** Draw what came since the drawer was last up to date. */
  #show() {
    if (!this.details.open) return;
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
    const missing = Math.min(this.#total - this.#shown, this.#frames.length);
    for (const frame of this.#frames.slice(this.#frames.length - missing)) this.list.append(row(frame));
    while (this.list.childElementCount > KEPT) this.list.firstElementChild.remove();
    this.#shown = this.#total;
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }
}

/** @param {{direction: string, text: string, ts: number}} frame */
function row({ direction, text, ts }) {
  const time = el("time", {}, new Date(ts).toISOString().slice(11, 23));
  if (direction === "note") return el("li", { class: "wire-note" }, time, el("span", { class: "wire-json" }, text));
  const { op, ref, id, cid, cursor, ...fields } = JSON.parse(text);
  Object.assign(fields, { id, cid, ref, cursor }); // long and dull: to the end of the line
  if (fields.token) fields.token = "…";
  const json = el("span", { class: "wire-json" }, JSON.stringify(fields));
  const open = () => {
    const whole = item.toggleAttribute("data-open");
    json.textContent = JSON.stringify(fields, null, whole ? 2 : 0);
    button.setAttribute("aria-expanded", String(whole));
  };
  const out = direction === "out";
  const button = el("button", { class: "wire-op", type: "button", "aria-expanded": "false", onclick: open },
    el("span", { class: "wire-arrow", role: "img", "aria-label": out ? "sent" : "received" }, out ? "↑" : "↓"), op);
  const item = el("li", { class: `wire-${direction}` }, time, button, json);
  return item;
}
