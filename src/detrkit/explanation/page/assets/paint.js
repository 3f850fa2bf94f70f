// Draws the picture: on the screen, in the strip of layers and in the exported PNG alike. Coordinates are pixels of the
// image; `unit` is one pixel of the screen.

const MAX_CANVAS_SIDE = 8192; // pixels

/** Draw the view, with the attention of one layer, on a canvas of some width in pixels. */
function paint(page, canvas, width, layer, { small = false, ratio = 1 } = {}) {
  const { data, view } = page;
  // browsers show nothing of a larger canvas: of an image that is very long, fewer pixels are drawn
  const scale = Math.min((width / data.width) * ratio, MAX_CANVAS_SIDE / Math.max(data.width, data.height));
  canvas.width = Math.max(1, Math.round(data.width * scale));
  canvas.height = Math.max(1, Math.round(data.height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const unit = ratio / scale;
  context.imageSmoothingQuality = "high";
  context.drawImage(view.gray ? page.gray : page.image, 0, 0, data.width, data.height);
  if (view.mode === "all") paintAll(page, context, unit, layer, small);
  else paintOne(page, context, unit, layer, small);
}

function paintOne(page, context, unit, layer, small) {
  const { data, view } = page;
  const source = sourceOf(page);
  const found = source && attention(page, source, layer, headOf(page, layer));
  if (view.masks && source?.kind === "cross") paintMask(page, context, source.object, 0.4);
  if (found) {
    const points = found.points && view.form !== "density";
    if (!points || view.form === "both") paintMap(page, context, found.map, scaleShade);
    if (points) paintPoints(context, found.points, unit * (small ? 0.55 : 1), null);
  }
  if (source?.kind === "cross") {
    const { object } = source;
    const detection = data.detections[object];
    if (view.boxes && !small) for (const other of visible(page)) if (other !== object) paintBox(page, context, other, unit, 1.4);
    if (view.trail && !small) paintTrail(page, context, detection, unit, layer);
    if (small || view.trail) outline(context, detection.layerBoxes[layer], "#fff", unit, small ? 1.2 : 1.6);
    if (!small) paintBox(page, context, object, unit, 2.4);
    paintReference(context, detection.references[layer], unit, small ? 4 : 9);
  } else {
    if (view.boxes && !small) for (const object of visible(page)) paintBox(page, context, object, unit, 1.2);
    if (source) paintCell(context, source.cell, unit, small);
  }
}

/** All objects at once, each in its color (Fig. 6 of the paper). */
function paintAll(page, context, unit, layer, small) {
  const { view } = page;
  const objects = visible(page);
  for (const object of objects) {
    const color = objectColor(object);
    if (view.masks) paintMask(page, context, object, 0.3);
    const found = attention(page, { kind: "cross", object }, layer, headOf(page, layer));
    if (!found) continue;
    const points = found.points && view.form !== "density";
    if (!points || view.form === "both") paintMap(page, context, found.map, colorShade(color));
    if (points) paintPoints(context, found.points, unit * (small ? 0.45 : 0.8), color);
  }
  for (const object of small ? [] : objects) paintBox(page, context, object, unit, object === view.object ? 2.6 : 1.6);
}

// Shades give [r, g, b, a] for a share of the largest weight, or for its root, which shows small weights, too. Small
// ones let the image through.
function scaleShade(share) {
  return [...scaleColor(0.12 + 0.88 * share), Math.min(1, share * 1.8) * 205];
}

function colorShade(color) {
  const [red, green, blue] = rgb(color);
  // squared: of maps that lie on each other only the strong cells may cover others
  return (share) => [red, green, blue, share ** 2 * 235];
}

function paintMap(page, context, map, shade) {
  const most = largest(map.weights);
  if (!most) return;
  const canvas = newCanvas(map.width, map.height);
  const cells = canvas.getContext("2d");
  const pixels = cells.createImageData(map.width, map.height);
  map.weights.forEach((weight, i) => {
    const share = weight / most;
    pixels.data.set(shade(page.view.root ? Math.sqrt(share) : share), 4 * i);
  });
  cells.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = page.view.smooth;
  context.drawImage(canvas, 0, 0, page.data.width * map.reach[1], page.data.height * map.reach[0]);
  context.imageSmoothingEnabled = true;
}

/** Draw points: the area of a marker grows with its weight, its shape tells the level. */
function paintPoints(context, points, unit, color) {
  const most = largest(points.map((point) => point.weight)) || 1;
  const byWeight = [...points].sort((a, b) => a.weight - b.weight); // the heaviest on top
  for (const point of byWeight) {
    const share = Math.sqrt(point.weight / most);
    traceMarker(context, point.level, point.x, point.y, pointRadius(point, most) * unit);
    context.globalAlpha = 0.35 + 0.65 * share;
    context.fillStyle = color ?? `rgb(${scaleColor(0.25 + 0.75 * share)})`;
    context.fill();
    context.lineWidth = 0.9 * unit;
    context.strokeStyle = "rgb(0 0 0 / .75)";
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** Return the radius in pixels of the screen. */
function pointRadius(point, most) {
  return 1.6 + 6.4 * Math.sqrt(point.weight / most);
}

function paintMask(page, context, object, opacity) {
  const color = objectColor(object);
  page.masks[object] ??= maskCanvas(page.arrays, object, page.data.maskWidth, color);
  context.globalAlpha = opacity;
  context.drawImage(page.masks[object], 0, 0, page.data.width, page.data.height);
  context.globalAlpha = 1;
}

function outline(context, [x1, y1, x2, y2], color, unit, thickness, dash = []) {
  context.setLineDash([]);
  context.lineWidth = (thickness + 1.6) * unit;
  context.strokeStyle = "rgb(0 0 0 / .55)"; // a dark seam, so that the line is seen on any image
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.setLineDash(dash.map((length) => length * unit));
  context.lineWidth = thickness * unit;
  context.strokeStyle = color;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.setLineDash([]);
}

function paintBox(page, context, object, unit, thickness) {
  const detection = page.data.detections[object];
  outline(context, detection.box, objectColor(object), unit, thickness);
  // many names would cover the picture
  const short = page.view.object !== object && visible(page).length > 6;
  label(page, context, short ? String(object) : `${object}  ${detection.name}`, detection.box, objectColor(object), unit);
}

/** Write a label at the upper left corner of a box, within the image. */
function label(page, context, text, [x1, y1], color, unit) {
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const short = text.length > 28 ? `${text.slice(0, 27)}…` : text;
  const width = context.measureText(short).width + 8 * unit, height = 17 * unit;
  const x = Math.min(Math.max(x1, 0), Math.max(0, page.data.width - width));
  const y = Math.min(Math.max(y1 - height, 0), Math.max(0, page.data.height - height));
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.fillStyle = textColor(color);
  context.fillText(short, x + 4 * unit, y + height / 2 + 0.5 * unit);
}

/** Draw a detection's way: where it began, its box after each layer, the line of the boxes' centers. */
function paintTrail(page, context, detection, unit, layer) {
  if (detection.proposal) paintProposal(page, context, detection.proposal, unit);
  const steps = trailOf(detection);
  const centers = steps.map(({ box }) => [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]);
  steps.forEach(({ box }, i) => {
    context.globalAlpha = 0.35 + (0.65 * i) / Math.max(1, steps.length - 1);
    if (hasExtent(box)) outline(context, box, "#fff", unit, 1, [5, 4]);
  });
  context.globalAlpha = 1;
  context.beginPath();
  centers.forEach(([x, y]) => context.lineTo(x, y));
  for (const [color, width] of [["rgb(0 0 0 / .6)", 3.4], ["#fff", 1.6]]) {
    context.strokeStyle = color;
    context.lineWidth = width * unit;
    context.stroke();
  }
  centers.forEach(([x, y], i) => {
    const now = steps[i].layer === layer;
    context.beginPath();
    context.arc(x, y, (now ? 5 : 3) * unit, 0, 2 * Math.PI);
    context.fillStyle = now ? "#fff" : "#c9ccd1";
    context.fill();
    context.lineWidth = unit;
    context.strokeStyle = "#000";
    context.stroke();
  });
}

/** Return the steps of a detection's way: { name, layer, box }; a reference point is a box without extent. */
function trailOf(detection) {
  const boxes = detection.layerBoxes.map((box, layer) => ({ name: `layer ${layer}`, layer, box }));
  return [{ name: "start", layer: -1, box: detection.references[0] }, ...boxes];
}

function hasExtent([x1, y1, x2, y2]) {
  return x2 > x1 || y2 > y1;
}

/** Draw the reference that a layer started from, as a cross at its center. */
function paintReference(context, [x1, y1, x2, y2], unit, length) {
  const x = (x1 + x2) / 2, y = (y1 + y2) / 2;
  context.beginPath();
  for (const [dx, dy] of [[1, 1], [1, -1]]) {
    context.moveTo(x - dx * length * 0.7 * unit, y - dy * length * 0.7 * unit);
    context.lineTo(x + dx * length * 0.7 * unit, y + dy * length * 0.7 * unit);
  }
  for (const [color, width] of [["#000", 4.4], ["#fff", 2.2]]) {
    context.strokeStyle = color;
    context.lineWidth = width * unit;
    context.stroke();
  }
}

/** Draw the encoder's cell that a query came from (two-stage models), as a dotted rectangle. */
function paintProposal(page, context, { level, x, y }, unit) {
  const [rows, columns] = page.data.levels[level];
  const width = page.data.width / columns, height = page.data.height / rows;
  outline(context, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], "#7fe3ff", unit, 1.6, [2, 3]);
}

/** Draw the cell whose attention is shown. */
function paintCell(context, { x, y, width, height }, unit, small) {
  outline(context, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], "#7fe3ff", unit, small ? 1.2 : 2.2);
  if (small || Math.min(width, height) > 14 * unit) return;
  context.beginPath();
  context.arc(x, y, 12 * unit, 0, 2 * Math.PI); // so that the small cells of fine levels are found
  for (const [color, thickness] of [["rgb(0 0 0 / .6)", 4], ["#7fe3ff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = thickness * unit;
    context.stroke();
  }
}

/** Return the image without its colors, dimmed, so that the colors of attention stand out. */
function grayImage(image, width, height) {
  const canvas = newCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [red, green, blue] = pixels.data.subarray(i, i + 3);
    pixels.data.fill(0.72 * (0.2126 * red + 0.7152 * green + 0.0722 * blue), i, i + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
