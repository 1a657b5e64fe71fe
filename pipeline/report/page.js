"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], text = (row, column) => row.cells[column].firstChild?.textContent.trim() ?? "";
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [text(row, column), row]);
      const key = (value) => (value === "-" ? -Infinity : Number(value.replaceAll(",", "")));
      const numbers = rows.every(([value]) => !Number.isNaN(key(value)));
      rows.sort(([a], [b]) => (numbers ? key(a) - key(b) : a.localeCompare(b)) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
document.getElementById("filter")?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelector("table.filtered").tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
});
