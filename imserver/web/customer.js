// @ts-check
/** The customer's pane: a product, and the one conversation with its shop. */

import { byId } from "./elements.js";
import { Pane, shelf } from "./pane.js";
import { countable } from "./thread.js";

const NOTICES = 50; // pushes from outside of conversations, which no history brings back

export const PRODUCT = {
  sku: "KT-03", title: "Kettle No. 3", detail: "Gooseneck, 0.9 l, sage enamel", price: 68, currency: "EUR",
  image: "kettle.svg",
};

export class Customer extends Pane {
  #unread = 0;
  #counted = 0; // up to this seq `#unread` is right
  #agent = { uid: "", info: /** @type {any} */ (null) };
  /** @type {any} */ #state = null;

  /** @param {import("./demo.js").Session} session */
  constructor(session) {
    super("customer", session);
    this.show(this.newThread(""));
    this.keepingPlace(() => this.thread?.add(...this.#notices()));
    byId("customer-ask").addEventListener("click", () => {
      this.post("card", PRODUCT);
      this.input.focus();
    });
    for (const suggestion of this.root.querySelectorAll("[data-suggestion]")) {
      suggestion.addEventListener("click", () => {
        this.post("text", { text: suggestion.textContent });
        this.input.focus();
      });
    }
  }

  async sync() {
    const { conversations } = await this.client.conversations({ limit: 200 });
    const { shop } = this.session.current;
    const ours = conversations.find((each) => each.shop === shop && each.customer === this.me);
    if (!ours || !this.thread) return;
    this.#adopt(ours.conversation);
    this.#unread = ours.unread;
    this.#counted = ours.last?.seq ?? 0;
    if (ours.with) this.#agent = ours.with;
    this.#showState(ours.state === this.#state?.state ? { ...this.#state, ...ours } : ours);
    await this.load(this.thread);
  }

  received(message) {
    const thread = this.thread;
    if (!thread) return;
    if (!message.conversation) {
      shelf.set(`notices.${this.me}`, [...this.#notices(), message].slice(-NOTICES));
      this.keepingPlace(() => thread.add(message));
    } else if (message.conversation === thread.conversation) {
      if (message.seq > this.#counted) {
        this.#counted = message.seq;
        if (countable(message, this.me)) this.#unread++;
      }
      this.arrived(thread, message);
      this.#showUnread();
      if (message.type === "recall" && this.#unread) this.syncSoon();
    } else if (!thread.conversation) {
      this.syncSoon(); // another window of ours has begun it
    }
  }

  changed(state) {
    this.#state = state;
    if (state.conversation === this.thread?.conversation) this.#showState(state);
    else if (!this.thread?.conversation) this.syncSoon();
  }

  target(thread) {
    return thread.conversation ? { conversation: thread.conversation } : { shop: this.session.current.shop };
  }

  accepted(thread, sent) {
    if (thread.conversation || !sent.conversation) return;
    this.#adopt(sent.conversation);
    this.syncSoon();
  }

  hasRead() {
    this.#unread = 0;
    this.#showUnread();
  }

  unreadOf() {
    return this.#unread;
  }

  unread() {
    return this.#unread;
  }

  nameOf(uid) {
    return uid === this.#agent?.uid ? this.#agent.info?.name ?? uid : uid ?? "";
  }

  /** @param {string} conversation */
  #adopt(conversation) {
    const thread = this.thread;
    if (!thread || thread.conversation === conversation) return;
    thread.conversation = conversation;
    thread.markRead(shelf.get(`read.${this.me}.${conversation}`, 0));
    if (this.#state?.conversation === conversation) this.#showState(this.#state);
  }

  /** @returns {any[]} */
  #notices() {
    return shelf.get(`notices.${this.me}`, []);
  }

  #showUnread() {
    const badge = byId("customer-unread");
    badge.hidden = !this.#unread;
    badge.textContent = String(this.#unread);
    this.session.showTitle();
  }

  /** @param {{state: string, agent: string | null, position?: number}} state */
  #showState({ state, agent, position }) {
    const line = byId("customer-state");
    line.dataset.state = state;
    if (state === "waiting") {
      line.textContent = position === 1 ? "Waiting for an agent · you are next"
        : position ? `Waiting for an agent · ${position - 1} before you` : "Waiting for an agent";
    } else if (state === "assigned") {
      line.textContent = agent ? `Talking with ${this.nameOf(agent)}` : "Talking with an agent";
    } else {
      line.textContent = "Closed · write to open it again";
    }
    this.#showUnread();
  }
}
