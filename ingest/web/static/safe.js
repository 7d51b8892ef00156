// Removes from a recorded page everything that opens a connection on its own when it is drawn.
//
// The content security policy blocks content of other servers, but for some elements (preconnect), and for
// everything that frames load, a browser connects before it checks the policy. Therefore, these are removed.

import { INCREMENTAL, MUTATION, list, nodesOf } from "./rrweb.js";

const DEAD = new Set(["iframe", "frame", "embed", "object", "portal", "fencedframe", "applet"]);
const SOURCES = ["src", "rr_src", "srcdoc", "data", "code", "codebase", "archive"];
const KEPT_LINKS = new Set(["stylesheet", "alternate"]);

/** Removes from rrweb events, in place, everything that would connect. Returns the number of removed attributes. */
export function defuse(events) {
  const tags = new Map(); // node id -> every tag that it has had: ids are the recording's own words
  let count = 0;
  for (const event of events) for (const node of nodesOf(event)) count += node_(node, tags);
  for (const event of events)
    if (event.type === INCREMENTAL && event.data?.source === MUTATION)
      for (const change of list(event.data.attributes))
        if (change?.attributes && typeof change.attributes === "object")
          for (const tag of tags.get(change.id) ?? [""]) count += strip(tag, change.attributes);
  return count;
}

function node_(node, tags) {
  if (typeof node.tagName !== "string") return 0;
  const tag = node.tagName.toLowerCase();
  if (!tags.has(node.id)) tags.set(node.id, new Set());
  tags.get(node.id).add(tag);
  if (!node.attributes || typeof node.attributes !== "object") return 0;
  return strip(tag, node.attributes);
}

function strip(tag, attributes) {
  const before = Object.keys(attributes).length;
  for (const name of Object.keys(attributes)) if (forbidden(tag, name.toLowerCase(), attributes)) delete attributes[name];
  return before - Object.keys(attributes).length;
}

function forbidden(tag, name, attributes) {
  if (DEAD.has(tag) && SOURCES.includes(name)) return true;
  if (["rr_src", "srcdoc", "ping", "http-equiv", "manifest", "action", "formaction"].includes(name)) return true;
  if (tag === "base") return name === "href";
  if (tag === "link" && ["href", "imagesrcset"].includes(name)) {
    const words = String(attributes.rel ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    return !words.length || !words.every((word) => KEPT_LINKS.has(word));
  }
  // A change of `rel` alone may make an existing link connect.
  return tag === "link" && name === "rel" && !attributes.href && !attributes._cssText;
}
