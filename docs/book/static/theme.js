// labkit's widgets follow JupyterLab's theme by this attribute; here it follows the book's.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  function follow() {
    const chosen = document.body.dataset.theme;
    const dark = chosen === "dark" || (chosen !== "light" && system.matches);
    document.body.dataset.jpThemeLight = String(!dark);
  }
  document.addEventListener("DOMContentLoaded", () => {
    follow();
    new MutationObserver(follow).observe(document.body, { attributeFilter: ["data-theme"] });
    system.addEventListener("change", follow);
  });
})();
