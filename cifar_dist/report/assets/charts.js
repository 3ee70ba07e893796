// Line charts in SVG: axes, a legend that hides and shows lines, values under the pointer.
"use strict";

const COLOURS = 7; // --series-0 ... --series-6 of the style sheet
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "14 4", "5 2 2 2 2 2"]; // 6 and 7 have no common factor: 42 looks
const MARGIN = {top: 12, right: 14, bottom: 40, left: 62};
const REACH = 6; // pixels within which a series' point belongs to the x under the pointer
const TOOLTIP_ROWS = 12;

function formatNumber(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

const formatPercent = (share) => `${(100 * share).toFixed(2)} %`;

// 22.50 % -> 22.5 %, 20.00 % -> 20 %
function withoutZeros(text) {
  return text.replace(/(\.\d*?)0+(?=\D*$)/, "$1").replace(/\.(?=\D*$)/, "");
}

function makeElement(name, attributes = {}, parent = null, text = null) {
  const element = document.createElement(name);
  return setUp(element, attributes, parent, text);
}

function makeSvg(name, attributes = {}, parent = null, text = null) {
  return setUp(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, parent, text);
}

// Of a label in the axes' font, roughly, in pixels.
const widthOf = (text) => 7 * String(text).length;

function setUp(element, attributes, parent, text) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function niceTicks(low, high, count, whole = false) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  if (whole) step = Math.max(1, step === 2.5 ? 5 : step);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({length: Math.max(0, last - first + 1)}, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high, count) {
  const ticks = [];
  const factors = Math.log10(high / low) > count ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) ticks.push(Number(`${factor}e${power}`));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 1 ? inside : niceTicks(low, high, count);
}

// The series of one group look alike; others differ in both colour and dashes.
function withLooks(series) {
  const looks = new Map();
  return series.map((one, i) => {
    const key = one.group ?? `\u0000${i}`;
    if (!looks.has(key)) looks.set(key, looks.size);
    const look = looks.get(key);
    return {
      ...one,
      color: one.color ?? `var(--series-${look % COLOURS})`,
      dash: one.dash ?? DASHES[look % DASHES.length],
      points: one.points.filter(([x, y]) => Number.isFinite(x) && (y === null || Number.isFinite(y))),
      hidden: false,
    };
  });
}

class LineChart {
  constructor(element, {series, xLabel = "", yLabel = "", format = formatNumber, formatX = formatNumber,
                        hlines = [], vlines = [], logX = false, logY = false}) {
    Object.assign(this, {xLabel, yLabel, format, formatX, hlines, vlines, logX, logY, series: withLooks(series)});
    for (const one of this.series) one.points = one.points.filter(([x, y]) => (!logX || x > 0) && (!logY || y === null || y > 0));
    this.main = this.series.filter((one) => !one.thin); // thin ones have no button and no row in the tooltip
    this.many = this.main.length > COLOURS;
    element.replaceChildren();
    element.classList.add("chart");
    this.plot = makeElement("div", {class: "chart-plot"}, element);
    this.svg = makeSvg("svg", {tabindex: 0, role: "img", "aria-label": `${yLabel} by ${xLabel}; arrow keys read values`}, this.plot);
    this.tooltip = makeElement("div", {class: "chart-tooltip", role: "status", hidden: ""}, this.plot);
    this.buttons = [];
    this.legend = makeElement("div", {class: "chart-legend"}, element);
    if (this.main.length !== 1 || this.main[0].name !== yLabel) this.fillLegend();
    this.svg.addEventListener("pointermove", (event) => this.follow(event));
    this.svg.addEventListener("pointerdown", (event) => this.follow(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.walk(event));
    this.draw();
    new ResizeObserver(() => this.plot.clientWidth !== this.width && this.draw()).observe(this.plot);
  }

  fillLegend() {
    this.buttons = this.main.map((one) => {
      const button = makeElement("button", {type: "button", "aria-pressed": "true"}, this.legend);
      const sample = makeSvg("svg", {width: 26, height: 10, "aria-hidden": "true"}, button);
      makeSvg("line", {x1: 0, x2: 26, y1: 5, y2: 5, style: `stroke:${one.color}`, "stroke-dasharray": one.dash}, sample);
      button.append(one.name);
      button.addEventListener("click", () => this.toggle([one], !one.hidden));
      return button;
    });
    if (this.many) {
      const all = makeElement("button", {type: "button", class: "chart-all"}, null, "all / none");
      all.addEventListener("click", () => this.toggle(this.main, this.main.every((one) => !one.hidden)));
      this.legend.prepend(all);
    }
  }

  toggle(some, hidden) {
    for (const one of some) {
      one.hidden = hidden;
      this.buttons[this.main.indexOf(one)]?.setAttribute("aria-pressed", String(!hidden));
      for (const other of this.series) if (other.thin && other.group === one.group) other.hidden = hidden;
    }
    this.draw();
  }

  // What is drawn: [x, y] of all visible points; all series' where none is visible, so that the axes stay.
  visible() {
    const shown = this.series.filter((one) => !one.hidden);
    return (shown.length ? shown : this.series).flatMap((one) => one.points).filter(([, y]) => y !== null);
  }

  setScales() {
    this.width = this.plot.clientWidth || 640;
    this.height = Math.round(Math.min(320, Math.max(210, 0.55 * this.width)));
    const points = this.visible();
    const across = points.map(([x]) => x), up = points.map(([, y]) => y);
    this.empty = points.length === 0;
    this.wholeX = across.every(Number.isInteger) || (this.xLabel === "epoch" && Math.max(...across) - Math.min(...across) >= 2);
    [this.left, this.right] = this.empty ? [0.1, 1] : spread(across, 0, this.logX);
    [this.low, this.high] = this.empty ? [0.1, 1] : spread([...up, ...this.hlines.map((line) => line.y)], 0.04, this.logY);
    const rows = (this.height - 50) / 45;
    this.rows = (this.logY ? logTicks(this.low, this.high, rows) : niceTicks(this.low, this.high, rows))
      .map((tick) => [tick, withoutZeros(this.format(tick))]);
    this.inset = Math.max(MARGIN.left, 28 + Math.max(0, ...this.rows.map(([, text]) => widthOf(text))));
    this.x = makeScale(this.left, this.right, this.inset, this.width - MARGIN.right, this.logX);
    this.y = makeScale(this.low, this.high, this.height - MARGIN.bottom, MARGIN.top, this.logY);
  }

  draw() {
    this.setScales();
    this.svg.replaceChildren();
    setUp(this.svg, {width: this.width, height: this.height, viewBox: `0 0 ${this.width} ${this.height}`}, null, null);
    this.drawAxes();
    for (const line of this.hlines) this.drawMark(line.label, {x1: this.inset, x2: this.width - MARGIN.right, y1: this.y(line.y), y2: this.y(line.y)});
    for (const line of this.vlines) this.drawMark(line.label, {x1: this.x(line.x), x2: this.x(line.x), y1: MARGIN.top, y2: this.height - MARGIN.bottom});
    for (const one of this.series) one.node = one.hidden ? null : this.drawLine(one);
    this.cross = makeSvg("g", {class: "chart-cross"}, this.svg);
    if (this.empty) makeSvg("text", {x: this.width / 2, y: this.height / 2, "text-anchor": "middle"}, this.svg, "no values yet");
    this.leave();
  }

  // The values that the x axis names: as many as stand beside each other without touching.
  columns() {
    let ticks = [];
    for (let count = Math.floor(Math.min(10, this.width / 80)); count > 0; count--) {
      ticks = this.logX ? logTicks(this.left, this.right, count) : niceTicks(this.left, this.right, count, this.wholeX);
      const ends = ticks.map((tick) => [this.x(tick) - widthOf(this.formatX(tick)) / 2, this.x(tick) + widthOf(this.formatX(tick)) / 2]);
      if (ends.every(([begin], i) => i === 0 || begin > ends[i - 1][1] + 6)) return ticks;
    }
    return ticks.slice(0, 1);
  }

  drawAxes() {
    const bottom = this.height - MARGIN.bottom, right = this.width - MARGIN.right;
    const axes = makeSvg("g", {class: "chart-axes"}, this.svg);
    for (const [tick, text] of this.rows) {
      makeSvg("line", {x1: this.inset, x2: right, y1: this.y(tick), y2: this.y(tick)}, axes);
      makeSvg("text", {x: this.inset - 6, y: this.y(tick) + 4, "text-anchor": "end"}, axes, text);
    }
    for (const tick of this.columns()) {
      makeSvg("line", {x1: this.x(tick), x2: this.x(tick), y1: bottom, y2: bottom + 4}, axes);
      makeSvg("text", {x: this.x(tick), y: bottom + 17, "text-anchor": "middle"}, axes, this.formatX(tick));
    }
    makeSvg("path", {class: "chart-base", d: `M${this.inset} ${bottom}H${right}`}, axes);
    makeSvg("text", {x: (this.inset + right) / 2, y: this.height - 5, "text-anchor": "middle"}, axes, this.xLabel);
    const middle = (MARGIN.top + bottom) / 2;
    makeSvg("text", {transform: `translate(12 ${middle}) rotate(-90)`, "text-anchor": "middle"}, axes, this.yLabel);
  }

  drawMark(label, ends) {
    const group = makeSvg("g", {class: "chart-mark"}, this.svg);
    makeSvg("line", ends, group);
    const level = ends.y1 === ends.y2, late = ends.x1 > this.width / 2;
    const anchor = level || late ? "end" : "start";
    const x = level ? ends.x2 : ends.x1 + (late ? -5 : 5);
    const y = level ? ends.y1 + (ends.y1 < 30 ? 14 : -5) : ends.y1 + 10;
    makeSvg("text", {x, y, "text-anchor": anchor}, group, label);
  }

  drawLine(one) {
    const style = `stroke:${one.color};fill:${one.color}`;
    const group = makeSvg("g", {class: one.thin ? "chart-line thin" : "chart-line", style}, this.svg);
    let path = "", pen = "M";
    for (const [x, y] of one.points) {
      if (y !== null) path += `${pen}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      pen = y === null ? "M" : "L";
    }
    makeSvg("path", {d: path, "stroke-dasharray": one.dash}, group);
    const drawn = one.points.filter(([, y]) => y !== null);
    if (drawn.length === 1 || (drawn.length < 30 && !one.thin && this.main.length <= 2 * COLOURS)) {
      for (const [x, y] of drawn) makeSvg("circle", {cx: this.x(x), cy: this.y(y), r: 2.2}, group);
    }
    return group;
  }

  follow(event) {
    const box = this.svg.getBoundingClientRect();
    this.show(event.clientX - box.left, event.clientY - box.top);
  }

  walk(event) {
    if (event.key === "Escape") return this.leave();
    const direction = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!direction) return undefined;
    event.preventDefault();
    const places = [...new Set(this.visible().map(([x]) => x))].sort((a, b) => a - b);
    const at = this.place === null ? (direction > 0 ? -1 : places.length) : places.findIndex((x) => x >= this.place);
    const next = places[Math.min(places.length - 1, Math.max(0, at + direction))];
    return next === undefined ? undefined : this.show(this.x(next), this.height / 2);
  }

  // Show the values at the x nearest to this place: of all visible series, or those nearest to it where they are many.
  show(left, top) {
    const found = [];
    for (const one of this.main) {
      if (one.hidden) continue;
      const near = nearest(one.points, left, this.x);
      if (near) found.push({one, x: near[0], y: near[1]});
    }
    if (!found.length) return this.leave();
    const place = found.reduce((a, b) => (Math.abs(this.x(b.x) - left) < Math.abs(this.x(a.x) - left) ? b : a)).x;
    this.place = place;
    const here = found.filter(({x}) => Math.abs(this.x(x) - this.x(place)) <= REACH);
    const distance = ({y}) => Math.abs(this.y(y) - top);
    const closest = here.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    for (const one of this.main) one.node?.classList.toggle("near", this.many && one === closest.one);
    const rows = here.length > TOOLTIP_ROWS ? [...here].sort((a, b) => distance(a) - distance(b)).slice(0, TOOLTIP_ROWS) : here;
    this.drawCross(place, rows);
    this.fillTooltip(place, rows, here.length - rows.length);
    return undefined;
  }

  drawCross(place, rows) {
    const x = this.x(place);
    this.cross.replaceChildren();
    makeSvg("line", {x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom}, this.cross);
    for (const row of rows) makeSvg("circle", {cx: this.x(row.x), cy: this.y(row.y), r: 4, style: `fill:${row.one.color}`}, this.cross);
  }

  fillTooltip(place, rows, more) {
    this.tooltip.replaceChildren();
    this.tooltip.hidden = false;
    makeElement("strong", {}, this.tooltip, `${this.xLabel} ${this.formatX(place)}`);
    for (const {one, y} of [...rows].sort((a, b) => b.y - a.y)) {
      const row = makeElement("div", {class: "chart-row"}, this.tooltip);
      makeElement("i", {style: `background:${one.color}`}, row);
      makeElement("span", {}, row, one.name);
      makeElement("b", {}, row, this.format(y));
    }
    if (more > 0) makeElement("div", {class: "chart-more"}, this.tooltip, `and ${more} more`);
    const x = this.x(place), width = this.tooltip.offsetWidth;
    const beside = x + 12 + width < this.width ? x + 12 : x - 12 - width;
    this.tooltip.style.left = `${Math.max(0, Math.min(this.width - width, beside))}px`;
  }

  leave() {
    this.place = null;
    this.tooltip.hidden = true;
    this.cross.replaceChildren();
    for (const one of this.series) one.node?.classList.remove("near");
  }
}

// The point with a value that is nearest to the pixel `left`.
function nearest(points, left, scale) {
  let best = null, least = Infinity;
  for (const point of points) {
    const distance = Math.abs(scale(point[0]) - left);
    if (point[1] !== null && distance < least) [best, least] = [point, distance];
  }
  return best;
}

// A function from values in [low, high] to pixels from `start` to `end`.
function makeScale(low, high, start, end, log) {
  const place = log ? Math.log : Number;
  return (value) => start + ((end - start) * (place(value) - place(low))) / (place(high) - place(low));
}

// The least and the greatest value, with a margin around them as a share of what lies between.
function spread(values, margin, log) {
  const places = log ? values.filter((value) => value > 0).map(Math.log) : values;
  const [low, high] = places.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const room = high > low ? margin * (high - low) : Math.abs(high) * 0.05 || 0.5;
  return log ? [Math.exp(low - room), Math.exp(high + room)] : [low - room, high + room];
}

function lineChart(element, options) {
  return new LineChart(element, options);
}
