// Two axes of numbers with their grid: what FrontPicker and RunsPlane draw their points in.

function scale(values, from, to, margin) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = margin(most - least);
  const [low, high] = [least - room, most + room];
  return { low, high, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

// Round numbers of an axis with as many digits as they need; never "-0".
function marks({ low, high }) {
  const numbers = roundNumbers(low, high);
  const digits = Math.max(0, -Math.floor(Math.log10(numbers[1] - numbers[0]) + 1e-9));
  return numbers.map((value) => [value, value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1")]);
}

// `place`: the distances of the numbers from the paper, `below` and `beside` it.
function drawGrid(x, y, { left, right, top, bottom }, place) {
  return [
    ...marks(x).flatMap(([value, text]) => [
      draw("path", { class: "grid", d: `M${x.at(value)} ${top}V${bottom}` }),
      draw("text", { x: x.at(value), y: bottom + place.below, "text-anchor": "middle" }, text),
    ]),
    ...marks(y).flatMap(([value, text]) => [
      draw("path", { class: "grid", d: `M${left} ${y.at(value)}H${right}` }),
      draw("text", { x: left - place.beside, y: y.at(value) + 4, "text-anchor": "end" }, text),
    ]),
  ];
}
