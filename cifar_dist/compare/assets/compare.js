// The comparison's page: which configurations are drawn, and reading the page again while runs go on.
"use strict";

const FIRST = 12; // configurations drawn at first
const MEMORY = "cifar_dist compare"; // of this tab, so that reading the page again keeps the choice
const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1, ""]];

function formatLarge(value) {
  const [unit, prefix] = PREFIXES.find(([size]) => value >= size) ?? [1, ""];
  return `${Number((value / unit).toPrecision(3))} ${prefix}`.trim();
}

const X_AXES = {
  epoch: {xLabel: "epoch"},
  seconds: {xLabel: "seconds of training", logX: true},
  macs: {xLabel: "multiply-accumulates", formatX: formatLarge, logX: true},
};
const Y_AXES = {
  val_accuracy: {yLabel: "validation accuracy", format: formatPercent},
  val_loss: {yLabel: "validation loss", logY: true},
  train_loss: {yLabel: "training loss", logY: true},
};

const groups = JSON.parse(document.getElementById("curves").textContent);
const chips = [...document.querySelectorAll("#chips [data-group]")];
const single = document.getElementById("single");
const live = document.getElementById("live");

const lookOf = (index) => ({color: `var(--series-${index % COLOURS})`, dash: DASHES[index % DASHES.length]});
const isShown = (index) => chips[index].getAttribute("aria-pressed") === "true";

function paintLooks() {
  for (const sample of document.querySelectorAll("[data-look]")) {
    const {color, dash} = lookOf(Number(sample.dataset.look));
    sample.firstElementChild.setAttribute("style", `stroke:${color};stroke-dasharray:${dash || "none"}`);
  }
}

function pointsOf(curve, group, x, y) {
  const across = x === "macs" ? curve.samples.map((count) => count * group.macs_per_sample) : curve[x];
  const pairs = across.map((value, i) => [value, curve[y][i]]);
  return pairs.filter(([value]) => value !== null && (x === "epoch" || value > 0));
}

function seriesOf(index, x, y) {
  const group = groups[index], look = {...lookOf(index), group: String(index)};
  if (x === "macs" && group.macs_per_sample === null) return [];
  const lines = [];
  if (group.mean.epoch.length) lines.push({...look, name: group.label, points: pointsOf(group.mean, group, x, y)});
  for (const run of group.runs) {
    const thin = group.mean.epoch.length > 0;
    if (thin && !single.checked && run.status !== "running") continue;
    const name = run.status === "finished" ? run.name : `${run.name} (${run.status})`;
    lines.push({...look, name, thin, points: pointsOf(run, group, x, y)});
  }
  return lines.filter((line) => line.points.some(([, value]) => value !== null));
}

function draw() {
  for (const element of document.querySelectorAll(".charts [data-x]")) {
    const {x, y} = element.dataset;
    const series = groups.flatMap((_, index) => (isShown(index) ? seriesOf(index, x, y) : []));
    lineChart(element, {series, ...X_AXES[x], ...Y_AXES[y]});
  }
}

function show(wanted) {
  chips.forEach((chip, index) => chip.setAttribute("aria-pressed", String(wanted(index))));
  remember();
  draw();
}

// A page shown within another one may not be allowed to remember anything.
function memory(text) {
  try {
    if (text !== undefined) sessionStorage.setItem(MEMORY, text);
    return JSON.parse(sessionStorage.getItem(MEMORY));
  } catch {
    return null;
  }
}

function remember() {
  const hidden = groups.filter((_, index) => !isShown(index)).map((group) => group.label);
  memory(JSON.stringify({hidden, single: single.checked, live: !live || live.checked}));
}

function recall() {
  const choice = memory();
  if (!choice) return;
  single.checked = choice.single;
  if (live) live.checked = choice.live;
  chips.forEach((chip, index) => chip.setAttribute("aria-pressed", String(!choice.hidden.includes(groups[index].label))));
}

paintLooks();
recall();
chips.forEach((chip, index) => chip.addEventListener("click", () => show((other) => isShown(other) !== (other === index))));
single.addEventListener("change", () => show(isShown));
live?.addEventListener("change", remember);
for (const button of document.querySelectorAll("#chips [data-show]")) {
  const wanted = {all: () => true, none: () => false, [FIRST]: (index) => index < FIRST}[button.dataset.show];
  button.addEventListener("click", () => show(wanted));
}
document.querySelectorAll("table.sortable").forEach(sortableTable);
draw();
if (live) setInterval(() => live.checked && location.reload(), 1000 * Number(document.body.dataset.reload));
