// GradientEditor in the browser: an anywidget module, served behind elements.js and painting.js.
//
//   createStore     the weights, undo and redo, and how they reach Python
//   createPlot      the SVG picture: bars, norms or evidence, axes, and a slider for each layer
//   createEntry     the small field that opens on a double click or a digit
//   attachPointer   mouse, pen and touch
//   attachKeyboard  arrows and shortcuts, one tab stop for all layers
//   createPanel     presets, buttons, the list as text
//   render          puts them together, and returns the function that takes them apart
//
// Python decides what a list or a preset means (labkit/widgets/editor.py); this file draws and paints.

const SAVED_KEY = "labkit.saved-gradients";
const MOST_SAVED = 5;

const sameList = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

// --- the weights ----------------------------------------------------------------------------

function createStore(model) {
  let weights = [...model.get("weights")];
  let subject = model.get("subject");
  let history = createHistory();
  const histories = new Map(); // of the other gradients that were drawn here
  let held = null; // a pointer is down: what Python says meanwhile waits, and the axis stays
  // Key presses on one layer in quick succession are one step of history, and so are weights from
  // Python of one origin: a slider's.
  let lastKey = null;
  let lastKeyTime = 0;
  const listeners = new Set();
  const tell = () => listeners.forEach((listener) => listener());

  const sender = createSender(() => {
    model.set("weights", [...weights]);
    model.save_changes();
  });

  function remember(key = null, within = 800) {
    const now = performance.now();
    const continued = key !== null && key === lastKey && now - lastKeyTime < within;
    lastKey = key;
    lastKeyTime = now;
    if (!continued) history.add([...weights]);
  }

  function replace(next) {
    if (sameList(next, weights)) return;
    weights = next;
    sender.queue();
    tell();
  }

  function travel(found) {
    if (!found) return;
    lastKey = null;
    replace(found);
    sender.flush();
    tell();
  }

  // Another gradient is drawn from now on: its own history, and no step of it.
  function follow() {
    const next = model.get("subject");
    if (held || next === subject) return;
    histories.set(subject, history);
    history = histories.get(next) ?? createHistory();
    subject = next;
    lastKey = null;
    sender.forget(); // what was not sent yet was drawn for the other
    weights = [...model.get("weights")];
    tell();
  }

  function receive() {
    follow();
    const next = model.get("weights");
    if (held || sender.waiting || sameList(next, weights)) return;
    remember(model.get("origin") || null, Infinity);
    weights = [...next];
    tell();
  }
  model.on("change:weights", receive);
  model.on("change:subject", follow);

  return {
    get weights() {
      return weights;
    },
    get bounds() {
      return held ?? model.get("bounds");
    },
    get canUndo() {
      return history.canUndo;
    },
    get canRedo() {
      return history.canRedo;
    },
    listen: (listener) => listeners.add(listener),
    remember,
    replace,
    flush: sender.flush,
    hold() {
      held = [...model.get("bounds")];
      remember();
    },
    release() {
      held = null;
      // A click that changed nothing is no step of history.
      history.forgetLast((before) => sameList(before, weights));
      if (sender.waiting) sender.flush();
      else receive();
      tell();
    },
    // Back to before a click that turned out to be the first half of a double click.
    rewind(snapshot, depth) {
      replace([...snapshot]);
      history.cut(depth);
      sender.flush();
      tell();
    },
    get depth() {
      return history.depth;
    },
    undo: () => travel(history.undo(weights)),
    redo: () => travel(history.redo(weights)),
    snap(value) {
      const step = model.get("step");
      const [low, high] = held ?? model.get("bounds");
      const digits = clamp(Math.ceil(-Math.log10(step)) + 1, 0, 8);
      return clamp(Number((Math.round(value / step) * step).toFixed(digits)), low, high);
    },
    stop() {
      sender.flush();
      model.off("change:weights", receive);
      model.off("change:subject", follow);
    },
  };
}

// --- the picture ----------------------------------------------------------------------------

function createPlot(model, store) {
  const layers = store.weights.length;
  const evidence = () => Object.entries(model.get("evidence"));
  const norms = () => (evidence().length ? [] : model.get("norms")); // evidence takes their place
  const shape = { width: 0, height: 0, left: 40, top: 10, bottom: 44 };
  Object.defineProperty(shape, "right", { get: () => (evidence().length ? 52 : 12) });
  const selection = { first: -1, last: -1 };
  let pointed = -1; // the layer under the pointer, or the one that has the focus

  const paper = draw("rect", { class: "base" });
  const bars = draw("path", { class: "bars" });
  const outline = draw("path", { class: "outline" });
  const normLine = draw("path", { class: "norm" });
  const survives = draw("path", { class: "survives" });
  const effects = draw("g", { class: "effects", "aria-hidden": "true" });
  const others = draw("g", { class: "others", "aria-hidden": "true" });
  const chosen = draw("rect", { class: "chosen" });
  const column = draw("rect", { class: "column" });
  const zero = draw("path", { class: "zero" });
  const ticks = draw("g", { class: "ticks", "aria-hidden": "true" });
  const axis = draw("rect", { class: "axis" });
  const grip = draw("path", { class: "grip" });
  const bubbleText = draw("text", { class: "bubble-text", "text-anchor": "middle" });
  const bubbleBox = draw("rect", { class: "bubble-box", rx: 4, height: 20 });
  const bubble = draw("g", { class: "bubble", "aria-hidden": "true" }, bubbleBox, bubbleText);
  const sliders = Array.from({ length: layers }, (_, layer) =>
    draw("rect", {
      class: "layer",
      [OWN_KEYS]: "true",
      role: "slider",
      "data-layer": layer,
      "aria-label": `layer ${layer}`,
      "aria-orientation": "vertical",
      tabindex: layer === 0 ? 0 : -1,
    }),
  );
  const svg = draw(
    "svg",
    { class: "plot", role: "group", "aria-label": "layer weights" },
    paper, bars, normLine, survives, effects, others, outline, zero, chosen, column, axis, grip, ticks,
    ...sliders, bubble,
  );

  const plotWidth = () => Math.max(1, shape.width - shape.left - shape.right);
  const plotHeight = () => Math.max(1, shape.height - shape.top - shape.bottom);
  const x = (edge) => shape.left + (edge / layers) * plotWidth();
  const y = (weight) => {
    const [low, high] = store.bounds;
    return shape.top + ((high - weight) / (high - low)) * plotHeight();
  };

  function steps(values, toY) {
    let path = "";
    for (let layer = 0; layer < layers; layer++) {
      const level = toY(values[layer]).toFixed(2);
      path += `${layer ? "L" : "M"}${x(layer).toFixed(2)} ${level}H${x(layer + 1).toFixed(2)}`;
    }
    return path;
  }

  // Norms stand on the line of weight 0, as the bars do.
  const ground = () => y(clamp(0, ...store.bounds));
  const normRoom = () => Math.max(ground() - shape.top, plotHeight() / 4);
  const normY = (value, most) => ground() - 0.94 * normRoom() * (value / most);

  // A light line under each keeps it apart from the bars, and from the others.
  function drawOthers() {
    const lines = Object.values(model.get("others")).flatMap((weights, i) => {
      const d = steps(weights, y);
      return [draw("path", { class: "casing", d }), draw("path", { class: `other ${lookOf(i)}`, d })];
    });
    others.replaceChildren(...lines);
  }

  // The other gradient whose line is under the pointer; "" where there is none.
  function otherAt(event) {
    if (!model.get("others_can_be_chosen")) return "";
    const box = svg.getBoundingClientRect();
    const point = new DOMPoint(event.clientX - box.left, event.clientY - box.top);
    const lines = [...others.querySelectorAll(".casing")];
    const under = lines.findLastIndex((line) => line.isPointInStroke(point));
    return Object.keys(model.get("others"))[under] ?? "";
  }

  // Evidence has an axis of its own, at the right, of nats per token: what is below 0 makes the text
  // more likely, and is drawn upwards. Each text has its slot in the layer's column; the second
  // one's bars are hollow.
  function drawEvidence() {
    const sets = evidence();
    effects.replaceChildren();
    if (!sets.length) return;
    const all = sets.flatMap(([, rows]) => rows.flat()).filter((value) => value !== null);
    const [least, most] = [Math.min(0, ...all), Math.max(0, ...all)];
    const span = most - least || 1;
    const at = (value) => shape.top + plotHeight() * (0.04 + (0.92 * (value - least)) / span);
    const wide = plotWidth() / layers;
    const room = (wide * 0.8) / sets.length;
    const marks = [draw("path", { class: "no-effect", d: `M${x(0)} ${at(0)}H${x(layers)}` })];
    sets.forEach(([, rows], slot) => {
      rows.forEach(([estimate, low, high], layer) => {
        const left = x(layer) + wide * 0.1 + slot * room;
        const [top, bottom] = [at(Math.min(0, estimate)), at(Math.max(0, estimate))];
        const kind = `${verdict(low, high)}${slot ? " second" : ""}`;
        const box = { x: left + room * 0.1, width: room * 0.8, y: top, height: bottom - top };
        marks.push(draw("rect", { class: `effect ${kind}`, ...box }));
        if (low === null) return;
        const [middle, cap] = [left + room / 2, room * 0.22];
        const whisker =
          `M${middle} ${at(low)}V${at(high)}M${middle - cap} ${at(low)}h${2 * cap}` +
          `M${middle - cap} ${at(high)}h${2 * cap}`;
        marks.push(draw("path", { class: `whisker ${kind}`, d: whisker }));
      });
    });
    const edge = shape.width - shape.right + 6;
    for (const value of roundNumbers(least, most)) {
      marks.push(text({ x: edge, y: at(value) + 4 }, signed(value), { class: "effect-tick" }));
    }
    effects.replaceChildren(...marks);
  }

  function text(place, content, attributes) {
    return draw("text", { ...place, ...attributes }, content);
  }

  function drawTicks() {
    const [low, high] = store.bounds;
    const marks = [];
    const bottom = shape.top + plotHeight();
    const quarters = [0, 1, 2, 3, 4].map((i) => low + i / 4);
    for (const weight of high - low === 1 ? quarters : roundNumbers(low, high)) {
      const at = y(weight);
      marks.push(draw("path", { class: "rule", d: `M${shape.left} ${at}H${shape.width - shape.right}` }));
      const label = Number(weight.toFixed(2));
      marks.push(text({ x: shape.left - 6, y: at + 4 }, plain(label), { "text-anchor": "end" }));
    }
    const room = Math.max(1, Math.ceil((layers * 30) / plotWidth()));
    const every = [1, 2, 4, 5, 10, 20, 25, 50, 100].find((step) => step >= room) ?? room;
    for (let layer = 0; layer < layers; layer += every) {
      const at = { x: x(layer + 0.5), y: bottom + 16 };
      marks.push(text(at, plain(layer), { "text-anchor": "middle" }));
    }
    const middle = { x: shape.left + plotWidth() / 2, y: bottom + 34 };
    const most = norms().length ? Math.max(...norms()) : 0;
    const scale = most ? ` · line: ‖ΔW‖/‖W‖, top ${percent(most / 0.94)}` : "";
    const layerWord = plotWidth() < 380 ? "layer" : "layer (drag here to select a range)";
    marks.push(text(middle, layerWord + (plotWidth() < 560 ? "" : scale), { "text-anchor": "middle", class: "title" }));
    ticks.replaceChildren(...marks);
  }

  function resize(width) {
    shape.width = width;
    shape.height = clamp(width * 0.36, 190, 300);
    set(svg, { width, height: shape.height, viewBox: `0 0 ${width} ${shape.height}` });
    layOut();
  }

  function layOut() {
    if (!shape.width) return;
    const area = { x: shape.left, y: shape.top, width: plotWidth(), height: plotHeight() };
    set(paper, area);
    set(axis, { x: shape.left, y: shape.top + plotHeight(), width: plotWidth(), height: 24 });
    const [low, high] = store.bounds;
    sliders.forEach((slider, layer) => {
      set(slider, { x: x(layer), y: shape.top, width: plotWidth() / layers, height: plotHeight() });
      set(slider, { "aria-valuemin": low, "aria-valuemax": high });
    });
    drawTicks();
    drawEvidence();
    drawOthers();
    sliders.forEach((slider) => slider.removeAttribute("aria-valuenow"));
    drawWeights();
    drawChosen();
    drawPointed();
  }

  // Everything that changes while a hand is moving. One path for all bars: separate rectangles
  // would show hairlines where they touch, and cost more.
  function drawWeights() {
    if (!shape.width) return;
    const weights = store.weights;
    const top = steps(weights, y);
    const floor = ground().toFixed(2);
    set(bars, { d: `${top}V${floor}H${x(0).toFixed(2)}Z` });
    set(outline, { d: top });
    set(zero, { d: store.bounds[0] < 0 ? `M${x(0)} ${floor}H${x(layers)}` : "" });
    const known = norms();
    const most = known.length ? Math.max(...known) : 0;
    set(normLine, { d: most ? steps(known, (value) => normY(value, most)) : "" });
    const left = known.map((norm, layer) => Math.min(Math.abs(weights[layer]) * norm, most / 0.94));
    set(survives, {
      d: most ? `${steps(left, (value) => normY(value, most))}V${floor}H${x(0).toFixed(2)}Z` : "",
    });
    sliders.forEach((slider, layer) => {
      const now = plain(weights[layer]);
      if (slider.getAttribute("aria-valuenow") !== now) {
        const found = evidence().map(([name, rows]) => `; ${name}: ${inWords(rows[layer])}`);
        set(slider, { "aria-valuenow": now, "aria-valuetext": now + found.join("") });
      }
    });
    drawPointed();
  }

  function drawChosen() {
    const { first, last } = selection;
    const shown = first >= 0;
    const width = shown ? x(last + 1) - x(first) : 0;
    set(chosen, { x: shown ? x(first) : 0, y: shape.top, width, height: plotHeight() + 24 });
    sliders.forEach((slider, layer) =>
      slider.classList.toggle("in-range", shown && layer >= first && layer <= last),
    );
  }

  function drawPointed() {
    const shown = pointed >= 0;
    bubble.style.display = shown ? "" : "none";
    column.style.display = shown ? "" : "none";
    grip.style.display = shown ? "" : "none";
    if (!shown) return;
    const weight = store.weights[pointed];
    const middle = x(pointed + 0.5);
    set(column, { x: x(pointed), y: shape.top, width: plotWidth() / layers, height: plotHeight() });
    const bottom = shape.top + plotHeight();
    set(grip, { d: `M${middle} ${bottom}l-5 7h10Z` });
    const content = `layer ${pointed}: ${plain(Number(weight.toFixed(4)))}`;
    bubbleText.textContent = content;
    const width = content.length * 7.2 + 14;
    const at = clamp(middle, shape.left + width / 2, shape.width - shape.right - width / 2);
    const above = y(weight) - 30;
    const height = above >= shape.top + 2 ? above : Math.min(y(weight) + 10, bottom - 24);
    set(bubbleBox, { x: at - width / 2, y: height, width });
    set(bubbleText, { x: at, y: height + 14.5 });
  }

  return {
    svg,
    sliders,
    selection,
    resize,
    layOut,
    drawWeights,
    otherAt,
    layerAt: (event) => {
      const place = event.clientX - svg.getBoundingClientRect().left - shape.left;
      return clamp(Math.floor((place / plotWidth()) * layers), 0, layers - 1);
    },
    weightAt: (event) => {
      const [low, high] = store.bounds;
      const place = event.clientY - svg.getBoundingClientRect().top - shape.top;
      return clamp(high - (place / plotHeight()) * (high - low), low, high);
    },
    onAxis: (event) =>
      event.clientY - svg.getBoundingClientRect().top > shape.top + plotHeight() + 1,
    weightsPerPixel: () => (store.bounds[1] - store.bounds[0]) / plotHeight(),
    place: (layer) => ({ left: x(layer + 0.5), top: y(store.weights[layer]) }),
    point(layer) {
      pointed = layer;
      drawPointed();
    },
    get pointed() {
      return pointed;
    },
    // The ring around a layer is for those who go by keys; under a hand it would be in the way.
    focus(layer, byHand = false) {
      svg.classList.toggle("by-hand", byHand);
      for (const slider of sliders) if (slider.tabIndex === 0) slider.tabIndex = -1;
      sliders[layer].tabIndex = 0;
      sliders[layer].focus({ preventScroll: true });
    },
    select(first, last) {
      selection.first = Math.min(first, last);
      selection.last = Math.max(first, last);
      drawChosen();
    },
  };
}

// How the line of another gradient looks: no two of the first twelve look alike.
const lookOf = (i) => `color-${i % 4} dash-${i % 3}`;

// What an interval says: better, worse, or nothing that could be told from chance.
function verdict(low, high) {
  if (low === null || (low <= 0 && high >= 0)) return "unsure";
  return high < 0 ? "better" : "worse";
}

function inWords([estimate, low, high]) {
  if (low === null) return `${signed(estimate)} nats per token, no interval`;
  const said = { better: "better", worse: "worse", unsure: "not told from 0" }[verdict(low, high)];
  return `${said}, ${signed(estimate)} nats per token (${signed(low)} to ${signed(high)})`;
}

const signed = (value) => {
  const digits = plain(Number(Math.abs(value).toPrecision(2)));
  return value < 0 ? `\u2212${digits}` : value > 0 ? `+${digits}` : "0";
};

// --- typing one value -----------------------------------------------------------------------

function createEntry(plot, store) {
  const field = make("input", {
    class: "entry", type: "text", inputmode: "decimal", autocomplete: "off", hidden: "",
  });
  let layer = -1;

  function close(commit) {
    if (layer < 0) return;
    const typed = layer;
    layer = -1;
    field.hidden = true;
    const value = Number(field.value.trim().replace(",", "."));
    if (commit && field.value.trim() !== "" && Number.isFinite(value)) {
      store.remember();
      const { first, last } = plot.selection;
      const together = typed >= first && typed <= last;
      store.replace(
        store.weights.map((weight, i) =>
          i === typed || (together && i >= first && i <= last) ? value : weight,
        ),
      );
      store.flush();
    }
    return typed;
  }

  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    plot.focus(close(event.key === "Enter"));
  });
  field.addEventListener("blur", () => close(true));

  return {
    field,
    open(at, text) {
      layer = at;
      field.setAttribute("aria-label", `weight of layer ${at}`);
      const place = plot.place(at);
      const width = plot.svg.clientWidth;
      field.style.left = `${clamp(place.left - 36, 0, Math.max(0, width - 76))}px`;
      field.style.top = `${Math.max(0, place.top - 14)}px`;
      field.hidden = false;
      field.value = text ?? plain(store.weights[at]);
      field.focus({ preventScroll: true });
      if (text === undefined) field.select();
    },
  };
}

// Asks Python for another gradient, to be drawn in place of this one.
function choose(model, name) {
  model.set("chosen", name);
  model.save_changes();
}

// --- mouse, pen and touch -------------------------------------------------------------------

function attachPointer(plot, store, entry, model) {
  let gesture = null;
  let lastTwo = []; // what was there before each of the last two presses

  const begin = {
    paint: (layer, weight) => ({ kind: "paint", layer, weight }),
    line: (layer, weight) => ({ kind: "line", layer, weight, before: [...store.weights] }),
    move: (event) => ({ kind: "move", from: event.clientY, before: [...store.weights] }),
    reset: () => ({ kind: "reset" }),
    range: (layer) => ({ kind: "range", layer, moved: false }),
    other: (name, layer, weight, { clientX: x, clientY: y }) =>
      ({ kind: "other", name, layer, weight, x, y }),
  };

  // Every layer between two points of the hand's way gets its share of the straight line.
  function stroke(weights, fromLayer, fromWeight, toLayer, toWeight) {
    const direction = Math.sign(toLayer - fromLayer) || 1;
    for (let layer = fromLayer; ; layer += direction) {
      const share = toLayer === fromLayer ? 1 : (layer - fromLayer) / (toLayer - fromLayer);
      weights[layer] = store.snap(fromWeight + (toWeight - fromWeight) * share);
      if (layer === toLayer) return weights;
    }
  }

  function reset(layer) {
    const next = [...store.weights];
    next[layer] = model.get("start")[layer];
    store.replace(next);
  }

  function follow(event) {
    const layer = plot.layerAt(event);
    const weight = plot.weightAt(event);
    if (gesture.kind === "other") {
      if (Math.hypot(event.clientX - gesture.x, event.clientY - gesture.y) < 4) return;
      gesture = begin.paint(gesture.layer, gesture.weight); // the hand moves on, so it paints
      store.hold();
    }
    if (gesture.kind === "paint") {
      store.replace(stroke([...store.weights], gesture.layer, gesture.weight, layer, weight));
      gesture = begin.paint(layer, weight);
    } else if (gesture.kind === "line") {
      store.replace(stroke([...gesture.before], gesture.layer, gesture.weight, layer, weight));
    } else if (gesture.kind === "move") {
      const change = (gesture.from - event.clientY) * plot.weightsPerPixel();
      const { first, last } = plot.selection;
      store.replace(
        gesture.before.map((value, i) =>
          i >= first && i <= last ? store.snap(value + change) : value,
        ),
      );
    } else if (gesture.kind === "reset") {
      reset(layer);
    } else {
      gesture.moved ||= layer !== gesture.layer;
      plot.select(gesture.layer, layer);
    }
    plot.point(layer);
  }

  function down(event) {
    if (event.button !== 0 || gesture) return;
    event.preventDefault();
    const layer = plot.layerAt(event);
    const weight = plot.weightAt(event);
    const { first, last } = plot.selection;
    lastTwo = [...lastTwo, { weights: [...store.weights], depth: store.depth }].slice(-2);
    plot.svg.setPointerCapture(event.pointerId);
    plot.focus(layer, true);
    if (plot.onAxis(event)) gesture = begin.range(layer);
    else if (event.altKey) gesture = begin.reset();
    else if (event.shiftKey) gesture = begin.line(layer, weight);
    else if (layer >= first && layer <= last) gesture = begin.move(event);
    else if (plot.otherAt(event)) gesture = begin.other(plot.otherAt(event), layer, weight, event);
    else gesture = begin.paint(layer, weight);
    if (!["range", "other"].includes(gesture.kind)) store.hold();
    follow(event);
  }

  function move(event) {
    if (gesture) follow(event);
    else plot.point(plot.onAxis(event) ? -1 : plot.layerAt(event));
  }

  function up() {
    if (!gesture) return;
    if (plot.pointed >= 0) plot.focus(plot.pointed, true); // keys go on where the hand stopped
    if (gesture.kind === "other") choose(model, gesture.name);
    else if (gesture.kind !== "range") store.release();
    else if (!gesture.moved) plot.select(-1, -1); // a click on the axis ends the selection
    gesture = null;
  }

  function doubled(event) {
    if (plot.onAxis(event) || event.altKey) return;
    // A double click is two presses; its first half is no drawing.
    if (lastTwo.length === 2) store.rewind(lastTwo[0].weights, lastTwo[0].depth);
    lastTwo = [];
    entry.open(plot.layerAt(event));
  }

  const { svg } = plot;
  svg.addEventListener("pointerdown", down);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerup", up);
  svg.addEventListener("pointercancel", up);
  svg.addEventListener("lostpointercapture", up);
  svg.addEventListener("dblclick", doubled);
  svg.addEventListener("pointerleave", () => {
    if (!gesture) plot.point(-1);
  });
}

// --- keyboard -------------------------------------------------------------------------------

function attachKeyboard(plot, store, entry, model) {
  const layers = store.weights.length;

  function change(layer, toValue) {
    const { first, last } = plot.selection;
    const together = layer >= first && layer <= last;
    store.remember(`keys on ${layer}`);
    store.replace(
      store.weights.map((weight, i) =>
        i === layer || (together && i >= first && i <= last) ? toValue(weight, i) : weight,
      ),
    );
  }

  function go(layer, extend) {
    const target = clamp(layer, 0, layers - 1);
    if (extend) {
      const { first, last } = plot.selection;
      const here = plot.pointed;
      const anchor = first < 0 ? here : here === first ? last : first;
      plot.select(anchor, target);
    }
    plot.focus(target);
  }

  // What a key does to `layer`; false for a key that means nothing here.
  function act(event, layer) {
    const { key } = event;
    const command = event.ctrlKey || event.metaKey;
    const large = event.shiftKey ? 10 : 1;
    const add = (amount) =>
      change(layer, (weight) => store.snap(weight + amount * model.get("step")));
    const [low, high] = store.bounds;
    const letter = key.toLowerCase();
    if (command && letter === "z") event.shiftKey ? store.redo() : store.undo();
    else if (command && letter === "y") store.redo();
    else if (command && letter === "a") plot.select(0, layers - 1);
    else if (command && event.shiftKey && key === "ArrowLeft") go(layer - 1, true);
    else if (command && event.shiftKey && key === "ArrowRight") go(layer + 1, true);
    else if (command && key === "Home") go(0);
    else if (command && key === "End") go(layers - 1);
    else if (command || event.altKey) return false;
    else if (key === "ArrowLeft") go(layer - large);
    else if (key === "ArrowRight") go(layer + large);
    else if (key === "ArrowUp") add(large);
    else if (key === "ArrowDown") add(-large);
    else if (key === "PageUp") add(10);
    else if (key === "PageDown") add(-10);
    else if (key === "Home") change(layer, () => low);
    else if (key === "End") change(layer, () => high);
    else if (key === "Delete" || key === "Backspace") {
      change(layer, (_, i) => model.get("start")[i]);
    } else if (key === "Enter") entry.open(layer);
    else if (/^[-.\d]$/.test(key)) entry.open(layer, key);
    else if (key === "Escape") plot.select(-1, -1);
    else return false;
    return true;
  }

  plot.svg.addEventListener("keydown", (event) => {
    const layer = plot.sliders.indexOf(event.target);
    if (layer < 0) return;
    if (act(event, layer)) {
      plot.svg.classList.remove("by-hand");
      if (plot.svg.contains(document.activeElement)) {
        plot.point(plot.sliders.indexOf(document.activeElement));
      }
      event.preventDefault();
      event.stopPropagation();
    }
  });
  // On each layer and not on the picture: Chromium makes an <svg> that listens for focus a tab stop.
  plot.sliders.forEach((slider, layer) => {
    slider.addEventListener("focus", () => plot.point(layer));
    slider.addEventListener("blur", () => {
      plot.point(-1);
      store.flush();
    });
  });
}

// --- presets, buttons, text -----------------------------------------------------------------

function createPanel(model, plot, store) {
  const status = make("span", { class: "status", role: "status" });
  const mean = make("output", { class: "mean", "aria-label": "mean weight" });
  const problem = make("div", { class: "problem", role: "alert" });
  const list = make("input", {
    class: "list", type: "text", spellcheck: "false", autocomplete: "off",
    "aria-label": "layer weights as a list", title: "Paste a list, such as 0x19,0.5,1x20",
  });
  const shapes = make("select", { class: "shapes", "aria-label": "preset" });
  let editing = false; // the text field holds what the user typed, not yet what is drawn

  const view = Math.random(); // of this page; others may show the same editor
  let asked = 0;
  let awaited = null; // the request whose answer is shown; a later one or Escape ends the wait
  function ask(request) {
    store.flush();
    awaited = `${view}-${asked++}`;
    model.set("request", { ...request, number: awaited });
    model.save_changes();
  }

  function savedLists() {
    try {
      const found = JSON.parse(localStorage.getItem(SAVED_KEY) ?? "[]");
      return found.filter((one) => Array.isArray(one) && one.every(Number.isFinite));
    } catch {
      return []; // storage can be forbidden; saving is then only for as long as the page is open
    }
  }

  function fillShapes() {
    const saved = savedLists().filter((one) => one.length === store.weights.length);
    shapes.replaceChildren(
      make("option", { value: "" }, "presets…"),
      ...model.get("presets").map((name) => make("option", { value: name }, name)),
      ...saved.map((one, i) =>
        make("option", { value: `saved ${i}` }, `saved ${i + 1} (mean ${meanOf(one).toFixed(2)})`),
      ),
    );
  }

  shapes.addEventListener("change", () => {
    const name = shapes.value;
    shapes.value = "";
    const number = /^saved (\d+)$/.exec(name);
    if (number) {
      const saved = savedLists().filter((one) => one.length === store.weights.length);
      store.remember();
      store.replace([...saved[Number(number[1])]]);
      store.flush();
    } else if (name) {
      const { first, last } = plot.selection;
      ask({ kind: "preset", name, ...(first >= 0 ? { first, last } : {}) });
    }
  });

  function save() {
    const others = savedLists().filter((one) => !sameList(one, store.weights));
    try {
      const kept = JSON.stringify([store.weights, ...others].slice(0, MOST_SAVED));
      localStorage.setItem(SAVED_KEY, kept);
      status.textContent = "saved to presets";
    } catch {
      status.textContent = "this browser does not let pages save";
    }
    fillShapes();
  }

  async function copy() {
    const text = store.weights.map(plain).join(",");
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "copied";
    } catch {
      list.select();
      status.textContent = "press Ctrl+C to copy";
    }
  }

  const undo = createButton("↶", "undo", () => store.undo());
  const redo = createButton("↷", "redo", () => store.redo());
  const bar = make(
    "div", { class: "bar", role: "toolbar", "aria-label": "gradient tools" },
    shapes, undo, redo,
    createButton("0.00", "round to 2 decimals", () => ask({ kind: "round" })),
    createButton("save", "save to presets", save),
    createButton("copy", "copy the list", copy),
    mean, status,
  );

  let submitted = null; // Enter submits, and the browser's change after it is not a second time
  function submit() {
    if (!editing || list.value === submitted) return;
    submitted = list.value;
    ask({ kind: "parse", text: submitted });
  }
  list.addEventListener("input", () => {
    editing = true;
    submitted = awaited = null;
  });
  list.addEventListener("paste", () => setTimeout(submit)); // once the text has arrived
  list.addEventListener("change", submit);
  list.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") submit();
    if (event.key !== "Escape") return;
    accepted();
    drawText();
  });

  function accepted() {
    editing = false;
    submitted = awaited = null;
    problem.replaceChildren();
    list.removeAttribute("aria-invalid");
  }

  function answer(message) {
    if (message.number !== awaited) return; // of another view, or no longer of interest
    if (message.kind === "done") {
      accepted();
      return drawText();
    }
    list.setAttribute("aria-invalid", "true");
    problem.replaceChildren(message.text);
    if (message.found) {
      const label = `stretch ${message.found} to ${store.weights.length} layers`;
      const stretch = () => ask({ kind: "stretch", text: list.value });
      problem.append(" ", createButton(label, label, stretch));
    }
  }
  model.on("msg:custom", answer);

  function drawText() {
    const { weights } = store;
    mean.textContent = `mean weight ${meanOf(weights).toFixed(2)}`;
    undo.disabled = !store.canUndo;
    redo.disabled = !store.canRedo;
    if (!editing) list.value = weights.map(plain).join(",");
  }

  const help = createHelp(
    "How to draw",
    ["drag", "paint the layers you pass over"],
    ["Shift + drag", "a straight line"],
    ["Alt + click", "the layer's first weight again"],
    ["drag on the layer numbers", "select a range, which then moves as one; a click there ends it"],
    ["double click, Enter, a digit", "type a weight"],
    ["← → ↑ ↓", "another layer; its weight up and down (Shift: ten times as far)"],
    ["Home, End", "lowest and highest weight"],
    ["Ctrl + Shift + ← →", "select a range; Escape ends it"],
    ["Ctrl + Z, Ctrl + Shift + Z", "undo and redo"],
  );

  fillShapes();
  return { bar, list, problem, help, drawText, stop: () => model.off("msg:custom", answer) };
}

// --- all together ---------------------------------------------------------------------------

function render({ model, el }) {
  const store = createStore(model);
  const plot = createPlot(model, store);
  const entry = createEntry(plot, store);
  const panel = createPanel(model, plot, store);
  attachPointer(plot, store, entry, model);
  attachKeyboard(plot, store, entry, model);

  const legend = make("div", { class: "legend" });
  const note = make("div", { class: "note", role: "status" });
  const stage = make("div", { class: "stage" }, plot.svg, entry.field);
  const root = make(
    "div", { class: "labkit-editor" },
    panel.bar, stage, legend, note, panel.list, panel.problem, panel.help,
  );
  handKeysToCell(root);
  const lost = make("div", { class: "lost", role: "alert" });
  const stopWatching = watchKernel(model, root, lost, "draw");
  const style = make("style");

  function drawNames() {
    const [base, adapter] = model.get("names");
    const key = (kind, name) =>
      make("span", {}, make("i", { class: `key ${kind}`, "aria-hidden": "true" }), name);
    const texts = Object.keys(model.get("evidence"));
    const lines = texts.map((name, slot) => key(slot ? "effect-key second" : "effect-key", name));
    if (texts.length) {
      lines.push(
        key("effect-key better", "↑ better: the NLL falls"),
        key("effect-key worse", "↓ worse: it rises"),
        key("effect-key unsure", "the interval includes 0"),
      );
    } else if (model.get("norms").length) {
      lines.push(
        key("norm-key", "‖ΔW‖/‖W‖"), key("survives-key", "what survives of it (weight × norm)"),
      );
    }
    Object.entries(model.get("others")).forEach(([name, weights], i) => {
      const line = draw(
        "svg", { class: "line-key", width: 30, height: 12, "aria-hidden": "true" },
        draw("rect", { class: "ground", width: 30, height: 12 }),
        draw("path", { class: "casing", d: "M0 6H30" }),
        draw("path", { class: `sample ${lookOf(i)}`, d: "M0 6H30" }),
      );
      const said = `${name}: mean weight ${meanOf(weights).toFixed(2)}`;
      if (!model.get("others_can_be_chosen")) return lines.push(make("span", {}, line, said));
      const button = make("button", { type: "button", class: "choose", title: `draw ${name}` }, line, said);
      button.addEventListener("click", () => choose(model, name));
      lines.push(button);
    });
    legend.replaceChildren(key("base-key", base), key("adapter-key", adapter), ...lines);
    note.textContent = model.get("evidence_note");
  }

  function drawAll() {
    scale = store.bounds;
    plot.layOut();
    drawNames();
  }

  function hidePictures() {
    const id = model.get("picture_id").replace(/[^\w-]/g, "");
    style.textContent = id ? `.labkit-picture-${id}{display:none}` : "";
  }

  let scale = store.bounds;
  store.listen(() => {
    // The axis stayed as it was while a hand was moving.
    if (sameList(scale, store.bounds)) plot.drawWeights();
    else plot.layOut();
    scale = store.bounds;
  });
  store.listen(panel.drawText);
  const watched = {
    bounds: drawAll, norms: drawAll, others: drawAll, evidence: drawAll, evidence_note: drawNames, names: drawNames,
    picture_id: hidePictures,
  };
  for (const [name, act] of Object.entries(watched)) model.on(`change:${name}`, act);
  const observer = new ResizeObserver(() => {
    const width = Math.floor(stage.clientWidth);
    if (width) plot.resize(width);
  });
  observer.observe(stage);
  root.prepend(lost);
  el.append(style, root);
  panel.drawText();
  drawNames();
  hidePictures();

  return () => {
    observer.disconnect();
    store.stop();
    panel.stop();
    stopWatching();
    for (const [name, act] of Object.entries(watched)) model.off(`change:${name}`, act);
  };
}

export default { render };
