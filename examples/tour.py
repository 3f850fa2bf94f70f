# %% [markdown]
# # A tour of the model
#
# One image goes through a trained DETR and a trained Deformable DETR, from pixels to boxes to the loss. Every number and
# every picture below is the output of the code above it. Where the code works something out by hand, an `assert` compares
# it with detrkit's own result. Afterwards you can explain each number in the loss of a batch.
#
# The tour takes 30 to 45 minutes to read and less than a minute to run on a CPU. It is also a notebook with its outputs,
# `examples/tour.ipynb`, to be run and changed: `pip install ".[notebook]"`.
#
# Papers: [DETR](https://arxiv.org/abs/2005.12872) (Carion et al. 2020) and
# [Deformable DETR](https://arxiv.org/abs/2010.04159) (Zhu et al. 2021). "Sec." and "Eq." point into them.

# %%
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.optimize import linear_sum_assignment

import detrkit
from detrkit.backbones import build_backbone
from detrkit.config import OptimConfig
from detrkit.data.tools.shapes import ShapesOptions, shapes_image
from detrkit.engine.optim import build_optimizer
from detrkit.models.matcher import FocalMatcher, HungarianMatcher

torch.set_grad_enabled(False)
plt.rcParams.update(
    {"figure.dpi": 80, "font.size": 9, "figure.facecolor": "white", "figure.constrained_layout.use": True}
)
COLORS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7"]  # colors that color-blind people can tell apart

# %% [markdown]
# ## 1. Two small models and an image
#
# Both models were trained on generated images of colored shapes and are small enough to be carried in the repository:
# [how they were trained](#how-the-two-models-were-trained). They have the parts of the published models in smaller sizes:
#
# | | DETR R50 (paper) | DETR here | Deformable DETR R50 (paper) | Deformable DETR here |
# |---|---|---|---|---|
# | backbone | ResNet-50, frozen batch norm | ResNet-10 at half width, group norm | ResNet-50 | ResNet-10 at half width |
# | maps that are read | stage 5, stride 32 | stage 4, stride 16 | stages 3 to 5 and one more, strides 8 to 64 | stages 3 and 4 and one more, strides 8 to 32 |
# | width D, heads | 256, 8 | 64, 4 | 256, 8 | 64, 4 |
# | encoder, decoder layers | 6, 6 | 2, 3 | 6, 6 | 2, 3 |
# | queries | 100 | 100 | 300 | 50 |
# | short side of the input, pixels | 800 | 144 | 800 | 224 |
# | classes | 91 COCO ids | 5 shapes | 91 COCO ids | 5 shapes |
#
# The image has two objects of the same class that touch: to tell them apart is what the model has to do. It is of a third split,
# "test": neither model has seen it. It was picked as one in which both models find both objects, once each. The small DETR often
# finds an object twice or not at all; the second image of this tour (section 4) shows that. It has learned for an hour and a half on two busy
# CPU cores, the published one for 3 days on 16 GPUs (Sec. 4): that DETR takes long to train is one of the subjects of this tour.

# %%
folder = next(path for path in (Path("tour"), Path("examples/tour")) if path.is_dir())
detr = detrkit.load(folder / "detr.safetensors", device="cpu")
deformable = detrkit.load(folder / "deformable-detr.safetensors", device="cpu")
names = detr.classes.names


def shapes(index):
    """Return a generated image, its boxes (N, 4) xyxy in pixels, and its labels (N,)."""
    options = ShapesOptions(sides=(192, 256), objects=(1, 4), object_size=(0.25, 0.5))
    made = shapes_image(7, "test", index, options)
    pixels = [np.nonzero(mask) for _, mask in made.things]  # rows and columns of each object
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in pixels]
    labels = [category - 1 for category, _ in made.things]
    return Image.fromarray(made.pixels), torch.tensor(np.array(boxes), dtype=torch.float32), torch.tensor(labels)


image, true_boxes, true_labels = shapes(1177)
found = detrkit.explain(detr, image, threshold=0.5)


def objects_of(explanation):
    """Return for each detection the number of the object that it is nearest to."""
    return torch.cdist(explanation.detections.boxes, true_boxes, p=1).argmin(1).tolist()


print(f"image of {image.width} x {image.height} pixels")
for name, box in zip([names[i] for i in true_labels], true_boxes.tolist(), strict=True):
    print(f"  object    {name:8}         box {[round(side) for side in box]}")
for name, score, box in zip(found.detections.names, found.detections.scores, found.detections.boxes, strict=True):
    print(f"  detection {name:8} {score:.2f}    box {[round(side, 1) for side in box.tolist()]}")
assert len(true_labels) == 2 and sorted(objects_of(found)) == [0, 1]


# %% picture="image" alt="The image twice: with the boxes of its two triangles, and with the boxes that DETR finds"
def draw_box(ax, box, color, *, style="-"):
    """Draw an xyxy box in pixels."""
    x0, y0, x1, y1 = (float(side) for side in box)
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2, linestyle=style))


def row(count, *, height=2.6, width=2.6):
    """Return a row of axes without ticks."""
    _, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    for ax in axes[0]:
        ax.set(xticks=[], yticks=[])
    return axes[0]


left, right = row(2, height=3, width=3.3)
for ax, title in ((left, "objects"), (right, "what DETR finds")):
    ax.imshow(image)
    ax.set_title(title)
for k in range(2):
    draw_box(left, true_boxes[k], COLORS[k])
    draw_box(right, found.detections.boxes[k], COLORS[objects_of(found)[k]])
plt.show()

# %% [markdown]
# ## 2. The backbone: from pixels to a map
#
# A [convolutional network](https://arxiv.org/abs/1512.03385) halves the resolution stage by stage and computes more channels
# at each (Sec. 3.2, "Backbone"). `detector.outputs(..., capture=True)` keeps what every part of the model computes.

# %% picture="backbone" alt="The image beside the mean activation of stages 2, 3 and 4, ever coarser"
computed = detr.outputs([image], capture=True)
outputs, batch, capture = computed.outputs, computed.batch, computed.outputs.capture

print(f"network input          {tuple(batch.images.shape[1:])}: the short side resized to {detr.spec.size} pixels")
for stage in (2, 3, 4):
    c, h, w = capture.stages[f"backbone.{stage}"][0].shape
    print(f"backbone stage {stage}       {c:4} channels of {h} x {w} cells, stride {2**stage}")
src = capture.stages["projection.0"][0]  # (D, h, w)
print(f"projected              {src.shape[0]:4} channels of {src.shape[1]} x {src.shape[2]} cells")

axes = row(4, height=2.4, width=2.3)
axes[0].imshow(image)
axes[0].set_title("image")
for ax, stage in zip(axes[1:], (2, 3, 4), strict=True):
    ax.imshow(capture.stages[f"backbone.{stage}"][0].abs().mean(0))
    ax.set_title(f"stage {stage}: mean |activation|")
plt.show()

# %% [markdown]
# The last map is coarse: one cell stands for 16 x 16 pixels (in the paper 32 x 32). A transformer reads a list of vectors,
# so a 1x1 convolution brings the channels to the width D of the transformer, and the cells are written one after another,
# row by row. Each of these S = h x w **tokens** is a vector of D numbers. A 1x1 convolution is one matrix, applied to every cell:

# %%
d_model, h, w = src.shape
cells = capture.stages["backbone.4"][0].flatten(1)  # (C, S)
projection = detr.model.input_projection
by_hand = projection.weight[:, :, 0, 0] @ cells + projection.bias[:, None]  # (D, S)
assert torch.allclose(by_hand, src.flatten(1), atol=1e-4)
print(f"S = {h} x {w} = {h * w} tokens of D = {d_model} numbers")

# %% [markdown]
# ## 3. The position encoding
#
# Attention treats tokens as a set: it does not know where a token came from. So a vector that stands for the place is added to
# queries and keys of every attention (Sec. A.4). The first half of its channels encodes the row, the second the column, by sines
# and cosines of falling frequency. For row y of h rows, counted from 1, and a pair of channels with wavelength T:
# sin(2 pi y / (h T)), cos(2 pi y / (h T)).

# %% picture="position" alt="Four channels of the position encoding as waves over rows and columns; the product with one cell is largest at that cell"
pos = capture.stages["position.0"][0]  # (D, h, w)
half = d_model // 2


def encode(index, count):
    """Encode a 0-based row or column among `count` by D / 2 numbers."""
    angle = 2 * math.pi * (index + 1) / count
    wavelengths = [10000 ** (2 * (channel // 2) / half) for channel in range(half)]
    waves = [(math.sin, math.cos)[channel % 2](angle / wavelengths[channel]) for channel in range(half)]
    return torch.tensor(waves)


y, x = 3, 5
assert torch.allclose(torch.cat([encode(y, h), encode(x, w)]), pos[:, y, x], atol=1e-5)

axes = row(5, height=2.2, width=1.9)
for ax, channel in zip(axes, (0, 4, half, half + 4), strict=False):
    ax.imshow(pos[channel], vmin=-1, vmax=1, cmap="RdBu")
    ax.set_title(f"channel {channel}: {'row' if channel < half else 'column'}")
likeness = torch.einsum("dyx,d->yx", pos, pos[:, y, x])
axes[4].imshow(likeness)
axes[4].plot(x, y, "r+", markersize=12)
axes[4].set_title("product with the cell at +")
assert divmod(int(likeness.argmax()), w) == (y, x)
plt.show()

# %% [markdown]
# The last picture is the reason for the recipe: the scalar product of two places, which is what attention computes, is largest
# for the place itself and falls with the distance. So a head can learn "look nearby" or "look to the left" from the encoding alone.
# The encoding is added again at every layer, to queries and keys and not to values (Fig. 10 of the paper).
#
# ## 4. What the mask is for
#
# A batch is one tensor, but images have different sizes. The smaller ones are padded at the right and at the bottom, and a
# **mask** says which cells are padding.

# %% picture="mask" alt="Two padded images of a batch and their masks: black where padded"
other, other_boxes, other_labels = shapes(510)
pair = detr.outputs([image, other], capture=True)
padding = pair.outputs.capture.padding.unflatten(1, pair.outputs.capture.feature_shapes[0])  # (B, h, w)

print(f"images of {batch.sizes[0]} and {pair.batch.sizes[1]} in a batch of {tuple(pair.batch.images.shape)}")
for number in range(2):
    print(f"image {number}: {int(padding[number].sum())} of {padding[number].numel()} cells are padding")
found_in_other = detr.predict(other, threshold=0.5)
print("\nobjects of image 1:    ", ", ".join(sorted(names[i] for i in other_labels)))
print("what DETR finds there: ", ", ".join(sorted(found_in_other.names)))

axes = row(4, height=2.6, width=2.2)
mean, std = torch.tensor(detr.spec.mean), torch.tensor(detr.spec.std)
for number in range(2):
    shown = (pair.batch.images[number].permute(1, 2, 0) * std + mean).clamp(0, 1)
    axes[2 * number].imshow(shown)
    axes[2 * number].set_title(f"image {number} in the batch")
    axes[2 * number + 1].imshow(padding[number], cmap="gray_r", vmin=0, vmax=1)
    axes[2 * number + 1].set_title("its mask, black: padding")
plt.show()

# %% [markdown]
# In image 1 DETR finds the star twice. It has not learned well enough to keep all the other queries silent (section 11).
#
# Attention gives padded cells the weight 0: their scores are set to minus infinity before the softmax. The outputs of an image
# then do not depend on what else is in the batch. What happens without the mask is shown by telling the model that all of the
# batch is image:

# %%
for weights in (*pair.outputs.capture.encoder_weights, *pair.outputs.capture.decoder_weights):
    full = weights.full()  # (B, heads, queries, S)
    hidden = padding.flatten(1)[:, None, None].expand_as(full)
    assert full[hidden].sum() == 0 and torch.allclose(full.sum(-1), torch.ones(()), atol=1e-5)

in_batch = (pair.outputs.boxes[0] - outputs.boxes[0]).abs().max()
unmasked = detrkit.Batch(pair.batch.images, [tuple(pair.batch.images.shape[2:])] * 2)
without_mask = (detr.model(unmasked).boxes[0] - outputs.boxes[0]).abs().max()
print("largest change of a box coordinate against the image alone (1: as wide as the image):")
print(f"in the batch, with the mask     {in_batch:.3f}")
print(f"in the batch, without the mask  {without_mask:.3f}")
assert in_batch < 1e-3 < without_mask

# %% [markdown]
# The published code masks the attention, but its convolutions still read across the border of the padding, so that there a
# result depends on the batch. detrkit masks both ([Padding](padding.md)).
#
# ## 5. The encoder: cells read other cells
#
# In an encoder layer each token makes a query q and a key k (vectors of D / heads numbers, one for each head). Token i reads token j
# with the weight softmax over j of q_i . k_j / sqrt(D / heads). The weights of a token sum to 1. Here they are for the cells in the
# middle of the two objects:

# %% picture="encoder" alt="What the encoder reads from the middle of each triangle, laid over the image"
centers = (true_boxes[:, :2] + true_boxes[:, 2:]) / 2  # (2, 2) xy in pixels
maps = [found.self_attention(x, y) for x, y in centers.tolist()]  # the last encoder layer, mean of the heads

weights = capture.encoder_weights[-1]
x, y = centers[0].tolist()
token = int(y / image.height * h) * w + int(x / image.width * w)
scores = (
    weights.q[0, :, token, None] @ weights.k[0].transpose(1, 2) / math.sqrt(d_model / weights.heads)
)  # (heads, 1, S)
assert torch.allclose(scores.softmax(-1).mean(0).view(h, w), maps[0], atol=1e-5)


def overlay(ax, attention, title):
    """Lay a map of attention over the image."""
    ax.imshow(image.convert("L"), cmap="gray", vmin=-150)  # paler
    extent = (0, image.width, image.height, 0)
    ax.imshow(attention, extent=extent, alpha=0.85 * attention / attention.max(), cmap="plasma_r", vmin=0)
    ax.set_title(title, fontsize=8)


def inside(attention, box):
    """Return the share of a map's weight in an xyxy box, by the centers of the cells."""
    rows, columns = torch.meshgrid(torch.arange(attention.shape[0]), torch.arange(attention.shape[1]), indexing="ij")
    cx, cy = (columns + 0.5) / attention.shape[1] * image.width, (rows + 0.5) / attention.shape[0] * image.height
    return float(attention[(cx > box[0]) & (cx < box[2]) & (cy > box[1]) & (cy < box[3])].sum() / attention.sum())


axes = row(2, height=3, width=3.3)
for k, ax in enumerate(axes):
    overlay(ax, maps[k], f"what the cell at + of object {k} reads")
    ax.plot(*centers[k].tolist(), "+", color="black", markersize=12, markeredgewidth=2)
    for color, box in zip(COLORS, true_boxes, strict=False):
        draw_box(ax, box, color)
    own, neighbor = inside(maps[k], true_boxes[k]), inside(maps[k], true_boxes[1 - k])
    area = inside(torch.ones(h, w), true_boxes[k])
    print(
        f"cell in object {k}: {own:4.0%} of its attention is in its own box (area {area:.0%}), {neighbor:.0%} in the other's"
    )
plt.show()

# %% [markdown]
# DETR's Fig. 3 shows such maps and says that the encoder "seems to separate instances already". This small encoder does
# so in part: the cell in the left object reads that object, the one in the right object reads both. The maps show which cells are
# mixed. They do **not** prove why the model decided as it did: a value may count little where its weight is large, later
# layers mix again, and residual connections pass every token on without any attention. For such pictures of your own images: [Explaining](explaining.md).
#
# ## 6. Queries
#
# The decoder starts from 100 **object queries**: learned vectors, the same for every image (Sec. 3.2, "Transformer decoder"). Each
# query gives one class and one box, always. A query is no class and no place, but it specializes: here are the centers of the boxes
# of six queries over 60 other images (Fig. 7 of the paper), whether they say "object" or not. Green: small boxes; red: large and wide;
# blue: large and high.

# %% picture="queries" alt="Centers of the boxes of six queries over 60 images: each query has its region and sizes"
print(f"queries: {tuple(detr.model.queries.weight.shape)}, a table of learned numbers")
logits, boxes = [], []
for start in range(1000, 1060, 12):
    some = detr.outputs([shapes(index)[0] for index in range(start, start + 12)]).outputs
    logits.append(some.logits)
    boxes.append(some.boxes)
logits, boxes = torch.cat(logits), torch.cat(boxes)  # (60, 100, classes + 1), (60, 100, 4) cxcywh in [0, 1]
is_object = logits.softmax(-1)[..., :-1].amax(-1) > 0.5  # (60, 100)
busiest = is_object.sum(0).argsort(descending=True, stable=True)[:6]

for ax, query in zip(row(6, height=1.9, width=1.6), busiest.tolist(), strict=True):
    cx, cy, bw, bh = boxes[:, query].unbind(-1)
    small = (bw * bh < 0.1).tolist()
    colors = [
        "#009e73" if s else "#d55e00" if wide else "#0072b2" for s, wide in zip(small, (bw > bh).tolist(), strict=True)
    ]
    ax.scatter(cx, cy, c=colors, s=8)
    ax.set(xlim=(0, 1), ylim=(1, 0), title=f"query {query}", aspect="equal")
plt.show()
print(f"{int(is_object.any(0).sum())} of the 100 queries found an object in these 60 images")

# %% [markdown]
# ## 7. The decoder: queries read the image, and each other
#
# A decoder layer does three things: the queries attend to each other (self-attention), then to the encoder's output
# (cross-attention), then each passes through a small network by itself. One class head and one box head read the result of every
# layer, so that we can watch a box develop:

# %% picture="decoder" alt="Cross-attention and box of both detections after each decoder layer"
for k in range(2):
    print(f"detection {k}, {found.detections.names[k]}, query {int(found.queries[k])}")
    for layer, (score, box) in enumerate(zip(found.layer_scores(k), found.layer_boxes(k), strict=True)):
        print(f"  after layer {layer}: score {score:.2f}, box {[round(side, 1) for side in box.tolist()]}")

layers = found.decoder_layers
_, grid = plt.subplots(2, layers, figsize=(2.5 * layers, 4.6))
for k in range(2):
    for layer in range(layers):
        ax = grid[k, layer]
        ax.set(xticks=[], yticks=[])
        share = inside(found.cross_attention(k, layer), found.detections.boxes[k])
        overlay(ax, found.cross_attention(k, layer), f"detection {k}, layer {layer}: {share:.0%} in its box")
        draw_box(ax, found.layer_boxes(k)[layer], COLORS[objects_of(found)[k]])
plt.show()

# %% [markdown]
# The head mean of the last layer is what DETR's Fig. 6 shows. Mind the title of each picture: part of the attention falls outside
# of the box, and cells inside of it are left out. Attention says what was read, not what was decisive.
#
# Self-attention is how the queries agree on who takes which object. Many queries have a good box of an object, but only one of
# them says so:

# %%
probabilities = outputs.logits[0].softmax(-1)  # (100, classes + 1); the last column is "no object"
NO_OBJECT = len(names)


def corners(boxes):
    """Convert (..., 4) cxcywh to the low and high corners, (..., 2) each."""
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def overlaps(a, b):
    """Return intersection, union and enclosing area of (..., 4) cxcywh boxes."""
    (a_low, a_high), (b_low, b_high) = corners(a), corners(b)
    intersection = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    enclosing = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    return intersection, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - intersection, enclosing


size = torch.tensor([image.width, image.height] * 2)
target = detrkit.Target(
    labels=true_labels,
    boxes=torch.cat([true_boxes[:, :2] + true_boxes[:, 2:], 2 * (true_boxes[:, 2:] - true_boxes[:, :2])], -1)
    / 2
    / size,
)  # cxcywh in [0, 1]
for k in range(2):
    intersection, union, _ = overlaps(outputs.boxes[0], target.boxes[k])
    near = (intersection / union > 0.5).nonzero().flatten()
    confident = [q for q in near.tolist() if probabilities[q, :-1].max() > 0.5]
    print(
        f"object {k}: {len(near)} queries have a box with IoU above 0.5, {len(confident)} of them with a score above 0.5"
    )

query = int(found.queries[0])
attention = capture.query_weights[-1].full()[0].mean(0)  # (100, 100), last layer, mean of the heads
most = attention[query].argsort(descending=True)[:5].tolist()
print(
    f"query {query} attends most to the queries {most}, with {attention[query, most].sum():.0%} of its self-attention"
)

# %% [markdown]
# This is why DETR needs no non-maximum suppression. Boxes are not made to avoid each other; all but one of the queries at an object
# are taught to say "no object". What teaches them is the loss, to which we come now.
#
# ## 8. Matching: who is responsible for which object?
#
# The model gives 100 (class, box) pairs and the image has 2 objects. Before anything can be called wrong, every object needs one query
# that answers for it. The matching takes the assignment of least total cost, where the cost of a pair is (Sec. 3.1, Eq. 1 and Sec. A.2)
#
#     cost = 1 * (-probability of the object's class) + 5 * L1 distance of the boxes + 2 * (-GIoU)
#
# Boxes are cxcywh in [0, 1]: center, width and height as a share of the image. GIoU is the intersection over union, less the part of
# the enclosing box that neither box covers: it falls further when boxes do not touch, where IoU stays 0.

# %%


def giou(a, b):
    """Return the generalized IoU of (..., 4) cxcywh boxes."""
    intersection, union, enclosing = overlaps(a, b)
    return intersection / union - (enclosing - union) / enclosing


def detr_costs(logits, boxes, target):
    """Return the class, L1 and GIoU parts, (Q, N) each, of the cost of every query and object."""
    class_cost = -logits.softmax(-1)[:, target.labels]
    l1_cost = (boxes[:, None] - target.boxes).abs().sum(-1)
    return class_cost, l1_cost, -giou(boxes[:, None], target.boxes)


parts = detr_costs(outputs.logits[0], outputs.boxes[0], target)
costs = 1 * parts[0] + 5 * parts[1] + 2 * parts[2]  # (100, 2)

# all 9,900 ways to give the two objects to two different queries
ways = {(a, b): float(costs[a, 0] + costs[b, 1]) for a in range(100) for b in range(100) if a != b}
chosen = min(ways, key=ways.get)
queries, objects = HungarianMatcher()(outputs, [target])[0]
assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: chosen[0], 1: chosen[1]}

print("object  query     class      L1      GIoU     total = class + 5 L1 + 2 GIoU")
for k in range(2):
    for query in costs[:, k].argsort()[:5].tolist():
        c, l1, g = (float(part[query, k]) for part in parts)
        mark = "<- chosen" if query == chosen[k] else ""
        print(f"{k:6}  {query:5}    {c:6.3f}  {l1:6.3f}    {g:6.3f}    {costs[query, k]:6.3f}  {mark}")
print(f"least total of the {len(ways)} ways: {ways[chosen]:.3f}")

# %% [markdown]
# The table shows the five cheapest queries of each object. Usually the cheapest query of an object gets it. It need not be so, since
# no query may answer for two objects. Take costs of 1 and 2 for the first object with two queries, and 1.1 and 5 for the second: the first
# query is the cheapest for both, and goes to the second object, for 2 + 1.1 together instead of 1 + 5. Trying all ways is hopeless for more objects; the
# [Hungarian algorithm](https://en.wikipedia.org/wiki/Hungarian_algorithm) finds the best one in polynomial time.
#
# The class part is a probability, not its logarithm, so that it is of the size of the other parts. The matching itself has no gradient.
#
# ## 9. The loss, term by term
#
# Given the pairs, the loss is simple (Eq. 2 and Sec. A.2). The **class term** asks every query for its class: a matched one for
# that of its object, each of the other 98 for "no object". It is a cross-entropy, -log of the probability of the right answer. Since 98
# against 2 would drown the objects, "no object" counts only `eos_coef` = 0.1, and the mean is weighted in the same way:

# %%
eos_coef = 0.1
labels_of = {chosen[k]: int(true_labels[k]) for k in range(2)}  # of the matched queries
right = [float(probabilities[q, labels_of.get(q, NO_OBJECT)]) for q in range(100)]

matched_sum = sum(-math.log(right[q]) for q in chosen)
empty_sum = sum(-math.log(right[q]) for q in range(100) if q not in chosen)
for k, q in enumerate(chosen):
    print(f"query {q:2} for object {k}: -log {right[q]:.3f} = {-math.log(right[q]):.3f}")
print(f"98 other queries:      {empty_sum:.3f} together, times {eos_coef}: {eos_coef * empty_sum:.3f}")
class_term = (matched_sum + eos_coef * empty_sum) / (2 + eos_coef * 98)
print(f"loss_ce = ({matched_sum:.3f} + {eos_coef * empty_sum:.3f}) / (2 + {eos_coef} * 98) = {class_term:.3f}")

criterion = detrkit.build_criterion("detr-r50", num_classes=len(names))
losses = criterion(outputs, [target])
assert math.isclose(class_term, losses["loss_ce"], rel_tol=1e-4)

# %% [markdown]
# The **box terms** ask only the matched queries. L1 is the sum of the differences of the four coordinates; it grows with the box, so
# that large objects would weigh more. GIoU does not depend on the size. Both are divided by the number of objects.

# %%
l1_sum = giou_sum = 0.0
for k, q in enumerate(chosen):
    differences = (outputs.boxes[0, q] - target.boxes[k]).abs().tolist()
    overlap = float(giou(outputs.boxes[0, q], target.boxes[k]))
    l1_sum, giou_sum = l1_sum + sum(differences), giou_sum + 1 - overlap
    shown = " + ".join(f"{value:.3f}" for value in differences)
    print(f"object {k}: L1 = {shown} = {sum(differences):.3f};  1 - GIoU = 1 - {overlap:.3f} = {1 - overlap:.3f}")
print(f"loss_bbox = {l1_sum:.3f} / 2 = {l1_sum / 2:.3f}")
print(f"loss_giou = {giou_sum:.3f} / 2 = {giou_sum / 2:.3f}")
assert math.isclose(l1_sum / 2, losses["loss_bbox"], rel_tol=1e-4)
assert math.isclose(giou_sum / 2, losses["loss_giou"], rel_tol=1e-4)

# %% [markdown]
# **Every layer.** The same three terms are computed for the outputs of each decoder layer, with a matching of its own
# (Sec. 3.2, "Auxiliary decoding losses"). A layer may give an object to another query than the next layer does. In a log, `loss_ce_0` is that of the first layer and `loss_ce` that of the last. The total is the
# sum of all terms, with the weights 1 (class), 5 (L1) and 2 (GIoU).
#
# The functions below do all of it for a batch. The divisors are those of the whole batch: that is the one thing about them that is not
# obvious.


# %%
def match(costs):
    """Return (query, object) pairs of least total cost."""
    return list(zip(*(index.tolist() for index in linear_sum_assignment(costs)), strict=True))


def detr_class_loss(logits, targets, pairs):
    """Return the weighted mean of the cross-entropy over all queries of the batch."""
    total = weight_sum = 0.0
    for rows, target, matched in zip(logits.log_softmax(-1).tolist(), targets, pairs, strict=True):
        label_of = {query: int(target.labels[k]) for query, k in matched}
        for query, row in enumerate(rows):
            weight = 1.0 if query in label_of else eos_coef
            total -= weight * row[label_of.get(query, NO_OBJECT)]
            weight_sum += weight
    return total / weight_sum


def set_loss(layers, targets, *, weights, costs, class_loss):
    """Return the terms of all layers (name -> value), the total, and the matched pairs of each layer and image."""
    num_boxes = sum(len(target) for target in targets)  # of the whole batch
    terms, total, pairs_of = {}, 0.0, []
    for layer, out in enumerate(layers):
        pairs = []
        for k, target in enumerate(targets):
            class_cost, l1_cost, giou_cost = costs(out.logits[k], out.boxes[k], target)
            pairs.append(match(weights[0] * class_cost + weights[1] * l1_cost + weights[2] * giou_cost))
        matched = [(k, query, n) for k, image_pairs in enumerate(pairs) for query, n in image_pairs]
        l1 = sum(float((out.boxes[k, q] - targets[k].boxes[n]).abs().sum()) for k, q, n in matched)
        overlap = sum(float(1 - giou(out.boxes[k, q], targets[k].boxes[n])) for k, q, n in matched)
        suffix = "" if layer == len(layers) - 1 else f"_{layer}"
        values = (class_loss(out.logits, targets, pairs), l1 / num_boxes, overlap / num_boxes)
        terms |= {f"{name}{suffix}": v for name, v in zip(("loss_ce", "loss_bbox", "loss_giou"), values, strict=True)}
        total += sum(weight * value for weight, value in zip(weights, values, strict=True))
        pairs_of.append(pairs)
    return terms, total, pairs_of


detr_rules = {"weights": (1, 5, 2), "costs": detr_costs, "class_loss": detr_class_loss}
terms, total, pairs_of = set_loss([*outputs.aux, outputs], [target], **detr_rules)
print("layer  queries of the objects   loss_ce  loss_bbox  loss_giou   1 ce + 5 bbox + 2 giou")
for layer in range(layers):
    suffix = "" if layer == layers - 1 else f"_{layer}"
    ce, l1, g = (terms[f"{name}{suffix}"] for name in ("loss_ce", "loss_bbox", "loss_giou"))
    taken = ", ".join(str(q) for q, _ in sorted(pairs_of[layer][0], key=lambda pair: pair[1]))
    print(f"{layer:5}  {taken:22}  {ce:8.3f}  {l1:9.3f}  {g:9.3f}   {ce + 5 * l1 + 2 * g:8.3f}")
print(f"total {total:.3f}")

assert all(math.isclose(value, losses[name], rel_tol=1e-3, abs_tol=1e-5) for name, value in terms.items())
assert math.isclose(total, criterion.total(losses), rel_tol=1e-3)

# %% [markdown]
# Now the batch of two images. Its loss is **not** the mean of the losses of its images:

# %%
other_size = torch.tensor([other.width, other.height] * 2)
other_target = detrkit.Target(
    labels=other_labels,
    boxes=torch.cat([other_boxes[:, :2] + other_boxes[:, 2:], 2 * (other_boxes[:, 2:] - other_boxes[:, :2])], -1)
    / (2 * other_size),
)
targets = [target, other_target]
single = detr.outputs([other]).outputs
_, other_total, _ = set_loss([*single.aux, single], [other_target], **detr_rules)
pair_terms, pair_total, _ = set_loss([*pair.outputs.aux, pair.outputs], targets, **detr_rules)
pair_losses = criterion(pair.outputs, targets)
assert all(math.isclose(value, pair_losses[name], rel_tol=1e-3, abs_tol=1e-5) for name, value in pair_terms.items())
assert math.isclose(pair_total, criterion.total(pair_losses), rel_tol=1e-3)

print(f"image 0, {len(target)} objects: {total:.3f}")
print(f"image 1, {len(other_target)} objects: {other_total:.3f}")
print(f"mean of the two:    {(total + other_total) / 2:.3f}")
print(f"loss of the batch:  {pair_total:.3f}")

# %% [markdown]
# The box terms are a mean over the 2 + N objects of the batch, so that every object counts alike, and an image with many objects more
# than one with few. The class term is a weighted mean over all 200 queries. With several GPUs the number of objects is taken
# over all of them, as the published code does; else a GPU whose images have few objects would count each of them more.
#
# ## 10. Why 98 queries say "no object", and what the 0.1 does
#
# Nearly all queries of nearly all images have the target "no object". A query that cannot tell yet whether it will be matched does best
# by stating how often that happens. If it is matched with frequency f, the probability p of "object" that minimizes its expected weighted
# cross-entropy is f / (f + (1 - f) eos_coef). A search finds the same:

# %%
frequency = 2 / 100
print("eos_coef   weight of the 2 matched queries   best p(object) of a query that cannot tell")
for eos in (1.0, 0.1, 0.01):
    share = 2 / (2 + 98 * eos)
    best = frequency / (frequency + (1 - frequency) * eos)
    tried = np.arange(1, 10000) / 10000
    loss = -frequency * np.log(tried) - eos * (1 - frequency) * np.log(1 - tried)
    assert abs(tried[loss.argmin()] - best) < 1e-3
    print(f"{eos:8}   {share:31.0%}   {best:42.0%}")

empty = [q for q in range(100) if q not in chosen]
no_object = probabilities[empty, NO_OBJECT]
print(f'here: mean p("no object") of the 98 queries {no_object.mean():.3f}, least {no_object.min():.3f}')
print(f"their part of loss_ce: {eos_coef * empty_sum / (matched_sum + eos_coef * empty_sum):.0%}")

# %% [markdown]
# With weight 1 the objects would be 2% of the class term, and "nothing anywhere" a good answer for a long time. With 0.1 they are
# 17%. A smaller weight makes the model call out earlier, and pay with false alarms. This is also why the scores of a half-trained DETR
# are low: they are honest about not knowing which of several queries will be matched.
#
# Why 100 queries for 2 objects? Their number has to exceed that of the objects in any image: in COCO's training set there are
# 7 in an image as a mean and up to 63 (Sec. 4). And the more queries there are, the fewer places each has to serve.
#
# ## 11. Class error and cardinality error, and what they do not tell
#
# The log shows two numbers that nothing is trained on:
#
# - `class_error`: 100 minus the percentage of **matched** queries whose best class, "no object" included, is that of their object;
# - `cardinality_error`: the difference between the number of queries whose best class is not "no object" and the number of objects,
#   as a mean over the images.
#
# Here they are for our image, and for the same outputs made worse in three ways:

# %%
best_class = outputs.logits[0].argmax(-1)
class_error = 100 - 100 * sum(int(best_class[q]) == label for q, label in labels_of.items()) / 2
counted = (best_class != NO_OBJECT).nonzero().flatten().tolist()
print(
    "queries that are counted:",
    ", ".join(f"{q} (score {probabilities[q, :-1].max():.2f})" for q in counted),
    end="\n\n",
)
cardinality_error = abs(len(counted) - 2)
assert math.isclose(class_error, losses["class_error"]) and math.isclose(cardinality_error, losses["cardinality_error"])

silent = outputs.logits.clone()
silent[..., NO_OBJECT] = silent.amax(-1) + 1
copied_logits, copied_boxes = outputs.logits.clone(), outputs.boxes.clone()
copies = empty[:10]
copied_logits[0, copies], copied_boxes[0, copies] = outputs.logits[0, chosen[0]], outputs.boxes[0, chosen[0]]
moved = outputs.boxes * torch.tensor([1, 1, 0.3, 0.3])

cases = {
    "as they are": outputs,
    'all say "no object"': detrkit.Outputs(silent, outputs.boxes),
    "10 copies of a detection": detrkit.Outputs(copied_logits, copied_boxes),
    "boxes of a third the size": detrkit.Outputs(outputs.logits, moved),
}
print("outputs                      class_error  cardinality_error  loss_ce  loss_bbox")
for case, changed in cases.items():
    row_of = criterion(changed, [target])
    numbers = (float(row_of[name]) for name in ("class_error", "cardinality_error", "loss_ce", "loss_bbox"))
    print("{:27}  {:11.0f}  {:17.0f}  {:7.3f}  {:9.3f}".format(case, *numbers))

# %% [markdown]
# - `class_error` looks at two queries out of 100. It does not see the false alarms or the duplicates, which ruin AP.
# - `cardinality_error` counts. Two detections anywhere in the image satisfy it. And it counts without a threshold: a third query
#   prefers "triangle" to "no object" here, but with a score below 0.5, so that section 1 did not show it.
# - A model that says "no object" everywhere has class_error 100 and a cardinality error equal to the mean number of objects in an image,
#   while its loss may be falling nicely. That is no fault but the usual first phase: boxes are learned before classes.
#
# The log of our DETR, of 40 epochs on 4,000 images with 2.42 objects each as a mean, shows it:

# %% picture="training" alt="Loss terms, class error and cardinality error of 40 epochs: class error stays near 100 for 12 epochs while the loss falls"


def read_log(name):
    """Read a training log: for each epoch the means of its batches, and AP50 where it was measured."""
    with (folder / name).open() as file:
        return [
            {key: float(value) if value else math.nan for key, value in line.items()} for line in csv.DictReader(file)
        ]


log = read_log("detr-epochs.csv")
number = [line["epoch"] for line in log]
_, axes = plt.subplots(1, 3, figsize=(9.5, 2.6))
for name, factor in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2)):
    axes[0].plot(number, [factor * line[name] for line in log], label=f"{factor} {name}" if factor > 1 else name)
axes[1].plot(number, [line["class_error"] for line in log], label="class_error, %")
axes[2].plot(number, [line["cardinality_error"] for line in log], label="cardinality_error")
for ax in axes:
    ax.set(xlabel="epoch", ylim=(0, 1.08 * ax.get_ylim()[1]))
    ax.legend(fontsize=8)
axes[2].set_ylim(0, 4)
plt.show()

silent_epochs = [line for line in log if line["class_error"] > 99]
most_alarms = max(log[1:], key=lambda line: line["cardinality_error"])
print(f"epochs with a class_error above 99: {len(silent_epochs)} of {len(log)}")
for line in (silent_epochs[1], silent_epochs[-1], most_alarms, log[-1]):
    print(
        f"epoch {line['epoch']:2.0f}: loss {line['loss']:.2f}, class_error {line['class_error']:3.0f}, "
        f"cardinality_error {line['cardinality_error']:.2f}"
    )

# %% [markdown]
# In the first epochs nearly every query says "no object", and the loss falls nonetheless: the boxes improve. Then the queries begin to
# speak up, and for a while the cardinality error is *larger* than that of a model that finds nothing: there are that many
# duplicates and false alarms, while `class_error` falls all the time. With the weight 0.1, a query that wrongly says "star" costs little.

# %% [markdown]
# ## 12. Why two parts of the model have two learning rates
#
# The backbone usually starts from ImageNet's weights, the transformer from random ones. The optimizer, AdamW, divides every gradient
# by its own recent size, so that a step changes each weight by about the learning rate, however small its gradient is. A backbone
# that already knows much would be changed as fast as a transformer that knows nothing. So it gets a tenth: 1e-5 beside 1e-4
# (Sec. A.4). These are the groups of DETR R50:

# %%
big = detrkit.build_model("detr-r50")
optimizer = build_optimizer(big, OptimConfig())
backbone = {id(parameter) for parameter in big.backbone.parameters()}
for group in optimizer.param_groups:
    part = "backbone" if id(group["params"][0]) in backbone else "transformer, projection, heads"
    print(f"{sum(p.numel() for p in group['params']) / 1e6:5.1f} million weights at {group['lr']:.0e}: {part}")
frozen = sum(p.numel() for p in big.parameters() if not p.requires_grad)
print(f"{frozen / 1e6:5.1f} million weights frozen: the stem and the first stage")
del big, optimizer

# %% [markdown]
# One training step of our model on the batch of two images shows the division at work. The gradients of the two parts differ in size,
# the changes of their weights do not, but for the learning rates:


# %%
def one_step(lr, lr_backbone):
    """Train a copy of the model for one step; return gradient and change, root mean square, of both parts."""
    model = detr.spec.build()
    model.load_state_dict(detr.model.state_dict())
    optimizer = build_optimizer(model, OptimConfig(lr=lr, lr_backbone=lr_backbone, weight_decay=0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.enable_grad():
        out = model.train()(pair.batch)
        criterion.total(criterion(out, targets)).backward()
    optimizer.step()
    result = {}
    for part in ("backbone", "transformer"):
        learned = [
            (n, p)
            for n, p in model.named_parameters()
            if p.requires_grad and n.startswith("backbone.") == (part == "backbone")
        ]
        gradient = torch.cat([p.grad.flatten() for _, p in learned])
        change = torch.cat([(p - before[name]).flatten() for name, p in learned])
        result[part] = gradient.square().mean().sqrt(), change.square().mean().sqrt()
    return result


print("lr, lr_backbone   part          gradient     change of a weight (root mean squares)")
for rates in ((1e-4, 1e-4), (1e-4, 1e-5)):
    for part, (gradient, change) in one_step(*rates).items():
        print(f"{rates[0]:.0e}, {rates[1]:.0e}      {part:12}  {gradient:8.1e}     {change:.1e}")

# %% [markdown]
# From random weights there is nothing to protect. Then both parts take the same rate, and the batch norms, which are frozen in the
# published models, have to be others ([Training](training.md)).
#
# ## 13. What DC5 changes
#
# DC5 models remove the stride of the last backbone stage and dilate its convolutions instead (Sec. 4, "dilated C5"). The map then has twice
# the resolution. No weight is added: the tensors are the same, which is why a DC5 file loaded as a plain model gives no error and
# poor results.

# %%
plain, dc5 = (build_backbone("resnet50", dilation=dilation) for dilation in (False, True))
dc5.load_state_dict(plain.state_dict())  # the same names and shapes
for name, network in (("plain", plain), ("DC5", dc5)):
    feature = network(batch)[-1][0]
    print(
        f"{name:5} stride {network.strides[-1]:2}: a map of {tuple(feature.shape[2:])} for the image of {batch.sizes[0]}"
    )

print("\nfor an image of 800 x 1199 pixels:")
tokens = {stride: math.ceil(800 / stride) * math.ceil(1199 / stride) for stride in (32, 16)}
for name, stride in (("plain", 32), ("DC5", 16)):
    s = tokens[stride]
    print(f"{name:5} S = {s:5,} tokens, S x S = {s * s / 1e6:5.1f} million attention weights a head and encoder layer")
print(f"ratio of the weights: {(tokens[16] / tokens[32]) ** 2:.1f}")

# %% [markdown]
# Four times the tokens are sixteen times the attention. The paper reports for R50 42.0 AP at 86 GFLOPs, and with DC5 43.3 AP at 187
# GFLOPs (Table 1); the gain is at small objects. This price of resolution is what Deformable DETR removes.
#
# ## 14. Deformable DETR: levels instead of one map
#
# Small objects need fine maps, and dense attention over fine maps is too dear. Deformable attention reads a few **points** instead of all
# cells: K = 4 points on each of the L levels for each of the M heads, at places that the query computes itself (Sec. 4.1). Its cost grows
# with the number of tokens, not with the square:

# %%
explained = detrkit.explain(deformable, image, threshold=0.5)
computed2 = deformable.outputs([image], capture=True)
outputs2, capture2 = computed2.outputs, computed2.outputs.capture
assert sorted(objects_of(explained)) == [0, 1]

heads, levels, points = capture2.decoder_weights[0].shape[2:]
sizes = capture2.feature_shapes
for level, (h2, w2) in enumerate(sizes):
    print(f"level {level}: stride {2 ** (3 + level):2}, {h2:2} x {w2:2} cells")
s = sum(h2 * w2 for h2, w2 in sizes)
print(
    f"S = {s} tokens; dense attention would have {s} weights for each, deformable has {levels * points} points a head"
)

s = sum(math.ceil(800 / stride) * math.ceil(1199 / stride) for stride in (8, 16, 32, 64))
print(f"\npublished, 800 x 1199 pixels: S = {s:,} tokens on 4 levels")
print(f"dense {s * s / 1e6:6.1f} million weights a head and layer, deformable {s * 16 / 1e6:.1f} million")

# %% [markdown]
# ## 15. Reference points, offsets, sampled points
#
# Every query has a **reference**: a point, or with refinement a box. From its hidden state a linear layer computes the **offsets** of its
# points from there, another their weights, whose softmax is over the L x K points of a head. No query is compared with a key. With a
# reference box of width w, a point lies at center + offset / K * w / 2: the offsets are measured in the box. Two hooks take the
# inputs of the last cross-attention, so that it can be done by hand:

# %%
layer = deformable.model.decoder[-1].cross_attention
seen = {}
hook = layer.register_forward_hook(lambda module, args, output: seen.update(args=args, output=output))
deformable.outputs([image])
hook.remove()
state, reference, memory, shapes_of_levels = seen["args"]  # (B, Q, D), (B, Q, L, 4) cxcywh, (B, S, D), [(h, w), ...]

query2 = int(explained.queries[0])
offsets = layer.sampling_offsets(state[0, query2]).view(heads, levels, points, 2)
weights2 = layer.attention_weights(state[0, query2]).view(heads, -1).softmax(-1).view(heads, levels, points)
center, extent = reference[0, query2, :, None, :2], reference[0, query2, :, None, 2:]  # (L, 1, 2)
locations = center + offsets / points * extent / 2  # (heads, L, K, 2) xy in [0, 1]
assert torch.allclose(locations, seen["output"].sampling_locations[0, query2], atol=1e-5)
assert torch.allclose(weights2, seen["output"].attention_weights[0, query2], atol=1e-5)
in_pixels = explained.sampling_points(0)
assert torch.allclose(locations * size[:2], in_pixels.points, atol=1e-2)

print(f"query {query2}, head 0:  level  offset (half boxes / {points})   point (pixels)   weight")
for level in range(levels):
    for k in range(points):
        dx, dy = offsets[0, level, k].tolist()
        px, py = in_pixels.points[0, level, k].tolist()
        print(f"{level:23}       {dx:5.1f}, {dy:5.1f}           {px:6.1f}, {py:5.1f}       {weights2[0, level, k]:.2f}")

# %% picture="points" alt="Sampled points of both detections, by weight and level, with the reference box"
markers = ["o", "s", "^"]
for k, ax in enumerate(row(2, height=3.2, width=3.6)):
    ax.imshow(image.convert("L"), cmap="gray", alpha=0.7)
    sampled = explained.sampling_points(k)
    for level in range(levels):
        xy, value = sampled.points[:, level].reshape(-1, 2), sampled.weights[:, level].flatten()
        shown = ax.scatter(
            xy[:, 0], xy[:, 1], c=value, s=10 + 150 * value, cmap="inferno_r", vmin=0, vmax=0.4, marker=markers[level],
            edgecolors="black", linewidths=0.4, label=f"level {level}",
        )  # fmt: skip
    draw_box(ax, explained.reference_boxes(k)[-2], COLORS[objects_of(explained)[k]], style="--")
    ax.set(xlim=(0, image.width), ylim=(image.height, 0), title=f"detection {k}: points of the last layer")
    ax.legend(fontsize=7, loc="lower left")
plt.colorbar(shown, ax=ax, label="weight")
plt.show()

# %% [markdown]
# Color and size are the weight, the shape is the level, the dashed box is the reference. The appendix of the
# paper has such pictures. Again they say where the layer read, and no more.
#
# ## 16. The weighted sum, by hand
#
# A point seldom falls on the center of a cell. Its value is interpolated from the four cells around it (bilinear), and what lies outside
# of the map counts as 0. The output of a head is the sum of weight times value over its points (Eq. 3):

# %%
values = layer.value_proj(memory)[0].unflatten(-1, (heads, -1))  # (S, heads, D / heads)


def sample(head, level, xy):
    """Return the interpolated value (D / heads,) of a level at xy in [0, 1]."""
    rows, columns = shapes_of_levels[level]
    start = sum(a * b for a, b in shapes_of_levels[:level])
    x, y = xy[0] * columns - 0.5, xy[1] * rows - 0.5  # in cells: the center of the first is 0
    total = torch.zeros(values.shape[-1])
    for column in (math.floor(x), math.floor(x) + 1):
        for line in (math.floor(y), math.floor(y) + 1):
            if 0 <= column < columns and 0 <= line < rows:
                share = (1 - abs(x - column)) * (1 - abs(y - line))
                total += share * values[start + line * columns + column, head]
    return total


gathered = [
    sum(
        weights2[head, level, k] * sample(head, level, locations[head, level, k].tolist())
        for level in range(levels)
        for k in range(points)
    )
    for head in range(heads)
]
by_hand = layer.output_proj(torch.cat(gathered))
by_module = seen["output"].output[0, query2]
assert torch.allclose(by_hand, by_module, atol=1e-4)
print("by hand:    ", [round(value, 2) for value in by_hand[:5].tolist()], "...")
print("the module: ", [round(value, 2) for value in by_module[:5].tolist()], "...")

# %% [markdown]
# ## 17. Refinement: each layer corrects the box of the one before
#
# With refinement ("iterative bounding box refinement", Sec. 4.2) a layer does not predict a box from nothing. Its head gives four
# corrections, which are added to the box before in the space of logits: box = sigmoid(logit(reference) + correction), where
# logit(p) = log(p / (1 - p)). There every number is allowed, and the result is always inside the image.

# %%
for k in range(2):
    q = int(explained.queries[k])
    print(f"detection {k}, query {q}:  center x, y  width, height, share of the image")
    for layer_number in range(explained.decoder_layers):
        reference_box = capture2.references[layer_number, 0, q]
        hidden = capture2.stages[f"decoder.{layer_number}"][0, q]
        correction = deformable.model.box_heads[layer_number](hidden)
        box = ((reference_box / (1 - reference_box)).log() + correction).sigmoid()
        assert torch.allclose(box, capture2.boxes[layer_number, 0, q], atol=1e-4)
        if layer_number == 0:
            print("  proposal     ", "  ".join(f"{value:6.3f}" for value in reference_box.tolist()))
        print(f"  after layer {layer_number}", "  ".join(f"{value:6.3f}" for value in box.tolist()))
    print("  object       ", "  ".join(f"{value:6.3f}" for value in target.boxes[objects_of(explained)[k]].tolist()))

# %% [markdown]
# The reference of a layer is detached: no gradient flows from a layer's loss into the layers before by way of the box. Each layer learns
# to improve what it is given.
#
# ## 18. Two stages: queries that come from the image
#
# The proposal stage lets every token of the encoder guess: an objectness and a box around its own cell. The best become the queries,
# their boxes the first references (Sec. 4.2, "Two-stage"). So these queries are not learned slots; they start where
# something is. Objectness is column 0 of a class head of its own, whose targets are all "class 0".

# %% picture="proposals" alt="Objectness of the cells of three levels, and the cells that became queries"
encoder = outputs2.encoder
objectness = encoder.logits[0, :, 0]  # (S,)
count = deformable.model.num_queries
assert set(objectness.topk(count).indices.tolist()) == set(capture2.stages["proposal_index"][0].tolist())

_, grid = plt.subplots(1, levels, figsize=(3 * levels, 3))
start = 0
for level, (h2, w2) in enumerate(sizes):
    ax = grid[level]
    score = objectness[start : start + h2 * w2].view(h2, w2).sigmoid()
    overlay(ax, score, f"level {level}: objectness to {score.max():.2f}")
    tokens_here = [t - start for t in capture2.stages["proposal_index"][0].tolist() if start <= t < start + h2 * w2]
    xs = [(t % w2 + 0.5) / w2 * image.width for t in tokens_here]
    ys = [(t // w2 + 0.5) / h2 * image.height for t in tokens_here]
    ax.plot(xs, ys, "k.", markersize=3)
    ax.set(xticks=[], yticks=[], xlim=(0, image.width), ylim=(image.height, 0))
    print(f"level {level}: {len(tokens_here)} of the {count} queries")
    start += h2 * w2
plt.show()
for k in range(2):
    proposal = explained.proposal(k)
    print(f"detection {k} came from the cell at ({proposal.x:.1f}, {proposal.y:.1f}) pixels of level {proposal.level}")

# %% [markdown]
# ## 19. The focal loss, by hand
#
# Deformable DETR has no "no object" class. Each class of each query is a yes-or-no question of its own, answered by a sigmoid. With 50
# queries and 5 classes that is 250 questions with 2 times yes. The [focal loss](https://arxiv.org/abs/1708.02002) keeps the easy ones
# from drowning the others: a "yes" of probability p costs 0.25 (1 - p)^2 (-log p), a "no" 0.75 p^2 (-log(1 - p)). The sum is divided by
# the number of objects. The class part of the matching cost is the difference of the two.

# %%


def focal(p, positive):
    """Return the focal loss of one answer."""
    return 0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)


def focal_costs(logits, boxes, target):
    """Return the class, L1 and GIoU parts, (Q, N) each, of the matching cost of Deformable DETR."""
    rows = logits.sigmoid()[:, target.labels].tolist()
    class_cost = torch.tensor([[focal(p, True) - focal(p, False) for p in row] for row in rows])
    return class_cost, (boxes[:, None] - target.boxes).abs().sum(-1), -giou(boxes[:, None], target.boxes)


def focal_class_loss(logits, targets, pairs):
    """Return the focal loss of all answers over the number of objects."""
    total = 0.0
    for rows, target, matched in zip(logits.sigmoid().tolist(), targets, pairs, strict=True):
        positive = {(query, int(target.labels[k])) for query, k in matched}
        total += sum(focal(p, (q, c) in positive) for q, row in enumerate(rows) for c, p in enumerate(row))
    return total / sum(len(target) for target in targets)


for p in (0.9, 0.5, 0.1):
    print(
        f"p = {p}: cross-entropy of yes {-math.log(p):.3f}, focal {focal(p, True):.4f}; of no {-math.log(1 - p):.3f}, focal {focal(p, False):.4f}"
    )

focal_rules = {"weights": (2, 5, 2), "costs": focal_costs, "class_loss": focal_class_loss}
terms2, total2, pairs_of2 = set_loss([*outputs2.aux, outputs2], [target], **focal_rules)
proposal_target = detrkit.Target(torch.zeros_like(target.labels), target.boxes)  # objectness: all objects are class 0
encoder_terms, encoder_total, _ = set_loss([encoder], [proposal_target], **focal_rules)

criterion2 = detrkit.build_criterion("deformable-detr-r50-two-stage", num_classes=len(names))
losses2 = criterion2(outputs2, [target])
terms2 |= {f"{name}_enc": value for name, value in encoder_terms.items()}
assert all(math.isclose(value, losses2[name], rel_tol=1e-3, abs_tol=1e-5) for name, value in terms2.items())
assert math.isclose(total2 + encoder_total, criterion2.total(losses2), rel_tol=1e-3)
queries2, objects2 = FocalMatcher(cost_class=2.0)(outputs2, [target])[0]
assert sorted(pairs_of2[-1][0]) == sorted(zip(queries2.tolist(), objects2.tolist(), strict=True))

print("\noutputs of    loss_ce  loss_bbox  loss_giou   2 ce + 5 bbox + 2 giou")
for suffix, title in (("_enc", "the encoder"), ("_0", "layer 0"), ("_1", "layer 1"), ("", "layer 2")):
    ce, l1, g = (terms2[f"{name}{suffix}"] for name in ("loss_ce", "loss_bbox", "loss_giou"))
    print(f"{title:12} {ce:8.3f}  {l1:9.3f}  {g:9.3f}   {2 * ce + 5 * l1 + 2 * g:8.3f}")
print(f"total {total2 + encoder_total:.3f}")

# %% [markdown]
# Since there is no "no object", detrkit and the published code print a `cardinality_error` for Deformable DETR, too, but it counts the
# queries whose best class is not the last class: a number without meaning here.
#
# ## 20. Why it learns faster
#
# DETR's published schedule is 500 epochs, Deformable DETR's 50. Section 1 of the second paper names the reason: at the start, attention over S
# cells gives each of them a weight of nearly 1 / S, and a long training is needed before it concentrates. Deformable attention begins with a
# few points around a reference. We can measure the spread of the cross-attention, as the root mean square distance of what a query
# reads from the middle of it, in shares of the image side. A uniform map has sqrt(1/6) = 0.41.


# %%
def spread(weights, xy):
    """Return the mean over queries of the spread of weights (Q, n) at xy (Q, n, 2) in [0, 1]."""
    weights = weights / weights.sum(-1, keepdim=True)
    middle = (weights[..., None] * xy).sum(1, keepdim=True)
    return float(((xy - middle).square().sum(-1) * weights).sum(-1).sqrt().mean())


def spread_of(model, batch):
    """Return the spread of the cross-attention of a model's last decoder layer, mean over all queries."""
    kept = model.eval()(batch, capture=True).capture
    weights = kept.decoder_weights[-1]
    if kept.decoder_locations:  # (1, Q, heads, L, K), all heads and points of a query together
        return spread(weights[0].flatten(1), kept.decoder_locations[-1][0].flatten(1, 3))
    rows, columns = kept.feature_shapes[0]
    ys, xs = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return spread(weights.full()[0].mean(0), torch.stack([xs, ys], -1).view(1, -1, 2))


torch.manual_seed(0)
print("spread of the cross-attention   untrained   trained")
for name, detector, model_batch in (("DETR", detr, batch), ("Deformable DETR", deformable, computed2.batch)):
    fresh, trained = spread_of(detector.spec.build(), model_batch), spread_of(detector.model, model_batch)
    print(f"{name:30}  {fresh:9.2f}   {trained:7.2f}")

# %% [markdown]
# The other helps are the finer maps, the refinement and the proposals. The two models of this tour cannot be compared fairly: they
# were trained on different images, at different rates. But the small Deformable DETR saw 56,000 images in all (7 epochs of
# 8,000). Our DETR took about as many to stop saying "no object" everywhere, with a backbone that was trained already, and after
# 160,000 its AP is still lower (both at the end).
#
# ## What you can explain now
#
# These are two epochs of our DETR, an early one and the last, as the log shows them:

# %%
for line in (log[4], log[-1]):
    print(f"epoch {line['epoch']:.0f}  " + "  ".join(f"{name} {line[name]:.3g}" for name in list(line)[1:7]))
    one_layer = line["loss_ce"] + 5 * line["loss_bbox"] + 2 * line["loss_giou"]
    print(f"    1 ce + 5 bbox + 2 giou = {one_layer:.2f}, times {layers} layers = {layers * one_layer:.2f}")

# %% [markdown]
# - `loss` is the sum over all decoder layers of 1 ce + 5 bbox + 2 giou; the terms without a number are those of the last layer. With
#   layers that are about equally good, the loss is about the last layer's times their number.
# - `loss_bbox`: by how much the four coordinates of a matched box are off together, in shares of the image, as a mean over the objects
#   of the batch. `loss_giou`: one minus their mean GIoU. In the early epoch the boxes are roughly right; at the end they fit.
# - `loss_ce` is the part that lags: in the early epoch all matched queries say "no object". `class_error` says so outright, and a
#   `cardinality_error` of 2.42, the mean number of objects in an image, confirms it. At the end most objects get their class.
# - The last `cardinality_error` is hardly better than the early one, and means the opposite: now there are too many
#   detections. That they are too many and not too few, the number itself does not say; together with the `class_error`, it does.
# - Nothing in a line says how good the ranking of detections and false alarms is. AP does ([Evaluation](evaluation.md)).
#
# ## How the two models were trained
#
# | | Deformable DETR | DETR |
# |---|---|---|
# | images | `detrkit data shapes shapes --train 8000 --val 300 --sides 192 256 --objects 1 5 --object-size 0.2 0.5 --seed 7` | `detrkit data shapes shapes --train 4000 --val 200 --sides 128 160 --objects 1 4 --object-size 0.25 0.5 --seed 7` |
# | started from | random weights | the backbone of the other (`--init-from`), the rest random |
# | epochs, batch | 7, 32 | 40, 16 |
# | learning rates | 1e-3, backbone 1e-3 | 5e-4, backbone 1e-4 |
# | time | 6 minutes of one H100 | 88 minutes of two CPU cores that did other work, too |
# | stored as | float16, 1.5 MB | float16, 1.3 MB |
#
# The whole configs and the logs are beside the weights in `examples/tour/`. What was measured on the images of "val", which were not
# trained on, is in the files:

# %%
for name, detector in (("Deformable DETR", deformable), ("DETR", detr)):
    record, weights_in_it = detector.spec.training, sum(p.numel() for p in detector.model.parameters())
    ap, ap50 = (record["metrics"][key] for key in ("AP", "AP50"))
    print(f"{name:16} epoch {record['epoch']:2}: AP {ap:.2f}, AP50 {ap50:.2f}; {weights_in_it:,} weights")
