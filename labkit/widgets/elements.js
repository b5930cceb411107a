// Elements of HTML and SVG, and words for numbers: what all of labkit's widgets use.

const SVG = "http://www.w3.org/2000/svg";
// JupyterLab looks for its shortcuts before any widget sees a key, from the focused element up.
// This attribute, on that very element, is how a widget says that keys typed there are its own.
const OWN_KEYS = "data-lm-suppress-shortcuts";
const TAKES_KEYS = new Set(["button", "input", "select", "summary"]);

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const meanOf = (weights) => weights.reduce((sum, weight) => sum + weight, 0) / weights.length;
const plain = (number) => String(number === 0 ? 0 : number);
const percent = (share) => `${Number((share * 100).toPrecision(2))} %`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (TAKES_KEYS.has(tag)) node.setAttribute(OWN_KEYS, "true");
  set(node, attributes);
  node.append(...children);
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  set(node, attributes);
  node.append(...children);
  return node;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

// Three to six round numbers from low to high, 0 among them.
function roundNumbers(low, high) {
  const rough = (high - low || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const numbers = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) numbers.push(i * step);
  return numbers;
}
