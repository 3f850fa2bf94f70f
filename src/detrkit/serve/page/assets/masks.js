// Masks of an answer as canvases: COCO's run lengths, and the ids of a panoptic PNG.

const MASK_SIDE = 1000; // pixels of a mask's canvas at most

/** Return the run lengths of COCO's compressed text, zeros first. */
function runLengths(text) {
  const counts = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more && place < text.length) {
      const digit = text.charCodeAt(place++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
      more = (digit & 32) !== 0;
      if (!more && digit & 16) value |= -1 << shift;
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

/** Return the canvas of an instance mask, with every `step`-th pixel of its rows and columns. */
function instanceMask({ size: [height, width], counts }, color) {
  const step = Math.ceil(Math.max(height, width) / MASK_SIDE);
  const canvas = newCanvas(Math.ceil(width / step), Math.ceil(height / step));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const [red, green, blue] = rgb(color);
  let place = 0, inside = false;
  for (const count of runLengths(counts)) {
    if (inside) {
      for (let index = place; index < place + count; index++) { // column by column
        const x = Math.floor(index / height), y = index % height;
        if (x % step || y % step) continue;
        pixels.data.set([red, green, blue, 255], 4 * ((y / step) * canvas.width + x / step));
      }
    }
    place += count;
    inside = !inside;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return the canvas of each segment of a panoptic answer, in their order. */
async function segmentMasks({ png, segments }) {
  const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const scale = Math.min(1, MASK_SIDE / Math.max(image.width, image.height));
  const map = newCanvas(Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale)));
  const context = map.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false; // ids have no means
  context.drawImage(image, 0, 0, map.width, map.height);
  const { data } = context.getImageData(0, 0, map.width, map.height);
  const numbers = new Map(segments.map(({ id }, number) => [id, number]));
  const layers = segments.map(() => context.createImageData(map.width, map.height));
  const colors = segments.map((_, number) => rgb(objectColor(number)));
  for (let place = 0; place < data.length; place += 4) {
    const number = numbers.get(data[place] + 256 * data[place + 1] + 65536 * data[place + 2]);
    if (number !== undefined) layers[number].data.set([...colors[number], 255], place);
  }
  return layers.map((layer) => {
    const canvas = newCanvas(map.width, map.height);
    canvas.getContext("2d").putImageData(layer, 0, 0);
    return canvas;
  });
}
