// Colors that readers with any color vision can tell apart: a scale whose lightness grows with the weight (after
// matplotlib's inferno), and the colors of Okabe and Ito for objects, which have numbers, too. Levels have shapes.

const SCALE = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];
const OBJECT_COLORS = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2"];
const SHAPES = ["circle", "square", "triangle", "diamond", "plus", "star"];

/** Return [r, g, b] of a share in [0, 1] of the scale. */
function scaleColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((value, i) => Math.round(value + (SCALE[low + 1][i] - value) * (place - low)));
}

function objectColor(object) {
  return OBJECT_COLORS[object % OBJECT_COLORS.length];
}

/** Return black or white, whichever is read better on a color of an object. */
function textColor(color) {
  const [red, green, blue] = rgb(color);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 105 ? "#fff" : "#0d0f12";
}

/** Return [r, g, b] of "#rrggbb". */
function rgb(color) {
  return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
}

function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Trace the marker of a level around (x, y); `radius` of the circle of equal area. */
function traceMarker(context, level, x, y, radius) {
  const shape = SHAPES[level % SHAPES.length];
  const corners = (n, turn, outer, inner = outer) => {
    for (let i = 0; i < n; i++) {
      const angle = turn + (2 * Math.PI * i) / n, r = i % 2 ? inner : outer;
      context.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
    }
    context.closePath();
  };
  context.beginPath();
  if (shape === "circle") context.arc(x, y, radius, 0, 2 * Math.PI);
  else if (shape === "square") corners(4, Math.PI / 4, radius * 1.253);
  else if (shape === "triangle") corners(3, -Math.PI / 2, radius * 1.555);
  else if (shape === "diamond") corners(4, 0, radius * 1.45, radius * 1.1);
  else if (shape === "star") corners(10, -Math.PI / 2, radius * 1.7, radius * 0.75);
  else {
    const a = radius * 1.5, b = radius * 0.5;
    const plus = [[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b], [b, a], [-b, a], [-b, b], [-a, b], [-a, -b], [-b, -b]];
    for (const [dx, dy] of plus) context.lineTo(x + dx, y + dy);
    context.closePath();
  }
}
