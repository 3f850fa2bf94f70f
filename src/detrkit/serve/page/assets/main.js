// The page of a service: an image goes to it once, and everything else happens here.

const byId = (id) => document.getElementById(id);
const config = JSON.parse(byId("data").textContent);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// `file` and `image` are what was chosen; `answer`, `objects` and `masks` what was found in it; `view` what is shown
const page = {
  file: null, image: null, answer: null, whole: null, objects: [], masks: [], asked: null, token: null,
  view: { threshold: config.threshold, object: null, boxes: true, names: true, masks: true },
};

/** Return the numbers of the objects above the threshold. */
function visible({ objects, view }) {
  return objects.map((_, object) => object).filter((object) => objects[object].score > view.threshold);
}

function fail(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text;
}

function say(text, busy = false) {
  byId("caption").textContent = text;
  byId("caption").classList.toggle("busy", busy);
}

/** Ask the service; throw an error with its own words if it refuses. */
async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  if (page.token) headers.Authorization = `Bearer ${page.token}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", body, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is it still running?");
  }
  if (response.ok) return response;
  let words = `the server answered with status ${response.status}`;
  try {
    words = (await response.json()).error.message;
  } catch { /* the words above stay */ }
  if (response.status === 401) {
    byId("access").hidden = false;
    byId("token").focus();
  }
  const after = response.headers.get("Retry-After");
  throw new Error(after ? `${words}: try again in ${after} s` : words);
}

async function choose(file) {
  if (!file) return;
  page.asked?.abort();
  const asked = new AbortController();
  Object.assign(page, { file, asked, answer: null, image: null, objects: [], masks: [] });
  page.view.object = null;
  fail("");
  byId("why").hidden = true;
  byId("shown").hidden = true;
  for (const id of ["explain", "json"]) byId(id).disabled = true;
  showTable();
  say("The model looks at the image.", true);
  try {
    const query = config.lowest === null ? "" : `?threshold=${config.lowest}&tile=${byId("tile").value}`;
    const response = await ask(`predict${query}`, file, asked.signal);
    await show(file, await response.json(), asked);
  } catch (error) {
    if (error.name === "AbortError" || page.asked !== asked) return;
    say("No answer.");
    fail(error.message);
  }
}

async function show(file, whole, asked) {
  const [answer] = whole.images;
  // a format that the browser cannot show, such as TIFF, leaves the boxes on black
  const image = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  const objects = answer.detections ?? answer.panoptic.segments;
  const masks = answer.panoptic
    ? await segmentMasks(answer.panoptic)
    : objects.map(({ segmentation }, object) => segmentation && instanceMask(segmentation, objectColor(object)));
  if (page.asked !== asked) return; // another image was chosen meanwhile
  Object.assign(page, { whole, answer, image, objects, masks });
  const slider = byId("threshold");
  const lowest = answer.threshold === "auto" ? 0 : answer.threshold;
  slider.min = Math.ceil(lowest * 100) / 100;
  page.view.threshold = Math.max(page.view.threshold, Number(slider.min));
  if (answer.panoptic) page.view.threshold = Number(slider.min);
  byId("masks-label").hidden = !masks.some(Boolean);
  byId("where").textContent = answer.panoptic ? "Pixels" : "Box";
  byId("shown").hidden = false;
  for (const id of ["explain", "json"]) byId(id).disabled = false;
  render();
}

function render() {
  const { answer, view } = page;
  byId("threshold").value = view.threshold;
  byId("threshold-value").textContent = view.threshold.toFixed(2);
  for (const id of ["boxes", "names", "masks"]) byId(id).checked = view[id];
  if (!answer) return;
  const shown = visible(page);
  if (view.object !== null && !shown.includes(view.object)) view.object = null;
  showTable();
  paint(page);
  say(sentence());
  byId("stage").setAttribute("aria-label", `Image, ${answer.width} by ${answer.height} pixels. ${sentence()}`);
}

function sentence() {
  const { answer, objects, view } = page;
  if (view.object !== null) {
    const { name, score, query, box } = objects[view.object];
    const where = box ? `, x ${box[0].toFixed(1)} to ${box[2].toFixed(1)}, y ${box[1].toFixed(1)} to ${box[3].toFixed(1)}` : "";
    return `Object ${view.object + 1}: ${name}, score ${shownScore(score)}, query ${query}${where}.`;
  }
  const count = visible(page).length;
  const noun = `${answer.panoptic ? "segment" : "object"}${count === 1 ? "" : "s"}`;
  const unseen = page.image ? "" : " This browser cannot show images of this format.";
  return `${count} ${noun} above ${view.threshold.toFixed(2)} in ${answer.width} x ${answer.height} pixels.${unseen}`;
}

function showTable() {
  const { objects, view } = page;
  const focused = document.activeElement?.dataset?.object;
  const rows = visible(page).map((object) => {
    const { name, score, box, area } = objects[object];
    const color = objectColor(object);
    const badge = make("span", { class: "badge" }, String(object + 1));
    badge.style.setProperty("background", color);
    badge.style.setProperty("color", textColor(color));
    const where = box ? box.map((value) => value.toFixed(0)).join(", ") : String(area);
    const row = make("tr", { tabindex: "0", "data-object": object, "aria-selected": view.object === object },
      make("td", {}, badge), make("td", { title: name }, name), make("td", {}, shownScore(score)), make("td", {}, where));
    return row;
  });
  byId("rows").replaceChildren(...rows);
  byId("table").hidden = !rows.length;
  byId("none").hidden = rows.length > 0;
  byId("none").textContent = page.answer ? "Nothing has a greater score." : "Choose an image to see its objects.";
  if (focused !== undefined) byId("rows").querySelector(`[data-object="${focused}"]`)?.focus();
}

function select(object) {
  page.view.object = page.view.object === object ? null : object;
  render();
}

function selectNext(by) {
  const shown = visible(page);
  if (!shown.length) return;
  const place = shown.indexOf(page.view.object);
  const next = place < 0 ? (by > 0 ? 0 : shown.length - 1) : (place + by + shown.length) % shown.length;
  page.view.object = shown[next];
  render();
}

/** Choose the smallest box under the pointer: a large one must not hide it. */
function clicked(event) {
  if (!page.answer) return;
  const bounds = byId("stage").getBoundingClientRect();
  const x = ((event.clientX - bounds.left) / bounds.width) * page.answer.width;
  const y = ((event.clientY - bounds.top) / bounds.height) * page.answer.height;
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const here = visible(page).filter((object) => {
    const { box } = page.objects[object];
    return box && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
  }).sort((a, b) => area(page.objects[a].box) - area(page.objects[b].box));
  page.view.object = here[0] ?? null;
  render();
}

async function explain() {
  const { file, asked, view } = page;
  byId("explain").disabled = true;
  fail("");
  say("The attention of the model is being gathered.", true);
  try {
    const query = page.answer.panoptic ? "" : `?threshold=${view.threshold}`;
    const response = await ask(`explain${query}`, file, asked.signal);
    const blob = await response.blob();
    if (page.asked !== asked) return;
    const link = byId("why-link");
    if (link.href) URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(blob);
    byId("why-frame").src = link.href;
    byId("why").hidden = false;
    byId("why").scrollIntoView({ block: "nearest" });
    render();
  } catch (error) {
    if (error.name === "AbortError" || page.asked !== asked) return;
    render();
    fail(error.message);
  } finally {
    byId("explain").disabled = !page.answer;
  }
}

/** Save what is shown, in the form of an answer of the service. */
function save() {
  const { whole, answer, view } = page;
  const above = ({ score }) => score > view.threshold;
  const image = { ...answer, threshold: view.threshold };
  if (answer.detections) image.detections = answer.detections.filter(above);
  const link = make("a", { download: `${page.file.name.replace(/\.[^.]*$/, "") || "image"}.json` });
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ ...whole, images: [image] }, null, 1)], { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser reads it after the click
}

function keyPressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !page.answer) return;
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const toggled = { b: "boxes", n: "names", m: "masks" }[event.key];
  if (by) selectNext(by);
  else if (toggled) { page.view[toggled] = !page.view[toggled]; render(); }
  else if (event.key === "Escape") { page.view.object = null; render(); }
  else return;
  event.preventDefault();
}

function listen() {
  const on = (id, event, handle) => byId(id).addEventListener(event, handle);
  on("file", "change", (event) => { choose(event.target.files[0]); event.target.value = ""; });
  on("threshold", "input", (event) => { page.view.threshold = Number(event.target.value); render(); });
  for (const id of ["boxes", "names", "masks"]) {
    on(id, "change", (event) => { page.view[id] = event.target.checked; render(); });
  }
  on("tile", "change", () => choose(page.file));
  on("stage", "click", clicked);
  on("stage", "keydown", keyPressed);
  const row = (event) => event.target.closest("tr");
  on("rows", "click", (event) => { if (row(event)) select(Number(row(event).dataset.object)); });
  on("rows", "keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    select(Number(row(event).dataset.object));
  });
  on("explain", "click", explain);
  on("json", "click", save);
  on("access", "submit", (event) => {
    event.preventDefault();
    page.token = byId("token").value.trim();
    byId("access").hidden = true;
    choose(page.file);
  });
  window.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  window.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
  window.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) { event.preventDefault(); choose(file); }
  });
  window.addEventListener("resize", () => requestAnimationFrame(() => { if (page.answer) paint(page); }));
}

byId("about").textContent = `Weights ${config.model.sha256.slice(0, 12)}`;
byId("threshold").min = config.lowest ?? config.threshold;
// those of the server come first; a panoptic model has none
const tile = String(config.tile ?? "none");
if (![...byId("tile").options].some(({ value }) => value === tile)) {
  byId("tile").prepend(make("option", { value: tile }, `of ${tile} pixels`));
}
byId("tile").value = tile;
byId("tiles").hidden = config.lowest === null;
listen();
render();
showTable();
// for scripts, and for the tests of this page
window.detrkitServe = Object.freeze({ page, visible: () => visible(page), runLengths });
