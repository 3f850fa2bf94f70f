// Draws the image with what was found. Coordinates are pixels of the upright image; `unit` is one pixel of the screen.

const MAX_CANVAS_SIDE = 8192; // pixels

function paint(page) {
  const { answer, image, view } = page;
  const canvas = byId("stage");
  const widest = canvas.parentElement.clientWidth;
  const highest = Math.max(320, window.innerHeight * 0.72);
  const shape = answer.width / answer.height;
  const width = Math.min(widest, Math.max(240, highest * shape), Math.max(1, 4 * highest * shape));
  canvas.style.width = `${width}px`;
  const ratio = Math.min(3, window.devicePixelRatio || 1);
  const scale = Math.min((width / answer.width) * ratio, MAX_CANVAS_SIDE / Math.max(answer.width, answer.height));
  canvas.width = Math.max(1, Math.round(answer.width * scale));
  canvas.height = Math.max(1, Math.round(answer.height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.imageSmoothingQuality = "high";
  if (image) context.drawImage(image, 0, 0, answer.width, answer.height);
  const unit = ratio / scale;
  const objects = visible(page);
  if (view.masks) for (const object of objects) paintMask(page, context, object);
  for (const object of [...objects].reverse()) { // the best one on top
    if (view.boxes && page.objects[object].box) paintBox(page, context, object, unit);
    if (view.names && page.objects[object].box) paintName(page, context, object, unit);
  }
  if (view.object !== null && page.objects[view.object].box) paintBox(page, context, view.object, unit, 4);
}

function paintMask(page, context, object) {
  const mask = page.masks[object];
  if (!mask) return;
  context.globalAlpha = page.view.object === object ? 0.75 : 0.45;
  context.imageSmoothingEnabled = false;
  context.drawImage(mask, 0, 0, page.answer.width, page.answer.height);
  context.imageSmoothingEnabled = true;
  context.globalAlpha = 1;
}

function paintBox(page, context, object, unit, thickness = 2) {
  const [x0, y0, x1, y1] = page.objects[object].box;
  for (const [color, width] of [["rgb(0 0 0 / .65)", thickness + 1.5], [objectColor(object), thickness]]) {
    context.strokeStyle = color;
    context.lineWidth = width * unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

function paintName(page, context, object, unit) {
  const { box: [x0, y0], name, score } = page.objects[object];
  const text = `${object + 1} ${name} ${shownScore(score)}`;
  const size = 12 * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 8 * unit;
  const height = size + 6 * unit;
  const left = Math.min(Math.max(0, x0), Math.max(0, page.answer.width - width));
  const top = Math.min(Math.max(0, y0 - height), page.answer.height - height);
  context.fillStyle = objectColor(object);
  context.fillRect(left, top, width, height);
  context.fillStyle = textColor(objectColor(object));
  context.textBaseline = "middle";
  context.fillText(text, left + 4 * unit, top + height / 2);
}

/** Return a score with two digits, or as many as show that a small one is not 0. */
function shownScore(score) {
  return score >= 0.1 || score === 0 ? score.toFixed(2) : score.toPrecision(2);
}
