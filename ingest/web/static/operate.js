// The operator's page: looks every two seconds; changes something only when a button says so.

import { ask, byId, complain, length, make, moment, size, table } from "./common.js";

const LOOK_MS = 2000;
let token = "";

const post = (path, body) => ask(path, { body, headers: { "X-Replays-Token": token } });
const notice = (text, kind = "") => byId("notices").replaceChildren(make("p", { class: `notice ${kind}` }, text));
const flower = (one) => make("a", { href: one.flower, class: "mono", rel: "noreferrer" }, one.batch_id);

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

function draw(found) {
  token = found.token;
  byId("at").textContent = `${moment(found.at)} UTC, signed in as ${found.user}`;
  byId("flower").href = found.flower;
  const parked = [
    ["batch", flower],
    ["stage", (b) => b.stage],
    ["attempt", (b) => String(b.attempt), "number"],
    ["messages", (b) => String(b.messages), "number"],
    ["parked for", (b) => length(found.at - b.parked_at), "number"],
    ["next retry in", (b) => length(b.retry_at - found.at), "number"],
    ["error", (b) => b.error, "wrap"],
    ["", buttons],
  ];
  replace("parked", table(parked, found.parked, "none"));
  const sinks = [
    ["sink", (s) => s.sink],
    ["", (s) => (s.switched_on ? "" : "off")],
    ["breaker", (s) => make("span", { class: s.breaker === "closed" ? "good" : "bad" }, s.breaker)],
    ["failures", (s) => String(s.failures), "number"],
    ["waiting tasks", (s) => String(s.queue_depth), "number"],
    ["workers", (s) => make("span", { class: s.workers || !s.switched_on ? "" : "bad" }, String(s.workers)), "number"],
    ["slowest flush", (s) => (s.flush_max_seconds === null ? "" : `${s.flush_max_seconds.toFixed(2)} s`), "number"],
  ];
  replace("sinks", table(sinks, found.sinks, "no sinks"));
  const workers = [
    ["worker", (w) => make("span", { class: w.silent ? "bad mono" : "mono" }, w.worker)],
    ["queues", (w) => w.queues.join(" "), "wrap"],
    ["processes", (w) => String(w.processes), "number"],
    ["up", (w) => length(found.at - w.started_at), "number"],
    ["seen", (w) => `${length(w.silent_seconds)} ago`, "number"],
  ];
  replace("workers", table(workers, found.workers, "no worker is running: start celery -A tasks worker"));
  const unowned = [
    ["partition", (p) => String(p.partition), "number"],
    ["lag", (p) => (p.lag_messages < 0 ? "unknown" : String(p.lag_messages)), "number"],
  ];
  replace("unowned", table(unowned, found.unowned, "none"));
  const unconsumed = [
    ["queue", (queue) => make("span", { class: "bad" }, queue)],
    ["what to do", (queue) => `start celery -A tasks worker -Q ${queue}`, "wrap"],
  ];
  replace("unconsumed", table(unconsumed, found.queues_without_worker, "none"));
  const of = (name) => found.readers.flatMap((reader) => reader.snapshot[name].map((one) => ({ ...one, reader })));
  const partitions = [
    ["partition", (p) => String(p.partition), "number"],
    ["reader", (p) => make("span", { class: p.reader.silent ? "bad mono" : "mono" }, p.reader.reader)],
    ["committed", (p) => String(p.committed ?? "-"), "number"],
    ["log end", (p) => String(p.high), "number"],
    ["lag", (p) => String(p.lag_messages), "number"],
    ["lag s", (p) => p.lag_seconds.toFixed(1), "number"],
    ["", (p) => (p.reader.snapshot.halted ? `halted: ${p.reader.snapshot.halted}` : p.reader.snapshot.paused ? "paused" : ""), "wrap"],
  ];
  replace("partitions", table(partitions, of("partitions"), "no reader has a partition: start replays-ingest"));
  const flights = [
    ["batch", flower],
    ["phase", (f) => f.phase],
    ["stage", (f) => f.stage],
    ["messages", (f) => String(f.messages), "number"],
    ["size", (f) => size(f.size_bytes), "number"],
    ["age s", (f) => f.age_seconds.toFixed(1), "number"],
    ["error", (f) => f.error, "wrap"],
  ];
  replace("flights", table(flights, of("flights"), "none"));
  const deeds = [
    ["what", (d) => d.what],
    ["by", (d) => d.by],
    ["details", (d) => Object.entries(d).filter(([name]) => !["what", "by"].includes(name)).map((pair) => pair.join(" ")).join(", "), "wrap"],
  ];
  replace("deeds", table(deeds, found.deeds, "none"));
}

/** Not while the keyboard is in it: a focused button must not vanish under somebody's fingers. */
function replace(id, content) {
  const place = byId(id);
  if (!place.contains(document.activeElement)) place.replaceChildren(content);
}

async function look() {
  try {
    draw(await ask("/api/operate"));
  } catch (error) {
    complain(byId("notices"), error);
  }
}

function chosen() {
  return [...document.querySelectorAll("#letters input:checked")].map((box) => box.value);
}

async function letters() {
  try {
    const found = await ask("/api/operate/letters");
    const counts = found.counts.map((one) => `${one.reason}${one.sink ? ` (${one.sink})` : ""} ${one.count}`);
    byId("letter-counts").textContent = counts.join(", ");
    const columns = [
      ["", (l) => make("input", { type: "checkbox", value: l.id, "aria-label": `choose ${l.id}`, onchange: count })],
      ["letter", (l) => make("span", { class: "mono" }, l.id)],
      ["reason", (l) => l.reason],
      ["sink", (l) => l.sink],
      ["error", (l) => l.error, "wrap"],
      ["batch", (l) => make("span", { class: "mono" }, l.batch_id)],
    ];
    byId("letters").replaceChildren(table(columns, found.letters, "no dead letters"));
    count();
  } catch (error) {
    complain(byId("letters"), error);
  }
}

function count() {
  byId("replay-letters").disabled = !chosen().length;
}

byId("replay-letters").addEventListener("click", (event) =>
  act(event.currentTarget, async () => {
    const done = await post("/api/operate/letters", { ids: chosen() });
    await letters();
    return done.outcomes.map((one) => `${one.id}: ${one.outcome}`).join("; ") || "nothing was replayed";
  }),
);
byId("load-letters").addEventListener("click", letters);
await look();
await letters();
setInterval(look, LOOK_MS);
