// FrontPicker in the browser: an anywidget module, served behind elements.js and axes.js.
// It draws the dots, and tells Python which one was pressed (labkit/widgets/front_picker.py).

const WIDTH = 640;
const HEIGHT = 380;
const ROOM = { left: 58, right: 20, top: 14, bottom: 44 };

const margin = (width) => (width || 1) * 0.06;

function render({ model, el }) {
  const dots = model.get("dots");
  const curve = model.get("curve");
  const [across, upward] = model.get("axes");
  const x = scale([...dots, ...curve.map(([value]) => ({ x: value }))].map((one) => one.x),
    ROOM.left, WIDTH - ROOM.right, margin);
  const heights = dots.flatMap((dot) => [dot.y, dot.low ?? dot.y, dot.high ?? dot.y]);
  const y = scale([...heights, ...curve.map(([, value]) => value)], HEIGHT - ROOM.bottom, ROOM.top, margin);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "front" });

  const sides = { ...ROOM, right: WIDTH - ROOM.right, bottom: HEIGHT - ROOM.bottom };
  svg.append(...drawGrid(x, y, sides, { below: 16, beside: 6 }));
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
