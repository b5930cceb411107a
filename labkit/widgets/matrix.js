// Matrix in the browser: an anywidget module, served behind elements.js and painting.js.
//
//   createStore     the cells, undo and redo, and how they reach Python
//   createGrid      the table: heads, cells, and which of them has the focus
//   attachPointer   mouse, pen and touch
//   attachKeyboard  arrows and shortcuts, one tab stop for the whole table
//   createBar       the brush and the buttons
//   render          puts them together, and returns the function that takes them apart

const HEAD = -1; // the number of the row of heads, and of the column of heads

const sameCells = (a, b) =>
  a.length === b.length &&
  a.every((row, i) => row.length === b[i].length && row.every((weight, j) => weight === b[i][j]));

// The colour of a weight: a share of the LoRA's colour, or the mark of a weight beyond 0 and 1.
function paintNode(node, weight) {
  node.style.setProperty("--weight", clamp(weight, 0, 1));
  node.classList.toggle("above", weight > 1);
  node.classList.toggle("below", weight < 0);
}

// --- the cells ------------------------------------------------------------------------------

function createStore(model) {
  const copied = () => model.get("cells").map((row) => [...row]);
  let cells = copied();
  let history = createHistory();
  let held = false; // a pointer is down: what Python says meanwhile waits
  const listeners = new Set();
  const tell = () => listeners.forEach((listener) => listener());

  const sender = createSender(() => {
    model.set("cells", cells);
    model.save_changes();
  });

  function replace(next) {
    if (sameCells(next, cells)) return;
    cells = next;
    sender.queue();
    tell();
  }

  function travel(found) {
    if (!found) return;
    replace(found);
    sender.flush();
    tell();
  }

  function receive() {
    const next = copied();
    if (held || sender.waiting || sameCells(next, cells)) return;
    if (next.length === cells.length) history.add(cells);
    cells = next;
    tell();
  }
  model.on("change:cells", receive);

  return {
    get cells() {
      return cells;
    },
    get canUndo() {
      return history.canUndo;
    },
    get canRedo() {
      return history.canRedo;
    },
    listen: (listener) => listeners.add(listener),
    // What is painted from here on is one step of history.
    hold() {
      held = true;
      history.add(cells);
    },
    release() {
      held = false;
      history.forgetLast((before) => sameCells(before, cells));
      if (sender.waiting) sender.flush();
      else receive();
      tell();
    },
    paint(places, weight) {
      const next = cells.map((row) => [...row]);
      for (const [row, layer] of places) next[row][layer] = weight;
      replace(next);
    },
    undo: () => travel(history.undo(cells)),
    redo: () => travel(history.redo(cells)),
    startAgain() {
      cells = copied();
      history = createHistory();
      sender.forget();
      tell();
    },
    stop() {
      sender.flush();
      model.off("change:cells", receive);
    },
  };
}

// --- the table ------------------------------------------------------------------------------

function createGrid(model, store) {
  const root = make("div", {
    class: "grid", role: "grid", "aria-label": "layer weights, modules × layers",
  });
  let nodes = []; // nodes[row + 1][layer + 1], heads included
  let means = [];
  let drawn = [];
  let focused = [0, 0];
  let pointed = null;
  const said = make("output", { class: "said" });
  const size = () => [store.cells.length, store.cells[0]?.length ?? 0];
  const isAbsent = (row, layer) => (model.get("absent")[row] ?? []).includes(layer);
  const node = (row, layer) => nodes[row + 1]?.[layer + 1];

  function build() {
    const [rows, layers] = size();
    const head = (kind, role, label, ...content) =>
      make("div", { class: `head ${kind}`, role, "aria-label": label, tabindex: -1, [OWN_KEYS]: "true" }, ...content);
    root.style.gridTemplateColumns = `max-content repeat(${layers}, minmax(0, 1fr)) max-content`;
    nodes = [[
      head("corner", "columnheader", "all modules and layers", ""),
      ...store.cells[0].map((_, layer) =>
        head("layer-head", "columnheader", `layer ${layer}`, make("span", { "data-text": layer })),
      ),
    ]];
    means = [];
    const lines = [make("div", { class: "row", role: "row" }, ...nodes[0], make("div", { role: "columnheader", "aria-label": "mean weight" }))];
    model.get("rows").forEach((name, row) => {
      const line = [head("row-head", "rowheader", name, name)];
      for (let layer = 0; layer < layers; layer++) {
        const cell = make("div", { class: "cell", role: "gridcell", tabindex: -1, [OWN_KEYS]: "true" });
        if (isAbsent(row, layer)) {
          cell.classList.add("absent");
          cell.setAttribute("aria-disabled", "true");
        }
        line.push(cell);
      }
      nodes.push(line);
      means.push(make("div", { class: "row-mean", role: "gridcell" }));
      lines.push(make("div", { class: "row", role: "row" }, ...line, means[row]));
    });
    root.replaceChildren(...lines);
    drawn = [];
    focused = [clamp(focused[0], HEAD, rows - 1), clamp(focused[1], HEAD, layers - 1)];
    node(...focused).tabIndex = 0;
    pointed = null;
    draw();
    drawNorms();
    label();
  }

  function drawNorms() {
    const norms = model.get("norms");
    const most = Math.max(0, ...norms.flat());
    store.cells.forEach((weights, row) =>
      weights.forEach((_, layer) =>
        node(row, layer).style.setProperty("--norm", most ? norms[row][layer] / most : 0),
      ),
    );
    say();
  }

  function draw() {
    const names = model.get("rows");
    store.cells.forEach((row, i) => {
      drawn[i] ??= [];
      row.forEach((weight, layer) => {
        if (drawn[i][layer] === weight) return;
        drawn[i][layer] = weight;
        const cell = node(i, layer);
        if (isAbsent(i, layer)) {
          cell.setAttribute("aria-label", `${names[i]}, layer ${layer}: no such module`);
          return;
        }
        paintNode(cell, weight);
        cell.setAttribute("aria-label", `${names[i]}, layer ${layer}: ${plain(weight)}`);
      });
      const present = row.filter((_, layer) => !isAbsent(i, layer));
      means[i].textContent = present.length ? meanOf(present).toFixed(2) : "";
      means[i].setAttribute("aria-label", `mean weight of ${names[i]}: ${means[i].textContent}`);
    });
    say();
  }

  // Numbers of layers stand where there is room for them.
  function label() {
    const [, layers] = size();
    const wide = node(0, 0).getBoundingClientRect().width || 20;
    const every = [1, 2, 5, 10, 20, 50, 100].find((step) => step * wide >= 20) ?? 100;
    for (let layer = 0; layer < layers; layer++) {
      node(HEAD, layer).firstChild.style.visibility = layer % every ? "hidden" : "";
    }
  }

  function say() {
    const at = pointed ?? (root.contains(document.activeElement) ? focused : null);
    const cell = at && node(...at);
    if (!cell) said.textContent = "";
    else if (at[0] === HEAD && at[1] === HEAD) said.textContent = "all modules and layers";
    else if (at[0] === HEAD) said.textContent = `layer ${at[1]}, all modules`;
    else if (at[1] === HEAD) said.textContent = `${model.get("rows")[at[0]]}, all layers`;
    else {
      const norm = model.get("norms")[at[0]]?.[at[1]];
      const more = norm === undefined ? "" : ` · ‖ΔW‖/‖W‖ ${percent(norm)}`;
      said.textContent = cell.getAttribute("aria-label") + more;
    }
  }

  return {
    root,
    said,
    build,
    draw,
    drawNorms,
    label,
    say,
    size,
    fits: () => nodes.length === size()[0] + 1 && nodes[0].length === size()[1] + 1,
    get focused() {
      return focused;
    },
    // The cells that a place stands for: a head for its row or column, the corner for all.
    placesOf(row, layer) {
      const [rows, layers] = size();
      const all = (count) => Array.from({ length: count }, (_, i) => i);
      return (row === HEAD ? all(rows) : [row]).flatMap((i) =>
        (layer === HEAD ? all(layers) : [layer]).filter((j) => !isAbsent(i, j)).map((j) => [i, j]),
      );
    },
    at(event) {
      const [rows, layers] = size();
      const first = node(0, 0).getBoundingClientRect();
      const last = node(rows - 1, layers - 1).getBoundingClientRect();
      const part = (place, from, to, count) =>
        place < from ? HEAD : clamp(Math.floor(((place - from) / (to - from)) * count), 0, count - 1);
      return [
        part(event.clientY, first.top, last.bottom, rows),
        part(event.clientX, first.left, last.right, layers),
      ];
    },
    point(place) {
      if (pointed) node(...pointed)?.classList.remove("pointed");
      pointed = place;
      if (pointed) node(...pointed)?.classList.add("pointed");
      say();
    },
    // The ring around a cell is for those who go by keys; under a hand it would be in the way.
    focus(row, layer, byHand = false) {
      root.classList.toggle("by-hand", byHand);
      node(...focused).tabIndex = -1;
      focused = [row, layer];
      node(row, layer).tabIndex = 0;
      node(row, layer).focus({ preventScroll: true });
      say();
    },
    weightAt: (row, layer) => (row === HEAD || layer === HEAD ? null : store.cells[row][layer]),
  };
}

// --- mouse, pen and touch -------------------------------------------------------------------

function attachPointer(grid, store, brush) {
  let gesture = null; // where it began, and where it was last

  // Every cell between two points of the hand's way; along heads, every row or column.
  function between([fromRow, fromLayer], [toRow, toLayer]) {
    const steps = Math.max(Math.abs(toRow - fromRow), Math.abs(toLayer - fromLayer), 1);
    return Array.from({ length: steps + 1 }, (_, i) => [
      Math.round(fromRow + ((toRow - fromRow) * i) / steps),
      Math.round(fromLayer + ((toLayer - fromLayer) * i) / steps),
    ]);
  }

  // A hand that began on a head stays among heads, and one that began on a cell among cells.
  function stay([row, layer]) {
    const [firstRow, firstLayer] = gesture.first;
    return [
      firstRow === HEAD ? HEAD : Math.max(row, 0),
      firstLayer === HEAD ? HEAD : Math.max(layer, 0),
    ];
  }

  function follow(event) {
    const here = stay(grid.at(event));
    const places = between(gesture.last, here).flatMap((place) => grid.placesOf(...place));
    store.paint(places, brush.value);
    gesture.last = here;
    grid.point(here);
  }

  function down(event) {
    if (event.button !== 0 || gesture) return;
    event.preventDefault();
    const here = grid.at(event);
    grid.focus(...here, true);
    if (event.altKey) return brush.pick(grid.weightAt(...here));
    grid.root.setPointerCapture(event.pointerId);
    gesture = { first: here, last: here };
    store.hold();
    follow(event);
  }

  function up() {
    if (!gesture) return;
    grid.focus(...gesture.last, true); // keys go on where the hand stopped
    gesture = null;
    store.release();
  }

  grid.root.addEventListener("pointerdown", down);
  grid.root.addEventListener("pointermove", (event) => {
    if (gesture) follow(event);
    else grid.point(grid.at(event));
  });
  grid.root.addEventListener("pointerup", up);
  grid.root.addEventListener("pointercancel", up);
  grid.root.addEventListener("lostpointercapture", up);
  grid.root.addEventListener("pointerleave", () => {
    if (!gesture) grid.point(null);
  });
}

// --- keyboard -------------------------------------------------------------------------------

function attachKeyboard(grid, store, brush) {
  function paint(row, layer) {
    store.hold();
    store.paint(grid.placesOf(row, layer), brush.value);
    store.release();
  }

  function go(row, layer, painting) {
    const [rows, layers] = grid.size();
    grid.focus(clamp(row, HEAD, rows - 1), clamp(layer, HEAD, layers - 1));
    if (painting) paint(...grid.focused);
  }

  // What a key does; false for a key that means nothing here.
  function act(event) {
    const { key, shiftKey } = event;
    const [row, layer] = grid.focused;
    const [rows, layers] = grid.size();
    const command = event.ctrlKey || event.metaKey;
    const letter = key.toLowerCase();
    if (command && letter === "z") shiftKey ? store.redo() : store.undo();
    else if (command && letter === "y") store.redo();
    else if (command && key === "Home") go(0, 0);
    else if (command && key === "End") go(rows - 1, layers - 1);
    else if (command || event.altKey) return false;
    else if (key === "ArrowLeft") go(row, layer - 1, shiftKey);
    else if (key === "ArrowRight") go(row, layer + 1, shiftKey);
    else if (key === "ArrowUp") go(row - 1, layer, shiftKey);
    else if (key === "ArrowDown") go(row + 1, layer, shiftKey);
    else if (key === "Home") go(row, HEAD);
    else if (key === "End") go(row, layers - 1);
    else if (key === "PageUp") brush.add(1);
    else if (key === "PageDown") brush.add(-1);
    else if (key === "Enter" || key === " ") paint(row, layer);
    else if (letter === "p") brush.pick(grid.weightAt(row, layer));
    else if (/^[-.\d]$/.test(key)) brush.type(key);
    else return false;
    return true;
  }

  grid.root.addEventListener("keydown", (event) => {
    if (!act(event)) return;
    grid.root.classList.remove("by-hand");
    event.preventDefault();
    event.stopPropagation();
  });
  grid.root.addEventListener("focusin", grid.say);
  grid.root.addEventListener("focusout", () => setTimeout(grid.say));
}

// --- the brush and the buttons --------------------------------------------------------------

function createBrush(model) {
  const slider = make("input", { type: "range", "aria-label": "brush" });
  const field = make("input", {
    type: "number", step: "any", "aria-label": "weight of the brush",
  });
  const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
  const root = make("label", { class: "brush" }, "brush", slider, field, swatch);
  let back = () => {};

  function set(value) {
    if (!Number.isFinite(value)) return;
    model.set("brush", value);
    model.save_changes();
  }

  function draw() {
    const [low, high] = model.get("bounds");
    const value = model.get("brush");
    Object.assign(slider, { min: low, max: high, step: model.get("step") });
    slider.value = value;
    if (Number(field.value) !== value || field.value === "") field.value = plain(value);
    paintNode(swatch, value);
  }

  slider.addEventListener("input", () => set(Number(slider.value)));
  field.addEventListener("input", () => {
    if (field.value !== "") set(Number(field.value));
  });
  field.addEventListener("blur", () => {
    field.value = plain(model.get("brush"));
  });
  for (const one of [slider, field]) {
    one.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") back();
    });
  }

  return {
    root,
    draw,
    get value() {
      return model.get("brush");
    },
    add(steps) {
      const [low, high] = model.get("bounds");
      const step = model.get("step");
      const next = Number((model.get("brush") + steps * step).toFixed(6));
      set(clamp(next, Math.min(low, model.get("brush")), Math.max(high, model.get("brush"))));
    },
    pick(weight) {
      if (weight !== null) set(weight);
    },
    // A digit that is typed over the table begins a weight; Enter goes back to the table.
    type(key) {
      field.focus();
      field.value = key === "-" || key === "." ? "" : key;
      if (field.value) set(Number(field.value));
    },
    onLeave(action) {
      back = action;
    },
  };
}

function createBar(store, grid, brush) {
  const undo = createButton("↶", "undo", () => store.undo());
  const redo = createButton("↷", "redo", () => store.redo());
  return {
    root: make(
      "div", { class: "bar", role: "toolbar", "aria-label": "painting tools" },
      brush.root, undo, redo, grid.said,
    ),
    draw() {
      undo.disabled = !store.canUndo;
      redo.disabled = !store.canRedo;
    },
  };
}

const help = () => createHelp(
  "How to paint",
  ["drag", "paint the cells you pass over with the brush's weight"],
  ["press on a module's name", "paint its row; drag along the names for more rows"],
  ["press on a layer's number", "paint its column; drag along the numbers for more columns"],
  ["press in the corner", "paint everything"],
  ["Alt + click, P", "take the cell's weight as the brush"],
  ["← → ↑ ↓", "another cell, and the heads (Shift: paint it, too)"],
  ["Enter, space", "paint the cell; on a head its row or column"],
  ["Page up, Page down", "a heavier or a lighter brush"],
  ["a digit", "type the brush's weight; Enter goes back"],
  ["Ctrl + Z, Ctrl + Shift + Z", "undo and redo"],
);

// --- all together ---------------------------------------------------------------------------

function render({ model, el }) {
  const store = createStore(model);
  const grid = createGrid(model, store);
  const brush = createBrush(model);
  const bar = createBar(store, grid, brush);
  attachPointer(grid, store, brush);
  attachKeyboard(grid, store, brush);
  brush.onLeave(() => grid.focus(...grid.focused));

  const legend = make("div", { class: "legend" });
  const lost = make("div", { class: "lost", role: "alert" });
  const stage = make("div", { class: "table" }, grid.root);
  const root = make(
    "div", { class: "labkit-editor labkit-matrix" }, lost, bar.root, stage, legend, help(),
  );
  handKeysToCell(root);
  const stopWatching = watchKernel(model, root, lost, "paint");

  function drawLegend() {
    const [base, adapter] = model.get("names");
    const key = (kind, text) =>
      make("span", {}, make("i", { class: `key ${kind}`, "aria-hidden": "true" }), text);
    const most = Math.max(0, ...model.get("norms").flat());
    const all = store.cells.flat();
    legend.replaceChildren(
      key("from-to-key", `0: ${base} … 1: ${adapter}`),
      ...(all.some((weight) => weight > 1) ? [key("above-key", "+ above 1")] : []),
      ...(all.some((weight) => weight < 0) ? [key("below-key", "\u2212 below 0")] : []),
      ...(most ? [key("bar-key", `‖ΔW‖/‖W‖, highest ${percent(most)}`)] : []),
    );
  }

  let shownNumber = model.get("shown_number");
  function drawAnew() {
    shownNumber = model.get("shown_number");
    store.startAgain();
    grid.build();
    bar.draw();
    drawLegend();
  }

  store.listen(() => {
    if (!grid.fits()) return; // another matrix, which is drawn anew in a moment
    grid.draw();
    bar.draw();
    drawLegend();
  });
  function drawNorms() {
    if (shownNumber !== model.get("shown_number")) return; // of another matrix, drawn in a moment
    grid.drawNorms();
    drawLegend();
  }
  const watched = {
    shown_number: drawAnew, norms: drawNorms, brush: brush.draw, bounds: brush.draw, step: brush.draw, names: drawLegend,
  };
  for (const [name, act] of Object.entries(watched)) model.on(`change:${name}`, act);
  const observer = new ResizeObserver(() => grid.label());
  observer.observe(stage);
  el.append(root);
  grid.build();
  brush.draw();
  bar.draw();
  drawLegend();

  return () => {
    observer.disconnect();
    store.stop();
    stopWatching();
    for (const [name, act] of Object.entries(watched)) model.off(`change:${name}`, act);
  };
}

export default { render };
