"use strict";
// Texts of the data enter the page by textContent, and plots only through `literal`.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const rounded = (value) =>
  typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value;
const titleOf = (run) => {
  const words = ["Optimizer", "Batch", "Setting"].map((heading) => run.cells[heading]?.[0]);
  return `${words.filter(Boolean).join(" ")} seed ${run.cells.Seed[0]}`;
};
// plotly interprets tags in its texts, such as <b> and <a>, and dollar signs as a formula.
const codes = { "&": "&amp;", "<": "&lt;", "$": "&#36;" };
const literal = (text) => String(text).replace(/[&<$]/g, (sign) => codes[sign]);
const pairsOf = (run) => Object.entries(run.choices).map(([key, value]) => `${key}=${shown(value)}`);
// A plot of more points than this has no markers, which take long to draw.
const MOST_MARKERS = 2000;
const opened = new Set();
let compared = [];
let visible = data.runs;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const texts = (tag, list, properties = {}) =>
  list.map((textContent) => element(tag, { textContent, ...properties }));

// A column of numbers is aligned right, with its heading and its empty cells.
for (const entries of [data.rows, data.runs]) {
  const isNumeric = (heading) => entries.some((e) => typeof e.cells[heading][1] === "number");
  const numeric = new Set(Object.keys(entries[0].cells).filter(isNumeric));
  entries.forEach((entry) => (entry.numeric = numeric));
}

function cellElements(entry) {
  return Object.entries(entry.cells).map(([heading, [text]]) =>
    element("td", { textContent: text, className: entry.numeric.has(heading) ? "number" : "" }));
}

// Entries without a value come last in both directions.
function inOrder(heading, direction) {
  const value = (entry) => entry.cells[heading][1];
  return (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * (typeof a === "string" ? a.localeCompare(b) : a - b);
  };
}

// Makes a table whose headings sort it; returns a function that fills it with the visible entries.
function sortable(table, entries, isVisible, lines, first = []) {
  const body = element("tbody");
  let order = null;
  const heads = Object.keys(entries[0].cells).map((heading) => {
    const className = entries[0].numeric.has(heading) ? "number" : "";
    const button = element("button", { textContent: heading });
    const cell = element("th", { scope: "col", className }, button);
    cell.onclick = () => {
      const direction = cell.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      cell.ariaSort = direction > 0 ? "ascending" : "descending";
      order = inOrder(heading, direction);
      fill();
    };
    return cell;
  });
  const fill = () => {
    const found = entries.filter(isVisible);
    body.replaceChildren(...(order ? found.sort(order) : found).flatMap(lines));
  };
  table.append(element("thead", {}, element("tr", {}, ...texts("th", first), ...heads)), body);
  return fill;
}

function runLines(run) {
  const box = element("input", { type: "checkbox", checked: compared.includes(run) });
  box.ariaLabel = `compare ${run.name}`;
  box.onchange = () => {
    compared = compared.filter((other) => other !== run);
    if (box.checked) compared = [...compared, run].slice(-2);
    fillRuns();
    fillComparison();
  };
  const button = element("button", { textContent: run.name, className: "name" });
  button.ariaExpanded = String(opened.has(run));
  button.onclick = () => {
    if (!opened.delete(run)) opened.add(run);
    fillRuns();
  };
  const cells = cellElements(run);
  cells[Object.keys(run.cells).indexOf("Run")].replaceChildren(button);
  const line = element("tr", {}, element("td", {}, box), ...cells);
  if (!opened.has(run)) return [line];
  const content = [
    ...texts("pre", [run.facts.command ?? "no command is recorded"]),
    ...texts("p", run.facts.error ? [run.facts.error] : [], { className: "error" }),
    element("ul", {}, ...texts("li", pairsOf(run))),
  ];
  const wide = element("td", { colSpan: cells.length + 1 }, ...content);
  return [line, element("tr", { className: "details" }, wide)];
}

function fillComparison() {
  at("compared").hidden = compared.length < 2;
  at("hint").hidden = compared.length === 2;
  if (compared.length < 2) return;
  const parts = (name) => compared.map((run) => run[name]);
  compared.forEach((run, place) => (at(["first", "second"][place]).textContent = titleOf(run)));
  const pairs = ["choices", "facts"].flatMap((part) => {
    const keys = parts(part).flatMap(Object.keys);
    return [...new Set(keys)].map((key) => [key, parts(part)]);
  });
  const lines = pairs.map(([key, both]) => {
    const [left, right] = both.map((values) => (key in values ? shown(rounded(values[key])) : ""));
    const differs = left !== right;
    const cells = texts("td", [differs ? "≠" : "", key, left, right]);
    return element("tr", { className: differs ? "differs" : "same" }, ...cells);
  });
  at("comparison").replaceChildren(...lines);
}

const drawings = [];
// The browser may answer a click between two plots.
const drawAll = () => drawings.forEach((draw) => setTimeout(draw));

// Adds a section with a plot, which is drawn again when the filter or the page's colors change.
function plot(title, id, content, ...before) {
  const place = element("div", { className: "plot", id });
  at("plots").append(element("section", {}, ...texts("h2", [title]), ...before, place));
  drawings.push(() => {
    const color = (name) => getComputedStyle(document.body).getPropertyValue(name);
    const { traces, x, y } = content();
    // On a phone each entry of the legend has a line.
    const listed = traces.filter((trace) => trace.showlegend !== false).length;
    place.style.height = `${440 + (place.clientWidth < 600 ? 20 * listed : 0)}px`;
    const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), automargin: true };
    const layout = {
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "closest",
      font: { color: color("--text"), family: getComputedStyle(document.body).fontFamily },
      margin: { l: 8, r: 8, t: 8, b: 8 }, xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y },
      hoverlabel: { bgcolor: color("--page"), font: { color: color("--text") }, namelength: 0 },
      showlegend: listed > 0, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    };
    const made = traces.map(({ color: shade, dash, size, ...trace }) => ({
      hoverinfo: "text", ...trace, name: literal(trace.name), hovertext: trace.hovertext.map(literal),
      line: { color: shade, dash, width: 1.6 },
      marker: { color: shade, size: size ?? 7, symbol: trace.symbol },
    }));
    Plotly.react(place, made, layout, {
      responsive: true, displaylogo: false, showTips: false,
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    });
  });
}

function selection(parent, label, names) {
  const list = element("select", { onchange: drawAll }, ...texts("option", names));
  if (names.length > 1) parent.append(element("label", {}, `${label} `, list));
  return list;
}

// Joins the lines [x, y, text] into one trace, with a gap after each of them.
function joined(lines) {
  const ended = (place, end) => lines.flatMap((line) => [...line.map((point) => point[place]), end]);
  return { x: ended(0, null), y: ended(1, null), hovertext: ended(2, "") };
}

// Returns traces of each series that has points; lines of one series share a look.
function seriesTraces(tracesOf) {
  return data.series.flatMap((look, series) =>
    tracesOf((row) => data.rows[row].series === series)
      .filter((trace) => trace.x.length)
      .map((trace) => ({ ...look, legendgroup: String(series), ...trace })));
}

function accuracies() {
  const rows = new Set(visible.map((run) => run.row));
  const traces = seriesTraces((isMember) => {
    const lines = data.lines
      .map((line) => line.filter((row) => isMember(row) && rows.has(row)))
      .map((line) => line.map((row) => data.rows[row]).filter((row) => row.accuracy !== null))
      .filter((line) => line.length);
    const means = lines.map((line) => line.map((row) => {
      const words = ["Optimizer", "Batch", "Setting"].map((name) => row.cells[name]?.[0]);
      const text = `${words.filter(Boolean).join(" ")}: ${row.cells["top-1 Accuracy, %"][0]}`;
      return [row.batch, row.accuracy, text];
    }));
    const array = lines.flatMap((line) => [...line.map((row) => row.spread), 0]);
    const dots = visible.filter((run) => isMember(run.row) && run.accuracy !== null).map((run) =>
      [data.rows[run.row].batch, run.accuracy, `${titleOf(run)}: ${run.accuracy.toFixed(2)} %`]);
    return [
      { ...joined(means), mode: "lines+markers", error_y: { array, width: 3, thickness: 1 } },
      { ...joined(dots.map((dot) => [dot])), mode: "markers", symbol: "circle-open", size: 6,
        showlegend: false },
    ];
  });
  const tickvals = [...new Set(data.rows.map((row) => row.batch))];
  const x = { type: "log", title: { text: "Batch" }, tickvals, ticktext: tickvals.map(String) };
  return { traces, x, y: { title: { text: "Final accuracy, %" } } };
}

function curves(key) {
  const isAccuracy = key.endsWith("accuracy");
  const written = (value) => (isAccuracy ? `${value.toFixed(2)} %` : value.toPrecision(4));
  const points = visible.reduce((sum, run) => sum + (run.curves[key]?.[0].length ?? 0), 0);
  const mode = points > MOST_MARKERS ? "lines" : "lines+markers";
  const traces = seriesTraces((isMember) => {
    const runs = visible.filter((run) => isMember(run.row) && run.curves[key]);
    const lines = runs.map((run) => {
      const [epochs, values] = run.curves[key];
      return epochs.map((epoch, place) =>
        [epoch, values[place], `${titleOf(run)}, epoch ${epoch}: ${written(values[place])}`]);
    });
    return [{ ...joined(lines), mode, size: 3 }];
  });
  const title = { text: isAccuracy ? `${named(key)}, %` : named(key) };
  // A run that is about to diverge would flatten all other losses on a linear axis.
  const type = isAccuracy ? "linear" : "log";
  return { traces, x: { title: { text: "Epoch" } }, y: { title, type } };
}

const named = (key) =>
  (key[0].toUpperCase() + key.slice(1)).replace("Holdout", "Hold-out").replace("_", " ");

if (data.rows.some((row) => row.accuracy !== null))
  plot("Accuracy against batch", "accuracies", accuracies);
for (const kind of ["accuracy", "loss"]) {
  const keys = data.curves.filter((key) => key.endsWith(kind));
  if (!keys.length) continue;
  const choice = element("p");
  const list = selection(choice, "Show", keys.map(named));
  const title = kind === "loss" ? "Loss by epoch" : "Accuracy by epoch";
  plot(title, kind, () => curves(keys[list.selectedIndex]), choice);
}
for (const [title, plots] of Object.entries(data.sections)) {
  const [choice, about] = [element("p"), element("div", { className: "note" })];
  const list = selection(choice, "Show", Object.keys(plots));
  plot(title, title, () => {
    const content = Object.values(plots)[list.selectedIndex];
    about.replaceChildren(...texts("p", content.texts));
    return content;
  }, choice, about);
}
for (const group of data.groups) {
  at("answers").append(...texts("h2", data.groups.length > 1 ? [group.name] : []), ...texts("p", group.answers));
  at("answers").append(...texts("p", [group.notes], { className: "note" }));
}
const fillRows = sortable(at("rows"), data.rows,
  (row) => visible.some((run) => data.rows[run.row] === row),
  (row) => [element("tr", {}, ...cellElements(row))]);
const fillRuns =
  sortable(at("runs"), data.runs, (run) => visible.includes(run), runLines, ["Compare"]);
for (const run of data.runs) {
  const cells = [...Object.values(data.rows[run.row].cells), ...Object.values(run.cells)];
  run.text = cells.map(([text]) => text).join(" ").toLowerCase();
  run.pairs = pairsOf(run).map((pair) => pair.toLowerCase().replace(".name=", "="));
}

// A word such as `batch=128` is a whole choice, since every run has 128 in some key.
function matches(run, word) {
  if (!word.includes("=")) return run.text.includes(word);
  return run.pairs.some((pair) => pair === word || pair.endsWith(`.${word}`));
}

function filter() {
  const words = at("filter").value.toLowerCase().split(/\s+/);
  visible = data.runs.filter((run) => words.every((word) => matches(run, word)));
  at("count").textContent =
    `${visible.length} of ${data.runs.length} runs${visible.length ? "" : ": no run matches"}`;
  fillRows();
  fillRuns();
  if (window.Plotly) drawAll();
}
at("filter").oninput = () => {
  clearTimeout(filter.waiting);
  filter.waiting = setTimeout(filter, 150);
};
const markDiffering = () =>
  at("compared").classList.toggle("differing", at("differing").checked);
at("differing").onchange = markDiffering;
markDiffering();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
fillComparison();
filter();
// plotly's script comes last, so that the tables are shown before it is read.
addEventListener("load", drawAll);
