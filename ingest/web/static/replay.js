// The page of one replay: the player, the timeline, and how the segments were ingested.

import { sizeBlocked } from "./blocked.js";
import { drawCanvases } from "./canvas.js";
import { ask, byId, complain, length, make, moment, size, table } from "./common.js";
import { hosts } from "./elsewhere.js";
import { defuse } from "./safe.js";
import { Player } from "./vendor/rrweb-player.js";

const [, , project, replayId] = location.pathname.split("/");
const api = `${location.origin}/api/replays/${project}/${replayId}`;
const QUIET = new Set(["asset", "options", "state", "video"]);
const MARKS_MAX = 20_000;
const HOSTS_MAX = 50; // as in pages.py
const HOST = /^(?:[\w-]+(?:\.[\w-]+)*|\[[\da-f:.]+\])(?::\d{1,5})?$/; // what the server takes into its policy
// Kinds with a tick below the scrubber, from the least to the most important.
const TICKS = ["page", "navigation", "click", "slow_click", "dead_click", "rage_click", "error"];
const CLICKS = new Set(["click", "slow_click", "dead_click", "rage_click"]);
const STEP_MS = 5000;
const state = { timeline: null, player: null, video: null, hidden: new Set(QUIET), buttons: [], offset: 0 };

const notice = (text, kind = "") => byId("notices").append(make("p", { class: `notice ${kind}` }, text));

function facts(replay) {
  const pairs = {
    user: replay.user,
    "started (UTC)": moment(replay.started_at),
    length: length(replay.duration_seconds),
    release: [replay.release, replay.environment].filter(Boolean).join(" "),
    browser: [replay.browser, replay.system].filter(Boolean).join(" on "),
    clicks: clicks(replay),
    errors: String(replay.errors),
    pages: replay.pages.join("\n"),
    stored: `${size(replay.bytes_stored)}, ${size(replay.bytes_inflated)} inflated, for ${replay.retention_days} days`,
  };
  const list = Object.entries(pairs).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value || "-")]);
  byId("facts").replaceChildren(make("dl", {}, ...list));
}

/** Clicks as counted by the timeline, and by ClickHouse if its numbers differ, because it keeps a bounded number. */
function clicks(replay) {
  const known = state.timeline?.marks.filter((mark) => CLICKS.has(mark.kind));
  const said = (all, dead, rage) => `${all}, ${dead} of them dead, ${rage} of those rage`;
  const stored = said(replay.clicks, replay.dead_clicks, replay.rage_clicks);
  if (!known) return stored;
  const of = (kind) => known.filter((mark) => mark.kind === kind).length;
  const shown = said(known.length, of("dead_click") + of("rage_click"), of("rage_click"));
  const times = known.reduce((sum, mark) => sum + mark.times, 0);
  const repeated = times > known.length ? ` (${times} with repeats on one element within a second)` : "";
  return shown + repeated + (stored === shown ? "" : `; in ClickHouse ${stored}`);
}

function summary(replay) {
  const parts = [replay.user, replay.browser, replay.system, replay.release, length(replay.duration_seconds)];
  byId("summary").replaceChildren(parts.filter(Boolean).join(" · "));
}

/** The sinks that have the segment, according to the batch in Redis or, after it expires, the committed offset. */
const durable = (one) =>
  one.committed || one.batch?.durable
    ? `every sink${one.committed ? " (offset committed)" : ""}`
    : Object.entries(one.batch?.sinks ?? {}).map(([sink, [done, of]]) => `${sink} ${done}/${of}`).join(", ");

function segments(ingestion) {
  const columns = [
    ["segment", (s) => String(s.segment_id), "number"],
    ["state", (s) => make("span", { class: s.state === "stored" ? "good" : "bad" }, s.state)],
    ["partition / offset", (s) => (s.partition === null ? "" : `${s.partition} / ${s.offset}`)],
    ["copies", (s) => (s.copies.length > 1 ? String(s.copies.length) : ""), "number"],
    ["received (UTC)", (s) => moment(s.received_at)],
    ["in Cloud Storage", (s) => moment(s.durable_gcs_at)],
    ["in ClickHouse by", (s) => moment(s.durable_clickhouse_at)],
    ["durable in", durable],
    ["batch", (s) => s.batch && make("a", { href: s.batch.flower, class: "mono" }, s.batch.batch_id)],
    ["size", (s) => size(s.bytes_stored), "number"],
    ["", (s) => (s.state === "stored" ? make("a", { href: `${api}/segments/${s.segment_id}?raw=1` }, "JSON") : "")],
  ];
  byId("segments").replaceChildren(table(columns, ingestion.segments, "no segments"));
  const said = [
    [ingestion.missing, "is missing; the other segments are played"],
    [ingestion.duplicates, "was delivered more than once and is stored once"],
  ];
  for (const [numbers, what] of said)
    if (numbers.length) notice(`Segment ${numbers.join(", ")} ${what}.`);
  ingestion.notes.forEach((text) => notice(text));
}

function marks() {
  const { timeline, hidden } = state;
  state.buttons = timeline.marks
    .filter((mark) => !hidden.has(mark.kind))
    .map((mark) => {
      const told = Object.entries(mark.detail).filter(([, value]) => value !== null && value !== "");
      if (mark.duration_ms !== null) told.unshift(["took", `${mark.duration_ms} ms`]);
      const details =
        mark.kind === "error"
          ? `reported by the SDK between here and ${length(mark.detail.within_ms / 1000)} later`
          : told.map(([name, value]) => `${name} ${/bytes/.test(name) ? size(value) || 0 : value}`).join(", ");
      const button = make(
        "button",
        { type: "button", "data-kind": mark.kind, onclick: () => link(mark.at_ms) },
        make("span", { class: "number" }, length((mark.at_ms - timeline.start_ms) / 1000)),
        make("span", { class: mark.level }, mark.kind.replace("_", " ") + (mark.times > 1 ? ` ×${mark.times}` : "")),
        make("span", { class: "what" }, mark.title, make("br"), make("small", { class: "faint" }, details)),
      );
      button.at = mark.at_ms;
      button.captured = mark.captured && captured(mark.captured);
      return button;
    });
  byId("marks").replaceChildren(...state.buttons.map((button) => make("li", {}, button, button.captured)));
}

/** Headers and bodies of a request, collapsed at first. */
function captured({ request, response }) {
  const parts = Object.entries({ request, response }).filter(([, message]) => message);
  const shown = parts.flatMap(([name, { headers, body, warnings }]) => {
    const lines = Object.entries(headers).map(([header, value]) => `${header}: ${value}`);
    if (warnings.length) lines.push(`(${warnings.join(", ")})`);
    return [make("b", {}, name), make("pre", {}, [...lines, body && `\n${body}`].filter(Boolean).join("\n"))];
  });
  return make("details", { class: "captured" }, make("summary", {}, "headers and bodies"), ...shown);
}

function kinds() {
  const buttons = Object.entries(state.timeline.counts).map(([kind, count]) =>
    make(
      "button",
      {
        type: "button",
        "aria-pressed": String(!state.hidden.has(kind)),
        onclick: (event) => {
          if (!state.hidden.delete(kind)) state.hidden.add(kind);
          event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(kind)));
          marks();
        },
      },
      `${kind.replace("_", " ")} ${count}`,
    ),
  );
  byId("kinds").replaceChildren(...buttons);
}

function ticks() {
  const { marks: all } = state.timeline;
  const [start, end] = state.span ?? [state.timeline.start_ms, state.timeline.end_ms];
  const shown = TICKS.map((kind) => all.filter((mark) => mark.kind === kind));
  const chips = TICKS.filter((kind, index) => shown[index].length);
  byId("legend").replaceChildren(
    ...chips.map((kind) => make("span", {}, make("i", { class: kind }), ` ${kind.replace("_", " ")}`)),
  );
  byId("ticks").replaceChildren(
    ...shown.flat().map((mark) => {
      const tick = make("i", { class: mark.kind, title: mark.kind });
      tick.style.left = `${Math.min(100, Math.max(0, (100 * (mark.at_ms - start)) / Math.max(1, end - start)))}%`;
      return tick;
    }),
  );
}

/** Draws the ticks below the player's own scrubber. */
function alignTicks() {
  const bar = document.querySelector(".rr-progress")?.getBoundingClientRect();
  const place = byId("ticks").parentElement.getBoundingClientRect();
  if (!bar) return;
  byId("ticks").style.marginLeft = `${bar.left - place.left}px`;
  byId("ticks").style.width = `${bar.width}px`;
}

function memory() {
  const { memory: samples, start_ms: start } = state.timeline;
  // Samples may be later than the last event of the page.
  const end = Math.max(state.timeline.end_ms, ...samples.slice(-1).map(([at]) => at));
  if (samples.length < 2) return byId("memory").replaceChildren(make("p", { class: "faint" }, "no samples"));
  const most = Math.max(...samples.map(([, used]) => used), 1);
  const points = samples.map(([at, used]) => `${(600 * (at - start)) / Math.max(1, end - start)},${90 - (90 * used) / most}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const attributes = { points: points.join(" "), fill: "none", stroke: "currentColor", "vector-effect": "non-scaling-stroke" };
  Object.entries(attributes).forEach(([name, value]) => line.setAttribute(name, value));
  svg.setAttribute("viewBox", "0 0 600 90");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "plot");
  svg.append(line);
  const marks = (values) => values.map((value) => make("span", {}, value));
  const seconds = (end - start) / 1000;
  byId("memory").replaceChildren(
    make("p", { class: "faint" }, "Used JavaScript heap"),
    make(
      "div",
      { class: "axes" },
      make("div", { class: "vertical" }, ...marks([size(most), size(most / 2), "0 B"])),
      svg,
      make("div", { class: "horizontal" }, ...marks([0, 0.25, 0.5, 0.75, 1].map((part) => length(part * seconds)))),
    ),
  );
}

/** Seeks, and writes the time into the address, so that the address can be shared. */
function link(atMs) {
  seek(atMs);
  history.replaceState(null, "", `#t=${((atMs - state.timeline.start_ms) / 1000).toFixed(1)}`);
}

/** The time in the address: `#t=12.3`, seconds after the start. */
function seekToAddress() {
  const seconds = /^#t=([0-9]{1,6}(?:\.[0-9]{1,3})?)$/.exec(location.hash);
  if (seconds && state.timeline) seek(state.timeline.start_ms + 1000 * Number(seconds[1]));
}

/** Seeks to the next or previous rage click, or dead click if there are no rage clicks. */
function toRage(step) {
  const { marks: all } = state.timeline;
  const kind = all.some((mark) => mark.kind === "rage_click") ? "rage_click" : "dead_click";
  const here = state.origin + state.offset;
  const found = all.filter((mark) => mark.kind === kind && (step > 0 ? mark.at_ms > here + 50 : mark.at_ms < here - 1000));
  const mark = found.at(step > 0 ? 0 : -1);
  if (mark) link(mark.at_ms);
}

function seek(atMs) {
  const offset = Math.max(0, atMs - state.origin);
  if (state.player) state.player.goto(offset);
  if (state.video) state.video.currentTime = offset / 1000;
  passed(offset);
}

function passed(offset) {
  state.offset = offset;
  for (const button of state.buttons) button.classList.toggle("past", button.at <= state.origin + offset);
}

/** One page of events for the player. */
const recording = (from) => ask(`${api}/recording?from_segment=${from}`);

/** Plays the recording: first only its first page, so that a long recording opens quickly, then all of it. */
async function play(replay) {
  let page = await recording(0);
  const events = page.events;
  const unreadable = { ...page.unreadable }, leftOut = { ...page.left_out };
  if (page.next_segment !== null) {
    // The last event gives the scrubber its length.
    const end = { type: 5, timestamp: Math.max(1000 * replay.ended_at, last(events)), data: { tag: "end", payload: {} } };
    draw(structuredClone([...events, end]), { isWhole: false });
  }
  while (page.next_segment !== null) {
    page = await recording(page.next_segment);
    for (const event of page.events) events.push(event);
    Object.assign(unreadable, page.unreadable);
    Object.assign(leftOut, page.left_out);
  }
  for (const [segment, why] of Object.entries(unreadable)) notice(`Segment ${segment} cannot be read: ${why}`, "error");
  for (const [segment, why] of Object.entries(leftOut)) notice(`Segment ${segment} is played partly: ${why}.`);
  if (!draw(events, { isWhole: true }))
    byId("stage").replaceChildren(
      make("p", {}, "Nothing can be rendered: no full snapshot is stored. The timeline shows the stored events."),
    );
}

const last = (events) => events.reduce((most, event) => Math.max(most, event.timestamp), 0);

/** Draws these events with a new player, at the previous player's position. Returns false if they cannot be drawn.
 * Notices about the content are shown only if `isWhole`, because they would otherwise be incomplete. */
function draw(events, { isWhole }) {
  events.sort((a, b) => a.timestamp - b.timestamp);
  const first = events.findIndex((event) => event.type === 4 || event.type === 2);
  if (events.length < 2 || !events.some((event) => event.type === 2)) return false;
  const drawn = events.slice(Math.max(0, first));
  sizeBlocked(drawn);
  const taken = defuse(drawn);
  const foreign = isWhole ? hosts(drawn) : [];
  const empty = drawCanvases(drawn);
  if (isWhole) {
    if (taken) notice(`Attributes removed because they would open connections (frames, prefetching): ${taken}.`);
    if (empty) notice(`${empty} canvas element${empty > 1 ? "s stay" : " stays"} empty: no images of the content were recorded.`);
    elsewhere(foreign);
  }
  const stage = byId("stage");
  const before = state.player && { at: state.origin + state.offset, isPlaying: isPlaying() };
  state.player?.$destroy();
  state.origin = drawn[0].timestamp;
  stage.replaceChildren();
  const width = Math.max(320, stage.clientWidth - 24);
  const props = { events: drawn, width, height: Math.round(width * 0.56), autoPlay: false, skipInactive: true };
  state.player = new Player({ target: stage, props });
  state.span = [drawn[0].timestamp, drawn.at(-1).timestamp];
  if (state.timeline) ticks();
  new ResizeObserver(alignTicks).observe(document.querySelector(".rr-progress"));
  state.player.addEventListener("ui-update-current-time", (event) => {
    passed(event.payload);
    if (document.activeElement.tagName === "IFRAME") document.activeElement.blur(); // a recorded focus must not take our keys
  });
  if (before) state.player.goto(Math.max(0, before.at - state.origin), before.isPlaying);
  return true;
}

const isPlaying = () => state.player.getReplayer().service.state.matches("playing");

/** Offers to load the recorded page's resources from their servers, which is blocked at first. The link names the
 * hosts, and the server allows only these. */
function elsewhere(foreign) {
  if (!foreign.length) return;
  const chosen = new URLSearchParams(location.search).getAll("elsewhere");
  const named = foreign.filter(([host]) => HOST.test(host)).slice(0, HOSTS_MAX);
  const others = foreign.length - named.length;
  const ask = new URLSearchParams(named.map(([host]) => ["elsewhere", host]));
  const [says, link, asks] = chosen.length
    ? ["Allowed from other servers", location.pathname, "Block them"]
    : ["Blocked", `${location.pathname}?${ask}${location.hash}`, "Load images, styles and fonts for this recording"];
  if (!named.length) return notice(`Blocked: files of ${others} hosts without a usable name.`);
  const choose = make("a", { href: link, id: "elsewhere" }, asks);
  const files = named.reduce((sum, [, count]) => sum + count, 0);
  const what = `${files} file${files > 1 ? "s" : ""} (images, style sheets, fonts, media)`;
  const from = named.map(([host, count]) => `${host} (${count})`).join(", ");
  byId("notices").append(make("p", { class: "notice" }, `${says}: ${what} of ${from}. `, choose));
  if (others) notice(`Files of ${others} more host${others > 1 ? "s" : ""} stay blocked.`);
}

function film(ingestion) {
  const parts = ingestion.segments.filter((one) => one.bytes_video > 0);
  const video = make("video", { controls: true, src: `${api}/segments/${parts[0].segment_id}/video` });
  let part = 0;
  video.addEventListener("ended", () => {
    part += 1;
    if (part < parts.length) {
      video.src = `${api}/segments/${parts[part].segment_id}/video`;
      video.play();
    }
  });
  video.addEventListener("timeupdate", () => passed(1000 * video.currentTime));
  state.video = video;
  byId("stage").replaceChildren(video, make("p", { class: "faint" }, `${parts.length} parts of video, played in order`));
}

/** Loads the timeline page by page, up to the number of events that a browser can show. Reports omitted events. */
async function timeline() {
  const whole = await ask(`${api}/timeline`);
  for (let page = whole; page.next_segment !== null && whole.marks.length < MARKS_MAX; ) {
    page = await ask(`${api}/timeline?from_segment=${page.next_segment}`);
    whole.next_segment = page.next_segment;
    for (const list of ["marks", "memory", "snapshots"]) for (const one of page[list]) whole[list].push(one);
    for (const [kind, count] of Object.entries(page.counts)) whole.counts[kind] = (whole.counts[kind] ?? 0) + count;
    whole.start_ms = Math.min(whole.start_ms || page.start_ms, page.start_ms || whole.start_ms);
    whole.end_ms = Math.max(whole.end_ms, page.end_ms);
    whole.truncated ||= page.truncated;
    Object.assign(whole.cut, page.cut);
    Object.assign(whole.unreadable, page.unreadable);
  }
  if (whole.truncated) notice("There are more events than the timeline shows.");
  for (const [segment, why] of Object.entries(whole.cut)) notice(`Segment ${segment} is partly in the timeline: ${why}.`);
  if (whole.next_segment !== null) notice(`Segment ${whole.next_segment} and later ones are not in the timeline.`);
  return whole;
}

async function start() {
  try {
    const { replay, ingestion } = await ask(api);
    byId("title").replaceChildren("Replay ", make("span", { class: "mono" }, replay.replay_id));
    document.title = `Replay ${replay.replay_id.slice(0, 8)}`;
    summary(replay);
    facts(replay);
    segments(ingestion);
    const isVideo = ingestion.segments.some((one) => one.bytes_video > 0);
    const playing = isVideo ? null : play(replay).catch((error) => error);
    state.timeline = await timeline();
    if (!state.player) state.origin = state.timeline.start_ms;
    facts(replay);
    kinds();
    marks();
    ticks();
    memory();
    if (isVideo) film(ingestion);
    const isEarly = Boolean(state.player);
    if (isEarly) seekToAddress();
    const failure = await playing;
    if (failure) throw failure;
    if (!isEarly) seekToAddress();
  } catch (error) {
    complain(byId("notices"), error);
    if (!state.player && !state.video) byId("stage").replaceChildren("Nothing to play.");
  }
}

const KEYS = {
  " ": () => (state.player ? state.player.toggle() : state.video.paused ? state.video.play() : state.video.pause()),
  ArrowLeft: () => seek(state.origin + Math.max(0, state.offset - STEP_MS)),
  ArrowRight: () => seek(state.origin + state.offset + STEP_MS),
  r: () => toRage(1),
  R: () => toRage(-1),
};

// Keyboard shortcuts apply unless another element handles the key.
document.addEventListener("keydown", (event) => {
  const act = KEYS[event.key];
  const free = !event.ctrlKey && !event.metaKey && !event.altKey && !/^(INPUT|SELECT|TEXTAREA|VIDEO)$/.test(event.target.tagName);
  if (!act || !free || !state.timeline || (!state.player && !state.video)) return;
  if (event.key === " " && event.target !== document.body) return;
  event.preventDefault();
  act();
});
window.addEventListener("hashchange", seekToAddress);
start();
