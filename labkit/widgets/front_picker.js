// FrontPicker in the browser: an anywidget module, served as it is written here.
// It draws the dots, and tells Python which one was pressed (labkit/widgets/front_picker.py).

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640;
const HEIGHT = 380;
const ROOM = { left: 58, right: 20, top: 14, bottom: 44 };
// JupyterLab looks for its shortcuts before any widget sees a key; see editor.js.
const OWN_KEYS = "data-lm-suppress-shortcuts";

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function scale(values, from, to) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const margin = (most - least || 1) * 0.06;
  const [low, high] = [least - margin, most + margin];
  return { low, high, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

function roundNumbers(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push([at, at.toFixed(digits).replace(/^-(0\.?0*)$/, "$1")]);
  return found;
}

function render({ model, el }) {
  const dots = model.get("dots");
  const curve = model.get("curve");
  const [across, upward] = model.get("axes");
  const x = scale([...dots, ...curve.map(([value]) => ({ x: value }))].map((one) => one.x),
    ROOM.left, WIDTH - ROOM.right);
  const heights = dots.flatMap((dot) => [dot.y, dot.low ?? dot.y, dot.high ?? dot.y]);
  const y = scale([...heights, ...curve.map(([, value]) => value)], HEIGHT - ROOM.bottom, ROOM.top);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "front" });

  for (const [value, text] of roundNumbers(x.low, x.high)) {
    svg.append(
      draw("path", { class: "grid", d: `M${x.at(value)} ${ROOM.top}V${HEIGHT - ROOM.bottom}` }),
      draw("text", { x: x.at(value), y: HEIGHT - ROOM.bottom + 16, "text-anchor": "middle" }, text),
    );
  }
  for (const [value, text] of roundNumbers(y.low, y.high)) {
    svg.append(
      draw("path", { class: "grid", d: `M${ROOM.left} ${y.at(value)}H${WIDTH - ROOM.right}` }),
      draw("text", { x: ROOM.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, text),
    );
  }
  const middle = (HEIGHT - ROOM.bottom + ROOM.top) / 2;
  svg.append(
    draw("path", { class: "curve", d: `M${curve.map(([a, b]) => `${x.at(a)} ${y.at(b)}`).join("L")}` }),
    draw("text", { x: (ROOM.left + WIDTH - ROOM.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, across),
    draw("text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, upward),
  );

  const hint = "A click on a dot, or Enter, loads its gradient.";
  const said = make("div", { class: "said" }, hint);
  const problem = make("div", { class: "problem", role: "alert" });
  const shapes = new Map();
  // Fits are last, so that they lie above the constants, which are never far.
  const layer = (dot) => (dot.low === null ? 0 : 1);
  for (const dot of [...dots].sort((a, b) => layer(a) - layer(b) || a.x - b.x)) {
    const [left, top] = [x.at(dot.x), y.at(dot.y)];
    const inward = left > WIDTH - 100; // a label that would not fit at the right stands at the left
    const name = {
      x: left + (inward ? -10 : 10), y: top + (layer(dot) ? 17 : -8),
      "text-anchor": inward ? "end" : "start",
    };
    const shape = draw("g", {
      class: "dot", role: "button", tabindex: 0, [OWN_KEYS]: "true", "aria-label": dot.said,
    });
    if (dot.low !== null) {
      shape.append(draw("path", { class: "whisker", d: `M${left} ${y.at(dot.low)}V${y.at(dot.high)}` }));
    }
    shape.append(
      draw("circle", { class: "reach", cx: left, cy: top, r: 8 }),
      draw("circle", { class: "ring", cx: left, cy: top, r: 10 }),
      draw("circle", { class: "mark", cx: left, cy: top, r: 6, style: `fill:${dot.color}` }),
      draw("text", name, dot.label),
    );
    const press = () => model.send({ kind: "pick", name: dot.name });
    shape.addEventListener("click", press);
    shape.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      press();
    });
    for (const name of ["pointerenter", "focus"]) {
      shape.addEventListener(name, () => said.replaceChildren(dot.said));
    }
    shapes.set(dot.name, shape);
    svg.append(shape);
  }

  function mark() {
    const chosen = model.get("chosen");
    for (const [name, shape] of shapes) shape.setAttribute("aria-pressed", String(name === chosen));
    const dot = dots.find((one) => one.name === chosen);
    said.replaceChildren(dot ? `Loaded: ${dot.said}` : hint);
  }
  const complain = () => problem.replaceChildren(model.get("problem"));
  model.on("change:chosen", mark);
  model.on("change:problem", complain);
  mark();
  complain();
  el.append(make("div", { class: "labkit-front" }, svg, said, problem));
  return () => {
    model.off("change:chosen", mark);
    model.off("change:problem", complain);
  };
}

export default { render };
