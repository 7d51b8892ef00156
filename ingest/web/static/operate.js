// The operator's page: refreshes every two seconds, and changes the system only when a button is pressed.

import { ask, byId, complain, length, make, moment, size, table } from "./common.js";
import { bar, flow, plot } from "./plots.js";

const LOOK_MS = 2000;
const TREND_MS = 15_000;
const LETTERS_MS = 60_000;
const FLIGHTS_MAX = 40;
const LOOKED_AT = ["alerts", "flow", "parked", "sinks", "workers", "flights", "partitions", "deeds"];
const SECTIONS = ["trend", "flow", "parked", "sinks", "flights", "letters", "deeds"];
const PLOTS = [
  ["messages_per_second", "Throughput, messages/s", (v) => count(Math.round(v))],
  ["lag_messages", "Lag, messages", (v) => count(Math.round(v))],
  ["delay_seconds", "Delay of the oldest message, s", (v) => v.toFixed(1)],
];
const PHONE = matchMedia("(max-width: 600px)");
let token = "";
let fault = null; // the notice that the state cannot be read
const chosenParked = new Set();

const count = (number) => number.toLocaleString("en");
const post = (path, body) => ask(path, { body, headers: { "X-Replays-Token": token } });
const notice = (text, kind = "") => byId("notices").replaceChildren(make("p", { class: `notice ${kind}` }, text));
const flower = (one) => make("a", { href: one.flower, class: "mono", rel: "noreferrer" }, one.batch_id);
const state = (good, text) => make("span", { class: good ? "good" : "bad" }, text);

async function act(button, work) {
  button.disabled = true;
  button.blur(); // its table may be drawn again
  try {
    notice(await work());
    await look();
  } catch (error) {
    notice(error.message, "error");
  } finally {
    button.disabled = false;
  }
}

/** Shows in each of these parts of the page that its content is unknown, and why. */
function unknown(parts, error) {
  const text = `Unknown: ${error.message}`;
  for (const id of parts) byId(id).replaceChildren(make("p", { class: "bad" }, text));
}

/** Replaces the content, unless it has the keyboard focus: a focused button must not disappear while it is used. */
function replace(id, content) {
  const place = byId(id);
  if (!place.contains(document.activeElement)) place.replaceChildren(content);
}

// Alerts and the flow

function alerts(found) {
  const shown = found.alerts.map((one) =>
    make("div", { class: `alert ${one.severity}` }, make("span", {}, one.text),
      make("a", { href: `/runbook#${one.name.toLowerCase()}` }, `Runbook: ${one.name}`)),
  );
  const calm = make("div", { class: "alert calm" }, make("span", {}, "Nothing needs attention."));
  replace("alerts", make("div", {}, ...(shown.length ? shown : [calm])));
}

/** False until the readers have reported partitions, and the end of each partition's log. */
const isLagKnown = (partitions) => partitions.length > 0 && partitions.every((one) => one.high >= 0);

function drawFlow(found) {
  const heard = found.readers.filter((one) => !one.silent);
  const partitions = heard.flatMap((one) => one.snapshot.partitions);
  const total = (items, name) => items.reduce((sum, one) => sum + one[name], 0);
  const delay = Math.max(0, ...partitions.map((one) => one.lag_seconds));
  const lag = isLagKnown(partitions) ? `lag ${count(total(partitions, "lag_messages"))}, ${delay.toFixed(1)} s` : "lag unknown";
  const { where, why } = found.bottleneck;
  const sinks = found.sinks.map((one) => ({
    name: one.sink,
    off: !one.switched_on,
    slow: where === one.sink,
    lines: one.switched_on
      ? [
          `${count(one.queue_depth)} tasks wait, ${one.workers} worker${one.workers === 1 ? "" : "s"}`,
          where === one.sink ? why : `breaker ${one.breaker.replace("_", " ")}${one.flush_max_seconds === null ? "" : `, slowest ${one.flush_max_seconds.toFixed(2)} s`}`,
        ]
      : ["switched off"],
  }));
  const drawn = flow({
    kafka: [partitions.length ? `${count(partitions.length)} partitions` : "no reader reported yet", lag],
    reader: [
      `${heard.length} running, ${count(Math.round(total(heard, "messages_per_second")))} messages/s`,
      where === "reader" ? why : `${count(heard.flatMap((one) => one.snapshot.flights).length)} batches in flight`,
    ],
    sinks,
    slowReader: where === "reader",
    narrow: PHONE.matches,
  });
  replace("flow", drawn);
}

async function trend() {
  let found;
  try {
    found = await ask("/api/operate/trend");
  } catch (error) {
    unknown(["trend"], error);
    return;
  }
  const last = (values) => values.findLast((one) => one !== null) ?? null;
  const from = new Date(found.start * 1000).toISOString().slice(11, 16);
  byId("trend").replaceChildren(
    ...PLOTS.map(([name, title, text]) => {
      const values = found[name];
      const now = last(values);
      const top = Math.max(...values.map((one) => one ?? 0));
      return make("figure", { class: "plot" },
        make("figcaption", {}, make("span", { class: "faint" }, title), make("strong", {}, now === null ? "no reader" : text(now))),
        plot(values, title),
        make("div", { class: "axis faint" }, make("span", {}, from), make("span", {}, `highest ${text(top)}`), make("span", {}, "now")));
    }),
  );
}

// Parked batches

function buttons(batch) {
  const retry = make("button", {
    type: "button",
    onclick: (event) =>
      act(event.currentTarget, async () => (await post("/api/operate/batches/retry", { batch_id: batch.batch_id })).said),
  }, "Retry");
  const abandon = make("button", {
    type: "button",
    onclick: (event) => {
      const reason = prompt(`Abandon ${batch.batch_id}? Its messages become dead letters. Reason:`);
      if (!reason) return;
      const asked = { batch_id: batch.batch_id, reason };
      act(event.currentTarget, async () => (await post("/api/operate/batches/abandon", asked)).said);
    },
  }, "Abandon");
  return make("span", {}, retry, " ", abandon);
}

function parked(found) {
  const known = new Set(found.parked.map((one) => one.batch_id));
  for (const id of chosenParked) if (!known.has(id)) chosenParked.delete(id);
  const box = (b) => make("input", {
    type: "checkbox", value: b.batch_id, "aria-label": `select ${b.batch_id}`, checked: chosenParked.has(b.batch_id),
    onchange: (event) => {
      if (event.target.checked) chosenParked.add(b.batch_id);
      else chosenParked.delete(b.batch_id);
      event.target.blur();
      countParked(known.size);
    },
  });
  const all = make("input", {
    type: "checkbox", "aria-label": "select all parked batches", checked: known.size > 0 && chosenParked.size === known.size,
    onchange: (event) => {
      chosenParked.clear();
      if (event.target.checked) for (const id of known) chosenParked.add(id);
      event.target.blur();
      parked(found);
    },
  });
  const columns = [
    [all, box],
    ["batch", flower],
    ["stage", (b) => b.stage],
    ["attempt", (b) => String(b.attempt), "number"],
    ["messages", (b) => count(b.messages), "number"],
    ["parked for", (b) => length(found.at - (b.first_parked_at || b.parked_at)), "number"],
    ["next retry in", (b) => (b.retry_at > found.at ? length(b.retry_at - found.at) : "due"), "number"],
    ["error", (b) => b.error, "wrap wide"],
    ["", buttons],
  ];
  replace("parked", table(columns, found.parked, "Nothing is parked."));
  countParked(known.size);
}

function countParked(of) {
  byId("parked-count").textContent = of ? count(of) : "";
  byId("parked-actions").hidden = !of;
  byId("parked-chosen").textContent = `${count(chosenParked.size)} selected`;
  for (const id of ["retry-parked", "abandon-parked"]) byId(id).disabled = !chosenParked.size;
}

async function bulk(what) {
  const reason = byId("parked-actions").elements.reason.value;
  const done = await post(`/api/operate/batches/${what}`, { batch_ids: [...chosenParked], reason });
  chosenParked.clear();
  byId("parked-actions").elements.reason.value = "";
  const refused = Object.entries(done.refused).map(([id, why]) => `${id}: ${why}`);
  const said = what === "retry" ? "the readers were asked to retry" : "abandoned: the messages are dead letters";
  return [`${count(done.done.length)} batches: ${said}.`, ...refused.slice(0, 5)].join(" ");
}

// Sinks, workers, batches, partitions, audit trail

function sinks(found) {
  const columns = [
    ["sink", (s) => s.sink],
    ["breaker", (s) => (s.switched_on ? state(s.breaker === "closed", s.breaker.replace("_", " ")) : make("span", { class: "faint" }, "off"))],
    ["failures", (s) => String(s.failures), "number"],
    ["tasks waiting", (s) => count(s.queue_depth), "number"],
    ["workers", (s) => make("span", { class: s.workers || !s.switched_on ? "" : "bad" }, String(s.workers)), "number"],
    ["flush p50, s", (s) => (s.flush_p50_seconds === null ? "" : s.flush_p50_seconds.toFixed(2)), "number"],
    ["slowest, s", (s) => (s.flush_max_seconds === null ? "" : s.flush_max_seconds.toFixed(2)), "number"],
    ["last error", (s) => s.error, "wrap"],
  ];
  replace("sinks", table(columns, found.sinks, "no sinks"));
}

function workers(found) {
  const columns = [
    ["worker", (w) => make("span", { class: w.silent ? "bad mono" : "mono" }, w.worker), "wrap"],
    ["queues", (w) => w.queues.map((one) => one.replace(/^flush\./, "")).join(" "), "wrap"],
    ["processes", (w) => String(w.processes), "number"],
    ["up", (w) => length(found.at - w.started_at), "number"],
    ["seen, s ago", (w) => w.silent_seconds.toFixed(0), "number"],
  ];
  replace("workers", table(columns, found.workers, "No worker is running"));
}

function flights(found) {
  const all = found.readers.flatMap((reader) => reader.snapshot.flights).sort((a, b) => b.age_seconds - a.age_seconds);
  const longest = all[0]?.age_seconds ?? 0;
  byId("flight-count").textContent = all.length > FLIGHTS_MAX ? `${count(all.length)}, the oldest ${FLIGHTS_MAX} shown` : all.length ? count(all.length) : "";
  const columns = [
    ["batch", flower],
    [`last ${length(longest)}`, (f) => bar(f.age_seconds, longest, f.phase, `${f.phase} for ${f.phase_seconds.toFixed(0)} s`), "bars"],
    ["age, s", (f) => f.age_seconds.toFixed(1), "number"],
    ["phase", (f) => (f.phase === "parked" ? state(false, "parked") : f.phase)],
    ["stage", (f) => f.stage],
    ["attempt", (f) => String(f.attempt), "number"],
    ["messages", (f) => count(f.messages), "number"],
    ["size", (f) => size(f.size_bytes), "number"],
    ["error", (f) => f.error, "wrap"],
  ];
  const swatch = (kind, text) => make("span", {}, make("span", { class: `swatch ${kind}` }), text);
  const legend = make("p", { class: "legend faint" }, swatch("waiting", "waiting"), swatch("", "flushing"), swatch("parked", "parked"));
  replace("flights", make("div", {}, table(columns, all.slice(0, FLIGHTS_MAX), "No batch is in flight."), all.length ? legend : null));
}

function partitions(found) {
  const mine = found.readers.flatMap((reader) => reader.snapshot.partitions.map((one) => ({ ...one, reader })));
  const nobody = found.unowned.map((one) => ({ ...one, committed: null, high: -1, lag_seconds: null, reader: null }));
  const columns = [
    ["partition", (p) => String(p.partition), "number"],
    ["reader", (p) => (p.reader === null ? state(false, "no owner") : make("span", { class: p.reader.silent ? "bad mono" : "mono" }, p.reader.reader)), "wrap"],
    ["committed", (p) => (p.committed === null ? "" : count(p.committed)), "number"],
    ["log end", (p) => (p.high < 0 ? "" : count(p.high)), "number"],
    ["lag, messages", (p) => (p.lag_messages < 0 || (p.reader !== null && p.high < 0) ? "unknown" : count(p.lag_messages)), "number"],
    ["delay, s", (p) => (p.lag_seconds === null ? "" : p.high < 0 ? "unknown" : p.lag_seconds.toFixed(1)), "number"],
    ["state", (p) => readerState(p.reader), "wrap"],
  ];
  replace("partitions", table(columns, [...nobody, ...mine], "No reader has a partition: start replays-ingest"));
}

function readerState(reader) {
  if (reader === null) return "";
  if (reader.silent) return state(false, `silent for ${reader.silent_seconds.toFixed(0)} s`);
  if (reader.snapshot.halted) return state(false, `halted: ${reader.snapshot.halted}`);
  return reader.snapshot.paused ? make("span", { class: "warn" }, "paused at the in-flight limit") : "reading";
}

function audit(found) {
  const details = (d) =>
    Object.entries(d)
      .filter(([name, value]) => !["at", "what", "by", "key", "version"].includes(name) && value)
      .map(([name, value]) => `${name} ${value.length > 160 ? `${value.slice(0, 160)}…` : value}`)
      .join(", ");
  const columns = [
    ["time (UTC)", (d) => moment(Number(d.at))],
    ["by", (d) => d.by],
    ["action", (d) => d.what],
    ["details", details, "wrap wide"],
  ];
  replace("deeds", table(columns, found.deeds, "No operator has done anything yet."));
}

async function look() {
  let found;
  try {
    found = await ask("/api/operate");
  } catch (error) {
    complain(byId("notices"), error);
    fault = byId("notices").firstChild;
    unknown(LOOKED_AT, error);
    countParked(0);
    byId("flight-count").textContent = "";
    return;
  }
  if (fault) {
    fault.remove();
    fault = null;
    trend();
    letters();
  }
  token = found.token;
  byId("at").textContent = `${moment(found.at)} UTC, signed in as ${found.user}`;
  byId("flower").href = found.flower;
  for (const part of [alerts, drawFlow, parked, sinks, workers, flights, partitions, audit]) part(found);
}

// Dead letters

const chosenLetters = () => [...document.querySelectorAll('#letters tbody input:checked')].map((box) => box.value);

function countLetters() {
  byId("replay-letters").disabled = !chosenLetters().length;
}

function letterFilter() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(byId("letter-filter"))) if (value) query.set(name, value);
  return query;
}

function offer(name, values) {
  const field = byId("letter-filter").elements[name];
  const known = new Set([...field.options].map((one) => one.value));
  for (const value of new Set(values)) if (value && !known.has(value)) field.append(make("option", { value }, value));
}

async function letters() {
  try {
    const found = await ask(`/api/operate/letters?${letterFilter()}`);
    const counts = found.counts.map((one) => `${one.reason}${one.sink ? ` (${one.sink})` : ""} ${count(one.count)}`);
    const shown = found.matching > found.letters.length ? `the first ${found.letters.length} of ${count(found.matching)} shown; ` : "";
    byId("letter-counts").textContent = found.total ? shown + counts.join(", ") : "";
    offer("reason", found.counts.map((one) => one.reason));
    offer("sink", found.counts.map((one) => one.sink));
    const all = make("input", {
      type: "checkbox", "aria-label": "select all shown dead letters",
      onchange: (event) => {
        for (const box of document.querySelectorAll("#letters tbody input")) box.checked = event.target.checked;
        countLetters();
      },
    });
    const columns = [
      [all, (l) => make("input", { type: "checkbox", value: l.id, "aria-label": `select ${l.id}`, onchange: countLetters })],
      ["written (UTC)", (l) => moment(l.timestamp_ms / 1000)],
      ["letter", (l) => make("span", { class: "mono" }, l.id)],
      ["reason", (l) => make("span", {}, l.reason, l.replayed ? make("span", { class: "faint" }, " replayed") : "")],
      ["sink", (l) => l.sink],
      ["project", (l) => l.project, "number"],
      ["origin", (l) => make("span", { class: "mono" }, l.origin), "wrap"],
      ["bytes", (l) => (l.value_bytes === null ? "null" : count(l.value_bytes)), "number"],
      ["error", (l) => l.error, "wrap wide"],
      ["content", (l) => l.content, "content"],
    ];
    byId("letters").replaceChildren(table(columns, found.letters, found.total ? "No dead letter matches." : "No dead letters."));
    countLetters();
  } catch (error) {
    unknown(["letters"], error);
    byId("letter-counts").textContent = "";
    countLetters();
  }
}

// Buttons, keys, refreshing

byId("replay-letters").addEventListener("click", (event) =>
  act(event.currentTarget, async () => {
    const done = await post("/api/operate/letters", { ids: chosenLetters() });
    await letters();
    return done.outcomes.map((one) => `${one.id}: ${one.outcome}`).join("; ") || "nothing was replayed";
  }),
);
byId("letter-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  letters();
});
byId("letter-filter").addEventListener("change", letters);
byId("parked-actions").addEventListener("submit", (event) => event.preventDefault());
byId("retry-parked").addEventListener("click", (event) => act(event.currentTarget, () => bulk("retry")));
byId("abandon-parked").addEventListener("click", (event) => {
  const button = event.currentTarget;
  if (confirm(`Abandon ${chosenParked.size} batches? Their messages become dead letters.`)) act(button, () => bulk("abandon"));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select, textarea")) return;
  if (event.key === "r") refresh(true);
  else if (event.key === "p") byId("refreshing").click();
  else if (event.key === "/") byId("letter-filter").elements.text.focus();
  else if (SECTIONS[Number(event.key) - 1]) byId(SECTIONS[Number(event.key) - 1]).scrollIntoView({ block: "center" });
  else return;
  event.preventDefault();
});

async function refresh(everything) {
  await look();
  if (everything) await Promise.all([trend(), letters()]);
}

const every = (milliseconds, work) =>
  setInterval(() => {
    if (byId("refreshing").checked && !document.hidden) work();
  }, milliseconds);

await refresh(true);
every(LOOK_MS, look);
every(TREND_MS, trend);
every(LETTERS_MS, () => {
  if (!chosenLetters().length && !byId("letters").contains(document.activeElement)) letters();
});
