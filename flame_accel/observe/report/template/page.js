// Draws the charts of the report and lets the reader choose how. The data come from the page, the
// look of a chart from its Vega-Lite spec; nothing is loaded.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const AXES = {step: "step", tokens: "tokens", seconds: "time", flops: "training compute (FLOPs)"};
const TIME_UNITS = [[172800, 86400, "days"], [7200, 3600, "hours"], [120, 60, "minutes"], [0, 1, "seconds"]];
const NUMBER = new Intl.NumberFormat("en", {maximumSignificantDigits: 5});
const find = (selector, within = document) => within.querySelector(selector);
const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];

// ---- what the reader has chosen; it survives a reload of the page

const state = {axis: "step", logX: false, smoothing: 0, hidden: [], zoom: null, logY: {}, theme: null};
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem("flame-accel-report") ?? "{}"));
} catch {}
function keepState() {
  try {
    sessionStorage.setItem("flame-accel-report", JSON.stringify(state));
  } catch {}
}

// ---- x axes

const timeUnit = (() => {
  const longest = Math.max(0, ...data.runs.map((run) => run.axes.seconds.at(-1) ?? 0));
  return TIME_UNITS.find(([from]) => longest >= from);
})();

function axisTitle(chart) {
  if (chart.xUnit) return chart.xUnit;
  return state.axis === "seconds" ? `training time (${timeUnit[2]})` : AXES[state.axis];
}

// index of the first entry that is not less than a value
function lowerBound(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// where a step is on the chosen axis; null if the run does not have this axis
function stepToAxis(run, step, axis = state.axis) {
  if (axis === "step") return step;
  const {[axis]: values, step: steps} = data.runs[run].axes;
  if (!values.length) return null;
  const at = lowerBound(steps, step);
  let value = values.at(-1);
  if (at < steps.length) {
    const [fromStep, from] = at ? [steps[at - 1], values[at - 1]] : [0, 0];
    value = from + ((values[at] - from) * (step - fromStep)) / (steps[at] - fromStep);
  }
  return axis === "seconds" ? value / timeUnit[1] : value;
}

// the first and the last place of a run on the chosen axis
function runEnds(run) {
  const {step: steps} = data.runs[run].axes;
  return steps.length ? [steps[0], steps.at(-1)].map((step) => stepToAxis(run, step)).filter((x) => x !== null) : [];
}

// ---- rows of a chart

// exponential moving average that does not lean on its first value
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function label(chart, series) {
  const run = data.runs[series.run].name;
  if (data.runs.length === 1) return series.name;
  return new Set(chart.series.map((each) => each.name)).size > 1 && series.dash ? `${run}, ${series.name}` : run;
}

function collectLines(chart, logY) {
  const lines = [];
  for (const series of chart.series) {
    if (state.hidden.includes(series.run)) continue;
    const weight = chart.smooth && series.dash === 0 && series.y.length > 20 ? state.smoothing : 0;
    const smoothed = weight ? smooth(series.y, weight) : series.y;
    const place = (step) => (chart.xUnit ? step : stepToAxis(series.run, step));
    const drawable = (value) => (value === null || (logY && value <= 0) ? null : value);
    const rows = series.x.map((step, n) => ({
      x: place(step), y: drawable(smoothed[n]), raw: series.y[n], step, n, series: label(chart, series),
      low: series.low ? drawable(series.low[n]) : null, high: series.low ? drawable(series.high[n]) : null,
    }));
    const fits = ({x}) => x !== null && (!(logX(chart)) || x > 0) && inZoom(chart, x);
    const kept = rows.filter(fits);
    const gaps = series.gaps.map((step) => ({x: place(step), series: label(chart, series)})).filter(fits);
    if (kept.length || gaps.length) lines.push({series, rows: kept, gaps, name: label(chart, series), weight});
  }
  return lines;
}

const logX = (chart) => (chart.xUnit ? false : state.logX);
const inZoom = (chart, x) => chart.xUnit || !state.zoom || (x >= state.zoom[0] && x <= state.zoom[1]);

// the domain of the y axis: all that is drawn, and some air
function yDomain(chart, lines, logY) {
  let low = Infinity, high = -Infinity;
  for (const {rows, weight} of lines) {
    for (const row of rows) {
      for (const value of weight ? [row.y, row.raw] : [row.y, row.low, row.high]) {
        if (value === null || (logY && value <= 0)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  if (low > high) return null;
  if (logY) return low === high ? [low / 1.5, high * 1.5] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
  // a share is never outside 0 to 100 %
  const isShare = chart.format.endsWith("%") && low >= 0 && high <= 1;
  if (isShare && low === high && !chart.zero) return [0, 1];
  const limit = isShare ? (end) => Math.min(Math.max(end, 0), 1) : (end) => end;
  if (chart.zero && low >= 0) return [0, limit(high * 1.06 || 1)];
  // what differs by chance from one range of positions to the next is not to fill the chart
  const least = chart.xUnit && low !== high ? (isShare ? 0.1 : 0.5) : 0;
  const air = Math.max((high - low) * 0.06 || Math.abs(high) * 0.1 || 1, (least - high + low) / 2);
  return [limit(low - air), limit(high + air)];
}

// about `count` round values between two others
function roundTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.99);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push(Number((n * step).toPrecision(10)));
  return ticks;
}

// round values for a logarithmic axis: few within a decade, and one for each of many
function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return roundTicks(low, high, count).filter((tick) => tick > 0);
  const ticks = [], every = Math.ceil(decades / count);
  for (let n = Math.floor(Math.log10(low)); 10 ** n <= high; n += every) {
    ticks.push(...(decades < 1.5 ? [1, 2, 5] : decades < 3 ? [1, 3] : [1]).map((factor) => Number(`${factor}e${n}`)));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

// names at the ends of their curves, moved apart where they would overlap at the right end
function placeLabels(lines, toPixels, height, xDomain) {
  const gap = 14;
  const labels = lines
    .map(({rows, name}) => ({last: rows.findLast((row) => row.y !== null), series: name, text: shorten(name)}))
    .filter(({last}) => last)
    .map(({last, ...rest}) => ({...rest, x: last.x, y: toPixels(last.y)}))
    .sort((a, b) => a.y - b.y);
  const last = Math.max(...labels.map(({x}) => x)) - (xDomain[1] - xDomain[0]) * 0.1;
  const atEnd = labels.filter(({x}) => x >= last);
  atEnd.forEach((each, n) => { if (n) each.y = Math.max(each.y, atEnd[n - 1].y + gap); });
  let limit = height;
  for (const each of atEnd.toReversed()) {
    each.y = Math.min(each.y, limit);
    limit = each.y - gap;
  }
  return labels;
}

const shorten = (name) => (name.length > 26 ? `${name.slice(0, 25)}…` : name);

// d3's "~g" has powers of ten where a plain number is as short
function numberExpr(format) {
  const text = `format(datum.value, '${format}')`;
  return format === "~g" ? `abs(datum.value) >= 1e-3 && abs(datum.value) < 1e6 ? format(datum.value, ',.6~r') : ${text}` : text;
}

// ---- a chart

function buildSpec(chart, lines, width, isMain, theme) {
  const spec = structuredClone(data.spec);
  const logY = state.logY[chart.title] ?? chart.logY;
  const domain = yDomain(chart, lines, logY);
  if (!domain) return null;
  const height = isMain ? (width < 520 ? 260 : 400) : 150;
  const names = chart.series.map((series) => label(chart, series));
  const colors = data.colors[theme], css = getComputedStyle(root);
  const [muted, line] = ["--muted", "--line"].map((name) => css.getPropertyValue(name).trim());
  const palette = chart.series.map((series) => colors[series.color % colors.length]);
  const share = (y) => (logY ? Math.log(y / domain[0]) / Math.log(domain[1] / domain[0]) : (y - domain[0]) / (domain[1] - domain[0]));
  const labelled = chart.series.length > 1 && (data.runs.length === 1 || (isMain && width >= 520));
  const few = ({series}) => lines.every((line) => line.series.name !== series.name || line.rows.length <= data.fewPoints);
  const xs = lines.flatMap(({rows, gaps}) => [...rows, ...gaps].map(({x}) => x));
  // a curve of few values has the width of its run
  if (!chart.xUnit) xs.push(...lines.flatMap(({series}) => runEnds(series.run)).filter((x) => !logX(chart) || x > 0));
  let xDomain = [Math.min(...xs), Math.max(...xs)];
  if (state.zoom && !chart.xUnit) xDomain = state.zoom;
  if (xDomain[0] === xDomain[1]) xDomain = [xDomain[0] * 0.9 - 1e-9, xDomain[1] * 1.1 + 1e-9];
  if (chart.xUnit) xDomain[0] = Math.min(xDomain[0], ...chart.ranges.map((ranges) => ranges[0][0]));
  // of several runs, only the first curve of each: the colour tells whose the others are
  const named = data.runs.length > 1 ? lines.filter(({series}) => !series.dash) : lines;
  const labels = labelled ? placeLabels(named, (y) => height * (1 - share(y)), height, xDomain) : [];
  spec.datasets = {
    lines: lines.flatMap(({rows, weight}) => (weight ? rows.map((row) => ({...row, low: null, high: null})) : rows)),
    raw: lines.flatMap(({rows, weight}) => (weight ? rows.map((row) => ({...row, y: logY && row.raw <= 0 ? null : row.raw})) : [])),
    points: lines.filter(few).flatMap(({rows}) => rows),
    gaps: lines.flatMap(({gaps}) => gaps),
    events: chart.xUnit ? chart.marks.map((x) => ({x, color: muted})) : collectEvents(chart, palette, muted),
    labels,
  };
  const ticks = Math.max(3, Math.min(8, Math.floor(width / 90)));
  // an axis's own format would round to the distance of its ticks
  const format = chart.xUnit ? "~s" : {step: "~s", tokens: "~s", seconds: "~g", flops: "~e"}[state.axis];
  const xAxis = {labelExpr: `replace(format(datum.value, '${format}'), 'G', 'B')`, tickCount: ticks, labelFlush: false, labelOverlap: true};
  const yAxis = {labelExpr: numberExpr(chart.format), tickCount: isMain ? 6 : 4, labelOverlap: true};
  if (logY) yAxis.values = logTicks(domain[0], domain[1], isMain ? 6 : 4);
  const scales = {
    x: {type: logX(chart) ? "log" : "linear", domain: xDomain, nice: false, ...(logX(chart) ? {} : {zero: false})},
    y: {type: logY ? "log" : "linear", domain, nice: false, ...(logY ? {} : {zero: false})},
    color: {domain: names, range: palette},
    strokeDash: {domain: names, range: chart.series.map((series) => data.dashes[series.dash % data.dashes.length])},
  };
  for (const layer of spec.layer) {
    for (const [channel, encoding] of Object.entries(layer.encoding)) {
      if (encoding.scale === null || !encoding.field || !scales[channel]) continue;
      encoding.scale = scales[channel];
      if (channel === "x") Object.assign(encoding, {title: axisTitle(chart), axis: xAxis});
      if (channel === "y") encoding.axis = yAxis;
    }
  }
  // the labels' places are those of a plot with exactly this height
  Object.assign(spec, {width, height, autosize: {type: "fit-x", contains: "padding"}, padding: {left: 0, top: 6, bottom: 2, right: 2}});
  Object.assign(spec.config.axis, {labelColor: muted, titleColor: muted, gridColor: line, domainColor: muted, tickColor: muted});
  return spec;
}

// restarts of the runs, and updates that were skipped
function collectEvents(chart, palette, muted) {
  const drawn = new Set(chart.series.map((series) => series.run));
  return data.runs.flatMap((run, index) => {
    if (!drawn.has(index) || state.hidden.includes(index)) return [];
    const place = (step, color) => ({x: stepToAxis(index, step), color});
    const color = data.runs.length > 1 ? palette[chart.series.findIndex((series) => series.run === index)] : muted;
    return [...run.starts.map((step) => place(step, color)), ...run.skipped.map((step) => place(step, "#d55e00"))];
  }).filter(({x}) => x !== null && inZoom(chart, x) && (!state.logX || x > 0));
}

const drawn = new Map();

async function draw(figure, theme = root.dataset.theme) {
  const chart = data.charts[figure.dataset.chart], plot = find(".plot", figure);
  const logY = state.logY[chart.title] ?? chart.logY;
  find(".log-y", figure).setAttribute("aria-pressed", logY);
  const lines = collectLines(chart, logY);
  const spec = lines.length ? buildSpec(chart, lines, plot.clientWidth, figure.classList.contains("main"), theme) : null;
  drawn.get(figure)?.finalize();
  drawn.delete(figure);
  if (!spec) {
    plot.replaceChildren(Object.assign(document.createElement("p"), {className: "empty", textContent: "nothing to draw"}));
    return;
  }
  const actions = {export: true, source: false, compiled: false, editor: false};
  const name = `${chart.title} ${axisTitle(chart)}`.replace(/\W+/g, "-").toLowerCase();
  const result = await vegaEmbed(plot, spec, {renderer: "svg", actions, downloadFileName: name, tooltip: false});
  result.lines = lines;
  drawn.set(figure, result);
  for (const part of ["brush", "cross"]) plot.append(Object.assign(document.createElement("div"), {className: part}));
}

let drawing = Promise.resolve();
function drawAll(theme) {
  for (const button of findAll("[data-axis]")) {
    button.setAttribute("aria-pressed", button.dataset.axis === state.axis);
    button.disabled = button.dataset.axis !== "step" && !data.runs.some((run) => run.axes[button.dataset.axis].length);
  }
  for (const button of findAll(".run")) button.setAttribute("aria-pressed", !state.hidden.includes(Number(button.dataset.run)));
  if (find("#log-x")) {
    find("#log-x").setAttribute("aria-pressed", state.logX);
    find("#smoothing").value = state.smoothing;
    find("#smoothing-value").textContent = state.smoothing ? state.smoothing.toFixed(2) : "off";
    find("#whole").hidden = !state.zoom;
  }
  keepState();
  // one after the other, so that the last choice is the one that stays
  drawing = drawing.then(() => Promise.all(findAll("figure[data-chart]").map((figure) => draw(figure, theme)))).catch(console.error);
  return drawing;
}

// ---- the values under the pointer, and zooming by dragging

const tip = Object.assign(document.createElement("div"), {className: "tip", hidden: true});
document.body.append(tip);

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

// pixels of the plot from the left end of its x axis, and the axis
function locate(figure, event) {
  const result = drawn.get(figure);
  if (!result) return null;
  const box = find("svg", figure).getBoundingClientRect(), [left, top] = result.view.origin();
  const width = result.view.signal("width"), height = result.view.signal("height");
  const x = Math.min(Math.max(event.clientX - box.left - left, 0), width);
  const plot = find(".plot", figure).getBoundingClientRect();
  return {result, x, value: result.view.scale("x").invert(x), left: box.left - plot.left + left, top: box.top - plot.top + top, height};
}

function showValues(figure, event) {
  const place = locate(figure, event), chart = data.charts[figure.dataset.chart];
  if (!place) return;
  const nearest = place.result.lines.map(({rows, name, series}) => {
    const at = lowerBound(rows.map(({x}) => x), place.value);
    const row = [rows[at - 1], rows[at]].filter(Boolean).sort((a, b) => Math.abs(a.x - place.value) - Math.abs(b.x - place.value))[0];
    return row && {row, name, series};
  }).filter(Boolean);
  if (!nearest.length) return;
  const closest = nearest.reduce((a, b) => (Math.abs(b.row.x - place.value) < Math.abs(a.row.x - place.value) ? b : a));
  const cross = find(".cross", figure), at = place.result.view.scale("x")(closest.row.x);
  Object.assign(cross.style, {display: "block", left: `${place.left + at}px`, top: `${place.top}px`, height: `${place.height}px`});
  const rows = nearest.map(({row, name, series}) => {
    const dot = element("i", "");
    dot.className = "dot";
    dot.style.background = data.colors[root.dataset.theme][series.color % data.colors.light.length];
    const value = row.raw === null ? "not finite" : NUMBER.format(row.raw);
    const range = series.low && row.low !== null ? ` (${NUMBER.format(row.low)} to ${NUMBER.format(row.high)})` : "";
    const step = nearest.some((each) => each.row.step !== closest.row.step) && !chart.xUnit ? `step ${NUMBER.format(row.step)}` : "";
    return element("tr", null, element("td", null, dot, name), element("td", value + range), element("td", step));
  });
  const index = closest.series.run, where = chart.xUnit
    ? `position ${rangeOf(chart, closest)}`
    : [`step ${closest.row.step.toLocaleString("en")}`, ...["tokens", "seconds"].map((axis) => [axis, stepToAxis(index, closest.row.step, axis)])
        .filter(([, value]) => value !== null).map(([axis, value]) => `${NUMBER.format(value)} ${axis === "seconds" ? timeUnit[2] : axis}`)].join(" · ");
  tip.replaceChildren(element("p", where), element("table", null, ...rows));
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), right = event.clientX + 16 + box.width < innerWidth;
  tip.style.left = `${Math.max(4, right ? event.clientX + 16 : event.clientX - 16 - box.width)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - box.height - 4))}px`;
}

function rangeOf(chart, {row, series}) {
  const [from, end] = chart.ranges[chart.series.indexOf(series)][row.n];
  return `${NUMBER.format(from)} to ${NUMBER.format(end - 1)}`;
}

let dragged = null;
function hideValues() {
  tip.hidden = true;
  for (const cross of findAll(".cross")) cross.style.display = "none";
}
for (const figure of findAll("figure[data-chart]")) {
  const plot = find(".plot", figure), chart = data.charts[figure.dataset.chart];
  plot.addEventListener("pointermove", (event) => {
    const place = locate(figure, event);
    if (dragged && place && dragged.figure === figure) {
      const [from, to] = [dragged.x, place.x].sort((a, b) => a - b);
      Object.assign(find(".brush", figure).style, {display: "block", left: `${place.left + from}px`, width: `${to - from}px`, top: `${place.top}px`, height: `${place.height}px`});
    }
    showValues(figure, event);
  });
  plot.addEventListener("pointerleave", hideValues);
  plot.addEventListener("pointerdown", (event) => {
    const place = locate(figure, event);
    if (!place || chart.xUnit || event.pointerType !== "mouse" || event.button || event.target.closest("details")) return;
    dragged = {figure, ...place};
    event.preventDefault();
  });
  plot.addEventListener("dblclick", () => { state.zoom = null; drawAll(); });
  find(".log-y", figure).addEventListener("click", () => {
    state.logY[chart.title] = !(state.logY[chart.title] ?? chart.logY);
    keepState();
    draw(figure).catch(console.error);
  });
}
addEventListener("pointerup", (event) => {
  if (!dragged) return;
  const place = locate(dragged.figure, event), {x, value, figure} = dragged;
  dragged = null;
  find(".brush", figure).style.display = "none";
  if (place && Math.abs(place.x - x) > 6) {
    state.zoom = [value, place.value].sort((a, b) => a - b);
    drawAll();
  }
});

// ---- controls

for (const button of findAll("[data-axis]")) button.addEventListener("click", () => { state.axis = button.dataset.axis; state.zoom = null; drawAll(); });
for (const button of findAll(".run")) {
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run);
    state.hidden = state.hidden.includes(run) ? state.hidden.filter((each) => each !== run) : [...state.hidden, run];
    drawAll();
  });
}
find("#log-x")?.addEventListener("click", () => { state.logX = !state.logX; drawAll(); });
find("#whole")?.addEventListener("click", () => { state.zoom = null; drawAll(); });
let frame = 0;
find("#smoothing")?.addEventListener("input", (event) => {
  state.smoothing = Number(event.target.value);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => drawAll());
});

// ---- light and dark

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function applyTheme(theme) {
  root.dataset.theme = theme ?? state.theme ?? (prefersDark.matches ? "dark" : "light");
  const colors = data.colors[root.dataset.theme];
  for (const dot of findAll(".dot[data-color]")) dot.style.background = colors[dot.dataset.color % colors.length];
}
function switchTheme(theme) {
  applyTheme(theme);
  return drawAll();
}
prefersDark.addEventListener("change", () => switchTheme());
find("#theme")?.addEventListener("click", () => { state.theme = root.dataset.theme === "dark" ? "light" : "dark"; switchTheme(); });
// on paper: the SVGs that are there are drawn anew, since the browser does not wait
addEventListener("beforeprint", () => switchTheme("light"));
addEventListener("afterprint", () => switchTheme());

let width = innerWidth, resized = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(resized);
  resized = setTimeout(drawAll, 150);
});

// ---- a run that goes on

const seconds = Number(document.body.dataset.reloadSeconds);
if (seconds) {
  setInterval(() => { if (!dragged && tip.hidden && !document.hidden) location.reload(); }, seconds * 1000);
}

data.runs.forEach((run, index) => { if (state.hidden.includes(index) && !find(`.run[data-run="${index}"]`)) state.hidden = []; });
if (typeof vegaEmbed === "function") {
  switchTheme().then(() => { root.dataset.drawn = "true"; });
} else {
  applyTheme();
}
