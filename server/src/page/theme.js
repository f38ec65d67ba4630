// Before anything is drawn: the colours that were chosen last, else those of the system.
(() => {
  const kept = localStorage.getItem("trefoil-theme");
  const dark = kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
