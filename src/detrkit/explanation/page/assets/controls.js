// Builds the choices and the numbers beside the picture. Text from the model's file, such as names of classes, only ever
// goes into `textContent`, where it cannot become markup.

const byId = (id) => document.getElementById(id);

/** Make an element: its attributes, then its children, which are elements or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function fillSelect(select, choices, chosen) {
  select.replaceChildren(...choices.map(({ value, text, disabled }) => {
    const option = make("option", { value }, text);
    option.disabled = Boolean(disabled);
    return option;
  }));
  select.value = String(chosen);
}

/** Return whether what is shown samples points: RT-DETR's decoder does, its encoder attends to a map. */
function samplesPoints({ data, view }) {
  return view.mode === "pixel" ? data.encoderPoints : data.deformable;
}

/** Bring all choices into agreement with the view. */
function showChoices(page) {
  const { data, view } = page;
  const pixel = view.mode === "pixel";
  for (const name of ["mode", "form"]) {
    for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.checked = input.value === view[name];
  }
  const count = pixel ? data.encoderLayers : data.decoderLayers;
  const kind = pixel ? "encoder" : "cross";
  const layers = Array.from({ length: count }, (_, layer) => ({
    value: layer, disabled: !kept(page, kind, layer),
    text: `${pixel ? "encoder" : "decoder"} ${layerName(layer, count)}${kept(page, kind, layer) ? "" : ", left out"}`,
  }));
  fillSelect(byId("layer"), layers, layerOf(page));
  const heads = kept(page, kind, layerOf(page)) === "heads" ? data.heads : 0;
  const single = Array.from({ length: data.heads }, (_, head) => ({
    value: head, text: `head ${head}${heads ? "" : ", left out"}`, disabled: !heads,
  }));
  fillSelect(byId("head"), [{ value: MEAN, text: `mean of ${data.heads} heads` }, ...single], headOf(page, layerOf(page)));
  const levels = data.levels.map(([rows, columns], level) => ({ value: level, text: `${level}: ${columns} x ${rows} cells` }))
    .filter(({ value }) => data.encoder.cells[value]);
  fillSelect(byId("level"), levels, view.level);
  for (const id of ["level", "level-label"]) byId(id).hidden = !(pixel && levels.length > 1);
  for (const id of ["form", "form-label"]) byId(id).hidden = !samplesPoints(page);
  byId("masks-label").hidden = !data.maskWidth;
  byId("masks-name").textContent = data.panoptic ? "Segments" : "Masks";
  for (const id of ["trail", "boxes", "masks", "gray", "smooth", "root"]) byId(id).checked = view[id];
  byId("trail").disabled = view.mode !== "object";
  byId("threshold").value = view.threshold;
  const shown = visible(page).length;
  byId("threshold-value").textContent = `${view.threshold.toFixed(2)}: ${shown} of ${data.detections.length}`;
  byId("slider").hidden = !data.detections.length;
  const none = byId("none");
  none.hidden = shown > 0;
  none.textContent = data.detections.length ? "No object has a higher score." : `No object: ${data.nearMiss ?? "nothing was detected"}.`;
}

/** List the objects above the threshold, as one group of radio buttons. */
function showObjects(page) {
  const objects = visible(page);
  const list = byId("objects");
  const key = objects.join();
  if (list.dataset.key !== key) {
    // built only when it changes, so that the focus stays where it is
    list.dataset.key = key;
    list.replaceChildren(...objects.map((object) => objectRow(page, object)));
  }
  for (const input of list.querySelectorAll("input")) {
    input.checked = Number(input.value) === page.view.object;
    if (input.checked) keepInView(list, input.parentElement);
  }
}

/** Scroll a list, and nothing else, until a row of it is seen. */
function keepInView(list, row) {
  const top = row.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + row.offsetHeight - list.clientHeight;
}

function objectRow(page, object) {
  const { name, score, query, kind } = page.data.detections[object];
  const badge = make("span", { class: "badge" }, String(object));
  badge.style.background = objectColor(object);
  badge.style.color = textColor(objectColor(object));
  const bar = make("i");
  bar.style.width = `${100 * score}%`;
  const input = make("input", {
    type: "radio", name: "object", value: object,
    "aria-label": `${name}${kind ? `, ${kind}` : ""}, score ${score.toFixed(2)}, query ${query}`,
  });
  return make("label", { title: `${name}, query ${query}` }, input, badge, make("span", { class: "name" }, name),
    make("span", { class: "meter" }, bar), make("span", {}, score.toFixed(2)), make("span", { class: "query" }, `q ${query}`));
}

/** Write the numbers of the chosen object, or of the chosen cell. */
function showNumbers(page) {
  const { data, view } = page;
  const layer = layerOf(page), head = headOf(page, layer);
  const source = view.mode === "all" ? null : sourceOf(page);
  const parts = [];
  if (view.mode === "all") parts.push(objectsTable(page, layer, head));
  else if (source?.kind === "cross") parts.push(objectFacts(page, source.object), layersTable(page, source, head));
  else if (source) parts.push(facts([["Pixel", `${pixels(source.cell.x)}, ${pixels(source.cell.y)}`],
    ["Cell", `row ${source.cell.row}, column ${source.cell.column}`],
    ["Size of the cell", `${pixels(source.cell.width)} x ${pixels(source.cell.height)} pixels`]]));
  const found = source && attention(page, source, layer, head);
  if (found) parts.push(strongestTable(page, found));
  byId("numbers").replaceChildren(...parts);
  byId("numbers-section").hidden = !parts.length;
}

function facts(pairs) {
  return make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function objectFacts(page, object) {
  const { name, score, label, query, kind, area, box, proposal } = page.data.detections[object];
  const pairs = [["Class", `${name} (label ${label})`], ["Score", score.toFixed(4)], ["Query", String(query)],
    ["Box x0, y0, x1, y1", boxText(box)]];
  if (kind) pairs.push(["Segment", `${kind}, ${area.toLocaleString("en")} pixels`]);
  if (proposal) pairs.push(["Proposal", `level ${proposal.level}, at ${pixels(proposal.x)}, ${pixels(proposal.y)}`]);
  return facts(pairs);
}

function table(title, head, rows, now = -1) {
  const cells = (tag, values) => values.map((value, i) =>
    make(i ? tag : "th", i ? {} : { scope: tag === "th" ? "col" : "row" }, value));
  return make("table", {}, make("caption", {}, title), make("thead", {}, make("tr", {}, ...cells("th", head))),
    make("tbody", {}, ...rows.map((row, i) => make("tr", i === now ? { class: "now" } : {}, ...cells("td", row)))));
}

function layersTable(page, source, head) {
  const { layerScores, box } = page.data.detections[source.object];
  const rows = layerScores.map((score, layer) => {
    const found = attention(page, source, layer, kept(page, "cross", layer) === "heads" ? head : MEAN);
    return [String(layer), score.toFixed(3), found ? percent(inside(page, found.map, box)) : "left out"];
  });
  return table("By decoder layer", ["Layer", "Score", "Attention in the box"], rows, layerOf(page));
}

function objectsTable(page, layer, head) {
  const rows = visible(page).map((object) => {
    const { box, name } = page.data.detections[object];
    const found = attention(page, { kind: "cross", object }, layer, head);
    return [`${object} ${name}`, found ? percent(inside(page, found.map, box)) : "left out", percent(areaShare(page, box))];
  });
  return table("Attention in the box, beside its share of the image", ["Object", "Attention", "Area"], rows);
}

function strongestTable(page, { map, points }) {
  if (points) {
    const top = [...points].sort((a, b) => b.weight - a.weight).slice(0, 5);
    const rows = top.map((p) => [`${pixels(p.x)}, ${pixels(p.y)}`, String(p.level), String(p.head), weightText(p.weight)]);
    return table("Heaviest points", ["Pixel", "Level", "Head", "Weight"], rows);
  }
  const rows = strongestCells(page, map, 5).map((cell) => [`${pixels(cell.x)}, ${pixels(cell.y)}`, weightText(cell.weight)]);
  return table("Strongest cells", ["Pixel", "Weight"], rows);
}

/** Draw all layers beside each other, each a button. */
function showStrip(page) {
  const { data, view } = page;
  const kind = view.mode === "pixel" ? "encoder" : "cross";
  const count = kind === "encoder" ? data.encoderLayers : data.decoderLayers;
  const strip = byId("strip");
  byId("strip-title").textContent = `All ${kind === "encoder" ? "encoder" : "decoder"} layers`;
  if (strip.dataset.kind !== kind) {
    strip.dataset.kind = kind;
    strip.replaceChildren(...Array.from({ length: count }, (_, layer) =>
      make("button", { type: "button", "data-layer": layer }, make("canvas"), make("span"))));
  }
  for (const button of strip.children) {
    const layer = Number(button.dataset.layer);
    const [canvas, text] = button.children;
    paint(page, canvas, 200, layer, { small: true, ratio: Math.min(2, window.devicePixelRatio || 1) });
    const chosen = layer === layerOf(page);
    button.setAttribute("aria-pressed", String(chosen));
    button.disabled = !kept(page, kind, layer);
    const note = button.disabled ? "left out" : stripNote(page, layer);
    text.replaceChildren(layerName(layer, count), make("small", {}, note));
    button.setAttribute("aria-label", `${layerName(layer, count)}${note ? `, ${note}` : ""}`);
  }
}

function stripNote(page, layer) {
  const { view, data } = page;
  if (view.mode !== "object" || view.object === null) return "";
  return data.detections[view.object].layerScores[layer].toFixed(2);
}

/** Explain the colors, the shapes and the marks of the picture. */
function showLegend(page) {
  const { data, view } = page;
  const entries = [];
  const points = samplesPoints(page) && view.form !== "density";
  const layer = layerOf(page);
  const source = view.mode === "all" ? null : sourceOf(page);
  const found = source && attention(page, source, layer, headOf(page, layer));
  if (found) {
    const most = points ? largest(found.points.map((point) => point.weight)) : largest(found.map.weights);
    const scale = points || view.root ? "root scale" : "linear";
    const unit = points ? " of the head" : "";
    entries.push(make("span", {}, "weight 0", scaleBar(points), `${weightText(most)}${unit}, ${scale}`));
  }
  if (view.mode === "all") entries.push(make("span", {}, `colors: objects, as in the list${points ? "" : `; opacity: ${view.root ? "weight" : "square of the weight"}`}`));
  if (points) {
    data.levels.forEach((size, level) => entries.push(make("span", {}, sample((context) => {
      traceMarker(context, level, 9, 9, 5.5);
      context.fill();
    }), `level ${level}`)));
  }
  if (source?.kind === "cross") {
    entries.push(make("span", {}, sample((context) => paintReference(context, [9, 9, 9, 9], 1, 8), true), referenceName(page)));
    if (view.trail && data.detections[source.object].proposal) {
      entries.push(make("span", {}, sample((context) => outline(context, [3, 3, 15, 15], "#7fe3ff", 1, 1.6, [2, 3]), true), "proposal's cell"));
    }
    if (view.trail) entries.push(make("span", {}, sample((context) => outline(context, [2, 4, 16, 14], "#fff", 1, 1, [4, 3]), true), "boxes of the layers"));
  }
  if (source?.kind === "encoder") {
    entries.push(make("span", {}, sample((context) => outline(context, [3, 3, 15, 15], "#7fe3ff", 1, 2), true), "cell that attends"));
  }
  byId("legend").replaceChildren(...entries);
}

function referenceName(page) {
  if (page.data.deformable) return "reference that this layer starts from";
  return "center of the box that this layer starts from";
}

/** Return a small canvas with a sign of the picture, in the color of the text or on the dark of the picture. */
function sample(draw, dark = false) {
  const canvas = newCanvas(36, 36);
  canvas.style.width = canvas.style.height = "18px";
  if (dark) canvas.style.background = "#4a4d52";
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = getComputedStyle(document.body).color;
  draw(context);
  return canvas;
}

function scaleBar(points) {
  const canvas = newCanvas(220, 20);
  canvas.style.width = "110px";
  canvas.style.height = "10px";
  const context = canvas.getContext("2d");
  for (let x = 0; x < 220; x++) {
    context.fillStyle = `rgb(${scaleColor((points ? 0.25 : 0.12) + (points ? 0.75 : 0.88) * (x / 219))})`;
    context.fillRect(x, 0, 1, 20);
  }
  return canvas;
}
