// The page "Try it here": the editor, the plane of what was measured, and what was measured nearest
// to what is drawn. Nothing here is calculated of a model: every number was measured beforehand.

addEventListener("DOMContentLoaded", async () => {
  const place = document.getElementById("try-it");
  if (!place) return;
  const data = JSON.parse(document.getElementById("try-it-data").textContent);
  const { show, model, editor, parse, shapes } = globalThis.labkitPage;
  const points = data.points.map((point) => ({ ...point, weights: parse(point.weights) }));
  const named = (name) => points.find((point) => point.name === name);
  const best = named(data.best_constant);
  const part = (name) => place.querySelector(`.${name}`);

  const drawn = editor(data.editor, shapes);
  const plane = model(data.plane);
  await show("editor", drawn, part("drawing"));
  await show("front_picker", plane, part("plane"));

  // How far two gradients are apart: the mean, over the layers, of the weights' difference.
  const distance = (a, b) => a.reduce((sum, weight, i) => sum + Math.abs(weight - b[i]), 0) / a.length;

  function nearest(weights) {
    const far = points.map((point) => distance(weights, point.weights));
    const least = Math.min(...far);
    return [points[far.indexOf(least)], least];
  }

  const number = (value) => value.toFixed(2).replace("-", "\u2212").replace(/^\u2212(0\.00)$/, "$1");
  const signed = (value) => (value >= 0.005 ? "+" : "") + number(value);
  const interval = ([, low, high], write) => `[${write(low)}, ${write(high)}]`;
  const mean = (weights) => weights.reduce((sum, weight) => sum + weight, 0) / weights.length;

  function element(tag, content, attributes = {}) {
    const made = document.createElement(tag);
    made.append(...[content].flat());
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function row(point, title, kind) {
    const { name, weights, nll, from_base: change, kl } = point;
    const change_said = name === "base" ? "" : `${signed(change[0])} ${interval(change, signed)}`;
    const kl_said = name === "base" ? "0" : `${number(kl[0])} ${interval(kl, number)}`;
    const cells = [number(mean(weights)), number(nll[0]), change_said, kl_said];
    const head = element("th", title, { scope: "row" });
    return element("tr", [head, ...cells.map((cell) => element("td", cell))], { class: kind });
  }

  function table(near, exact) {
    const rows = [
      row(named("base"), "base", "base"),
      row(best, `best constant, ${best.name}`, "constant"),
      row(named("full LoRA"), "full LoRA", "full"),
      row(near, exact ? `yours: ${near.name}` : `nearest: ${near.name}`, "near"),
    ];
    part("numbers").replaceChildren(...rows);
  }

  function answers(near, exact) {
    const said = [
      ["base", named("base")],
      [exact ? `yours: ${near.name}` : `measured nearest: ${near.name}`, near],
      ["full LoRA", named("full LoRA")],
    ];
    part("answers").replaceChildren(
      ...said.map(([title, point]) =>
        element("div", [element("h4", title), element("blockquote", element("p", `${point.answer} …`))]),
      ),
    );
  }

  let last = "";
  function follow() {
    const weights = drawn.get("weights");
    const [near, far] = nearest(weights);
    const exact = far < 0.0005;
    const state = `${near.name} ${exact ? "" : far.toFixed(3)}`;
    if (state === last) return;
    last = state;
    const away = far < 0.01 ? "less than 0.01" : number(far);
    part("verdict").replaceChildren(
      ...(exact
        ? [element("strong", "Measured"), `: this gradient itself, \u201c${near.name}\u201d.`]
        : [
            element("strong", "Not measured"),
            ": what you drew. The nearest gradient that was measured is ",
            element("strong", `\u201c${near.name}\u201d`),
            `, the dashed outline: its weights are ${away} away, in the mean over the layers. `,
            "What follows was measured of it, not of yours.",
          ]),
    );
    place.classList.toggle("exact", exact);
    if (plane.get("chosen") !== near.name) plane.set("chosen", near.name);
    part("plane").querySelector(".said").replaceChildren(
      `${exact ? "Yours" : "Measured nearest"}: ${said(near.name)}`,
    );
    const others = exact ? {} : { [near.name]: near.weights };
    if (Object.keys(drawn.get("others"))[0] !== Object.keys(others)[0]) drawn.set("others", others);
    table(near, exact);
    answers(near, exact);
  }
  const said = (name) => plane.get("dots").find((dot) => dot.name === name).said;

  drawn.on("change:weights", follow);
  const load = (name) => drawn.set("weights", [...named(name).weights]);
  plane.on("sent", ({ name }) => load(name));
  for (const button of document.querySelectorAll("button[data-load]")) {
    button.addEventListener("click", () => {
      load(button.dataset.load);
      place.scrollIntoView({ block: "start" });
    });
  }

  // One stop of the Tab key for all dots, as the editor has one for all layers; arrows go on.
  const order = [...part("plane").querySelectorAll(".dot")];
  const stop = (dot) => order.forEach((one) => one.setAttribute("tabindex", one === dot ? 0 : -1));
  const pressed = () => order.find((dot) => dot.getAttribute("aria-pressed") === "true");
  plane.on("change:chosen", () => stop(pressed() ?? order[0]));
  part("plane").addEventListener("keydown", (event) => {
    const here = order.indexOf(event.target);
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const next = event.key === "Home" ? 0 : event.key === "End" ? order.length - 1 : here + by;
    if (here < 0 || !(next in order)) return;
    event.preventDefault();
    stop(order[next]);
    order[next].focus();
  });
  follow();
});
