// Draws openapi.json for people, and lets them try the calls. Nothing is loaded from anywhere else.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
const DEEPEST = 5;
const LONGEST_ANSWER = 256 * 1024;
const $ = (id) => document.getElementById(id);
let api = {};

// An element: make("p", {class: "x", onclick: f}, "text", child, ...). Text is always text, never markup.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// ---- schemas

function resolve(node) {
  for (let steps = 0; node && node.$ref && steps < 20; steps++)
    node = node.$ref.replace(/^#\//, "").split("/").reduce((part, key) => part && part[key], api);
  return node || {};
}

function typeName(schema) {
  if (!schema) return "any";
  if (schema.$ref) {
    const found = resolve(schema);
    return found.type === "object" || found.properties ? schema.$ref.split("/").pop() : typeName(found);
  }
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const either = schema.anyOf || schema.oneOf;
  if (either) return either.map(typeName).join(" | ");
  if (schema.type === "array") return typeName(schema.items) + "[]";
  if (schema.type === "object" && typeof schema.additionalProperties === "object")
    return "{name: " + typeName(schema.additionalProperties) + "}";
  return Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any";
}

function rules(schema) {
  const found = [];
  const bounds = (low, high, unit) => {
    if (low !== undefined && high !== undefined) found.push(`${low} to ${high}${unit}`);
    else if (low !== undefined) found.push(`at least ${low}${unit}`);
    else if (high !== undefined) found.push(`at most ${high}${unit}`);
  };
  for (const part of [schema, ...(schema.anyOf || [])].map(resolve)) {
    bounds(part.minimum, part.maximum, "");
    bounds(part.exclusiveMinimum, part.exclusiveMaximum, " (exclusive)");
    bounds(part.minLength, part.maxLength, " characters");
    bounds(part.minItems, part.maxItems, " items");
    if (part.pattern) found.push(part.pattern);
  }
  if (schema.default !== undefined && schema.default !== null)
    found.push("default " + JSON.stringify(schema.default));
  return found.join(" · ");
}

// The struct inside a schema, however it is wrapped: itself, the items of a list, one of several.
function inner(schema) {
  const found = resolve(schema);
  if (found.properties) return found;
  if (found.items) return inner(found.items);
  if (typeof found.additionalProperties === "object") return inner(found.additionalProperties);
  for (const one of found.anyOf || found.oneOf || []) {
    const part = inner(one);
    if (part) return part;
  }
  return null;
}

function row(name, schema, required, deep) {
  const found = resolve(schema);
  const described = schema.description || (found.properties ? "" : found.description) || "";
  return make("tr", {},
    make("td", {}, make("span", {class: "deep-" + deep}, make("code", {}, name)),
      required ? make("span", {class: "must", title: "required"}, "*") : ""),
    make("td", {class: "mono"}, typeName(schema)),
    make("td", {}, described, described && rules(schema) ? " " : "",
      make("span", {class: "rule mono"}, rules(schema))));
}

function rows(struct, deep = 0, above = []) {
  if (!struct || deep > DEEPEST || above.includes(struct)) return [];
  return Object.entries(struct.properties || {}).flatMap(([name, schema]) => [
    row(name, schema, (struct.required || []).includes(name), deep),
    ...rows(inner(schema), deep + 1, [...above, struct]),
  ]);
}

function table(content) {
  return content.length ? make("div", {class: "scroll"}, make("table", {}, make("tbody", {}, content))) : "";
}

function schemaTable(schema) {
  const struct = inner(schema);
  const body = rows(struct);
  return body.length ? table(body) : make("p", {class: "rule mono"}, typeName(schema));
}

// A value to start from: the required fields, and those with a default left out.
function example(schema, deep = 0) {
  const found = resolve(schema);
  if (found.examples) return found.examples[0];
  if (found.const !== undefined) return found.const;
  if (found.enum) return found.enum[0];
  const either = found.anyOf || found.oneOf;
  if (either) return example(either[0], deep);
  if (found.properties && deep < DEEPEST) {
    const required = Object.keys(found.properties).filter((name) => (found.required || []).includes(name));
    return Object.fromEntries(required.map((name) => [name, example(found.properties[name], deep + 1)]));
  }
  if (found.type === "array") return found.minItems === 0 ? [] : [example(found.items, deep + 1)];
  if (found.type === "integer" || found.type === "number") return found.default ?? found.minimum ?? 1;
  if (found.type === "boolean") return found.default ?? true;
  if (found.type === "string") return found.default ?? "";
  return {};
}

// ---- trying

function statusClass(status) {
  return status < 300 ? "good" : status < 400 ? "odd" : "bad";
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

async function readInto(output, response) {
  if (!response.body) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (value) text += decoder.decode(value, {stream: true});
    output.textContent = text.slice(0, LONGEST_ANSWER);
    if (text.length > LONGEST_ANSWER) { output.textContent += "\n…"; await reader.cancel(); return; }
    if (done) break;
  }
  output.textContent = pretty(text);
}

function tryIt(path, method, operation) {
  const fields = (operation.parameters || []).map((parameter) => {
    const input = make("input", {
      class: "mono", required: parameter.required, placeholder: rules(parameter.schema), autocomplete: "off",
    });
    return {parameter, input};
  });
  const contents = operation.requestBody ? Object.keys(operation.requestBody.content) : [];
  const bodyText = contents.length
    ? JSON.stringify(example(operation.requestBody.content[contents[0]].schema), null, 2) : "";
  const editor = contents.length
    ? make("textarea", {"aria-label": "Body", spellcheck: "false"}, bodyText) : null;
  const media = make("select", {"aria-label": "Content type"}, contents.map((one) => make("option", {}, one)));
  const send = make("button", {type: "submit"}, "Send");
  const stop = make("button", {type: "button", class: "plain", hidden: true}, "Stop");
  const outcome = make("span", {class: "mono", role: "status"});
  const output = make("pre", {hidden: true, tabindex: "0"});
  let running = null;

  async function run(event) {
    event.preventDefault();
    let url = path;
    const query = new URLSearchParams();
    for (const {parameter, input} of fields) {
      if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value !== "") query.append(parameter.name, input.value);
    }
    // relative to this page, so that it works behind a proxy that adds a prefix, too
    url = url.replace(/^\//, "") + (query.size ? "?" + query : "");
    const headers = {};
    const token = $("token").value.trim();
    if (token && (operation.security || []).length) headers.Authorization = "Bearer " + token;
    const options = {method: method.toUpperCase(), headers, cache: "no-store"};
    if (editor && editor.value.trim()) {
      headers["Content-Type"] = media.value;
      options.body = editor.value;
    }
    running = new AbortController();
    options.signal = running.signal;
    send.disabled = true;
    stop.hidden = false;
    outcome.className = "mono";
    outcome.textContent = "…";
    output.textContent = "";
    const since = performance.now();
    try {
      const response = await fetch(url, options);
      outcome.className = "mono " + statusClass(response.status);
      outcome.textContent = `${response.status} ${response.statusText} · ${Math.round(performance.now() - since)} ms`;
      output.hidden = response.status === 204;
      await readInto(output, response);
    } catch (error) {
      if (error.name !== "AbortError") {
        outcome.className = "mono bad";
        outcome.textContent = String(error.message || error);
      } else outcome.textContent += " · stopped";
    }
    send.disabled = false;
    stop.hidden = true;
  }

  stop.addEventListener("click", () => running && running.abort());
  return make("form", {onsubmit: run},
    fields.map(({parameter, input}) => make("label", {},
      make("code", {}, parameter.name, parameter.required ? make("span", {class: "must"}, "*") : ""), input)),
    editor, make("div", {class: "buttons"}, send, contents.length > 1 ? media : "", stop, outcome), output);
}

// ---- calls

function answers(operation) {
  return Object.entries(operation.responses).map(([status, reference]) => {
    const answer = resolve(reference);
    const [media, content] = Object.entries(answer.content || {})[0] || [];
    const good = status < 300;
    return make("details", {class: "answer", open: good},
      make("summary", {}, make("span", {class: "status " + statusClass(Number(status))}, status), answer.description,
        " ", media && !media.endsWith("json") ? make("span", {class: "chip"}, media) : ""),
      content && content.schema ? schemaTable(content.schema) : "");
  });
}

function security(operation) {
  const names = (operation.security || []).flatMap((one) => Object.keys(one));
  return names.length ? names.join(" or ") : "no key";
}

function inside(path, method, operation) {
  const parameters = (operation.parameters || []).map((parameter) =>
    row(parameter.name, parameter.schema, parameter.required, 0));
  const contents = operation.requestBody ? Object.entries(operation.requestBody.content) : [];
  return make("div", {class: "inside"},
    operation.description ? make("p", {}, operation.description) : "",
    parameters.length ? [make("h3", {}, "Parameters"), table(parameters)] : "",
    contents.length ? [make("h3", {}, "Body"), schemaTable(contents[0][1].schema)] : "",
    contents.length > 1 ? make("p", {class: "rule"}, "Also as ", make("code", {}, contents[1][0]), ".") : "",
    make("h3", {}, "Answers"), answers(operation),
    make("h3", {}, "Try it"), tryIt(path, method, operation));
}

function card(path, method, operation) {
  const details = make("details", {class: "call", id: operation.operationId},
    make("summary", {},
      make("span", {class: "method " + method}, method.toUpperCase()), make("span", {class: "path"}, path),
      make("span", {class: "what"}, operation.summary), make("span", {class: "chip"}, security(operation))));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(inside(path, method, operation));
  });
  return details;
}

function words(path, operation) {
  const names = (struct) => rows(struct).map((one) => one.firstChild.textContent);
  const body = operation.requestBody ? Object.values(operation.requestBody.content)[0].schema : null;
  const parts = [path, operation.summary, operation.operationId, ...operation.tags, operation.description || ""];
  parts.push(...(operation.parameters || []).map((parameter) => parameter.name));
  if (body) parts.push(...names(inner(body)));
  return parts.join(" ").toLowerCase();
}

function draw() {
  document.title = api.info.title;
  $("title").textContent = api.info.title;
  $("version").textContent = api.info.version;
  const all = Object.entries(api.paths).flatMap(([path, place]) =>
    METHODS.filter((method) => place[method]).map((method) => ({path, method, operation: place[method]})));
  const sections = api.tags.map(({name}) => {
    const mine = all.filter(({operation}) => operation.tags.includes(name));
    const title = make("h2", {}, name);
    const entries = mine.map(({path, method, operation}) => ({
      words: words(path, operation),
      card: card(path, method, operation),
      link: make("a", {href: "#" + operation.operationId},
        make("span", {class: "method " + method}, method.toUpperCase()), operation.summary),
    }));
    return {
      entries, title, section: make("section", {}, make("h2", {}, name), entries.map((entry) => entry.card)),
    };
  });
  const nothing = make("p", {hidden: true}, "Nothing matches.");
  $("menu").replaceChildren(...sections.flatMap(({title, entries}) => [title, ...entries.map(({link}) => link)]));
  $("calls").replaceChildren(
    api.info.description ? make("p", {}, api.info.description) : "", ...sections.map(({section}) => section), nothing);

  function search() {
    const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const {entries, title, section} of sections) {
      let here = 0;
      for (const entry of entries) {
        const fits = wanted.every((word) => entry.words.includes(word));
        entry.card.hidden = entry.link.hidden = !fits;
        here += fits;
      }
      section.hidden = title.hidden = here === 0;
      found += here;
    }
    nothing.hidden = found > 0;
  }

  function show() {
    const target = location.hash && $(decodeURIComponent(location.hash.slice(1)));
    if (target && target.classList.contains("call")) {
      target.open = true;
      target.scrollIntoView();
    }
  }

  $("search").addEventListener("input", search);
  $("menu").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link && link.hash === location.hash) show();
  });
  addEventListener("hashchange", show);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  show();
}

async function start() {
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(`openapi.json: ${response.status}`);
    api = await response.json();
    draw();
  } catch (error) {
    $("state").textContent = "The description cannot be shown: " + error.message;
  }
}

start();
