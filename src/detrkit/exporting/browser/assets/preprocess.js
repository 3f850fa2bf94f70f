// From the pixels of an image to the input of the graph, number by number as `ImageProcessor` does it.

/** Return Python's `round` of a number: halves go to the even neighbor. */
function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

/** Return [height, width] after resizing by the model's rule, as `resized_size` of detrkit. */
function inputSize(height, width, { size, maxSize, square }) {
  if (square) return [size, size];
  const short = Math.min(height, width), long = Math.max(height, width);
  let side = size;
  if (maxSize !== null && long / short * side > maxSize) {
    side = roundHalfEven(maxSize * short / long);
    if (side === 0) return height < width ? [1, maxSize] : [maxSize, 1];
  }
  if (short === side) return [height, width];
  if (width < height) return [Math.trunc(side * height / width), side];
  return [side, Math.trunc(side * width / height)];
}

/**
 * Return the weights by which `from` pixels become `to`: bilinear with antialiasing, whole numbers of at most 16 bits as
 * torch and Pillow-SIMD compute with them. A canvas would resize by a rule of its own in every browser.
 */
function resizeWeights(from, to) {
  const scale = from / to, support = Math.max(scale, 1), inverse = scale >= 1 ? 1 / scale : 1;
  const most = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(to), counts = new Int32Array(to), shares = new Float64Array(to * most);
  let largest = 0;
  for (let i = 0; i < to; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.max(Math.min(Math.trunc(center + support + 0.5), from) - start, 0), most);
    let total = 0;
    for (let j = 0; j < count; j++) {
      const share = Math.max(0, 1 - Math.abs((j + start - center + 0.5) * inverse));
      shares[i * most + j] = share;
      total += share;
    }
    for (let j = 0; j < count; j++) {
      if (total !== 0) shares[i * most + j] /= total;
      largest = Math.max(largest, shares[i * most + j]);
    }
    starts[i] = start;
    counts[i] = count;
  }
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const weights = Int32Array.from(shares, (share) => Math.trunc(0.5 + share * 2 ** bits));
  return { starts, counts, weights, most, bits };
}

/**
 * Resize along one axis.
 *
 * source: bytes, `channels` of them used of every `step` (4 with alpha, which is left out).
 * outer, from, inner: pixels before, along and after the axis, row by row.
 */
function resizeAxis(source, outer, from, inner, to, step) {
  const { starts, counts, weights, most, bits } = resizeWeights(from, to);
  const result = new Uint8ClampedArray(outer * to * inner * 3);
  const half = 2 ** (bits - 1);
  for (let row = 0, at = 0; row < outer; row++) {
    for (let i = 0; i < to; i++) {
      for (let column = 0; column < inner; column++) {
        let place = ((row * from + starts[i]) * inner + column) * step;
        let red = half, green = half, blue = half;
        for (let j = 0, w = i * most; j < counts[i]; j++, w++, place += inner * step) {
          red += weights[w] * source[place];
          green += weights[w] * source[place + 1];
          blue += weights[w] * source[place + 2];
        }
        result[at++] = red >> bits;
        result[at++] = green >> bits;
        result[at++] = blue >> bits;
      }
    }
  }
  return result;
}

/** Resize RGBA bytes of `height` x `width` pixels to RGB bytes: first along the rows, then along the columns. */
function resizePixels(pixels, height, width, newHeight, newWidth) {
  let current = pixels, step = 4;
  if (newWidth !== width) {
    current = resizeAxis(current, height, width, 1, newWidth, step);
    step = 3;
  }
  if (newHeight !== height) {
    current = resizeAxis(current, 1, height, newWidth, newHeight, step);
    step = 3;
  }
  if (step === 3) return current;
  const rgb = new Uint8ClampedArray(height * width * 3);
  for (let i = 0, at = 0; at < rgb.length; i += 4) for (let c = 0; c < 3; c++) rgb[at++] = pixels[i + c];
  return rgb;
}

/** Return the float32 of each of the 256 bytes in each channel, rounded at every operation as float32 arithmetic does. */
function normalizationTables({ mean, std }) {
  return mean.map((value, c) => Float32Array.from({ length: 256 }, (_, byte) => (
    Math.fround(Math.fround(byte / 255) - Math.fround(value)) / Math.fround(std[c]))));
}

/** Return the [height, width] that an image of a size is padded to; throws an error for a reader where there is none. */
function paddedSize(height, width, { fixed, masked, exact, leastSide, largestSide }) {
  let [high, wide] = fixed ?? [height, width];
  if (masked && exact && !fixed) [high, wide] = [Math.max(high, leastSide), Math.max(wide, leastSide)];
  if (height > high || width > wide || (!masked && (height !== high || width !== wide))) {
    throw new Error(`this model takes images of ${wide} x ${high} pixels, not of ${width} x ${height}`);
  }
  if (Math.min(high, wide) < leastSide || (largestSide !== null && Math.max(high, wide) > largestSide)) {
    throw new Error(`this image becomes ${wide} x ${high} pixels; the model takes sides from ${leastSide}` +
      `${largestSide === null ? "" : ` to ${largestSide}`} pixels: crop it to a shape nearer to a square`);
  }
  return [high, wide];
}

/**
 * Return the input of the graph: `images` of (batch, 3, height, width), `mask` of (batch, height, width), 1 where padded.
 *
 * pixels: RGBA bytes of `height` x `width` pixels.
 */
function prepared(model, pixels, height, width) {
  const [newHeight, newWidth] = inputSize(height, width, model);
  const [high, wide] = paddedSize(newHeight, newWidth, model);
  const rgb = resizePixels(pixels, height, width, newHeight, newWidth);
  const batch = model.batch ?? 1, area = high * wide;
  const images = new Float32Array(batch * 3 * area), mask = new Uint8Array(batch * area);
  const tables = normalizationTables(model);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const at = y * wide + x, from = (y * newWidth + x) * 3;
      if (y >= newHeight || x >= newWidth) mask[at] = 1;
      else for (let c = 0; c < 3; c++) images[c * area + at] = tables[c][rgb[from + c]];
    }
  }
  for (let image = 1; image < batch; image++) { // a graph of a fixed number of images gets this one as often
    images.copyWithin(image * 3 * area, 0, 3 * area);
    mask.copyWithin(image * area, 0, area);
  }
  return { images, mask, batch, height: high, width: wide };
}
