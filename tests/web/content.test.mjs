// What bodies look like on the page, in a document that is just enough of one.

import assert from "node:assert/strict";
import { test } from "node:test";

/** An element that remembers what it was made of. */
class Element {
  constructor(tag) {
    Object.assign(this, { tag, attributes: {}, children: [] });
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  append(...children) {
    this.children.push(...children);
  }
  addEventListener() {}
  /** All elements of a tag in it, itself included. */
  all(tag) {
    return [this, ...this.children.flatMap((child) => (child instanceof Element ? child.all("*") : []))]
      .filter((each) => tag === "*" || each.tag === tag);
  }
  get text() {
    return this.children.map((child) => (child instanceof Element ? child.text : child)).join(" ");
  }
}

globalThis.document = {
  baseURI: "http://127.0.0.1:8080/",
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
};

const { content } = await import("../../imserver/web/content.js");
const { safeAddress, sizeOf, summary } = await import("../../imserver/web/elements.js");
const BAD = [
  "javascript:alert(1)", "JavaScript:alert(1)", " javascript:alert(1)", "data:text/html,<script>alert(1)</script>",
  "data:image/svg+xml,<svg/>", "blob:http://127.0.0.1/x", "file:///etc/passwd", "ftp://a.example/", "http://", "", null,
  7, {}, ["https://a.example/"],
];

test("addresses of http and https only", () => {
  for (const address of ["https://a.example/b.png", "http://a.example/b.png"]) {
    assert.equal(safeAddress(address), address);
  }
  assert.equal(safeAddress("kettle.svg"), "http://127.0.0.1:8080/kettle.svg");
  for (const address of BAD) assert.equal(safeAddress(address), null, String(address));
});

test("an image", () => {
  const shown = content({ type: "image", body: { url: "https://a.example/b.png", alt: "A kettle", width: 640, height: 480 } });
  const [img] = shown.all("img");
  assert.deepEqual(
    [img.attributes.src, img.attributes.alt, img.attributes.width, img.attributes.height],
    ["https://a.example/b.png", "A kettle", "320", "240"]);
  assert.match(shown.attributes.rel, /noopener/);
  const odd = content({ type: "image", body: { url: "https://a.example/b.png", alt: {}, width: "9e9", height: -1 } });
  assert.deepEqual([odd.all("img")[0].attributes.alt, odd.all("img")[0].attributes.width], ["", undefined]);
});

test("a file", () => {
  const shown = content({ type: "file", body: { url: "https://a.example/x/terms.pdf", name: "Terms", size: 12345 } });
  assert.equal(shown.tag, "a");
  assert.equal(shown.attributes.href, "https://a.example/x/terms.pdf");
  assert.match(shown.text, /Terms +12.3 kB/);
  assert.match(content({ type: "file", body: { url: "https://a.example/x/terms.pdf" } }).text, /terms\.pdf/);
});

test("cards of a product and of an order", () => {
  const product = content({ type: "card", body: {
    title: "Kettle", detail: "0.9 l", price: 68, currency: "EUR", image: "https://a.example/k.png", url: "https://a.example/k" } });
  assert.deepEqual([product.tag, product.attributes.href], ["a", "https://a.example/k"]);
  assert.match(product.text, /Kettle.*0\.9 l.*68/);
  const order = content({ type: "card", body: { order: 7, status: "sent", price: 68, currency: "nonsense" } });
  assert.equal(order.tag, "div");
  assert.match(order.text, /Order 7.*sent.*68/);
});

test("nothing leads anywhere but to http, and what cannot be shown is shown as text", () => {
  for (const type of ["image", "file", "card", "text", "x-own", "constructor", "__proto__"]) {
    for (const address of BAD) {
      const shown = content({ type, body: { url: address, image: address, title: "<b>t</b>", text: "<img onerror=x>" } });
      for (const element of shown.all("*")) {
        assert.equal(element.attributes.href?.startsWith("#i-") ?? true, true, type);
        assert.equal(element.attributes.src, undefined, type);
        assert.deepEqual(Object.keys(element.attributes).filter((name) => name.startsWith("on")), []);
      }
    }
    for (const body of [null, undefined, [], "x", 7, {}]) assert.ok(content({ type, body }) instanceof Element, type);
  }
});

test("a line that stands for a message", () => {
  for (const [type, body, line] of [
    ["text", { text: "Hi" }, "Hi"], ["image", {}, "▣ Picture"], ["file", { name: "a.pdf" }, "▣ a.pdf"],
    ["card", { order: "7" }, "▣ Order 7"], ["recall", { seq: 1 }, "Message taken back"], ["x-own", {}, "[x-own]"],
    ["system", { event: "transfer", from: "a", to: "b" }, "b has the conversation now"],
  ]) assert.equal(summary({ type, body }), line);
  assert.deepEqual([sizeOf(0), sizeOf(999), sizeOf(1e9), sizeOf("7"), sizeOf(NaN)], ["0 B", "999 B", "1 GB", "", ""]);
});
