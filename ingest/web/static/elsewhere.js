// Resources of a recorded page that are on servers, by host: style sheets, images, fonts and media.
//
// rrweb makes addresses absolute and inlines the style sheets that it may read. The content security policy blocks the
// remaining resources until the viewer allows them. The policy then allows only these hosts, so a host that is not
// found here, or that only another host's style sheet names, stays blocked.

import { FULL_SNAPSHOT, INCREMENTAL, MUTATION, list } from "./rrweb.js";

const STYLE_RULE = 8, ADOPTED = 15;
const LOADING = new Set(["src", "poster", "background", "xlink:href"]);
const LOADING_TAGS = new Set(["img", "image", "input", "video", "audio", "source", "track", "body", "table", "td", "th", "tr", "use"]);
const SVG_TAGS = new Set(["image", "feimage", "use"]);
const IN_CSS = /(?:url\(\s*|@import\s+)["']?((?:https?:)?\/\/[^"'()\s;]+)/gi;
const IN_SRCSET = /(?:^|,\s*)((?:https?:)?\/\/\S+)/gi;
const ADDRESSES_MAX = 10_000;

/** Number of distinct addresses by host, highest number first: [[host, count], ...]. */
export function hosts(events) {
  const found = new Set();
  const tags = new Map(); // node id -> tag
  for (const event of events) {
    if (event.type === FULL_SNAPSHOT) nodes(event.data?.node, tags, found);
    if (event.type !== INCREMENTAL || !event.data) continue;
    const { source, adds, attributes, texts } = event.data;
    if (source === MUTATION) {
      for (const add of list(adds)) nodes(add?.node, tags, found);
      for (const change of list(attributes)) attributesOf(tags.get(change?.id) ?? "", change?.attributes, found);
      for (const text of list(texts)) if (tags.get(text?.id) === "#css") css(text.value, found);
    }
    if (source === STYLE_RULE) for (const add of list(adds)) css(add?.rule, found);
    if (source === ADOPTED)
      for (const sheet of list(event.data.styles)) for (const rule of list(sheet?.rules)) css(rule?.rule, found);
  }
  const counts = new Map();
  for (const address of found) {
    const { host } = new URL(address);
    counts.set(host, (counts.get(host) ?? 0) + 1);
  }
  return [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
}

/** Every descendant of this node. Not recursive, because recordings may be nested deeper than the call stack. */
function nodes(root, tags, found) {
  const waiting = [[root, ""]];
  while (waiting.length) {
    const [node, parent] = waiting.pop();
    if (!node || typeof node !== "object") continue;
    const tag = typeof node.tagName === "string" ? node.tagName.toLowerCase() : "";
    if (tag) attributesOf(tag, node.attributes, found);
    if (node.isStyle || parent === "style") css(node.textContent, found);
    tags.set(node.id, tag || (node.isStyle || parent === "style" ? "#css" : ""));
    for (const child of list(node.childNodes)) waiting.push([child, tag]);
  }
}

function attributesOf(tag, given, found) {
  if (!given || typeof given !== "object") return;
  for (const [name, value] of Object.entries(given)) {
    if (name === "style" || name === "_cssText") css(typeof value === "string" ? value : JSON.stringify(value), found);
    else if (LOADING.has(name) && LOADING_TAGS.has(tag)) keep(value, found);
    else if (name === "srcset") for (const [, address] of String(value).matchAll(IN_SRCSET)) keep(address, found);
    else if (name === "href" && (isSheet(tag, given) || SVG_TAGS.has(tag))) keep(value, found);
  }
}

const isSheet = (tag, given) => tag === "link" && !given._cssText && /\bstylesheet\b/i.test(String(given.rel ?? ""));

function css(text, found) {
  if (typeof text === "string") for (const [, address] of text.matchAll(IN_CSS)) keep(address, found);
}

function keep(value, found) {
  if (typeof value !== "string" || !/^\s*(https?:)?\/\//i.test(value) || found.size >= ADDRESSES_MAX) return;
  try {
    found.add(new URL(value.trim(), "https://none.invalid/").href);
  } catch {
    // no address, so nothing would be loaded
  }
}
