// The list of replays and its filters. The address contains the chosen filters, so that it can be shared.

import { ask, byId, complain, length, make, moment, table } from "./common.js";

const PAGE = 50;
const form = byId("filters");
const place = byId("replays");
const more = byId("more");
let shown = [];
let turn = 0;
let total = 0;

const cut = (text) => make("span", { title: text }, text);

// Sorted by the end of the replay, latest first.
const COLUMNS = [
  ["replay", (r) => make("a", { href: `/replay/${r.project_id}/${r.replay_id}`, class: "mono" }, r.replay_id.slice(0, 12))],
  ["project", (r) => r.project_id],
  ["ended (UTC) ▾", (r) => moment(r.ended_at)],
  ["started", (r) => moment(r.started_at).slice(5, 16)],
  ["user", (r) => cut(r.user), "cut"],
  ["browser", (r) => cut(r.browser || r.system), "cut"],
  ["release", (r) => cut(r.release), "cut"],
  ["length", (r) => length(r.duration_seconds), "number"],
  ["segments", (r) => String(r.segments), "number"],
  ["pages", (r) => String(r.pages.length), "number"],
  ["clicks", (r) => String(r.clicks), "number"],
  ["dead", (r) => make("span", { class: r.dead_clicks ? "warn" : "faint" }, String(r.dead_clicks)), "number"],
  ["rage", (r) => make("span", { class: r.rage_clicks ? "bad" : "faint" }, String(r.rage_clicks)), "number"],
  ["errors", (r) => make("span", { class: r.errors ? "bad" : "faint" }, String(r.errors)), "number"],
];

function chosen() {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) found.set(name, value);
  return found;
}

async function show(offset) {
  const mine = ++turn;
  const query = chosen();
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  query.set("limit", PAGE);
  query.set("offset", offset);
  try {
    const page = await ask(`/api/replays?${query}`);
    if (mine !== turn) return;
    shown = offset ? [...shown, ...page.replays] : page.replays;
    place.replaceChildren(table(COLUMNS, shown, "No replay matches. Segments appear here once ClickHouse has them."));
    more.hidden = !page.more;
    if (page.total !== undefined) total = page.total;
    const text = (number) => number.toLocaleString("en");
    byId("total").textContent = `${text(shown.length)} of ${text(Math.max(total, shown.length))} replays, latest end first`;
  } catch (error) {
    if (mine === turn) complain(place, error);
  }
}

async function start() {
  const given = new URLSearchParams(location.search);
  try {
    const { projects, releases } = await ask("/api/projects");
    form.project.append(...projects.map((p) => make("option", { value: p.project_id }, `${p.project_id} (${p.replays})`)));
    form.release.append(...releases.map((r) => make("option", { value: r }, r)));
  } catch (error) {
    return complain(place, error);
  }
  for (const [name, value] of given) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = value === "1";
    else if (field) field.value = value;
  }
  await show(0);
}

form.addEventListener("change", () => show(0));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(0);
});
more.addEventListener("click", () => show(shown.length));
start();
