// labkit's widgets in a page without a kernel: their own JavaScript, unchanged, and here what
// Python would answer them (labkit/widgets/editor.py, labkit/gradients/gradient.py).
//
//   labkitPage.show     a widget's module draws itself into an element, over a model
//   labkitPage.model    holds a widget's state, in place of a kernel
//   labkitPage.editor   a model that answers the gradient editor
//   labkitPage.parse    Gradient.parse
//
// labkitPage.modules are the files' texts: a page that is opened from a folder may not import a file.

globalThis.labkitPage = (() => {
  const MOST_LAYERS = 10_000;
  const LONGEST_SHOWN = 160;

  class Wrong extends Error {}

  function model(state) {
    const values = structuredClone(state);
    const listeners = {};
    const tell = (event, content) => [...(listeners[event] ?? [])].forEach((one) => one(content));
    return {
      get: (name) => values[name],
      set(name, value) {
        values[name] = value;
        tell(`change:${name}`);
      },
      save_changes() {},
      send: (content) => tell("sent", content), // to where Python would be
      tell, // as from Python
      on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
      off: (event, listener) => listeners[event]?.delete(listener),
    };
  }

  const loaded = {};
  async function show(name, given, element) {
    const { modules } = globalThis.labkitPage;
    loaded[name] ??= import(URL.createObjectURL(new Blob([modules[name]], { type: "text/javascript" })));
    return (await loaded[name]).default.render({ model: given, el: element });
  }

  // --- Gradient ---------------------------------------------------------------------------

  const shown = (text) =>
    text.length <= LONGEST_SHOWN
      ? text
      : `${text.slice(0, LONGEST_SHOWN - 20)}… (${text.length} characters)`;
  const quoted = (text) => (text.includes("'") && !text.includes('"') ? `"${shown(text)}"` : `'${shown(text)}'`);
  const DECIMAL = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
  const NOT_FINITE = /^[+-]?(inf|infinity|nan)$/i;

  function run(word, position) {
    const lowered = word.toLowerCase().replaceAll("×", "x");
    const cut = lowered.indexOf("x");
    const number = cut < 0 ? lowered : lowered.slice(0, cut);
    const count = lowered.slice(cut + 1);
    const where = `entry ${position} of the layer weights, ${quoted(word)},`;
    const readable = /^\d+$/.test(count) && count.length <= String(MOST_LAYERS).length;
    const times = cut < 0 ? 1 : readable ? Number(count) : 0;
    if (times < 1 || times > MOST_LAYERS) {
      throw new Wrong(
        `${where} is not a run: expected a weight, an x and how many layers have it ` +
          `(from 1 to ${MOST_LAYERS}), such as 0.5x3`,
      );
    }
    const finite = DECIMAL.test(number) && Number.isFinite(Number(number));
    if (!finite && !DECIMAL.test(number) && !NOT_FINITE.test(number) && !number.includes("_")) {
      throw new Wrong(
        `${where} is not a number; write the weights as 0,0,0.5,1 or with runs as 0x2,0.5,1`,
      );
    }
    if (!finite) throw new Wrong(`${where} is not a finite number; a layer weight is finite`);
    return Array(times).fill(Number(number) + 0);
  }

  function parse(text, layers = null) {
    const bare = text.trim().replace(/^[[\]]+|[[\]]+$/g, "");
    const joined = bare.replace(/(?<=[\d.])\s*[x×]\s*(?=\d)/g, "x").trim().replace(/,+$/, "");
    const entries = joined.split(",").map((entry) => entry.trim());
    if (entries.length === 1 && !entries[0]) {
      throw new Wrong("the list of layer weights is empty; write one number for each layer");
    }
    const weights = [];
    let position = 0;
    for (const entry of entries) {
      if (!entry) {
        throw new Wrong(
          `entry ${position + 1} of the layer weights is empty: two commas follow each other`,
        );
      }
      for (const word of entry.split(/\s+/)) {
        position += 1;
        weights.push(...run(word, position));
        if (weights.length > MOST_LAYERS) {
          throw new Wrong(
            `the list of layer weights has more than ${MOST_LAYERS} entries ` +
              `(at entry ${position}, ${quoted(word)}); no model has so many layers`,
          );
        }
      }
    }
    if (layers !== null && weights.length !== layers) {
      throw new Wrong(
        `${weights.length} weights for ${layers} layers; write exactly one weight for each layer, ` +
          `or stretch the list (Gradient.resample(${layers}))`,
      );
    }
    return weights;
  }

  // Halfway between two decimals lies nothing but an eighth; Python takes the even neighbour there.
  function rounded(weight) {
    if (!Number.isInteger(weight * 8)) return Number(weight.toFixed(2)) + 0;
    const below = Math.floor(weight * 100);
    return (weight * 100 - below !== 0.5 ? weight * 100 : below + Math.abs(below % 2)) / 100 + 0;
  }

  function resample(weights, layers) {
    const last = Math.max(weights.length - 1, 1);
    return Array.from({ length: layers }, (_, layer) => {
      const at = (layer / Math.max(layers - 1, 1)) * last;
      const left = Math.min(Math.floor(at), weights.length - 1);
      const right = Math.min(left + 1, weights.length - 1);
      const share = at - left;
      return weights[left] * (1 - share) + weights[right] * share;
    });
  }

  // --- the editor's other side ------------------------------------------------------------

  // `shapes`: name -> for every number of layers from 1 on, the shape's weights; they are Python's.
  function editor(state, shapes) {
    const made = model(state);
    const asked = [...state.bounds];

    function fit() {
      const others = Object.values(made.get("others")).flat();
      const seen = [...asked, ...made.get("weights"), ...others];
      const bounds = [Math.min(...seen), Math.max(...seen)];
      if (bounds.some((bound, i) => bound !== made.get("bounds")[i])) made.set("bounds", bounds);
    }
    made.on("change:weights", fit);
    made.on("change:others", fit);

    function preset({ name, first = 0, last = made.get("weights").length - 1 }) {
      const weights = [...made.get("weights")];
      const part = weights.slice(first, last + 1);
      const shape = name === "reversed" ? part.reverse() : shapes[name][part.length - 1];
      weights.splice(first, part.length, ...shape);
      return weights;
    }

    function changed(request) {
      const layers = made.get("weights").length;
      if (request.kind === "preset") return preset(request);
      if (request.kind === "round") return made.get("weights").map(rounded);
      if (request.kind === "parse") return parse(request.text, layers);
      return resample(parse(request.text), layers).map(rounded);
    }

    made.on("change:request", () => {
      const request = made.get("request");
      const { number } = request;
      let weights;
      try {
        weights = changed(request);
      } catch (error) {
        if (!(error instanceof Wrong)) throw error;
        const problem = { kind: "problem", number, text: error.message, found: stretchable(request) };
        return made.tell("msg:custom", problem);
      }
      made.set("weights", weights);
      made.tell("msg:custom", { kind: "done", number });
    });

    // How long a list is of which only the length is wrong; else 0.
    function stretchable({ kind, text }) {
      if (kind !== "parse") return 0;
      try {
        const found = parse(text).length;
        return found === made.get("weights").length ? 0 : found;
      } catch {
        return 0;
      }
    }
    return made;
  }

  return { modules: {}, shapes: {}, show, model, editor, parse };
})();

// The editors of notebooks.
addEventListener("DOMContentLoaded", () => {
  const { show, editor, shapes } = globalThis.labkitPage;
  for (const place of document.querySelectorAll(".labkit-live")) {
    show("editor", editor(JSON.parse(place.dataset.state), shapes), place);
  }
});
