// The page: an image comes in, the worker detects, boxes and numbers are shown. Names of classes come from a file and
// only ever go into `textContent` or onto the canvas.

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return the threshold that is set: a number, or one for each label. */
function thresholdOf({ view, model }) {
  return view.suggested ? model.thresholds : view.threshold;
}

function visible(page) {
  return page.result === null ? [] : above(page.result.detections, thresholdOf(page));
}

/** Change the view and draw it again. */
function update(page, changes = {}) {
  Object.assign(page.view, changes);
  const shown = visible(page);
  if (page.view.chosen !== null && page.view.chosen >= shown.length) page.view.chosen = null;
  byId("threshold").value = page.view.threshold;
  byId("suggested").checked = page.view.suggested;
  byId("threshold-value").textContent = page.view.suggested ? "of each class" : page.view.threshold.toFixed(2);
  showRows(page, shown);
  showImage(page);
  byId("json").disabled = byId("png").disabled = page.result === null;
  byId("caption").textContent = sentence(page, shown);
}

function sentence(page, shown) {
  if (page.result === null) return page.busy ? "Looking for objects ..." : "No image yet.";
  const { bitmap, input, seconds } = page.result;
  const count = shown.length === 1 ? "1 object" : `${shown.length} objects`;
  const best = page.result.detections[0];
  const none = shown.length || !best ? "" : ` The best one below the threshold is ${best.name}, ${best.score.toFixed(2)}.`;
  return `${count} in ${page.name}, ${bitmap.width} x ${bitmap.height} pixels.${none} The model took ` +
    `${seconds.model.toFixed(2)} s at ${input[1]} x ${input[0]} pixels, preprocessing ${seconds.preprocessing.toFixed(2)} s.`;
}

function showRows(page, shown) {
  byId("table").hidden = !shown.length;
  byId("rows").replaceChildren(...shown.map((one, i) => {
    const button = make("button", { type: "button", "aria-pressed": String(i === page.view.chosen), "data-row": i }, one.name);
    const color = objectColor(one.label);
    button.style.background = color;
    button.style.color = textColor(color);
    const box = one.box.map((value) => value.toFixed(0)).join(", ");
    return make("tr", i === page.view.chosen ? { class: "now" } : {},
      make("td", {}, button), make("td", {}, one.score.toFixed(3)), make("td", {}, box));
  }));
}

function showImage(page) {
  const canvas = byId("stage");
  canvas.parentElement.hidden = page.result === null;
  if (page.result === null) return;
  const { bitmap } = page.result;
  const highest = Math.max(320, window.innerHeight * 0.72), shape = bitmap.width / bitmap.height;
  const width = Math.min(canvas.parentElement.clientWidth, Math.max(240, highest * shape));
  canvas.style.width = `${width}px`;
  paint(page, canvas, width, Math.min(3, window.devicePixelRatio || 1));
  canvas.setAttribute("aria-label", sentence(page, visible(page)));
}

/** Paint image, boxes and names; `width` in CSS pixels, `ratio` of the screen's to them. */
function paint(page, canvas, width, ratio) {
  const { bitmap } = page.result;
  const scale = width / bitmap.width;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale * ratio));
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.scale(ratio, ratio);
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  const shown = visible(page);
  const order = shown.map((_, i) => i).reverse(); // the best ones on top
  if (page.view.chosen !== null) order.push(page.view.chosen);
  for (const i of order) {
    const { box, label, name, score } = shown[i];
    const [x0, y0, x1, y1] = box.map((value) => value * scale);
    const color = objectColor(label), strong = i === page.view.chosen;
    context.strokeStyle = "rgb(0 0 0 / .55)";
    context.lineWidth = strong ? 7 : 4;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.strokeStyle = color;
    context.lineWidth = strong ? 4 : 2;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const text = `${name} ${score.toFixed(2)}`;
    const textWidth = context.measureText(text).width + 8;
    const x = Math.max(0, Math.min(x0, width - textWidth)), y = Math.max(0, y0 - 18);
    context.fillStyle = color;
    context.fillRect(x, y, textWidth, 18);
    context.fillStyle = textColor(color);
    context.fillText(text, x + 4, y + 9.5);
  }
}

/** Return what is shown as plain values: label, name, score and box xyxy in pixels of the image, rounded as `to_json`. */
function numbers(page) {
  const round = (value, digits) => Number(value.toFixed(digits));
  return {
    image: page.name, width: page.result.bitmap.width, height: page.result.bitmap.height,
    model: page.model.name, threshold: thresholdOf(page),
    detections: visible(page).map(({ label, name, score, box }) => (
      { label, name, score: round(score, 4), box: box.map((value) => round(value, 2)) })),
  };
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser reads it after the click
}

/** Detect in a file or in what was dropped or pasted; the result of an earlier one that comes later is not shown. */
function open(page, blob) {
  if (!blob) return;
  page.id += 1;
  Object.assign(page, { name: blob.name || "pasted image", busy: true, result: null });
  page.view.chosen = null;
  showProblem("");
  page.worker.postMessage({ id: page.id, blob });
  update(page);
}

function showProblem(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text;
}

function answered(page, { id, model, result, problem }) {
  if (model) return started(page, model);
  if (id !== page.id) return undefined;
  page.busy = false;
  if (problem) {
    showProblem(page.model ? `${page.name || "The image"}: ${problem}.` : `The model cannot be loaded: ${problem}.`);
    byId("about").textContent = page.model ? byId("about").textContent : "";
  } else page.result = result;
  return update(page);
}

function started(page, model) {
  page.model = model;
  page.view.threshold = model.threshold;
  page.view.suggested = model.thresholds !== null;
  byId("suggested-label").hidden = model.thresholds === null;
  byId("about").textContent = `${model.name}, ${model.numClasses} classes, ${(model.bytes / 1e6).toFixed(1)} MB. ` +
    "It runs in this browser: no image leaves it.";
  byId("main").hidden = false;
  update(page);
}

function listen(page) {
  const on = (id, event, handle) => byId(id).addEventListener(event, handle);
  on("file", "change", (event) => { open(page, event.target.files[0]); event.target.value = ""; });
  on("threshold", "input", (event) => update(page, { threshold: Number(event.target.value), suggested: false }));
  on("suggested", "change", (event) => update(page, { suggested: event.target.checked }));
  on("rows", "click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const row = Number(button.dataset.row);
    update(page, { chosen: row === page.view.chosen ? null : row });
    byId("rows").querySelectorAll("button")[row].focus(); // the rows are new ones
  });
  on("json", "click", () => download(new Blob([JSON.stringify(numbers(page), null, 1)], { type: "application/json" }), "detections.json"));
  on("png", "click", () => {
    const canvas = newCanvas(1, 1);
    paint(page, canvas, Math.max(page.result.bitmap.width, 1200) / 1.25, 1.25);
    canvas.toBlob((blob) => download(blob, "detections.png"), "image/png");
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    open(page, event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => open(page, event.clipboardData.files[0]));
  window.addEventListener("resize", () => requestAnimationFrame(() => showImage(page)));
}

function start() {
  const worker = new Worker("worker.js", { type: "module" });
  const page = { worker, id: 0, model: null, result: null, name: "", busy: false,
    view: { threshold: 0.5, suggested: false, chosen: null } };
  worker.addEventListener("message", ({ data }) => answered(page, data));
  worker.addEventListener("error", () => showProblem("This page needs Chrome or Edge 97, Firefox 114, Safari 16.4, or a " +
    "later version, and a server: python -m http.server in its folder. It cannot be opened as a file."));
  listen(page);
  worker.postMessage({ id: 0 });
  // for scripts, and for the tests of this page
  window.detrkitPage = Object.freeze({
    numbers: () => numbers(page), all: () => page.result?.detections ?? null, view: page.view,
    ready: () => page.model !== null, done: () => !page.busy && page.result !== null,
    inputSize, resizePixels: (...args) => Array.from(resizePixels(...args)),
    prepared: (pixels, height, width) => {
      const input = prepared(page.model, pixels, height, width);
      return { ...input, images: Array.from(input.images), mask: Array.from(input.mask) };
    },
  });
}

start();
