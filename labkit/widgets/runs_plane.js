// RunsPlane in the browser: an anywidget module, served behind elements.js and axes.js.
// It draws the points, and tells Python which one was pressed (labkit/widgets/runs_plane.py).

const WIDTH = 440;
const HEIGHT = 290;
const ROOM = { left: 52, right: 12, top: 10, bottom: 38 };
const LONGEST_TRAIL = 12;
const margin = (width) => Math.max(width * 0.1, 0.01);
const HINT = "Lower is better. A click on a point, or Enter, brings its run back. The dashed line is one weight for all layers; whiskers are 95 % intervals of the difference to the base.";

// How much of two boxes (left, top, width, height) covers the other: an area.
function meet(one, other) {
  const [across, down] = [0, 1].map((axis) =>
    Math.min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - Math.max(one[axis], other[axis]));
  return Math.max(across, 0) * Math.max(down, 0);
}

function render({ model, el }) {
  const stage = make("div");
  const said = make("div", { class: "said" });
  const problem = make("div", { class: "problem", role: "alert" });
  el.append(make("div", { class: "labkit-plane", [OWN_KEYS]: "true" }, stage, said, problem));
  let active = ""; // the one point that Tab comes to; arrow keys go to the others
  const clip = `plane-${Math.random().toString(36).slice(2)}`;

  function show() {
    const points = model.get("points");
    const held = stage.contains(document.activeElement);
    if (!points.length) {
      stage.replaceChildren();
      said.replaceChildren();
      return;
    }
    const current = model.get("current");
    if (!points.some((one) => one.key === active)) active = points[points.length - 1].key;
    const line = model.get("line");
    const x = scale([...points.map((one) => one.x), ...line.map((one) => one[0])],
      ROOM.left, WIDTH - ROOM.right, margin);
    const y = scale([...points.map((one) => one.y), ...line.map((one) => one[1])],
      HEIGHT - ROOM.bottom, ROOM.top, margin);
    const [across, upward] = model.get("texts").map((name) => `NLL on ${name}`);
    const svg = draw("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${across}, and ${upward}`,
    });
    const paper = {
      x: ROOM.left, y: ROOM.top,
      width: WIDTH - ROOM.left - ROOM.right, height: HEIGHT - ROOM.top - ROOM.bottom,
    };
    svg.append(
      draw("clipPath", { id: clip }, draw("rect", paper)),
      draw("rect", { class: "paper", ...paper }),
    );
    const sides = { ...ROOM, right: WIDTH - ROOM.right, bottom: HEIGHT - ROOM.bottom };
    svg.append(...drawGrid(x, y, sides, { below: 14, beside: 5 }));
    const way = points.filter((one) => one.kind === "run").slice(-LONGEST_TRAIL);
    const path = (pairs) => pairs.map(([a, b]) => `${x.at(a)},${y.at(b)}`).join(" ");
    svg.append(
      draw("polyline", { class: "trail", points: path(way.map((one) => [one.x, one.y])) }),
      draw("polyline", { class: "constants", points: path(line) }),
      ...line.slice(1, -1).map(([a, b]) => draw("circle", { class: "step", cx: x.at(a), cy: y.at(b), r: 2.5 })),
      draw("text", { x: (ROOM.left + WIDTH - ROOM.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        `${across} (nats per token)`),
      draw("text", {
        transform: `translate(12 ${(HEIGHT - ROOM.bottom + ROOM.top) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      }, upward),
    );

    // The run on the screen lies above the others.
    const last = (one) => (one.key === current ? 2 : one.kind === "run" ? 0 : 1);
    const shapes = new Map();
    for (const point of [...points].sort((a, b) => last(a) - last(b))) {
      const [left, top] = [x.at(point.x), y.at(point.y)];
      const now = point.key === current;
      const whiskers = draw("g", { "clip-path": `url(#${clip})` });
      if (point.across) {
        whiskers.append(draw("path", { class: "whisker", d: `M${x.at(point.across[0])} ${top}H${x.at(point.across[1])}` }));
      }
      if (point.up) {
        whiskers.append(draw("path", { class: "whisker", d: `M${left} ${y.at(point.up[0])}V${y.at(point.up[1])}` }));
      }
      const radius = now ? 6 : point.kind === "run" ? 3.5 : 5;
      const shape = draw("g", {
        class: `point ${point.kind}${now ? " now" : ""}`, role: "button", "aria-label": point.said,
        tabindex: point.key === active ? 0 : -1, "data-key": point.key,
      }, whiskers,
      draw("circle", { class: "reach", cx: left, cy: top, r: 9 }),
      draw("circle", { class: "ring", cx: left, cy: top, r: radius + 3 }),
      draw("circle", { class: "dot", cx: left, cy: top, r: radius }));
      if (now) shape.setAttribute("aria-current", "true");
      const press = () => model.send({ kind: "recall", key: point.key });
      shape.addEventListener("click", press);
      shape.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key !== "Enter" && event.key !== " " && !step) return;
        event.preventDefault();
        event.stopPropagation();
        if (!step) press();
        else move(point.key, step);
      });
      shape.addEventListener("pointerenter", () => tell(point));
      shape.addEventListener("focus", () => tell(point));
      for (const name of ["pointerleave", "blur"]) shape.addEventListener(name, () => tell(null));
      shapes.set(point.key, shape);
      svg.append(shape);
    }
    svg.append(...labels(points, x, y));
    stage.replaceChildren(svg);
    if (held && shapes.has(active)) shapes.get(active).focus();
    else tell(null);

    function move(from, step) {
      const order = [...points].sort((a, b) => a.x - b.x).map((one) => one.key);
      active = order[(order.indexOf(from) + step + order.length) % order.length];
      for (const [key, shape] of shapes) shape.setAttribute("tabindex", key === active ? 0 : -1);
      shapes.get(active).focus();
    }
  }

  // A label stands where it covers no dot and no other label, if there is such a place.
  function labels(points, x, y) {
    const covered = points.map((one) => [x.at(one.x) - 5, y.at(one.y) - 5, 10, 10]);
    return points.filter((one) => one.label).map((one) => {
      const long = 6.2 * one.label.length;
      const [left, top] = [x.at(one.x), y.at(one.y)];
      const places = [[9, 4], [-12 - long, 4], [-long / 2, -10], [-long / 2, 18], [9, 16]]
        .map(([a, b]) => [left + a, top + b])
        .filter(([a, b]) => a >= ROOM.left && a <= WIDTH - ROOM.right - long
          && b >= ROOM.top + 9 && b <= HEIGHT - ROOM.bottom);
      const boxes = (places.length ? places : [[ROOM.left + 2, top]])
        .map((at) => [at, [at[0], at[1] - 10, long, 12]]);
      const covers = ([, box]) => covered.reduce((sum, other) => sum + meet(box, other), 0);
      const [at, box] = boxes.reduce((best, next) => (covers(next) < covers(best) ? next : best));
      covered.push(box);
      return draw("text", { class: "label", x: at[0], y: at[1] }, one.label);
    });
  }

  function tell(point) {
    const now = model.get("points").find((one) => one.key === model.get("current"));
    if (point) said.replaceChildren(point.said);
    else said.replaceChildren(now ? `Now: ${now.said}` : HINT);
    said.title = HINT;
  }

  const complain = () => problem.replaceChildren(model.get("problem"));
  const watched = ["points", "line", "texts", "current"];
  for (const name of watched) model.on(`change:${name}`, show);
  model.on("change:problem", complain);
  show();
  complain();
  return () => {
    for (const name of watched) model.off(`change:${name}`, show);
    model.off("change:problem", complain);
  };
}

export default { render };
