// RunsTable in the browser: an anywidget module, served behind elements.js.
// It draws the rows, and tells Python what was pressed (labkit/widgets/runs_table.py).

const SHAPE = { width: 78, height: 20 };
const MOST_SHAPES = 3;
const HINT = "A press on a run brings it back. Mark two to compare them; a run with a star is never forgotten.";

const signed = (value) => (value < 0 ? `\u2212${(-value).toFixed(2)}` : `+${value.toFixed(2)}`);
const number = (value, digits) => (value === null ? "\u2013" : value.toFixed(digits));

// Small pictures of gradients, as the editor draws them: blue is the base, green the LoRA.
function shapes(row) {
  const shown = row.bars.slice(0, MOST_SHAPES);
  const width = SHAPE.width / shown.length - 2;
  const pictures = shown.map((weights) => {
    const svg = draw("svg", { width, height: SHAPE.height, "aria-hidden": "true" });
    svg.append(draw("rect", { class: "paper", width, height: SHAPE.height }));
    const wide = width / weights.length;
    weights.forEach((weight, layer) => {
      const high = Math.min(Math.max(weight, 0), 1) * SHAPE.height;
      if (high > 0) {
        svg.append(draw("rect", {
          class: "bar", x: layer * wide, y: SHAPE.height - high, width: wide, height: high,
        }));
      }
    });
    return svg;
  });
  return pictures;
}

// What the columns are sorted by; those without a value come last.
const ORDERS = {
  star: (row) => (row.starred ? 0 : 1),
  name: (row) => row.name,
  gradient: (row) => row.mean,
  first: (row) => row.first && row.first[0],
  second: (row) => row.second && row.second[0],
  kl: (row) => row.kl,
  seconds: (row) => row.seconds,
  time: (row) => row.time,
};

function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
  return a - b;
}

function clock(time) {
  if (time === null) return ["", ""];
  const date = new Date(time * 1000);
  const today = new Date().toDateString() === date.toDateString();
  const short = today
    ? date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hour12: false })
    : date.toLocaleDateString(undefined, { day: "2-digit", month: "2-digit" });
  return [short, date.toLocaleString()];
}

function render({ model, el }) {
  let order = { by: "time", down: true };
  let active = ""; // the one row whose controls Tab comes to; arrow keys go to the others
  let editing = null; // the run that is being renamed, and the name so far
  let drawing = false; // a field that is replaced loses the focus, which says nothing

  const table = make("table", { "aria-label": "runs" });
  const hint = make("div", { class: "hint" });
  const problem = make("div", { class: "problem", role: "alert" });
  const root = make("div", { class: "labkit-runs", [OWN_KEYS]: "true" },
    make("div", { class: "frame" }, table), hint, problem);
  el.append(root);

  const texts = () => model.get("texts");
  const heads = () => [
    ["pick", null, "", "compare"], ["star", "star", "\u2605", "starred"], ["run", "name", "run"],
    ["shape", "gradient", "gradient"],
    ["nll number", "first", `NLL on ${texts()[0]}`], ["nll number", "second", `NLL on ${texts()[1]}`],
    ["kl number", "kl", "KL", `KL to the base on ${texts()[1]}`],
    ["took number", "seconds", "s", "seconds"], ["when number", "time", "time"],
  ];

  function head() {
    const cells = heads().map(([kind, by, text, said]) => {
      const cell = make("th", { class: kind, scope: "col" });
      if (!by) {
        cell.setAttribute("aria-label", said);
        return cell;
      }
      const sorted = order.by === by;
      cell.setAttribute("aria-sort", sorted ? (order.down ? "descending" : "ascending") : "none");
      const button = make("button", { type: "button", "data-role": `sort ${by}`, title: `sort by ${said ?? text}` },
        sorted ? `${text} ${order.down ? "\u25be" : "\u25b4"}` : text);
      if (said) button.setAttribute("aria-label", `sort by ${said}`);
      button.addEventListener("click", () => {
        order = { by, down: sorted ? !order.down : by === "time" };
        show();
      });
      cell.append(button);
      return cell;
    });
    return make("thead", {}, make("tr", {}, ...cells));
  }

  function nameOf(row, reach) {
    if (editing && editing.key === row.key) {
      const field = make("input", {
        type: "text", maxlength: 60, "data-role": "field", "aria-label": `new name of ${row.name}`,
      });
      field.value = editing.name;
      field.addEventListener("input", () => { editing.name = field.value; });
      field.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key !== "Enter" && event.key !== "Escape") return;
        event.preventDefault(); // the button that then has the focus is not pressed by it
        end(event.key === "Enter");
      });
      field.addEventListener("blur", () => { if (!drawing) end(true, false); });
      return field;
    }
    const line = make("span", { class: "first-line" });
    const name = make("button", {
      type: "button", class: "name", "data-role": "name", tabindex: reach,
      title: `bring ${row.name} back`,
    }, row.name);
    line.append(name);
    if (!row.fixed) {
      const pencil = make("button", {
        type: "button", class: "pencil", "data-role": "pencil", tabindex: reach,
        "aria-label": `rename ${row.name}`, title: "rename",
      }, "\u270e");
      pencil.addEventListener("click", (event) => {
        event.stopPropagation();
        editing = { key: row.key, name: row.name };
        show();
        focus(row.key, "field");
        root.querySelector("[data-role=field]").select();
      });
      line.append(pencil);
    }
    return line;
  }

  function end(keep, back = true) {
    if (!editing) return;
    const { key, name } = editing;
    const row = model.get("rows").find((one) => one.key === key);
    editing = null;
    if (keep && row && name !== row.name) model.send({ kind: "rename", key, name });
    show();
    if (back) focus(key, "pencil");
  }

  function nll(reading) {
    const cell = make("td", { class: "nll number" }, reading ? reading[0].toFixed(3) : "\u2013");
    if (!reading) {
      cell.title = "not measured on this text";
    } else if (reading[1] !== null) {
      const [, change, low, high] = reading;
      const ends = low === null ? "" : ` [${signed(low)}, ${signed(high)}]`;
      cell.append(make("small", { title: "less the base's, with its 95 % interval" }, `${signed(change)}${ends}`));
    }
    return cell;
  }

  function line(row) {
    const reach = row.key === active ? 0 : -1;
    const now = row.key === model.get("current");
    const compared = model.get("compared");
    const check = make("input", {
      type: "checkbox", "data-role": "pick", tabindex: reach, "aria-label": `compare ${row.name}`,
    });
    check.checked = compared.includes(row.key);
    check.addEventListener("change", () => {
      const others = model.get("compared").filter((key) => key !== row.key);
      const keys = check.checked ? [...others, row.key].slice(-2) : others;
      model.send({ kind: "compare", keys });
      model.set("compared", keys); // the next press may come before Python's answer
    });
    const star = make("td", { class: "star" });
    if (!row.fixed) {
      const button = make("button", {
        type: "button", "data-role": "star", tabindex: reach, "aria-pressed": String(row.starred),
        "aria-label": `star ${row.name}`, title: "never forget it",
      }, row.starred ? "\u2605" : "\u2606");
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        model.send({ kind: "star", key: row.key, starred: !row.starred });
      });
      star.append(button);
    }
    const run = make("th", { class: "run", scope: "row" }, nameOf(row, reach));
    if (row.said) run.append(make("span", { class: "said", title: row.said }, row.said));
    const [short, whole] = clock(row.time);
    const gradient = make("td", { class: "shape", title: row.gradient });
    const picture = make("span", { role: "img", "aria-label": `gradient ${row.gradient}` });
    picture.append(...shapes(row));
    if (row.bars.length) gradient.append(picture);
    const cells = make("tr", { "data-key": row.key, class: now ? "now" : "" },
      make("td", { class: "pick" }, check), star, run, gradient,
      nll(row.first), nll(row.second),
      make("td", { class: "kl number" }, number(row.kl, 3)),
      make("td", { class: "took number" }, row.seconds === null ? "" : row.seconds.toFixed(1)),
      make("td", { class: "when number", title: whole }, short));
    if (now) cells.setAttribute("aria-current", "true");
    cells.addEventListener("click", (event) => {
      if (event.target.closest("input, .pick, .star, .pencil")) return;
      active = row.key;
      model.send({ kind: "recall", key: row.key });
    });
    return cells;
  }

  function sorted(rows) {
    const value = ORDERS[order.by];
    const known = rows.filter((row) => value(row) !== null && value(row) !== undefined);
    known.sort((a, b) => compare(value(a), value(b)) * (order.down ? -1 : 1));
    return [...known, ...rows.filter((row) => !known.includes(row))];
  }

  function keys() {
    return [...table.querySelectorAll("tbody tr[data-key]")].map((one) => one.dataset.key);
  }

  function focus(key, role) {
    const rows = [...table.querySelectorAll("tr[data-key]")];
    const row = rows.find((one) => one.dataset.key === key);
    const wanted = row && (row.querySelector(`[data-role="${role}"]`) ?? row.querySelector("[data-role=name]"));
    if (wanted) wanted.focus();
  }

  function show() {
    const rows = model.get("rows");
    const held = root.contains(document.activeElement) ? document.activeElement : null;
    const role = held && held.dataset.role;
    const key = held && held.closest("tr") && held.closest("tr").dataset.key;
    const caret = role === "field" ? [held.selectionStart, held.selectionEnd] : null;
    const scrolled = table.parentNode.scrollTop;
    if (editing && !rows.some((row) => row.key === editing.key)) editing = null;
    const always = rows.filter((row) => row.fixed);
    const own = sorted(rows.filter((row) => !row.fixed));
    if (!rows.some((row) => row.key === active)) active = rows.length ? [...always, ...own][0].key : "";
    const body = make("tbody", { class: "own" }, ...own.map(line));
    if (!own.length) {
      body.append(make("tr", {}, make("td", { class: "empty", colspan: 9 },
        "What you try is kept here: draw, and let the model answer.")));
    }
    drawing = true;
    table.replaceChildren(head(), make("tbody", { class: "always" }, ...always.map(line)), body);
    drawing = false;
    table.parentNode.scrollTop = scrolled;
    hint.replaceChildren(own.length ? HINT : "");
    if (role && role.startsWith("sort")) {
      const again = root.querySelector(`[data-role="${role}"]`);
      if (again) again.focus();
    } else if (role) {
      focus(key, role);
      const field = root.querySelector("[data-role=field]");
      if (caret && field) field.setSelectionRange(...caret);
    }
  }

  table.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-key]");
    if (!row || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    const all = keys();
    const next = all[all.indexOf(row.dataset.key) + (event.key === "ArrowUp" ? -1 : 1)];
    event.preventDefault();
    event.stopPropagation();
    if (next === undefined) return;
    const role = event.target.dataset.role;
    active = next;
    for (const one of table.querySelectorAll("tr[data-key]")) {
      const reach = one.dataset.key === active ? 0 : -1;
      for (const control of one.querySelectorAll("[data-role]")) control.tabIndex = reach;
    }
    focus(next, role);
  });

  const complain = () => problem.replaceChildren(model.get("problem"));
  const watched = ["rows", "texts", "current", "compared"];
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
