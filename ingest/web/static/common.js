// Code shared by all pages: requests to the server, elements made from text (never from markup), formatted numbers.

const ASK_MS_MAX = 20_000;

/** Sends GET, or POST with JSON. Throws an Error with the server's error text. Calls `seen` with the headers. */
export async function ask(path, { body, headers, seen } = {}) {
  // `fetch` refuses an address with a password, which a relative path takes from a page opened as user:password@host.
  const answer = await fetch(new URL(path, location.origin), {
    method: body === undefined ? "GET" : "POST",
    headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(ASK_MS_MAX),
  });
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error ?? `the server answered ${answer.status}`);
  seen?.(answer.headers);
  return found;
}

/** An element: attributes (`class`, `href`, `onclick`, ...) and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A table of rows with `columns` [title, cell(row), class]. A title is a text or an element. */
export function table(columns, rows, empty) {
  if (!rows.length) return make("p", { class: "faint" }, empty);
  const head = make("tr", {}, ...columns.map(([title, , kind]) => make("th", { scope: "col", class: kind }, title)));
  const body = rows.map((row) =>
    make("tr", {}, ...columns.map(([title, cell, kind]) => make("td", { class: kind, "data-label": label(title) }, filled(cell(row))))),
  );
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

/** The title as text, for phones, on which every row is a block of names and values. */
const label = (title) => (typeof title === "string" ? title : "");
const filled = (content) => (content === "" || content === undefined ? null : content);

export const moment = (seconds) =>
  seconds ? `${new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ")}` : "";

export function length(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const clock = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0")).join(":");
  return whole >= 3600 ? `${Math.floor(whole / 3600)}:${clock}` : clock;
}

export function size(bytes) {
  if (!bytes) return "";
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : bytes >= 1e3 ? `${(bytes / 1e3).toFixed(1)} kB` : `${bytes} B`;
}

/** Shows an error in the page's area for notices. */
export function complain(place, error) {
  place.replaceChildren(make("p", { class: "notice error", role: "alert" }, error.message ?? String(error)));
}
