// The view, and what changes it. `page` holds everything: data and arrays of the file, images, and `view`, what is shown.

/** Return the numbers of the objects above the threshold. */
function visible(page) {
  return page.data.detections.map((_, object) => object)
    .filter((object) => page.data.detections[object].score > page.view.threshold);
}

/** Return the layer that is shown: of the encoder or of the decoder. */
function layerOf({ view }) {
  return view.mode === "pixel" ? view.encoderLayer : view.decoderLayer;
}

/** Return the head that is shown of a layer: the mean where the file holds no others. */
function headOf(page, layer) {
  return kept(page, page.view.mode === "pixel" ? "encoder" : "cross", layer) === "heads" ? page.view.head : MEAN;
}

/** Return what attends: an object's query, or a cell of the encoder; null if there is none. */
function sourceOf(page) {
  const { view } = page;
  if (view.mode !== "pixel") return view.object === null ? null : { kind: "cross", object: view.object };
  const cell = cellAt(page, view.hover ?? view.pixel, view.level);
  return cell && { kind: "encoder", cell };
}

/** Return the objects whose boxes hold a pixel, the smallest first: a large box must not hide a small one. */
function objectsAt(page, x, y) {
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const holds = ([x1, y1, x2, y2]) => x >= x1 && x <= x2 && y >= y1 && y <= y2;
  const box = (object) => page.data.detections[object].box;
  return visible(page).filter((object) => holds(box(object))).sort((a, b) => area(box(a)) - area(box(b)));
}

/** Return whether the file holds any attention of the encoder. */
function hasPixels(page) {
  return page.data.encoder.layers.some(Boolean);
}

/** Return whether there is anything to show in a mode. */
function hasMode(page, mode) {
  return mode === "pixel" ? hasPixels(page) : page.data.detections.length > 0;
}

/** Change the view and draw it again; `say` also tells screen readers. */
function update(page, changes, say = true) {
  Object.assign(page.view, changes);
  const { view } = page;
  const shown = visible(page);
  if (!shown.includes(view.object)) view.object = shown[0] ?? null;
  if (!("hover" in changes)) view.hover = null;
  render(page);
  if (!say) return;
  clearTimeout(page.saying);
  // after a pause, so that a held key is not read out at every step
  page.saying = setTimeout(() => { byId("live").textContent = sentence(page); }, 300);
}

function render(page) {
  showChoices(page);
  showObjects(page);
  showPicture(page);
  showStrip(page);
  showLegend(page);
  showNumbers(page);
  const text = sentence(page);
  byId("caption").textContent = text;
  byId("stage").setAttribute("aria-label", `Image, ${page.data.width} by ${page.data.height} pixels. ${text}`);
}

function showPicture(page) {
  const canvas = byId("stage");
  // an upright image must not be higher than the window, nor a narrow one too narrow to see, nor a very long one endless
  const widest = canvas.parentElement.clientWidth;
  const highest = Math.max(320, window.innerHeight * 0.72);
  const shape = page.data.width / page.data.height;
  const width = Math.min(widest, Math.max(240, highest * shape), Math.max(1, 4 * highest * shape));
  canvas.style.width = `${width}px`;
  paint(page, canvas, width, layerOf(page), { ratio: Math.min(3, window.devicePixelRatio || 1) });
}

/** Return the pixel of the image under the pointer, and how many of them one pixel of the screen is. */
function pixelAt(page, event) {
  const bounds = byId("stage").getBoundingClientRect();
  const clip = (share) => Math.min(Math.max(share, 0), 1 - 1e-6);
  const x = clip((event.clientX - bounds.left) / bounds.width) * page.data.width;
  const y = clip((event.clientY - bounds.top) / bounds.height) * page.data.height;
  return { pixel: [x, y], unit: page.data.width / bounds.width };
}

function pointerMoved(page, event) {
  const { pixel, unit } = pixelAt(page, event);
  const before = sourceOf(page)?.cell?.index;
  if (page.view.mode === "pixel" && event.pointerType !== "touch") {
    page.view.hover = pixel;
    if (sourceOf(page)?.cell?.index !== before) update(page, { hover: pixel }, false);
  }
  showTip(page, event, underPointer(page, pixel, unit));
}

function showTip(page, event, text) {
  const tip = byId("tip");
  tip.hidden = !text;
  tip.textContent = text;
  if (!text) return;
  const bounds = byId("stage").parentElement.getBoundingClientRect();
  const x = event.clientX - bounds.left, y = event.clientY - bounds.top;
  tip.style.left = `${Math.max(0, Math.min(x + 14, bounds.width - tip.offsetWidth))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > bounds.height ? y - tip.offsetHeight - 10 : y + 18}px`;
}

function pointerLeft(page) {
  byId("tip").hidden = true;
  if (page.view.hover) update(page, { hover: null }, false);
}

function clicked(page, event) {
  const { pixel, unit } = pixelAt(page, event);
  if (page.view.mode === "pixel") return update(page, { pixel });
  const here = objectsAt(page, ...pixel);
  if (!here.length) return undefined;
  // another click on the same place chooses the box behind
  const again = page.clicked && Math.hypot(pixel[0] - page.clicked[0], pixel[1] - page.clicked[1]) < 4 * unit;
  page.clicked = pixel;
  const next = again ? here[(here.indexOf(page.view.object) + 1) % here.length] : here[0];
  return update(page, { object: next, mode: "object" });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function keyPressed(page, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { data, view } = page;
  const arrow = ARROWS[event.key];
  const letter = { o: "object", p: "pixel", a: "all" }[event.key];
  if (arrow && view.mode === "pixel") movePixel(page, arrow, event.shiftKey ? 5 : 1);
  else if (arrow) chooseNext(page, arrow[0] + arrow[1]);
  else if (letter) { if (hasMode(page, letter)) update(page, { mode: letter }); }
  else if (event.key === "[" || event.key === "]") chooseLayer(page, event.key === "]" ? 1 : -1);
  else if (event.key === "{" || event.key === "}") {
    const head = view.head + (event.key === "}" ? 1 : -1);
    update(page, { head: Math.min(Math.max(head, MEAN), data.heads - 1) });
  } else return;
  event.preventDefault();
}

function movePixel(page, [columns, rows], by) {
  const { cell } = sourceOf(page) ?? {};
  if (cell) update(page, { pixel: neighbor(page, cell, columns * by, rows * by) });
}

function chooseNext(page, by) {
  const shown = visible(page);
  if (!shown.length) return;
  const place = shown.indexOf(page.view.object) + by;
  update(page, { object: shown[(place + shown.length) % shown.length] });
}

/** Choose the next layer that the file holds, towards the last or the first. */
function chooseLayer(page, by) {
  const pixel = page.view.mode === "pixel";
  const layers = page.data[pixel ? "encoder" : "cross"].layers;
  for (let layer = layerOf(page) + by; layer >= 0 && layer < layers.length; layer += by) {
    if (layers[layer]) return update(page, { [pixel ? "encoderLayer" : "decoderLayer"]: layer });
  }
  return undefined;
}

function listen(page) {
  const on = (id, event, handle) => byId(id).addEventListener(event, handle);
  const layerField = () => (page.view.mode === "pixel" ? "encoderLayer" : "decoderLayer");
  on("mode", "change", (event) => update(page, { mode: event.target.value }));
  on("form", "change", (event) => update(page, { form: event.target.value }));
  on("layer", "change", (event) => update(page, { [layerField()]: Number(event.target.value) }));
  on("head", "change", (event) => update(page, { head: Number(event.target.value) }));
  on("level", "change", (event) => update(page, { level: Number(event.target.value) }));
  on("threshold", "input", (event) => update(page, { threshold: Number(event.target.value) }));
  on("objects", "change", (event) => update(page, { object: Number(event.target.value),
    mode: page.view.mode === "pixel" ? "object" : page.view.mode }));
  for (const id of ["trail", "boxes", "masks", "gray", "smooth", "root"]) {
    on(id, "change", (event) => update(page, { [id]: event.target.checked }));
  }
  on("strip", "click", (event) => {
    const button = event.target.closest("button");
    if (button) update(page, { [layerField()]: Number(button.dataset.layer) });
  });
  on("stage", "pointermove", (event) => pointerMoved(page, event));
  on("stage", "pointerleave", () => pointerLeft(page));
  on("stage", "click", (event) => clicked(page, event));
  on("stage", "keydown", (event) => keyPressed(page, event));
  on("png", "click", () => savePicture(page));
  on("json", "click", () => saveNumbers(page));
  new ResizeObserver(() => requestAnimationFrame(() => showPicture(page))).observe(byId("stage").parentElement);
  window.addEventListener("resize", () => requestAnimationFrame(() => showPicture(page)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showLegend(page));
}

/** Return the largest threshold, in hundredths, that leaves no object out. */
function lowThreshold(data) {
  const lowest = data.detections.reduce((low, { score }) => Math.min(low, score), 1);
  return Math.max(0, Math.ceil(lowest * 100 - 1) / 100);
}

/** Return the level whose cells are asked first: the finest level's points lie close together. */
function firstLevel(data) {
  const levels = data.levels.map((_, level) => level).filter((level) => data.encoder.cells[level]);
  return levels[levels.length > 1 ? 1 : 0] ?? 0;
}

/** Return what is shown first: the best object in the last layer, or a pixel where there is no object. */
function firstView(data) {
  const some = data.detections.length > 0;
  const lastKept = (layers) => Math.max(0, layers.findLastIndex(Boolean));
  return {
    mode: some || !data.encoder.layers.some(Boolean) ? "object" : "pixel",
    object: some ? 0 : null, pixel: [data.width / 2, data.height / 2], hover: null,
    level: firstLevel(data),
    decoderLayer: lastKept(data.cross.layers), encoderLayer: lastKept(data.encoder.layers), head: MEAN, form: "points",
    threshold: lowThreshold(data), trail: true, boxes: false, masks: false, gray: true, smooth: false, root: false,
  };
}

async function start() {
  const data = JSON.parse(byId("data").textContent);
  const image = byId("image");
  await image.decode();
  const page = { data, arrays: await decodeAll(data.sections), image, masks: [], cache: new Map(), view: firstView(data) };
  page.gray = grayImage(image, image.naturalWidth, image.naturalHeight);
  byId("about").textContent = `${data.model}${data.panoptic ? ", panoptic" : ""}: ${data.encoderLayers} encoder and ` +
    `${data.decoderLayers} decoder layers, ${data.heads} heads, ${data.levels.map(([h, w]) => `${w} x ${h}`).join(", ")} cells. ` +
    "Objects, layers, heads, levels and queries count from 0.";
  byId("file").textContent = fileSentence(page);
  byId("left-out").replaceChildren(...data.leftOut.map((text) => make("li", {}, text)));
  byId("left-out-title").hidden = !data.leftOut.length;
  for (const input of document.querySelectorAll('input[name="mode"]')) {
    input.disabled = !hasMode(page, input.value);
  }
  byId("threshold").min = page.view.threshold;
  byId("main").hidden = false;
  listen(page);
  update(page, {}, false);
  // for scripts, and for the tests of this page
  window.detrkitPage = Object.freeze({
    data, view: page.view, sentence: () => sentence(page), numbers: () => numbers(page),
    update: (changes) => update(page, changes), maskAreas: () => maskAreas(page),
  });
}

start().catch((error) => {
  byId("problem").hidden = false;
  byId("problem").textContent = `This page cannot be shown: ${error.message}. It needs Chrome or Edge 97, Firefox 113, ` +
    "Safari 16.4, or a later version.";
  console.error(error);
});
