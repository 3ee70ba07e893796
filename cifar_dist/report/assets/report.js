// A run's page: its charts and tables, the images behind each count of the confusion matrix, reloading while the run goes on.
"use strict";

const FORMATS = {percent: formatPercent};
const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");

for (const [i, chart] of read("charts").entries()) {
  const {format, ...options} = chart;
  lineChart(document.querySelector(`[data-chart="${i}"]`), {...options, format: FORMATS[format] ?? formatNumber});
}
for (const table of document.querySelectorAll("table.sortable")) sortableTable(table);

const galleries = read("galleries");
let chosen = null;

// Decode a class's sprite, the first time it is asked for, as the background of its pictures.
function addSprite(trueClass) {
  const source = document.getElementById(`sprite-${trueClass}`);
  if (!source || source.dataset.decoded) return Boolean(source);
  makeElement("style", {}, document.head, `.sprite-${trueClass} { background-image: url(data:image/jpeg;base64,${source.textContent}); }`);
  source.dataset.decoded = "yes";
  return true;
}

function showCell(button) {
  chosen?.setAttribute("aria-pressed", "false");
  chosen = button;
  button.setAttribute("aria-pressed", "true");
  const [trueClass, predicted, count] = ["true", "predicted", "count"].map((name) => Number(button.dataset[name]));
  const {classes, images} = galleries, of = images[trueClass];
  const tiles = of.first.map((_, tile) => tile).filter((tile) => of.first[tile] === predicted);
  const panel = document.getElementById("cell");
  panel.hidden = false;
  panel.scrollTop = 0;
  panel.replaceChildren();
  const plural = count === 1 ? "image" : "images";
  const title = trueClass === predicted ? `${classes[trueClass]}, recognised` : `${classes[trueClass]}, taken for ${classes[predicted]}`;
  const some = tiles.length < count ? `the ${tiles.length} least certain of ${count}` : `${count} ${plural}`;
  makeElement("h3", {}, panel, `${title}: ${some}`);
  makeElement("p", {class: "muted"}, panel, "Under each: the probability the model gives the predicted class, and its second guess.");
  const grid = makeElement("div", {class: "thumbs"}, panel);
  const pictures = addSprite(trueClass);
  for (const tile of tiles) addThumb(grid, trueClass, tile, pictures);
}

function addThumb(grid, trueClass, tile, pictures) {
  const {split, columns, classes, images} = galleries, of = images[trueClass];
  const sure = `${(100 * of.confidence[tile]).toFixed(1)} %`, second = classes[of.second[tile]];
  const about = `${split} image ${of.places[tile]}: ${classes[trueClass]}, predicted ${classes[of.first[tile]]} with ${sure}; second guess ${second}`;
  const thumb = makeElement("figure", {class: "thumb", title: about, "data-place": of.places[tile]}, grid);
  const look = pictures ? `picture sprite-${trueClass}` : "picture missing";
  const place = `--columns:${columns};--column:${tile % columns};--row:${Math.floor(tile / columns)}`;
  makeElement("span", {class: look, role: "img", "aria-label": about, style: place}, thumb, pictures ? null : `#${of.places[tile]}`);
  makeElement("span", {}, thumb, sure);
  makeElement("small", {}, thumb, `or ${second}`);
}

document.querySelector(".matrix")?.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  showCell(button);
  document.getElementById("cell").scrollIntoView({block: "nearest"});
});

// Named only when looked at: a hundred classes have ten thousand cells.
document.querySelector(".matrix")?.addEventListener("pointerover", ({target}) => {
  if (target.tagName !== "BUTTON") return;
  const [trueClass, predicted] = [target.dataset.true, target.dataset.predicted].map((i) => galleries.classes[i]);
  target.title = `${trueClass}, predicted ${predicted}: ${target.dataset.count} of ${target.closest("tr").dataset.total}`;
});

document.getElementById("copy")?.addEventListener("click", async () => {
  const command = document.getElementById("command"), told = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(command.textContent);
    told.textContent = "copied";
  } catch { // a browser that gives pages from files no clipboard
    getSelection().selectAllChildren(command);
    told.textContent = "selected; press Ctrl-C";
  }
});

// While the run goes on the file is written anew: load it again, and come back to the same place.
const reloadSeconds = Number(document.body.dataset.reloadS ?? 0);
if (reloadSeconds) {
  const key = `place ${location.pathname}`;
  const kept = JSON.parse(sessionStorage.getItem(key) ?? "null");
  if (kept?.cell) document.querySelector(kept.cell)?.click();
  if (kept) scrollTo(0, kept.scroll);
  setTimeout(() => {
    const cell = chosen && `[data-true="${chosen.dataset.true}"][data-predicted="${chosen.dataset.predicted}"]`;
    sessionStorage.setItem(key, JSON.stringify({scroll: scrollY, cell}));
    location.reload();
  }, 1000 * reloadSeconds);
}
