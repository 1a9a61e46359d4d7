"use strict";
const form = document.querySelector("form");
const text = document.getElementById("text");
const benchmark = document.getElementById("benchmark");
const boxes = [...form.querySelectorAll('input[name="run"]')];
const about = [...document.querySelectorAll("[data-runs]")].map((node) => ({
  node,
  runs: node.dataset.runs.split(" ").map(Number),
}));

function filter() {
  const sought = text.value.trim().toLowerCase();
  const shown = new Set();
  for (const box of boxes) {
    const fits = box.dataset.name.toLowerCase().includes(sought)
      && (benchmark.value === "" || box.dataset.benchmark === benchmark.value);
    box.closest("label").hidden = !fits;
    if (fits && box.checked) shown.add(Number(box.value));
  }
  for (const { node, runs } of about) {
    node.toggleAttribute("hidden", !runs.some((run) => shown.has(run)));
  }
  document.getElementById("shown").textContent = shown.size === boxes.length
    ? `${boxes.length} ${boxes.length === 1 ? "run" : "runs"}`
    : `${shown.size} of ${boxes.length} runs shown`;
}

// Figures by their number, texts by the alphabet; what has none comes last, either way.
function sort(button) {
  const header = button.closest("th");
  const table = header.closest("table");
  const down = header.getAttribute("aria-sort") === "descending";
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "ascending" : "descending");
  const place = [...header.parentNode.children].indexOf(header);
  const sign = down ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[place];
    const value = cell.dataset.value;
    return { row, value: value === undefined ? null : Number(value), text: cell.textContent };
  });
  const missing = (item) => item.row.className === "majority" ? 2
    : item.value === null && item.text === "-" ? 1 : 0;
  rows.sort((one, other) =>
    missing(one) - missing(other)
    || (one.value !== null && other.value !== null
      ? sign * (one.value - other.value)
      : sign * one.text.localeCompare(other.text, undefined, { numeric: true })));
  table.tBodies[0].append(...rows.map((item) => item.row));
}

form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
document.addEventListener("click", (event) => {
  const button = event.target.closest("thead button");
  if (button) sort(button);
  const choose = document.getElementById("choose");
  if (choose.open && !choose.contains(event.target)) choose.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    document.getElementById("choose").open = false;
    if (typing) event.target.blur();
    else form.reset();
  } else if (!typing && event.key === "/") {
    event.preventDefault();
    text.select();
  }
});
const header = document.querySelector("header");
new ResizeObserver(() =>
  document.documentElement.style.setProperty("--bar", `${header.offsetHeight}px`),
).observe(header);
filter();
