// Drawings of the operator's page: plots of the last hour, the flow, the age of batches. SVG attributes only, no styles.

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element; strings become text. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Draws a line through `values` (null is a gap), on a scale from zero to their maximum. */
export function plot(values, title) {
  const width = 300, height = 60, top = Math.max(...values.map((one) => one ?? 0), 1e-9);
  const x = (at) => (at / Math.max(1, values.length - 1)) * width;
  const y = (value) => height - 1 - (value / top) * (height - 4);
  const runs = [];
  let last = null;
  values.forEach((value, at) => {
    if (value === null) last = null;
    else if (last) last.push([x(at), y(value)]);
    else runs.push((last = [[x(at), y(value)]]));
  });
  const text = (run) => run.map((point) => point.map((one) => one.toFixed(1)).join(",")).join(" L");
  const shapes = runs.flatMap((run) => {
    const ends = run.length === 1 ? [...run, [run[0][0] + 1, run[0][1]]] : run;
    return [
      draw("path", { class: "area", d: `M${ends[0][0].toFixed(1)},${height} L${text(ends)} L${ends.at(-1)[0].toFixed(1)},${height} Z` }),
      draw("path", { class: "line", d: `M${text(ends)}` }),
    ];
  });
  const base = draw("line", { class: "base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 });
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": title }, base, ...shapes);
}

/** The flow. `kafka` and `reader` are lists of lines; `sinks` are {name, lines, off, slow}. `narrow`: top to bottom. */
export function flow({ kafka, reader, sinks, slowReader, narrow }) {
  if (narrow) return column({ kafka, reader, sinks, slowReader });
  const box = { width: 168, height: 58, gap: 12 };
  const height = Math.max(1, sinks.length) * (box.height + box.gap);
  const middle = (height - box.height) / 2;
  const columns = [4, 256, 508];
  const parts = [arrow(columns[0] + box.width, middle + box.height / 2, columns[1], middle + box.height / 2)];
  parts.push(place(columns[0], middle, box, "Kafka", kafka));
  parts.push(place(columns[1], middle, box, "Readers", reader, slowReader ? "slow" : ""));
  sinks.forEach((sink, at) => {
    const top = at * (box.height + box.gap);
    const kind = [sink.slow ? "slow" : "", sink.off ? "off" : ""].join(" ").trim();
    parts.push(arrow(columns[1] + box.width, middle + box.height / 2, columns[2], top + box.height / 2, kind));
    parts.push(place(columns[2], top, { ...box, width: 250 }, sink.name, sink.lines, kind));
  });
  return draw("svg", { viewBox: `0 -4 764 ${height + 4}`, role: "img", "aria-label": "Kafka to readers to sinks" }, ...parts);
}

/** The flow on a phone, with each box below the previous one. */
function column({ kafka, reader, sinks, slowReader }) {
  const box = { width: 300, height: 58, gap: 26 };
  const step = box.height + box.gap;
  const slow = (is) => (is ? "slow" : "");
  const parts = [
    place(24, 2, box, "Kafka", kafka),
    down(174, 2 + box.height, box.gap),
    place(24, 2 + step, box, "Readers", reader, slow(slowReader)),
    down(174, 2 + step + box.height, box.gap),
  ];
  sinks.forEach((sink, at) => {
    const kind = [slow(sink.slow), sink.off ? "off" : ""].join(" ").trim();
    parts.push(place(24, 2 + 2 * step + at * (box.height + 8), box, sink.name, sink.lines, kind));
  });
  const height = 4 + 2 * step + sinks.length * (box.height + 8);
  return draw("svg", { viewBox: `0 0 348 ${height}`, role: "img", "aria-label": "Kafka to readers to sinks" }, ...parts);
}

const down = (x, y, length) => draw("path", { class: "edge", d: `M${x},${y} V${y + length - 2} m-4,-6 l4,6 l4,-6` });

function place(x, y, box, name, lines, kind = "") {
  const slow = kind.includes("slow");
  return draw(
    "g",
    { class: kind },
    draw("rect", { class: "box", x, y, width: box.width, height: box.height, rx: 6 }),
    draw("text", { class: "name", x: x + 10, y: y + 19 }, name),
    ...(slow ? [draw("text", { class: "bad", x: x + box.width - 10, y: y + 19, "text-anchor": "end" }, "bottleneck")] : []),
    ...lines.slice(0, 2).map((line, at) => draw("text", { class: "small", x: x + 10, y: y + 35 + at * 14 }, line)),
  );
}

function arrow(x1, y1, x2, y2, kind = "") {
  const bend = (x2 - x1) / 2;
  return draw("path", { class: `edge ${kind}`, d: `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2 - 2},${y2} m-6,-4 l6,4 l-6,4` });
}

/** A bar for a batch that began `age` seconds ago, on a scale of `longest` seconds that ends now. */
export function bar(age, longest, kind, title) {
  const width = Math.max(1.5, (age / Math.max(longest, 1e-9)) * 200);
  const shape = draw("rect", { class: `bar ${kind}`, x: 200 - width, y: 3, width, height: 10, rx: 2 });
  return draw("svg", { viewBox: "0 0 200 16", preserveAspectRatio: "none", height: 16, role: "img", "aria-label": title }, shape);
}
