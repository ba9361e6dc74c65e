"use strict";
const table = document.getElementById("runs"), body = table.tBodies[0];
const lines = [...body.rows], controls = [...document.querySelectorAll("#filters [data-filter]")];
const value = (line, column) => line.cells[column].dataset.v ?? line.cells[column].textContent.trim();

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // nothing comes last, whichever the order
  const both = !isNaN(a) && !isNaN(b);
  return both ? a - b : a.localeCompare(b, undefined, {numeric: true});
}

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement, column = header.cellIndex;
    const sign = header.ariaSort === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    lines.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return compare(x, y) * (x === "" || y === "" ? 1 : sign);
    });
    body.append(...lines);
  });
}

function filter() {
  for (const line of lines) {
    line.hidden = !controls.every(({dataset, value: wanted}) => wanted === "" || (dataset.filter === "text"
      ? wanted.toLowerCase().split(/\s+/).every((word) => line.textContent.toLowerCase().includes(word))
      : line.dataset[dataset.filter] === wanted));
  }
  const shown = lines.filter((line) => !line.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${lines.length} lines`;
}

for (const control of controls) control.addEventListener("input", filter);
document.getElementById("filters").addEventListener("reset", () => setTimeout(filter));
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
filter();
