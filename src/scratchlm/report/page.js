// Sort and filter the table of all answers. Without it, the table shows everything in the order of the test set.
"use strict";
const table = document.querySelector("#answers table");
if (table && table.tBodies[0].rows.length) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, index) => ({ row, index, text: row.textContent.toLowerCase() }));
  const filter = document.querySelector("#answers .filter");
  const [search, variant, range] = filter.querySelectorAll("input, select");
  const shown = filter.querySelector("output");
  const headings = [...table.tHead.rows[0].cells];

  const scoreOf = (row, column) => {
    const score = row.cells[column].dataset.score;
    return score === undefined || score === "" ? null : Number(score);
  };
  const inRange = {
    any: () => true,
    best: (score) => score === 100,
    middle: (score) => score !== null && score >= 50 && score < 100,
    low: (score) => score !== null && score < 50,
    none: (score) => score === null,
  };
  const apply = () => {
    const words = search.value.toLowerCase();
    let count = 0;
    for (const { row, text } of rows) {
      row.hidden = !(text.includes(words) && inRange[range.value](scoreOf(row, Number(variant.value))));
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${rows.length} tasks`;
  };
  const sort = (column) => {
    const up = headings[column].getAttribute("aria-sort") === "descending";
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = ({ row }) => scoreOf(row, column) ?? -1;
    const text = ({ row }) => row.cells[column].textContent;
    const order = "score" in rows[0].row.cells[column].dataset
      ? (a, b) => value(a) - value(b)
      : (a, b) => (text(b) < text(a)) - (text(a) < text(b));
    const sorted = [...rows].sort((a, b) => (up ? order(a, b) : order(b, a)) || a.index - b.index);
    body.append(...sorted.map(({ row }) => row));
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = `${heading.textContent} ↕`;
    button.setAttribute("aria-label", `Sort by ${heading.textContent}`);
    button.addEventListener("click", () => sort(column));
    heading.replaceChildren(button);
  });
  for (const control of [search, variant, range]) control.addEventListener("input", apply);
  filter.hidden = false;
  apply();
}
// A graph that is wider than the screen begins with its middle
for (const graph of document.querySelectorAll("#graph figure")) {
  graph.scrollLeft = (graph.scrollWidth - graph.clientWidth) / 2;
}
