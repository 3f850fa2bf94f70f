// Reads the arrays of the page: base64 of deflated bytes, quantized as detrkit/explanation/page/sections.py describes.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

/** Return the array of one section; browsers: Chrome and Edge 80, Firefox 113, Safari 16.4. */
async function decoded(section) {
  const text = atob(document.getElementById(`section-${section.name}`).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new TYPES[section.dtype](await new Response(stream).arrayBuffer());
  return { values, shape: section.shape };
}

/** Return all arrays by name. */
async function decodeAll(sections) {
  const arrays = new Map();
  for (const section of sections) arrays.set(section.name, await decoded(section));
  return arrays;
}

/** Return one map of weights: weight = scale * (value / 255)^2. `index` counts maps. */
function mapOf(arrays, name, index) {
  const { values, shape } = arrays.get(name);
  const [height, width] = shape.slice(-2);
  const scale = arrays.get(`${name}.scale`).values[index] / 65025;
  const weights = new Float32Array(height * width);
  const start = index * weights.length;
  for (let i = 0; i < weights.length; i++) weights[i] = scale * values[start + i] ** 2;
  return { weights, height, width };
}

/**
 * Return the points of one query or cell: { x, y, weight, head, level }, pixels of the image. The weights of a head sum
 * to 1. `around` is the origin of the coordinates in pixels; `counts` are the points of each level, where levels have fewer
 * than the array has room for.
 */
function pointsOf(arrays, name, index, around, { steps, origin, points: counts }, { width, height }) {
  const { values: xy, shape } = arrays.get(`${name}.xy`);
  const { values: roots } = arrays.get(`${name}.weight`);
  const [, heads, levels, count] = shape;
  const points = [];
  for (let head = 0; head < heads; head++) {
    const start = (index * heads + head) * levels * count;
    let sum = 0;
    for (let i = start; i < start + levels * count; i++) sum += roots[i] ** 2;
    for (let i = start; i < start + levels * count; i++) {
      const level = Math.floor((i - start) / count);
      if (counts && (i - start) % count >= counts[level]) continue;
      points.push({
        x: around[0] + ((xy[2 * i] - origin) / steps) * width,
        y: around[1] + ((xy[2 * i + 1] - origin) / steps) * height,
        weight: sum ? roots[i] ** 2 / sum : 0,
        head,
        level,
      });
    }
  }
  return points;
}

/** Return one mask as a canvas of its color, transparent elsewhere. */
function maskCanvas(arrays, index, width, color) {
  const { values, shape } = arrays.get("masks");
  const [, height, rowBytes] = shape;
  const canvas = newCanvas(width, height);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const [red, green, blue] = rgb(color);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const byte = values[(index * height + y) * rowBytes + (x >> 3)];
      if ((byte >> (7 - (x & 7))) & 1) pixels.data.set([red, green, blue, 255], 4 * (y * width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return how many pixels each mask covers. */
function maskAreas(page) {
  if (!page.data.maskWidth) return [];
  const { values, shape } = page.arrays.get("masks");
  const size = shape[1] * shape[2];
  return page.data.detections.map((_, object) => {
    let area = 0;
    for (const byte of values.subarray(object * size, (object + 1) * size)) {
      for (let bits = byte; bits; bits &= bits - 1) area++;
    }
    return area;
  });
}
