// What GradientEditor and Matrix share: how weights reach Python, undo, buttons, and the page around.

const SEND_EVERY = 50; // ms between two messages to Python while a hand is moving
const LONGEST_HISTORY = 300;

// The first change goes at once, later ones at most every SEND_EVERY ms, the last one always.
function createSender(send) {
  let timer = null;
  let waiting = false;
  let last = -Infinity;

  function go() {
    waiting = false;
    last = performance.now();
    send();
  }

  return {
    get waiting() {
      return waiting;
    },
    queue() {
      waiting = true;
      if (timer !== null) return;
      timer = setTimeout(() => {
        timer = null;
        if (waiting) go();
      }, Math.max(0, last + SEND_EVERY - performance.now()));
    },
    flush() {
      clearTimeout(timer);
      timer = null;
      if (waiting) go();
    },
    forget() {
      waiting = false;
    },
  };
}

// What was there before each step; the weights are in force, and not in here.
function createHistory() {
  const past = [];
  const future = [];

  return {
    get canUndo() {
      return past.length > 0;
    },
    get canRedo() {
      return future.length > 0;
    },
    get depth() {
      return past.length;
    },
    add(weights) {
      past.push(weights);
      if (past.length > LONGEST_HISTORY) past.shift();
      future.length = 0;
    },
    // The last step, if it turned out to be none.
    forgetLast(isNone) {
      if (past.length && isNone(past.at(-1))) past.pop();
    },
    cut(depth) {
      past.length = Math.min(past.length, depth);
    },
    undo: (weights) => step(past, future, weights),
    redo: (weights) => step(future, past, weights),
  };

  function step(from, to, weights) {
    if (from.length) to.push(weights);
    return from.pop();
  }
}

function createButton(label, title, action) {
  const made = make("button", { type: "button", title, "aria-label": title }, label);
  made.addEventListener("click", action);
  return made;
}

function createHelp(title, ...pairs) {
  const lines = pairs.flatMap(([key, what]) => [make("dt", {}, key), make("dd", {}, what)]);
  return make("details", { class: "help" }, make("summary", {}, title), make("dl", {}, ...lines));
}

// OWN_KEYS takes Ctrl+S and its like away as well, so they are handed to the cell around us.
function handKeysToCell(root) {
  root.addEventListener("keydown", (event) => {
    const command = (event.ctrlKey || event.metaKey) && !/^[zyacvx]$/i.test(event.key);
    const cell = root.closest(".jp-Cell");
    if (!cell || !command || event.defaultPrevented || event.key.length > 1) return;
    event.preventDefault();
    event.stopPropagation();
    cell.dispatchEvent(new KeyboardEvent("keydown", event));
  });
}

// The widgets of a kernel that ended stay on the page, and another kernel knows nothing of them.
// Returns the function that stops watching.
function watchKernel(model, root, lost, doing) {
  const ends = new Set(["restarting", "autorestarting", "terminating", "dead"]);
  function changed(_, status) {
    if (!ends.has(status)) return;
    lost.textContent =
      `Not connected: the kernel ended. What you ${doing} here goes nowhere; run the cell again.`;
    root.classList.add("cut-off");
  }
  const kernel = model.widget_manager?.kernel;
  kernel?.statusChanged?.connect(changed);
  return () => kernel?.statusChanged?.disconnect(changed);
}
