// ChoiceSlider in the browser: an anywidget module, served behind elements.js.
// The browser's own slider, over the places of a list of numbers.

let count = 0;

function render({ model, el }) {
  const options = model.get("options");
  const id = `labkit-choice-${++count}`;
  const label = make("label", { for: id }, model.get("description"));
  const slider = make("input", { id, type: "range", min: 0, max: options.length - 1, step: 1 });
  const said = make("output", { for: id });

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
