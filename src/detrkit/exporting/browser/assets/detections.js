// From the outputs of the graph to detections, as `PostProcessor` and `Detector.predict` make them.

/**
 * Return all detections of the first image in descending order of their scores: label, score, query, and box xyxy in
 * pixels of the image.
 *
 * logits: (B, Q, C) and boxes: (B, Q, 4) cxcywh in [0, 1], as flat arrays.
 */
function detectionsOf(model, logits, columns, boxes, height, width) {
  const queries = model.numQueries;
  const found = model.activation === "softmax"
    ? bestClasses(logits, queries, columns) : bestPairs(logits, queries, columns, model.topK);
  found.sort((a, b) => b.score - a.score || a.query - b.query);
  return found.map(({ query, label, score }) => {
    const [cx, cy, w, h] = boxes.subarray(4 * query, 4 * query + 4);
    const box = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height];
    return { label, name: model.names?.[label] ?? `class ${label}`, score, query, box };
  });
}

/** DETR: a detection for every query, of its best class but the last one, "no object". */
function bestClasses(logits, queries, columns) {
  return Array.from({ length: queries }, (_, query) => {
    const row = logits.subarray(query * columns, (query + 1) * columns);
    const highest = Math.max(...row);
    let total = 0, label = 0;
    for (let c = 0; c < columns; c++) {
      total += Math.exp(row[c] - highest);
      if (c < columns - 1 && row[c] > row[label]) label = c;
    }
    return { query, label, score: Math.exp(row[label] - highest) / total };
  });
}

/** Deformable DETR and later: the best of all pairs of query and class. */
function bestPairs(logits, queries, columns, topK) {
  const order = Array.from({ length: queries * columns }, (_, i) => i).sort((a, b) => logits[b] - logits[a]);
  return order.slice(0, topK).map((i) => ({
    query: Math.floor(i / columns), label: i % columns, score: 1 / (1 + Math.exp(-logits[i])),
  }));
}

/** Return those above the threshold: a number, or one for each label. */
function above(detections, threshold) {
  return detections.filter(({ score, label }) => score > (Array.isArray(threshold) ? threshold[label] : threshold));
}
