// ChoiceSlider in the browser: an anywidget module, served as it is written here.
// The browser's own slider, over the places of a list of numbers.

// JupyterLab looks for its shortcuts before any widget sees a key; see editor.js.
const OWN_KEYS = "data-lm-suppress-shortcuts";
let count = 0;

function render({ model, el }) {
  const options = model.get("options");
  const id = `labkit-choice-${++count}`;
  const label = document.createElement("label");
  const slider = document.createElement("input");
  const said = document.createElement("output");
  label.textContent = model.get("description");
  label.htmlFor = said.htmlFor = slider.id = id;
  Object.assign(slider, { type: "range", min: 0, max: options.length - 1, step: 1 });
  slider.setAttribute(OWN_KEYS, "true");

  function show() {
    const value = model.get("value");
    slider.value = options.indexOf(value);
    said.textContent = String(value);
    slider.setAttribute("aria-valuetext", String(value));
    slider.disabled = model.get("disabled");
  }

  function choose() {
    model.set("value", options[slider.valueAsNumber]);
    model.save_changes();
    show();
  }

  slider.addEventListener("input", choose);
  model.on("change:value change:disabled", show);
  el.classList.add("labkit-choice");
  el.append(label, slider, said);
  show();
  return () => model.off("change:value change:disabled", show);
}

export default { render };
