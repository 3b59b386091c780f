"use strict";
// Draws the page from the JSON in #data. similarity.js comes before it.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const narrow = () => window.innerWidth < 640;

// Petroff's ten colours, told apart under every common colour vision deficiency; then another marker.
const PALETTE = ["#3f90da", "#e76300", "#832db6", "#8a8f98", "#bd1f01", "#92dadd", "#a96b59", "#ffa90e", "#94a4a2", "#b9ac70"];
const MARKERS = ["circle", "diamond", "square", "cross", "x"];
const classColor = (index) => PALETTE[index % PALETTE.length];
const classMarker = (index) => MARKERS[Math.floor(index / PALETTE.length) % MARKERS.length];
const LOSS_COLORS = { "CS-Softmax": "--own", CosFace: "#d9822b", ArcFace: "#009e73", Circle: "#b15fb8" };

let printing = false;
const PRINTED_WIDTH = 330; // of a plot, two beside each other on a sheet
const css = (name) => (name.startsWith("--") ? getComputedStyle(document.documentElement).getPropertyValue(name).trim() : name);
const PRINTED = { "--ink": "#000", "--muted": "#444", "--line": "#ccc", "--card": "#fff", "--own": "#0072b2", "--other": "#c75300" };
const color = (name) => (printing && PRINTED[name]) || css(name);

// Plotly reads a little HTML in texts; names from data are shown as they are.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, length = 18) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const percent = (share) => (share >= 0.1 ? (100 * share).toFixed(0) : share >= 0.01 ? (100 * share).toFixed(1) : "<1");

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 12, color: color("--muted") }, standoff: 8 },
    gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line"),
    tickfont: { size: 11, color: color("--muted") }, automargin: true, fixedrange: narrow(), ...more,
  };
}

function layout(more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: narrow() ? false : "zoom",
    ...(printing ? { width: PRINTED_WIDTH } : { autosize: true }),
    font: { family: getComputedStyle(document.body).fontFamily, color: color("--ink") }, margin: { l: 44, r: 10, t: 8, b: 40 },
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink"), size: 12 } }, ...more,
  };
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
const draw = (id, traces, more) => $(id) && Plotly.react(id, traces, layout(more), CONFIG);

const LOG_TICKS = [-5, -4, -3, -2, -1, 0, 1, 2].flatMap((power) => [1, 3].map((digit) => Number(`${digit}e${power}`)));

function learning() {
  const lines = (key, factor) => data.runs.flatMap((run, index) =>
    ["train", "eval"].map((split) => ({
      x: run.learning.epoch, y: run.learning[`${split}_${key}`].map((value) => (value === null ? null : factor * value)),
      name: plain(`${run.label}, ${split === "eval" ? "evaluation" : "training"}`), mode: run.learning.epoch.length > 30 ? "lines" : "lines+markers",
      marker: { size: 5 }, line: { color: run.color, width: 2, dash: split === "eval" ? "solid" : "dash" },
      hovertemplate: "%{fullData.name}<br>epoch %{x}: %{y:.4~g}<extra></extra>",
    })));
  const losses = data.runs.flatMap((run) => [...run.learning.train_loss, ...run.learning.eval_loss]).filter((value) => value !== null);
  const wide = losses.length > 0 && Math.min(...losses) > 0 && Math.max(...losses) > 20 * Math.min(...losses);
  const last = Math.max(1, ...data.runs.flatMap((run) => run.learning.epoch));
  const dtick = [0, 1, 2, 3, 4].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)).find((tick) => last / tick <= 10);
  const epochs = axis("epoch", { tickformat: "d", rangemode: "tozero", dtick });
  draw("learning-loss", lines("loss", 1), { xaxis: epochs, yaxis: axis("", wide ? { type: "log", tickvals: LOG_TICKS, ticktext: LOG_TICKS.map(String) } : { rangemode: "tozero" }) });
  draw("learning-accuracy", lines("accuracy", 100), { xaxis: epochs, yaxis: axis("") });
}

function cosineHistograms() {
  const tallest = Math.max(...data.runs.flatMap((run) => [...run.histograms.own.share, ...run.histograms.other.share]));
  data.runs.forEach((run, number) => {
    const kinds = [["other", "--other"], ["own", "--own"]].filter(([kind]) => run.histograms[kind].mean !== null);
    const traces = kinds.map(([kind, name]) => ({
      x: run.histograms[kind].share.map((_, index) => -1 + 0.02 * index + 0.01), y: run.histograms[kind].share,
      name: `${kind} class`, mode: "lines", line: { shape: "hvh", color: color(name), width: 1.6 }, fill: "tozeroy", fillcolor: color(name) + "44",
      hovertemplate: "cosine %{x:.2f}: %{y:.2f} % of pairs<extra>%{fullData.name}</extra>",
    }));
    const shapes = kinds.map(([kind, name]) => ({
      type: "line", x0: run.histograms[kind].mean, x1: run.histograms[kind].mean, y0: 0, y1: 1, yref: "paper", line: { color: color(name), width: 1.4, dash: "dot" },
    }));
    draw(`cosines-${number}`, traces, { shapes, xaxis: axis("cosine", { range: [-1, 1] }), yaxis: axis("share of pairs, %", { range: [0, 1.04 * tallest] }) });
  });
}

// Embeddings

let view = null;

function drawMaps() {
  data.runs.forEach((run, number) => {
    const shown = run.map.views.find((candidate) => candidate.name === view) || run.map.views[0];
    const deep = shown.points[0].length === 3;
    const marker = {
      color: run.map.target.map(classColor), symbol: run.map.target.map(classMarker),
      size: deep ? 3.5 : narrow() ? 6 : 7, opacity: 0.85, line: { width: 0 },
    };
    const [x, y, z] = [0, 1, 2].map((place) => shown.points.map((point) => point[place]));
    const traces = [{ type: deep ? "scatter3d" : "scatter", mode: "markers", x, y, ...(deep ? { z } : {}), marker, hoverinfo: "none" }];
    const label = (place) => (shown.axes ? `component ${place + 1} (${shown.axes[place]} of variance)` : shown.name.startsWith("t-SNE") ? "" : `number ${place + 1}`);
    if (deep) {
      const scene = (place) => ({ ...axis(`component ${place + 1}`), showbackground: false, showspikes: false });
      draw(`map-${number}`, traces, { scene: { xaxis: scene(0), yaxis: scene(1), zaxis: scene(2), aspectmode: "data" }, margin: { l: 0, r: 0, t: 0, b: 0 }, dragmode: "orbit" });
    } else {
      (run.map.rays || []).forEach((ray) => traces.push({ x: [0, ray[0]], y: [0, ray[1]], mode: "lines", line: { color: color("--muted"), width: 1 }, hoverinfo: "skip" }));
      const ticks = shown.axes || run.map.rays ? {} : { showticklabels: false };
      draw(`map-${number}`, traces, {
        xaxis: axis(label(0), ticks), yaxis: axis(label(1), { scaleanchor: "x", ...ticks }), annotations: classNames(run, shown),
      });
    }
  });
}

// Class names at the middle of their points, where there are few enough to read.
function classNames(run, shown) {
  if (run.classes.length > 20) return [];
  return run.classes.flatMap((name, index) => {
    const points = shown.points.filter((_, place) => run.map.target[place] === index);
    if (!points.length) return [];
    const middle = (place) => points.map((point) => point[place]).sort((a, b) => a - b)[Math.floor(points.length / 2)];
    return [{ x: middle(0), y: middle(1), text: `<b>${plain(short(name, 12))}</b>`, showarrow: false, yshift: 20, font: { size: 12, color: color("--ink") } }];
  });
}

function embeddings() {
  const names = [...new Set(data.runs.flatMap((run) => run.map.views.map((shown) => shown.name)))];
  view = view || names[0];
  $("views").replaceChildren(...(names.length < 2 ? [] : names.map((name) => {
    const button = Object.assign(document.createElement("button"), { textContent: name, type: "button" });
    button.setAttribute("aria-pressed", name === view);
    button.onclick = () => { view = name; embeddings(); };
    return button;
  })));
  drawMaps();
  const classes = data.runs[0].classes;
  $("class-legend").replaceChildren(...(classes.length > 20 ? [] : classes.map((name, index) => {
    const item = document.createElement("span");
    const swatch = Object.assign(document.createElement("i"), { className: "swatch" });
    swatch.style.background = classColor(index);
    item.append(swatch, name);
    return item;
  })));
}

// The picture of a sample beside the pointer; a sound is played by a click.

const tip = $("tip");
let pointer = [0, 0];
document.addEventListener("pointermove", (event) => { pointer = [event.clientX, event.clientY]; }, true);
document.addEventListener("pointerdown", (event) => { pointer = [event.clientX, event.clientY]; }, true);
window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

const player = new Audio();
function play(media) {
  player.src = data.media[media];
  player.play().catch(() => {});
}

function line(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

function showTip(run, place) {
  const { target, predicted, cosine, media } = run.map;
  const parts = [line("b", run.classes[target[place]])];
  if (predicted[place] !== target[place]) parts.push(line("span", `taken for ${run.classes[predicted[place]]}`));
  parts.push(line("span", `cosine to its class ${cosine[place].toFixed(3)}`));
  if (media[place] !== null && run.kind === "image") parts.unshift(Object.assign(new Image(), { src: data.media[media[place]], alt: "" }));
  if (media[place] !== null && run.kind === "sound") parts.push(line("span", "▶ click to play"));
  tip.replaceChildren(...parts);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(Math.max(pointer[0] + 14, 8), window.innerWidth - width - 8)}px`;
  tip.style.top = `${pointer[1] + 14 + height > window.innerHeight ? Math.max(pointer[1] - height - 14, 8) : pointer[1] + 14}px`;
}

function watchMaps() {
  data.runs.forEach((run, number) => {
    const plot = $(`map-${number}`);
    const over = ({ points: [point] }) => point.curveNumber === 0 && showTip(run, point.pointNumber);
    plot.on("plotly_hover", over);
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    plot.on("plotly_click", (event) => {
      over(event);
      const media = run.map.media[event.points[0].pointNumber];
      if (run.kind === "sound" && event.points[0].curveNumber === 0 && media !== null) play(media);
    });
  });
}

function showSamples() {
  document.querySelectorAll("img[data-media]").forEach((image) => { image.src = data.media[image.dataset.media]; });
  document.querySelectorAll("button[data-media]").forEach((button) => { button.onclick = () => play(button.dataset.media); });
}

function classPlots() {
  const rows = data.runs.map((run) => run.class_facts.filter((row) => row.spread !== null));
  const wide = Math.max(1, ...rows.flat().map((row) => row.spread));
  const scatter = data.runs.map((run, number) => ({
    x: rows[number].map((row) => row.spread), y: rows[number].map((row) => row.angle), text: rows[number].map((row) => plain(row.name)), mode: "markers",
    marker: { color: run.color, size: 8, opacity: 0.8 }, hovertemplate: "<b>%{text}</b><br>own centre %{x:.1f}°<br>nearest other %{y:.1f}°<extra>" + plain(run.label) + "</extra>",
  }));
  draw("class-angles", scatter, {
    shapes: [{ type: "line", x0: 0, y0: 0, x1: 1.15 * wide, y1: 2.3 * wide, line: { color: color("--muted"), width: 1.2, dash: "dot" } }],
    xaxis: axis("to the own centre, mean", { range: [0, 1.15 * wide] }), yaxis: axis("to the nearest other centre", { rangemode: "tozero" }),
  });
  const order = [...rows[0]].sort((a, b) => a.margin - b.margin).map((row) => row.name);
  const few = order.length <= 20;
  const places = new Map(order.map((name, index) => [name, index]));
  const dots = data.runs.map((run, number) => ({
    x: rows[number].map((row) => places.get(row.name)), y: rows[number].map((row) => row.margin), text: rows[number].map((row) => plain(row.name)), mode: "markers",
    marker: { color: run.color, size: 8, opacity: 0.8 }, hovertemplate: "<b>%{text}</b>: margin %{y:.3f}<extra>" + plain(run.label) + "</extra>",
  }));
  const names = few ? { tickvals: order.map((_, index) => index), ticktext: order.map((name) => plain(short(name, 12))) } : { showticklabels: false };
  draw("class-margins", dots, { xaxis: axis(few ? "" : `${order.length} classes, the least margin first`, names), yaxis: axis("", { rangemode: "tozero" }) });
}

function verification() {
  const runs = data.runs.filter((run) => run.verification);
  if (!runs.length) return ["roc", "det"].forEach((id) => { $(id).textContent = "Not defined on these data."; });
  const trace = (run, x, y, template) => ({ x, y, customdata: run.verification.far, mode: "lines", line: { color: run.color, width: 2 }, hovertemplate: template + `<extra>${plain(run.label)}</extra>` });
  const ticks = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1];
  draw("roc", runs.map((run) => trace(run, run.verification.far.map((far) => far || null), run.verification.tar, "FAR %{x:.2~%}, TAR %{y:.2%}")), {
    xaxis: axis("false accept rate", { type: "log", tickvals: ticks, ticktext: ["0.001 %", "0.01 %", "0.1 %", "1 %", "10 %", "100 %"] }),
    yaxis: axis("true accept rate", { tickformat: ".0%", range: [0, 1.02] }),
  });
  const rates = [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8];
  const deviates = [-3.719, -3.0902, -2.3263, -1.6449, -0.8416, 0, 0.8416];
  const det = { tickvals: deviates, ticktext: rates.map((rate) => `${+(100 * rate).toPrecision(2)} %`), zeroline: false };
  const all = runs.flatMap((run) => [...run.verification.far_deviate, ...run.verification.miss_deviate]);
  const range = all.length ? [Math.max(Math.min(...all) - 0.1, -4), Math.min(Math.max(...all) + 0.1, 1.3)] : [-4, 1.3];
  draw("det", runs.map((run) => ({ ...trace(run, run.verification.far_deviate, run.verification.miss_deviate, ""), hoverinfo: "skip" })), {
    shapes: [{ type: "line", x0: -4, y0: -4, x1: 1.3, y1: 1.3, line: { color: color("--muted"), width: 1.2, dash: "dot" } }],
    xaxis: axis("false accept rate", { ...det, range }), yaxis: axis("false reject rate", { ...det, range }),
  });
}

function confusion() {
  data.runs.forEach((run, number) => {
    if (!run.confusion) return;
    const few = run.classes.length <= 20;
    const totals = run.confusion.map((row) => Math.max(row.reduce((sum, count) => sum + count, 0), 1));
    const shares = run.confusion.map((row, index) => row.map((count) => count / totals[index]));
    const places = run.classes.map((_, index) => index);
    const hover = run.confusion.map((row, i) => row.map((count, j) => `${plain(run.classes[i])} taken for ${plain(run.classes[j])}:<br>${count} of ${totals[i]}`));
    const annotations = !few ? [] : shares.flatMap((row, i) => row.flatMap((share, j) => (!run.confusion[i][j] ? [] : [{
      x: j, y: i, text: plain(percent(share)), showarrow: false, font: { size: narrow() ? 9 : 11, color: Math.sqrt(share) > 0.55 ? color("--card") : color("--ink") },
    }])));
    const names = few ? { tickvals: places, ticktext: run.classes.map((name) => plain(short(name, 10))) } : { showticklabels: false };
    draw(`confusion-${number}`, [{
      type: "heatmap", x: places, y: places, z: shares.map((row) => row.map(Math.sqrt)), zmin: 0, zmax: 1, showscale: false, xgap: few ? 2 : 0, ygap: few ? 2 : 0,
      colorscale: [[0, color("--wash") || "#f1f3f5"], [1, color("--own")]], text: hover, hovertemplate: "%{text}<extra></extra>",
    }], {
      annotations, xaxis: axis("taken for", { ...names, showgrid: false, zeroline: false, constrain: "domain" }),
      yaxis: axis("true class", { ...names, showgrid: false, zeroline: false, autorange: "reversed", scaleanchor: "x", constrain: "domain" }),
    });
  });
}

// The margin explorer

const GRID = Array.from({ length: 201 }, (_, index) => -1 + index / 100);
const COARSE = Array.from({ length: 81 }, (_, index) => -1 + index / 40);
const factors = { ...data.explorer, own: 0.6, other: 0.2 };
const shownLosses = new Set(Object.keys(SIMILARITIES));

function explorer() {
  const names = Object.keys(SIMILARITIES).filter((name) => shownLosses.has(name)).reverse();
  const found = curves(factors, GRID);
  const style = (name, dash) => ({ color: color(LOSS_COLORS[name]), width: name === "CS-Softmax" ? 3 : 1.8, dash });
  const both = (solid, dashed, what) => names.flatMap((name) => [[solid, "solid"], [dashed, "dash"]].map(([key, dash]) => ({
    x: GRID, y: found[name][key], name: `${name}, ${what[key]}`, mode: "lines", line: style(name, dash), hovertemplate: "%{fullData.name}<br>c = %{x:.2f}: %{y:.3f}<extra></extra>",
  })));
  const cosine = axis("cosine c", { range: [-1, 1] });
  draw("explorer-similarities", both("positive", "negative", { positive: "P", negative: "N" }), { xaxis: cosine, yaxis: axis("", { range: [-2, 1.1] }) });
  draw("explorer-pulls", both("ownPull", "otherPull", { ownPull: "own pair", otherPull: "other pair" }), { xaxis: cosine, yaxis: axis("", { rangemode: "tozero" }) });
  const boundaries = names.map((name) => {
    const similarity = SIMILARITIES[name](factors);
    const [positive, negative] = [COARSE.map(similarity.positive), COARSE.map(similarity.negative)];
    return {
      type: "contour", x: COARSE, y: COARSE, z: negative.map((n) => positive.map((p) => p - n)), name, showscale: false, hoverinfo: "skip",
      contours: { start: 0, end: 0, size: 1, coloring: "none" }, line: style(name, "solid"),
    };
  });
  const dot = { x: [factors.own], y: [factors.other], mode: "markers", marker: { size: 11, color: color("--ink"), line: { color: color("--card"), width: 2 } }, hoverinfo: "skip" };
  draw("explorer-boundary", [...boundaries, dot], {
    xaxis: axis("cosine to the own class", { range: [-1, 1] }), yaxis: axis("cosine to another class", { range: [-1, 1] }), dragmode: false,
    shapes: [{ type: "line", x0: -1, y0: -1, x1: 1, y1: 1, line: { color: color("--muted"), width: 1, dash: "dot" } }],
    annotations: [
      { x: 0.95, y: -0.92, text: "own class wins", showarrow: false, xanchor: "right", bgcolor: color("--card"), font: { size: 11, color: color("--muted") } },
      { x: -0.95, y: 0.92, text: "other class wins", showarrow: false, xanchor: "left", font: { size: 11, color: color("--muted") } },
    ],
  });
  for (const [id, key, digits] of SLIDERS) {
    if (key !== "classes") $(id).value = factors[key];
    $(`${id === "class-count" ? "classes" : id}-value`).textContent = key === "classes" ? factors.classes.toLocaleString("en") : factors[key].toFixed(digits);
  }
  $("explorer-table").tBodies[0].replaceChildren(...[...names].reverse().map((name) => {
    const similarity = SIMILARITIES[name](factors);
    const at = pulls(similarity, factors);
    const row = document.createElement("tr");
    const numbers = [similarity.positive(factors.own), similarity.negative(factors.other), at.probability, at.ownPull, at.otherPull];
    row.append(line("td", name), ...numbers.map((value) => line("td", value.toPrecision(3))));
    return row;
  }));
}

const SLIDERS = [["margin", "margin", 2], ["weight-update", "weightUpdate", 2], ["scale", "scale", 1], ["own", "own", 2], ["other", "other", 2], ["class-count", "classes", 0]];

function watchExplorer() {
  $("class-count").value = Math.log10(factors.classes);
  for (const [id, key] of SLIDERS) {
    $(id).addEventListener("input", () => {
      factors[key] = key === "classes" ? Math.max(Math.round(10 ** $(id).value), 2) : Number($(id).value);
      explorer();
    });
  }
  $("losses").replaceChildren(...Object.keys(SIMILARITIES).map((name) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    const stroke = Object.assign(document.createElement("i"), { className: "stroke" });
    stroke.style.color = LOSS_COLORS[name].startsWith("--") ? `var(${LOSS_COLORS[name]})` : LOSS_COLORS[name];
    box.onchange = () => { shownLosses[box.checked ? "add" : "delete"](name); explorer(); };
    label.append(box, stroke, name);
    return label;
  }));
}

function watchBoundary() {
  const plot = $("explorer-boundary");
  plot.addEventListener("click", (event) => {
    const { xaxis, yaxis } = plot._fullLayout;
    const box = plot.getBoundingClientRect();
    const [own, other] = [xaxis.p2d(event.clientX - box.left - xaxis._offset), yaxis.p2d(event.clientY - box.top - yaxis._offset)];
    if (Math.abs(own) > 1 || Math.abs(other) > 1) return;
    Object.assign(factors, { own: Math.round(100 * own) / 100, other: Math.round(100 * other) / 100 });
    explorer();
  });
}

function drawAll() {
  [learning, cosineHistograms, embeddings, classPlots, verification, confusion, explorer].forEach((part) => part());
}

async function loadPlotly() {
  const packed = Uint8Array.from(atob($("plotly").textContent), (character) => character.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
}

async function main() {
  showSamples();
  watchExplorer();
  await loadPlotly();
  drawAll();
  watchMaps();
  watchBoundary();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
  document.documentElement.dataset.drawn = "yes";
}

main().catch((error) => {
  document.querySelector("main").prepend(Object.assign(document.createElement("p"), { textContent: `The plots cannot be drawn: ${error.message}. A browser of 2023 or later can.` }));
  throw error;
});
