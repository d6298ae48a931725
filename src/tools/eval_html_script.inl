// SPDX-License-Identifier: MIT
// Script of compact-eval's page, as a string literal: choosing, hiding, sorting, saving. Without it the page
// shows everything.
R"js(
"use strict";
const all = (query, root = document) => Array.from(root.querySelectorAll(query));
function choose() {
  for (const key of ["context", "ratio", "method"]) {
    const select = document.getElementById(key);
    if (!select) continue;
    for (const element of all(`[data-${key}]`))
      element.classList.toggle(`not-${key}`, select.value !== "all" && element.dataset[key] !== select.value);
  }
  for (const element of all("[data-context]")) element.hidden = /\bnot-/.test(element.className);
}
for (const select of all(".controls select")) select.addEventListener("change", choose);
choose();
for (const box of all("[data-toggle]"))
  box.addEventListener("change", () => {
    for (const part of all(`[data-series="${box.dataset.toggle}"]`)) part.classList.toggle("off", !box.checked);
  });
for (const button of all("th button"))
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex, up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th", heading.parentElement)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.v;
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const by = a.cells[column].className === "words"
        ? x.localeCompare(y, undefined, {numeric: true}) : Number(x) - Number(y);
      return up ? by : -by;
    };
    body.append(...Array.from(body.rows).sort(order));
  });
const link = document.getElementById("save");
link.href = URL.createObjectURL(new Blob([document.getElementById("data").textContent],
                                    {type: "application/json"}));
link.download = "compact-eval.json";
link.hidden = false;
)js"
