// Saves what is shown: the picture as PNG, the numbers as JSON.

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser reads it after the click
}

/** Return the start of a file's name, of letters that every system takes. */
function fileName(page) {
  const { view } = page;
  const layer = layerOf(page), head = headOf(page, layer);
  const subject = { object: `object-${view.object}`, pixel: "pixel", all: "all-objects" }[view.mode];
  return `attention-${subject}-layer-${layer}-head-${head === MEAN ? "mean" : head}`;
}

function savePicture(page) {
  const canvas = newCanvas(1, 1);
  const width = Math.max(page.data.shown[0], 1200); // at least, so that lines and labels are sharp
  paint(page, canvas, width / 1.25, layerOf(page), { ratio: 1.25 });
  canvas.toBlob((blob) => download(blob, `${fileName(page)}.png`), "image/png");
}

function saveNumbers(page) {
  const text = JSON.stringify(numbers(page), null, 1);
  download(new Blob([text], { type: "application/json" }), `${fileName(page)}.json`);
}

/** Return the numbers of the view as plain values; boxes xyxy in pixels of the image. */
function numbers(page) {
  const { data, view } = page;
  const layer = layerOf(page), head = headOf(page, layer);
  const described = (object) => {
    const found = attention(page, { kind: "cross", object }, layer, head);
    const { box } = data.detections[object];
    return {
      number: object, ...data.detections[object], areaShare: areaShare(page, box),
      attentionInside: found && inside(page, found.map, box),
    };
  };
  const source = view.mode === "all" ? null : sourceOf(page);
  const found = source && attention(page, source, layer, head);
  return {
    title: data.title, model: data.model, width: data.width, height: data.height,
    view: {
      kind: view.mode === "pixel" ? "self-attention" : "cross-attention",
      object: view.mode === "object" ? view.object : null,
      cell: source?.cell ?? null, layer, head: head === MEAN ? "mean" : head, threshold: view.threshold,
    },
    detections: visible(page).map(described),
    attention: found && {
      map: { height: found.map.height, width: found.map.width, weights: Array.from(found.map.weights) },
      points: found.points,
    },
  };
}
