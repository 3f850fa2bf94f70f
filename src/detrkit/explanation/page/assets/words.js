// Says in words what the picture shows: under it, and for screen readers.

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const weightText = (weight) => `${Number((100 * weight).toPrecision(3))} %`; // 0.691 %, 31.2 %
const pixels = (value) => String(Math.round(value));
const boxText = (box) => box.map(pixels).join(", ");

function layerName(layer, count) {
  return `layer ${layer}${layer === count - 1 ? " (last)" : ""}`;
}

function headName(page, head) {
  return head === MEAN ? `mean of ${page.data.heads} heads` : `head ${head}`;
}

function objectName(page, object) {
  const { name, score, query } = page.data.detections[object];
  return `${object}, ${name}, score ${score.toFixed(2)}, query ${query}`;
}

/** Return the sentence about the view. */
function sentence(page) {
  const { data, view } = page;
  const layer = layerOf(page);
  if (view.mode === "pixel") return pixelSentence(page, layer);
  const stage = `decoder ${layerName(layer, data.decoderLayers)}, ${headName(page, headOf(page, layer))}`;
  if (view.mode === "all") {
    const count = visible(page).length;
    return `Cross-attention of ${count === 1 ? "1 object" : `${count} objects`}, each in its color: ${stage}.`;
  }
  if (view.object === null) {
    return `No object has a score above the threshold.${hasPixels(page) ? " The encoder can be asked from any pixel." : ""}`;
  }
  const detection = data.detections[view.object];
  const found = attention(page, sourceOf(page), layer, headOf(page, layer));
  const start = `Cross-attention of object ${objectName(page, view.object)}: ${stage}. `;
  if (!found) return `${start}This file does not hold it.`;
  const share = inside(page, found.map, detection.box);
  return `${start}${percent(share)} of it lies inside the object's box, which covers ` +
    `${percent(areaShare(page, detection.box))} of the image; ${strongest(page, found)}.`;
}

function pixelSentence(page, layer) {
  const { data } = page;
  if (!hasPixels(page)) return "This file does not hold the self-attention of the encoder.";
  const { cell } = sourceOf(page);
  const level = data.deformable ? ` of level ${cell.level}` : "";
  const start = `Self-attention of the encoder from the cell${level} at pixel (${pixels(cell.x)}, ${pixels(cell.y)}): ` +
    `${layerName(layer, data.encoderLayers)}, ${headName(page, headOf(page, layer))}. `;
  const found = attention(page, { kind: "encoder", cell }, layer, headOf(page, layer));
  return found ? `${start}${capital(strongest(page, found))}.` : `${start}This file does not hold this layer.`;
}

function strongest(page, { map, points }) {
  if (points) {
    const top = points.reduce((a, b) => (b.weight > a.weight ? b : a));
    return `the heaviest of its ${points.length} points is at (${pixels(top.x)}, ${pixels(top.y)}), ` +
      `level ${top.level}, with ${weightText(top.weight)} of head ${top.head}`;
  }
  const [top] = strongestCells(page, map, 1);
  return `the strongest cell is at (${pixels(top.x)}, ${pixels(top.y)}) with ${weightText(top.weight)}`;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** Return what is under a pixel, for the note beside the pointer; "" if there is nothing to say. */
function underPointer(page, [x, y], unit) {
  const { view } = page;
  const source = sourceOf(page);
  const layer = layerOf(page);
  const found = view.mode !== "all" && source && attention(page, source, layer, headOf(page, layer));
  if (!found) return objectsAt(page, x, y).map((object) => objectName(page, object)).join("\n");
  if (found.points && view.form !== "density") {
    const most = largest(found.points.map((point) => point.weight)) || 1;
    const near = found.points
      .map((point) => ({ point, distance: Math.hypot(point.x - x, point.y - y) / unit }))
      .filter(({ point, distance }) => distance <= pointRadius(point, most) + 3)
      .sort((a, b) => a.distance - b.distance)[0];
    if (!near) return "";
    const { point } = near;
    return `level ${point.level}, head ${point.head}\nweight ${weightText(point.weight)} of the head\n` +
      `at (${point.x.toFixed(1)}, ${point.y.toFixed(1)})`;
  }
  const { map } = found;
  const column = Math.floor((x / page.data.width / map.reach[1]) * map.width);
  const row = Math.floor((y / page.data.height / map.reach[0]) * map.height);
  const weight = map.weights[row * map.width + column] ?? 0;
  return `row ${row}, column ${column}\nweight ${weightText(weight)}`;
}

/** Say how large the file is, and what it holds. */
function fileSentence(page) {
  const { fileBytes, bytes } = page.data;
  const size = (count) => (count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.ceil(count / 1e3)} kB`);
  return `${size(fileBytes)}: image ${size(bytes.image)}, attention of the detections ${size(bytes.cross)}, of the ` +
    `encoder ${size(bytes.encoder)}. Weights are kept in 8 bits each${page.data.deformable ? ", points in 16" : ""}.`;
}
