// What all pages of the book need beside the theme's own script.
addEventListener("DOMContentLoaded", () => {
  const { body } = document;
  const system = matchMedia("(prefers-color-scheme: dark)");

  // labkit's widgets follow JupyterLab's theme by this attribute; here it follows the book's.
  function follow() {
    const { theme } = body.dataset;
    body.dataset.jpThemeLight = String(!(theme === "dark" || (theme !== "light" && system.matches)));
  }
  follow();
  new MutationObserver(follow).observe(body, { attributeFilter: ["data-theme"] });
  system.addEventListener("change", follow);

  // What is wider than its place is scrolled with the keyboard too.
  for (const node of document.querySelectorAll("pre, .formula, .cell_output, .table-wrapper")) {
    if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
  }
  // The captions of the margin are headings of no level.
  for (const node of document.querySelectorAll("p.caption[role=heading]")) node.ariaLevel = "2";
});
