// Placeholders of blocked elements: the SDK records their outer size, in place of the element and its content.
//
// The player applies that size as the content's, so that borders and paddings, such as a frame's default border, would
// be added to it and move everything below. With `border-box` the placeholder is as large as the element was.

const FULL_SNAPSHOT = 2, INCREMENTAL = 3, MUTATION = 0;

/** Changes rrweb events in place. */
export function sizeBlocked(events) {
  for (const event of events) for (const root of roots(event)) for (const node of within(root)) size(node);
}

function size(node) {
  const { attributes } = node;
  if (!attributes || typeof attributes !== "object" || typeof attributes.rr_width !== "string") return;
  const style = typeof attributes.style === "string" ? attributes.style : "";
  attributes.style = `${style}; box-sizing: border-box`;
}

function roots(event) {
  if (event?.type === FULL_SNAPSHOT) return [event.data?.node];
  if (event?.type === INCREMENTAL && event.data?.source === MUTATION)
    return list(event.data.adds).map((add) => add?.node);
  return [];
}

/** Every node below this one: with a list of its own, since recordings may be nested deeper than calls. */
function* within(root) {
  const waiting = [root];
  while (waiting.length) {
    const node = waiting.pop();
    if (!node || typeof node !== "object") continue;
    yield node;
    for (const child of list(node.childNodes)) waiting.push(child);
  }
}

const list = (value) => (Array.isArray(value) ? value : []);
