// On a narrow screen, a table that does not fit becomes a list: each cell with the heading of its column.
function stackWideTables() {
  for (const table of document.querySelectorAll(".bd-article table")) {
    const headings = [...(table.tHead?.rows ?? [])].at(-1)?.cells ?? [];
    for (const row of table.tBodies[0]?.rows ?? []) {
      [...row.cells].forEach((cell, column) => {
        cell.dataset.heading = headings[column]?.textContent.trim() ?? "";
      });
    }
    table.classList.remove("stacked");
    if (window.innerWidth <= 600 && table.scrollWidth > table.parentElement.clientWidth + 1) {
      table.classList.add("stacked");
    }
  }
}
document.addEventListener("DOMContentLoaded", stackWideTables);
window.addEventListener("resize", stackWideTables);
