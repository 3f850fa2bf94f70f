// What attends to what: of a detection's query, or of the encoder's cell at a pixel. Layers and heads count from 0, as in
// `detrkit.explain`; a head of -1 is the mean of all.

const MEAN = -1;
const CACHED = 500; // results of `attention` that are kept

/** Return what is kept of a layer of "cross" or "encoder": "heads", "mean" or null. */
function kept(page, kind, layer) {
  return page.data[kind].layers[layer] ?? null;
}

/** Return the map of one head, or the mean: index counts queries or cells. */
function headMap(page, name, index, head, heads) {
  if (heads === 1) return mapOf(page.arrays, name, index);
  if (head !== MEAN) return mapOf(page.arrays, name, index * heads + head);
  const mean = mapOf(page.arrays, name, index * heads);
  for (let other = 1; other < heads; other++) {
    const { weights } = mapOf(page.arrays, name, index * heads + other);
    for (let i = 0; i < weights.length; i++) mean.weights[i] += weights[i];
  }
  for (let i = 0; i < mean.weights.length; i++) mean.weights[i] /= heads;
  return mean;
}

/** Add up the weights of points on a grid by bilinear shares, and scale the sum to 1 (detrkit's `density`). */
function densityOf(page, points) {
  const [height, width] = page.data.grid;
  const weights = new Float32Array(height * width);
  let sum = 0;
  for (const point of points) {
    const x = (point.x / page.data.width) * width - 0.5;
    const y = (point.y / page.data.height) * height - 0.5;
    const left = Math.floor(x), top = Math.floor(y);
    for (const [column, row] of [[left, top], [left + 1, top], [left, top + 1], [left + 1, top + 1]]) {
      if (column < 0 || row < 0 || column >= width || row >= height) continue;
      const share = (1 - Math.abs(x - column)) * (1 - Math.abs(y - row)) * point.weight;
      weights[row * width + column] += share;
      sum += share;
    }
  }
  if (sum) for (let i = 0; i < weights.length; i++) weights[i] /= sum;
  return { weights, height, width };
}

/**
 * Return the attention of one layer: { map, points }, or null if the file does not hold it. `map` has weights, height,
 * width, and reach, the (h, w) of its cells together as a share of the image. `points` is null for models with maps.
 */
function attention(page, source, layer, head) {
  const { kind, object, cell } = source;
  const key = [kind, object, cell?.level, cell?.index, layer, head].join();
  if (!page.cache.has(key)) {
    // a view asks for the same ones several times: the picture, its strip, the tables, the sentence
    if (page.cache.size >= CACHED) page.cache.delete(page.cache.keys().next().value); // the oldest
    page.cache.set(key, kind === "cross" ? crossAttention(page, object, layer, head) : encoderAttention(page, cell, layer, head));
  }
  return page.cache.get(key);
}

function crossAttention(page, object, layer, head) {
  const has = kept(page, "cross", layer);
  if (!has) return null;
  const name = `cross.${layer}`;
  if (page.data.deformable) {
    const points = pointsOf(page.arrays, name, object, [0, 0], page.data.cross, page.data);
    return sampled(page, points, head);
  }
  const map = headMap(page, name, object, head, has === "heads" ? page.data.heads : 1);
  return { map: { ...map, reach: [1, 1] }, points: null };
}

function encoderAttention(page, cell, layer, head) {
  const has = kept(page, "encoder", layer);
  if (!has || !cell) return null;
  if (page.data.encoderPoints) {
    const name = `encoder.${layer}.${cell.level}`;
    const points = pointsOf(page.arrays, name, cell.index, [cell.x, cell.y], page.data.encoder, page.data);
    return sampled(page, points, head);
  }
  const map = headMap(page, `encoder.${layer}`, cell.index, head, has === "heads" ? page.data.heads : 1);
  return { map: { ...map, reach: page.data.encoder.reach }, points: null };
}

function sampled(page, points, head) {
  const chosen = head === MEAN ? points : points.filter((point) => point.head === head);
  let map = null; // made when it is needed: pictures of points alone do without
  return {
    points: chosen,
    get map() {
      map ??= { ...densityOf(page, chosen), reach: [1, 1] };
      return map;
    },
  };
}

/** Return the cell of a level, among those in the file, whose center is nearest to a pixel; null if there are none. */
function cellAt(page, [x, y], level) {
  const cells = page.data.encoder.cells[level];
  if (!cells) return null;
  const [height, width] = page.data.levels[level];
  const row = nearest(cells.rows, (y / page.data.height) * height - 0.5);
  const column = nearest(cells.columns, (x / page.data.width) * width - 0.5);
  return {
    level, row: cells.rows[row], column: cells.columns[column], index: row * cells.columns.length + column,
    x: ((cells.columns[column] + 0.5) / width) * page.data.width,
    y: ((cells.rows[row] + 0.5) / height) * page.data.height,
    width: page.data.width / width, height: page.data.height / height,
  };
}

/** Return the pixel of the cell that lies some kept rows and columns away from one, within the image. */
function neighbor(page, cell, columns, rows) {
  const cells = page.data.encoder.cells[cell.level];
  const [height, width] = page.data.levels[cell.level];
  const moved = (list, value, by) => list[Math.min(Math.max(list.indexOf(value) + by, 0), list.length - 1)];
  return [
    ((moved(cells.columns, cell.column, columns) + 0.5) / width) * page.data.width,
    ((moved(cells.rows, cell.row, rows) + 0.5) / height) * page.data.height,
  ];
}

function nearest(sorted, value) {
  let best = 0;
  for (let i = 1; i < sorted.length; i++) if (Math.abs(sorted[i] - value) < Math.abs(sorted[best] - value)) best = i;
  return best;
}

/** Return the share of a map's weight inside a box (xyxy pixels); a cut cell counts with its part inside. */
function inside(page, map, box) {
  const cells = [map.width / map.reach[1] / page.data.width, map.height / map.reach[0] / page.data.height];
  const covered = (low, high, n) => Float64Array.from({ length: n }, (_, i) =>
    Math.max(0, Math.min(i + 1, high) - Math.max(i, low)));
  const columns = covered(box[0] * cells[0], box[2] * cells[0], map.width);
  const rows = covered(box[1] * cells[1], box[3] * cells[1], map.height);
  let sum = 0;
  for (let y = 0; y < map.height; y++) {
    for (let x = 0; x < map.width; x++) sum += map.weights[y * map.width + x] * rows[y] * columns[x];
  }
  return sum;
}

/** Return the share of the image's area that a box covers. */
function areaShare(page, [x1, y1, x2, y2]) {
  const clip = (value, size) => Math.min(Math.max(value, 0), size);
  const { width, height } = page.data;
  return ((clip(x2, width) - clip(x1, width)) * (clip(y2, height) - clip(y1, height))) / (width * height);
}

/** Return the n strongest cells of a map: { x, y, weight }, the pixels of their centers. */
function strongestCells(page, map, n) {
  const order = Array.from(map.weights.keys()).sort((a, b) => map.weights[b] - map.weights[a]).slice(0, n);
  return order.map((i) => ({
    x: (((i % map.width) + 0.5) / map.width) * map.reach[1] * page.data.width,
    y: ((Math.floor(i / map.width) + 0.5) / map.height) * map.reach[0] * page.data.height,
    weight: map.weights[i],
  }));
}

function largest(values) {
  let most = 0;
  for (const value of values) if (value > most) most = value;
  return most;
}
