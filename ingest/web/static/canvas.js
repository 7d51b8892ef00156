// Shows canvases without scripts: the box of each canvas, and the frames that the SDK recorded, as images.
//
// Where scripts may not run, a browser shows the fallback content of a canvas instead of a box. Therefore, each canvas
// gets a transparent image of its size as `content`, which style sheets of the recorded page size like the canvas, and
// each recorded frame becomes its background. No script draws any part of a recording.

import { FULL_SNAPSHOT, INCREMENTAL, MUTATION, list, nodesOf } from "./rrweb.js";

const CANVAS = 9;
const IMAGE = /^image\/(webp|png|jpeg)$/;
const DATA_IMAGE = /^data:image\/(webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$/;
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;
const SIDE_PIXELS = { width: 300, height: 150 }; // a canvas without attributes, by the HTML standard
const SIDE_PIXELS_MAX = 65_535;

/** Changes rrweb events in place; they must be in order of time. Returns the number of canvases that stay empty,
 * because their content was not recorded, or was recorded as drawing commands, which need a script. */
export function drawCanvases(events) {
  const known = { canvases: new Map(), empty: new Set(), drawn: new Set() }; // node id -> canvas; node ids
  for (const event of events) {
    if (event.type === FULL_SNAPSHOT) known.canvases.clear(); // another page may reuse the ids
    for (const node of nodesOf(event)) if (isCanvas(node)) show(node, known);
    if (event.type !== INCREMENTAL) continue;
    if (event.data?.source === MUTATION)
      for (const change of list(event.data.attributes)) follow(change, known.canvases.get(change?.id));
    if (event.data?.source === CANVAS) paint(event, known);
  }
  return [...known.empty].filter((id) => !known.drawn.has(id)).length;
}

const isCanvas = (node) => typeof node.tagName === "string" && node.tagName.toLowerCase() === "canvas";

/** Gives a recorded canvas its box and the frame of its snapshot, or its last frame if it was moved in the page. */
function show(node, known) {
  node.attributes = node.attributes && typeof node.attributes === "object" ? node.attributes : {};
  const { width, height, rr_dataURL: first, style } = node.attributes;
  delete node.attributes.rr_dataURL; // a player draws it with a script
  const frame = typeof first === "string" && DATA_IMAGE.test(first) ? first : known.canvases.get(node.id)?.frame ?? "";
  const canvas = { width: side(width, "width"), height: side(height, "height"), frame };
  known.canvases.set(node.id, canvas);
  (frame ? known.drawn : known.empty).add(node.id);
  node.attributes.style = withBox(style, canvas);
}

/** Converts an event that draws a frame on a canvas to a style change. */
function paint(event, known) {
  const { id } = event.data, canvas = known.canvases.get(id), frame = frameOf(event.data);
  if (!canvas || frame === null) return;
  canvas.frame = frame;
  known.drawn.add(id);
  const attributes = [{ id, attributes: { style: { "background-image": [`url("${frame}")`, "important"] } } }];
  event.data = { source: MUTATION, texts: [], removes: [], adds: [], attributes };
}

/** A change of the recorded canvas's size or style keeps the box and the frame. */
function follow(change, canvas) {
  const given = change.attributes;
  if (!canvas || !given || typeof given !== "object") return;
  let resized = false;
  for (const name of ["width", "height"])
    if (name in given) {
      canvas[name] = side(given[name], name);
      canvas.frame = ""; // setting either clears a canvas
      resized = true;
    }
  if (typeof given.style === "string" || given.style === null) given.style = withBox(given.style, canvas);
  else if (resized) given.style = { ...given.style, ...Object.fromEntries(important(canvas)) };
}

function withBox(style, canvas) {
  const ours = box(canvas).map(([name, value]) => `${name}: ${value} !important`).join("; ");
  return typeof style === "string" && style.trim() ? `${style.trim().replace(/;$/, "")}; ${ours}` : ours;
}

const important = (canvas) => box(canvas).map(([name, value]) => [name, [value, "important"]]);

function box({ width, height, frame }) {
  const empty = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"></svg>`;
  return [
    ["content", `url("data:image/svg+xml;base64,${btoa(empty)}")`],
    ["background-image", frame ? `url("${frame}")` : "none"],
    ["background-size", "100% 100%"],
    ["background-repeat", "no-repeat"],
    ["background-origin", "content-box"],
    ["background-clip", "content-box"],
  ];
}

/** The image that a canvas event draws, as a data: URL; null if the event has no image that can be shown. */
function frameOf(data) {
  const commands = Array.isArray(data.commands) ? data.commands : [data];
  const drawn = commands.findLast((command) => command?.property === "drawImage");
  const bitmap = list(drawn?.args)[0];
  const blob = bitmap?.rr_type === "ImageBitmap" ? list(bitmap.args)[0] : null;
  const bytes = blob?.rr_type === "Blob" && IMAGE.test(blob.type) ? list(blob.data)[0] : null;
  const base64 = bytes?.rr_type === "ArrayBuffer" ? bytes.base64 : null;
  return typeof base64 === "string" && BASE64.test(base64) ? `data:${blob.type};base64,${base64}` : null;
}

function side(value, name) {
  const pixels = /^\s*\+?[0-9]+/.test(String(value)) ? Number.parseInt(value, 10) : SIDE_PIXELS[name];
  return Math.min(pixels, SIDE_PIXELS_MAX);
}
