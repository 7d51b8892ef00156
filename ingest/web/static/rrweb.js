// rrweb events: the values of their fields that the page uses, and a walk over recorded nodes.

export const FULL_SNAPSHOT = 2, INCREMENTAL = 3, MUTATION = 0;

/** The value if it is an array, otherwise an empty one: events are not trusted to have their documented form. */
export const list = (value) => (Array.isArray(value) ? value : []);

/** Every node that a full snapshot contains or a mutation adds, with its descendants. */
export function* nodesOf(event) {
  if (event?.type === FULL_SNAPSHOT) yield* nodesWithin(event.data?.node);
  if (event?.type === INCREMENTAL && event.data?.source === MUTATION)
    for (const add of list(event.data.adds)) yield* nodesWithin(add?.node);
}

/** This node and its descendants. Not recursive, because recordings may be nested deeper than the call stack. */
export function* nodesWithin(root) {
  const waiting = [root];
  while (waiting.length) {
    const node = waiting.pop();
    if (!node || typeof node !== "object") continue;
    yield node;
    for (const child of list(node.childNodes)) waiting.push(child);
  }
}
