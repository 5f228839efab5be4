// @ts-check
/** Starts the page: reads the session, opens both panes, and shows what runs here. */

import { Agent } from "./agent.js";
import { Customer } from "./customer.js";
import { byId, el, icon } from "./elements.js";

const RETRY_MS = 3000;

/** @typedef {{uid: string, token: string}} Person */
/** @typedef {{shop: string, channel: string, workers: string[], worker_http?: string[], business: string,
 *   dispatcher?: string, customer: Person, agent: Person, agents?: string[]}} SessionData */

/** What the demo's web server says about the servers, and the tokens it hands out. */
export class Session {
  /** @type {import("./pane.js").Pane[]} */ panes = [];
  /** @type {Set<string>} */ #used = new Set();
  /** @type {Promise<SessionData> | null} */ #asking = null;

  /** @param {SessionData} data */
  constructor(data) {
    this.current = data;
  }

  /** @returns {Promise<SessionData>} */
  static async fetch() {
    const answer = await fetch("/session.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`/session.json answers ${answer.status}`);
    return answer.json();
  }

  /** A token not given out before; both sides may ask at once. @param {"customer" | "agent"} side */
  async token(side) {
    if (this.#used.has(side)) {
      this.#asking ??= Session.fetch().finally(() => (this.#asking = null));
      this.current = await this.#asking;
    }
    this.#used.add(side);
    return this.current[side].token;
  }

  /** The workers in turn; the two sides begin at different ones, to show that it makes no difference.
   * @param {"customer" | "agent"} side */
  workersFor(side) {
    let turn = side === "agent" ? 1 : 0;
    return () => this.current.workers[turn++ % this.current.workers.length];
  }

  showReady() {
    document.body.dataset.ready = String(this.panes.length > 0 && this.panes.every((pane) => pane.ready));
  }

  showTitle() {
    const unread = this.panes.reduce((sum, pane) => sum + pane.unread(), 0);
    document.title = unread ? `(${unread}) imserver demo` : "imserver demo";
  }
}

/** @param {SessionData} data */
function showServers({ dispatcher, business, worker_http = [], customer }) {
  const link = (/** @type {string} */ text, /** @type {string} */ href) =>
    el("a", { href, target: "_blank", rel: "noopener" }, text);
  const links = [];
  if (dispatcher) links.push(link("Dispatcher API", `${dispatcher}/docs`));
  if (business) links.push(link("Business API", `${business}/docs`));
  worker_http.forEach((base, index) => links.push(link(`Worker ${index + 1} metrics`, `${base}/metrics`)));
  byId("servers-links").append(...links.map((each) => el("li", {}, each)));

  const command = `imctl send --to ${customer.uid} --text hello`;
  byId("servers-command").textContent = command;
  byId("servers-copy").addEventListener("click", async () => {
    const label = byId("servers-copied");
    try {
      await navigator.clipboard.writeText(command);
      label.textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(byId("servers-command")); // no clipboard without https: ready for Ctrl-C
      label.textContent = "Press Ctrl-C";
    }
    setTimeout(() => (label.textContent = "Copy"), 2000);
  });
}

async function start() {
  let data;
  try {
    data = await Session.fetch();
  } catch (error) {
    byId("problem").hidden = false;
    byId("problem-detail").textContent = error.message;
    setTimeout(start, RETRY_MS);
    return;
  }
  byId("problem").hidden = true;
  const session = new Session(data);
  showServers(data);
  byId("customer-shop").textContent = data.shop;
  byId("agent-me").textContent = data.agent.uid;
  byId("agent-me").before(icon("headset"));
  session.panes.push(new Customer(session), new Agent(session));
  for (const pane of session.panes) pane.client.connect();
}

start();
