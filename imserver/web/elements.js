// @ts-check
/** Building elements and formatting values. Nothing here parses HTML: what users write is only ever text. */

/**
 * A new element: `el("button", { class: "send", onclick: send, title: "Send" }, "Send")`.
 * Names that start with `on` are listeners; everything else is an attribute, left out when null or false.
 * @param {string} tag @param {{[name: string]: any}} [attributes] @param {...(Node | string | null)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The icon `#i-NAME` of the page. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** A round sign with initials, in a colour that belongs to the uid. @param {string} uid @param {string} [name] */
export function avatar(uid, name = uid) {
  const parts = name.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const initials = (parts.length > 1 ? parts[0][0] + parts[parts.length - 1][0] : name.slice(0, 2)).toUpperCase();
  let hash = 0;
  for (const char of uid) hash = (hash * 31 + (char.codePointAt(0) ?? 0)) >>> 0;
  return el("span", { class: `avatar tint-${hash % 6}`, "aria-hidden": "true" }, initials);
}

/** Text with its web addresses as links. @param {string} text @returns {(Node | string)[]} */
export function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"]*[^\s<>".,;:!?)\]}'])/).map((part, index) =>
    index % 2 ? el("a", { href: part, target: "_blank", rel: "noopener noreferrer nofollow" }, part) : part);
}

/** An address that may be shown as a picture or opened: of http or https; anything else is null.
 * @param {any} address */
export function safeAddress(address) {
  if (typeof address !== "string" || !address) return null;
  try {
    const url = new URL(address, document.baseURI);
    return ["http:", "https:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "long" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const shortDate = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** @param {number} ts */
export const timeOf = (ts) => clock.format(ts);

/** @param {number} ts */
export const dayOf = (ts) => new Date(ts).toDateString();

/** "Today", "Yesterday", a weekday of the last days, or a date. @param {number} ts */
export function dayName(ts) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(ts).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days > 1 && days < 7 ? weekday.format(ts) : date.format(ts);
}

/** As short as a list wants it: the time today, a date before. @param {number} ts */
export const briefTime = (ts) => (dayOf(ts) === dayOf(Date.now()) ? timeOf(ts) : shortDate.format(ts));

/** What a product costs, in words; empty when the card does not say. @param {any} price @param {any} currency */
export function priceOf(price, currency) {
  if (typeof price !== "number") return "";
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency }).format(price);
  } catch {
    return String(price); // a currency that is none
  }
}

/** How large a file is, in words; empty when nobody says. @param {any} bytes */
export function sizeOf(bytes) {
  if (typeof bytes !== "number" || !(bytes >= 0)) return "";
  const power = Math.min(Math.floor(Math.log(bytes || 1) / Math.log(1000)), 4);
  return `${new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 }).format(bytes / 1000 ** power)} ${
    ["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** One line that stands for a message. @param {{type: string, body: any}} message */
export function summary({ type, body }) {
  if (type === "card") return `▣ ${body?.title ?? (body?.order ? `Order ${body.order}` : "Product")}`;
  if (type === "image") return `▣ ${body?.alt || "Picture"}`;
  if (type === "file") return `▣ ${body?.name || "File"}`;
  if (type === "recalled" || type === "recall") return "Message taken back";
  if (type === "system" && body?.event === "transfer") return `${body.to} has the conversation now`;
  return typeof body?.text === "string" ? body.text : `[${type}]`;
}
