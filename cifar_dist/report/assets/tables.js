// Tables whose columns sort on a click.
"use strict";

// Give every heading of `table` a button that sorts the rows of its first body by that column; again, the other way round.
// A cell sorts by its data-value (a number; empty: last either way), else by its text. A heading with data-nosort stays as it is.
function sortableTable(table) {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headings.forEach((heading, column) => {
    if ("nosort" in heading.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction);
      sortRows(table.tBodies[0], column, direction === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, sign) {
  const keyed = [...body.rows].map((row) => ({row, key: sortKey(row.cells[column])}));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * compareKeys(a.key, b.key);
  });
  body.append(...keyed.map(({row}) => row));
}

function sortKey(cell) {
  if (!("value" in cell.dataset)) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function compareKeys(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
}
