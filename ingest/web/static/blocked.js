// Placeholders of blocked elements: the SDK records the outer size instead of the element and its content.
//
// The player applies this size to the content box, so that borders and padding, such as a frame's default border,
// would be added to it and move everything below. With `border-box`, the placeholder is as large as the element.

import { nodesOf } from "./rrweb.js";

/** Changes rrweb events in place. */
export function sizeBlocked(events) {
  for (const event of events) for (const node of nodesOf(event)) size(node);
}

function size(node) {
  const { attributes } = node;
  if (!attributes || typeof attributes !== "object" || typeof attributes.rr_width !== "string") return;
  const style = typeof attributes.style === "string" ? attributes.style : "";
  attributes.style = `${style}; box-sizing: border-box`;
}
