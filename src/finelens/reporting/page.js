"use strict";
// Tables are whole without this script; with it they come in pages. Texts enter the page as text, never as markup.

function pager(place, pages, show) {
  let page = 0;
  const back = document.createElement("button"), on = document.createElement("button"), where = document.createElement("span");
  back.type = on.type = "button";
  back.textContent = "Back";
  on.textContent = "Next";
  where.setAttribute("aria-live", "polite");
  function go(to) {
    page = Math.max(0, Math.min(to, pages() - 1));
    back.disabled = page === 0;
    on.disabled = page >= pages() - 1;
    where.textContent = "page " + (page + 1) + " of " + Math.max(1, pages());
    place.hidden = pages() < 2;
    show(page);
  }
  back.addEventListener("click", () => go(page - 1));
  on.addEventListener("click", () => go(page + 1));
  place.append(back, on, where);
  go(0);
  return go;
}

for (const table of document.querySelectorAll("table[data-page]")) {
  const size = Number(table.dataset.page), rows = [...table.tBodies[0].rows];
  if (rows.length <= size) continue;
  const place = document.createElement("div");
  place.className = "pager";
  table.parentElement.after(place);
  pager(place, () => Math.ceil(rows.length / size), (page) => {
    rows.forEach((row, i) => { row.hidden = i < page * size || i >= (page + 1) * size; });
  });
}

function allImages() {
  const source = document.getElementById("table-data");
  if (!source) return;
  const { classes, statuses, rows } = JSON.parse(source.textContent), size = 25;
  const body = document.getElementById("rows"), find = document.getElementById("q");
  const order = document.getElementById("order"), changed = document.getElementById("changed");
  let shown = rows;
  function cell(row, kind, text, right) {
    const made = document.createElement(kind);
    if (kind === "th") made.scope = "row";
    if (right) made.className = "r";
    const isolated = document.createElement("bdi");
    isolated.textContent = text;
    made.append(isolated);
    row.append(made);
  }
  function show(page) {
    body.replaceChildren(...shown.slice(page * size, (page + 1) * size).map(([path, label, probability, margin, first, status]) => {
      const row = document.createElement("tr");
      cell(row, "th", path);
      cell(row, "td", label < 0 ? statuses[status] : classes[label]);
      cell(row, "td", label < 0 ? "" : (probability / 10).toFixed(1) + "%", true);
      cell(row, "td", label < 0 ? "" : (margin / 10).toFixed(1) + "%", true);
      cell(row, "td", first < 0 || first === label ? "" : classes[first]);
      return row;
    }));
  }
  document.getElementById("table-place").hidden = false;
  const go = pager(document.getElementById("pager"), () => Math.ceil(shown.length / size), show);
  function refresh() {
    const text = find.value.toLowerCase();
    const names = classes.map((name) => name.toLowerCase().includes(text));
    shown = rows.filter((row) => (!text || row[0].toLowerCase().includes(text) || names[row[1]]) && (!changed.checked || (row[1] >= 0 && row[1] !== row[4])));
    if (order.value !== "path") {
      const sign = order.value === "sure" ? -1 : 1;
      shown = shown.filter((row) => row[1] >= 0).sort((a, b) => sign * (a[3] - b[3]));
    }
    go(0);
  }
  for (const control of [find, order, changed]) control.addEventListener("input", refresh);
}
allImages();

addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
