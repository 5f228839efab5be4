// @ts-check
/**
 * What the body of a message looks like, by its type (docs/protocol.rst, "Types of messages"). A body is whatever a
 * client sent: each field is looked at before it is shown, only ever as text, and addresses only if they are http.
 */

import { el, icon, linked, priceOf, safeAddress, sizeOf } from "./elements.js";

const LARGEST = 320; // pixels of a picture's longer side

/** @param {any} message @param {string} who whose it is, in words */
export function content({ type, body }, who) {
  if (type === "recalled") return el("p", { class: "taken-back" }, icon("undo"), `${who} took back a message`);
  const shown = SHAPES.get(type)?.(body ?? {});
  if (shown) return shown;
  if (typeof body?.text === "string") return el("p", { class: "text" }, ...linked(body.text));
  return el("pre", { class: "text" }, `${type} ${JSON.stringify(body, null, 2)}`);
}

/** A picture: `url`, and when it has them `alt`, `width`, `height` (pixels). Nothing without a good `url`.
 * @param {any} body */
function image({ url, alt, width, height }) {
  const address = safeAddress(url);
  if (!address) return null;
  const known = Number.isFinite(width) && Number.isFinite(height) && width > 0 && height > 0;
  const scale = known ? Math.min(1, LARGEST / Math.max(width, height)) : 1;
  return el("a", { class: "picture", href: address, target: "_blank", rel: "noopener noreferrer nofollow" },
    el("img", {
      src: address, alt: words(alt), loading: "lazy",
      width: known && Math.round(width * scale), height: known && Math.round(height * scale),
    }));
}

/** A file elsewhere: `url`, and when it has them `name`, `size` (bytes). Nothing without a good `url`.
 * @param {any} body */
function file({ url, name, size }) {
  const address = safeAddress(url);
  if (!address) return null;
  return el("a", { class: "file", href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, icon("down"),
    el("span", { class: "card-words" },
      el("strong", {}, words(name) || new URL(address).pathname.split("/").pop() || address),
      el("span", { class: "card-detail" }, sizeOf(size))));
}

/** A product: `title`, and when it has them `image`, `price`, `currency`, `detail`, `url`; an order has `order` (its
 * number) and may have `status`, too. @param {any} body */
function card({ title, order, status, image: picture, price, currency, detail, url }) {
  const shown = safeAddress(picture);
  const address = safeAddress(url);
  const number = words(order);
  const line = [words(status), words(detail)].filter(Boolean).join(" · ");
  return el(address ? "a" : "div",
    { class: "card", href: address, target: address && "_blank", rel: address && "noopener noreferrer nofollow" },
    shown && el("img", { src: shown, alt: "", width: 72, height: 72, loading: "lazy" }),
    el("span", { class: "card-words" },
      el("strong", {}, words(title) || (number ? `Order ${number}` : "Product")),
      line ? el("span", { class: "card-detail" }, line) : null,
      el("span", { class: "card-price" }, priceOf(price, currency))));
}

/** @type {Map<string, (body: any) => any>} not an object: a type may be called `constructor` */
const SHAPES = new Map([["image", image], ["file", file], ["card", card]]);

/** Text or a number as text, anything else as nothing. @param {any} value */
const words = (value) => (typeof value === "string" || typeof value === "number" ? String(value) : "");
