"""Detect objects with an exported model and nothing of detrkit: onnxruntime, numpy and pillow.

detrkit export runs/first --out detr.onnx
python examples/onnx_numpy.py detr.onnx street.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized(image, spec):
    """Resize by the rule of the model: its short side to `size`, but its long side to at most `max_size`."""
    short, size, limit = min(image.size), spec["size"], spec["max_size"]
    if spec.get("square"):
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if limit is not None and max(image.size) / short * size > limit:
        size = round(limit * short / max(image.size))
    return image.resize([int(size * side / short) for side in image.size], Image.Resampling.BILINEAR)


def detect(model, file, threshold=0.5):
    """Return (name, score, [x0, y0, x1, y1] in pixels) of every object with a score above the threshold."""
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    spec, names = json.loads(metadata["detrkit"]), json.loads(metadata["class_names"])
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    pixels = np.asarray(resized(image, spec), np.float32) / 255  # (h, w, 3)
    pixels = ((pixels - spec["mean"]) / spec["std"]).astype(np.float32).transpose(2, 0, 1)[None]  # (1, 3, h, w)
    inputs = {"images": pixels, "padding_mask": np.zeros((1, *pixels.shape[2:]), bool)}
    logits, boxes = session.run(["logits", "boxes"], {i.name: inputs[i.name] for i in session.get_inputs()})
    if json.loads(metadata["detrkit_export"])["activation"] == "softmax":  # the last column is "no object"
        odds = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
        scores = (odds / odds.sum(-1, keepdims=True))[:, :-1]
    else:
        scores = 1 / (1 + np.exp(-logits[0]))  # (Q, C)
    x, y, w, h = boxes[0].T * np.array([[image.width], [image.height]] * 2)
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)  # (Q, 4)
    found = [(names[c], float(scores[q, c]), corners[q].tolist()) for q, c in np.argwhere(scores > threshold)]
    return sorted(found, key=lambda one: -one[1])


if __name__ == "__main__":
    for name, score, box in detect(*sys.argv[1:3]):
        print(f"{name} {score:.3f}", *(round(side, 1) for side in box))
