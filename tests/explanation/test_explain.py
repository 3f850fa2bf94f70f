"""`detrkit.explain` with every model: what it returns is what the model did."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import detrkit
from detrkit.explanation import explanation_of
from detrkit.explanation.picture_parts import flat_points
from detrkit.explanation.subjects import DetectionSubject
from detrkit.models.deformable_base import DeformableModel
from detrkit.models.rtdetr import RTDETR
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.errors import SettingError
from helpers.datasets import picture
from helpers.explained import KINDS, detector_of

PLAIN, DEFORMABLE, TWO_STAGE = "detr-r50", "deformable-detr-r50", "deformable-detr-r50-two-stage"
IMPORTS_TIMM = {"timm"}
HEIGHT, WIDTH = 100, 140


def kinds(names=KINDS):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in IMPORTS_TIMM else []) for name in names]


def image(seed=3, height=HEIGHT, width=WIDTH):
    return picture(height, width, seed)


@pytest.fixture(scope="module")
def explained():
    """A detector of each kind and its explanation of the image, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            detector = detector_of(kind, panoptic="panoptic" in kind)
            made[kind] = detector, detrkit.explain(detector, image(), threshold=0.0)
        return made[kind]

    return of


@pytest.mark.parametrize("kind", kinds())
def test_detections_are_those_of_predict(kind, explained):
    detector, explanation = explained(kind)
    scores = explanation.detections.scores
    assert len(explanation) == len(scores) >= 1
    for threshold in (0.0, float(scores.sort().values[len(scores) // 2]), 1.0):
        got = detrkit.explain(detector, image(), threshold=threshold)
        want = detector.predict(image(), threshold=threshold)
        if isinstance(want, PanopticResult):
            segments = sorted(want.segments, key=lambda s: -s.score)  # the best first, as detections are
            assert torch.equal(got.panoptic.id_map, want.id_map) and got.panoptic.segments == segments
            assert got.detections.scores.tolist() == pytest.approx([s.score for s in segments])
            assert got.detections.labels.tolist() == [s.label for s in segments]
            assert torch.equal(got.detections.masks, got.panoptic.masks)
        else:
            assert got.panoptic is None
            for name in ("boxes", "scores", "labels", "masks", "queries"):
                a, b = getattr(got.detections, name), getattr(want, name)
                assert a is b is None or torch.equal(a, b), name
        assert got.detections.near_miss == want.near_miss
        assert (want.near_miss is None) == (len(want) > 0) and (threshold < 1.0 or not len(want))
        assert got.detections.classes is detector.classes and got.image.size == (WIDTH, HEIGHT)
        assert len(got) == len(want) == len(got.queries)


@pytest.mark.parametrize("kind", kinds())
def test_numbers_of_a_detection(kind, explained):
    """Shapes, sums, and that the last layer is the detection."""
    detector, explanation = explained(kind)
    deformable = isinstance(detector.model, (DeformableModel, RTDETR))
    assert explanation.image_size == (HEIGHT, WIDTH) and explanation.deformable == deformable
    assert explanation.model_name == KINDS[kind][0]
    stride = 8 if deformable and len(explanation.maps.levels) > 1 else 16 if "dc5" in kind else 32
    stride = 4 if kind == "dino-r50-5scale" else stride
    height, width = detector.processor.input_size(HEIGHT, WIDTH)
    assert explanation.grid == (-(-height // stride), -(-width // stride))
    assert explanation.heads == 4 and explanation.decoder_layers == 3
    assert explanation.encoder_layers == (0 if kind == "no-encoder" else 2)
    assert explanation.queries.dtype == torch.int64 and explanation.queries.max() < 12
    for i in (0, len(explanation) - 1):
        maps = [explanation.cross_attention(i, layer, head) for layer in range(3) for head in (0, 3, "mean")]
        assert all(m.shape == explanation.grid and m.dtype == torch.float32 for m in maps)
        for m, layer, head in zip(maps, (0, 0, 0, 1, 1, 1, 2, 2, 2), (0, 3, "mean") * 3, strict=True):
            assert (m >= 0).all()
            if m.any():
                assert float(m.sum()) == pytest.approx(1, abs=1e-5)
            else:  # all points of this head read nothing
                points = explanation.sampling_points(i, layer).points[slice(None) if head == "mean" else head]
                center = points / torch.tensor([WIDTH, HEIGHT])
                assert ((center < 0) | (center > 1)).any(-1).all()
        assert torch.equal(explanation.cross_attention(i), maps[-1])
        assert not torch.equal(maps[0], maps[3])  # layers differ
        boxes, scores = explanation.layer_boxes(i), explanation.layer_scores(i)
        assert boxes.shape == (3, 4) and scores.shape == (3,)
        assert torch.equal(boxes[-1], explanation.detections.boxes[i])
        assert float(scores[-1]) == pytest.approx(float(explanation.detections.scores[i]), abs=1e-6)
        assert explanation.reference_boxes(i).shape == (4, 4)
        assert 0 <= explanation.attention_inside(i) <= 1 + 1e-6
        assert 0 <= explanation.outside(i) <= 1
        assert (explanation.proposal(i) is not None) == kind.startswith(("h-", "dino", "rtdetr")) | (
            "two-stage" in kind
        )


@pytest.mark.parametrize("kind", kinds([kind for kind in KINDS if kind != "no-encoder"]))
def test_numbers_of_a_pixel(kind, explained):
    _, explanation = explained(kind)
    for x, y in ((0, 0), (WIDTH - 0.5, HEIGHT - 0.5), (np.float32(70), np.int64(50))):
        for layer in (0, -1):
            for head in (1, "mean"):
                got = explanation.self_attention(x, y, layer, head)
                assert got.shape == explanation.grid and got.dtype == torch.float32
                assert float(got.sum()) == pytest.approx(1, abs=1e-5) or not got.any()
        if explanation.encoder_samples_points:
            points, weights = explanation.encoder_points(x, y, level=len(explanation.maps.levels) - 1)
            assert points.shape == (*weights.shape, 2)
            assert torch.allclose(weights.sum((1, 2)), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("kind", [PLAIN, "detr-r50-dc5", "detr-demo", "pre-norm", "no-encoder"])
def test_cross_attention_is_the_row_of_the_full_weights(kind):
    detector = detector_of(kind)
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    full = detector.outputs([image()], capture=True).outputs.capture.decoder_attention
    for i, query in enumerate(explanation.queries.tolist()):
        for layer in range(3):
            row = full[layer][0, :, query].unflatten(1, explanation.grid)  # (H, h, w)
            torch.testing.assert_close(explanation.cross_attention(i, layer), row.mean(0), rtol=0, atol=1e-6)
            torch.testing.assert_close(explanation.cross_attention(i, layer, 2), row[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [PLAIN, "detr-demo", "pre-norm"])
def test_the_way_of_a_box_without_references(kind):
    """First the box that the head finds in the decoder's input, then those after each layer."""
    detector = detector_of(kind)
    model = detector.model
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    stages = detector.outputs([image()], capture=True).outputs.capture.stages
    for i, query in enumerate(explanation.queries.tolist()):
        first = model.queries[query] if kind == "detr-demo" else torch.zeros(32)
        states = torch.stack([model.decoder.norm(first), *stages["queries"][:, 0, query]])
        want = cxcywh_to_xyxy(model.box_head(states).sigmoid()) * scale
        torch.testing.assert_close(explanation.reference_boxes(i), want.detach(), rtol=0, atol=1e-3)
        torch.testing.assert_close(explanation.layer_boxes(i), want[1:].detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [DEFORMABLE, "deformable-detr-r50-refine", TWO_STAGE])
def test_the_way_of_a_reference(kind):
    """A point stays where it is without refinement; with it, each layer's box is the next one's reference."""
    detector = detector_of(kind)
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    stages = detector.outputs([image()], capture=True).outputs.capture.stages
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for i, query in enumerate(explanation.queries.tolist()):
        got, first = explanation.reference_boxes(i), stages["init_reference"][0, query]
        if kind == TWO_STAGE:
            torch.testing.assert_close(got[0], cxcywh_to_xyxy(first) * scale, rtol=0, atol=1e-3)
        else:
            torch.testing.assert_close(got[0], torch.cat([first, first]) * scale, rtol=0, atol=1e-3)
        later = explanation.layer_boxes(i) if kind != DEFORMABLE else got[:1].expand(3, 4)
        torch.testing.assert_close(got[1:], later, rtol=0, atol=1e-4)
    if kind == DEFORMABLE:
        assert (explanation.layer_boxes(0)[0, 2:] > explanation.layer_boxes(0)[0, :2]).all()


@pytest.mark.parametrize(
    ("kind", "panoptic"),
    [
        *((kind, False) for kind in (PLAIN, "learned", "detr-demo", DEFORMABLE, TWO_STAGE, "instance-two-stage")),
        ("instance-two-stage", True),
    ],
)
def test_an_image_in_a_padded_batch_is_explained_as_alone(kind, panoptic):
    detector = detector_of(kind, panoptic=panoptic, seed=1)
    detector.model.double()  # random weights amplify float noise from layer to layer
    images = [image(1), image(2, 150, 90), image(3, 60, 60)]
    computed = detector.outputs(images, capture="attention")
    assert computed.batch.padded
    for number, one in enumerate(images):
        got = explanation_of(detector, computed, number, threshold=0.0)
        want = detrkit.explain(detector, one, threshold=0.0)
        assert got.grid == want.grid and got.image_size == want.image_size == (one.height, one.width)
        assert torch.equal(got.queries, want.queries)
        torch.testing.assert_close(got.detections.boxes, want.detections.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(got.detections.scores, want.detections.scores, rtol=0, atol=1e-6)
        for i in range(len(want)):
            for head in (1, "mean"):
                a, b = (e.cross_attention(i, 1, head) for e in (got, want))
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
            torch.testing.assert_close(got.reference_boxes(i), want.reference_boxes(i), rtol=0, atol=1e-4)
            torch.testing.assert_close(got.layer_scores(i), want.layer_scores(i), rtol=0, atol=1e-6)
            assert got.proposal(i) == want.proposal(i)
            if want.deformable:
                for a, b in zip(got.sampling_points(i), want.sampling_points(i), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)
        pixel = 0.7 * one.width, 0.3 * one.height
        torch.testing.assert_close(got.self_attention(*pixel), want.self_attention(*pixel), rtol=0, atol=1e-5)


def test_a_proposal_is_the_cell_it_came_from():
    """By hand in a padded batch: two levels, the number of the token counted through the padded maps."""
    detector = detector_of("two-stage-points", seed=1)
    images = [image(1), image(2, 150, 90)]
    computed = detector.outputs(images, capture="attention")
    capture = computed.outputs.capture
    (h0, w0), (_, w1) = capture.feature_shapes
    for number, one in enumerate(images):
        explanation = explanation_of(detector, computed, number, threshold=0.0)
        height, width = computed.batch.sizes[number]
        valid = [(-(-height // stride), -(-width // stride)) for stride in (8, 16)]
        assert explanation.maps.levels == valid
        levels = set()
        for i, query in enumerate(explanation.queries.tolist()):
            token = int(capture.proposal_index[number, query])
            level = int(token >= h0 * w0)
            row, column = divmod(token - level * h0 * w0, (w0, w1)[level])
            assert not capture.padding[number, token] and row < valid[level][0] and column < valid[level][1]
            proposal = explanation.proposal(i)
            assert proposal.level == level
            assert proposal.x == pytest.approx((column + 0.5) / valid[level][1] * one.width)
            assert proposal.y == pytest.approx((row + 0.5) / valid[level][0] * one.height)
            levels.add(level)
        assert levels <= {0, 1}


def test_attention_inside_a_box_by_hand():
    """A cell that the edge cuts counts with its part inside; the whole image holds all."""
    explanation = detrkit.explain(detector_of(PLAIN), image(), threshold=0.0)
    weights = explanation.cross_attention(2, 1, 3)  # 4 x 6 cells of 25 x 23.3 pixels
    cell = WIDTH / 6
    assert explanation.attention_inside(2, 1, 3, box=(0, 0, WIDTH, HEIGHT)) == pytest.approx(1)
    one = explanation.attention_inside(2, 1, 3, box=(cell, 25, 2 * cell, 50))
    assert one == pytest.approx(float(weights[1, 1]), abs=1e-6)
    part = explanation.attention_inside(2, 1, 3, box=(1.5 * cell, 25, 2.25 * cell, 62.5))
    want = 0.5 * weights[1, 1] + 0.25 * weights[1, 2] + 0.5 * (0.5 * weights[2, 1] + 0.25 * weights[2, 2])
    assert part == pytest.approx(float(want), abs=1e-6)
    assert explanation.attention_inside(2, 1, 3, box=(-50, -50, 0, 0)) == 0
    own = explanation.detections.boxes[2].tolist()
    assert explanation.attention_inside(2) == pytest.approx(explanation.attention_inside(2, box=own))


def test_numpy_integers_and_negative_numbers_are_indices(explained):
    for kind in (PLAIN, DEFORMABLE):
        explanation = explained(kind)[1]
        last = explanation.decoder_layers - 1
        want = explanation.cross_attention(1, last, 2)
        assert torch.equal(explanation.cross_attention(np.int64(1), np.int32(last), np.uint8(2)), want)
        assert torch.equal(explanation.cross_attention(torch.tensor(1), -1, torch.tensor(2)), want)
        assert torch.equal(explanation.cross_attention(1 - len(explanation), -1, 2), want)
        assert torch.equal(
            explanation.self_attention(3, 4, np.int64(-1), np.int64(0)), explanation.self_attention(3, 4, 1, 0)
        )
        for i in np.arange(2):
            assert explanation.reference_boxes(i).shape == (4, 4)
            assert explanation.layer_scores(i).shape == (3,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.cross_attention(99), IndexError, "detection 99: there are 12 detections, counted from 0"),
        (lambda e: e.cross_attention(0, 3), SettingError, "decoder layer 3: choose -3 to 2"),
        (lambda e: e.cross_attention(0, -4), SettingError, "decoder layer -4: choose -3 to 2"),
        (lambda e: e.cross_attention(0, -1, 4), SettingError, 'head 4: choose 0 to 3, or "mean"'),
        (lambda e: e.cross_attention(0, -1, -1), SettingError, 'head -1: choose 0 to 3, or "mean"'),
        (lambda e: e.cross_attention(0, -1, "max"), SettingError, "head 'max': choose 0 to 3, or \"mean\""),
        (lambda e: e.cross_attention(0.5), TypeError, "'float' object cannot be interpreted as an integer"),
        (lambda e: e.self_attention(0, 0, 2), SettingError, "encoder layer 2: choose -2 to 1"),
        (lambda e: e.self_attention(0, 0, level=1), SettingError, "level 1: choose 0 to 0"),
        (
            lambda e: e.self_attention(0, HEIGHT),
            SettingError,
            r"pixel (0, 100) is outside the image of 140 x 100 pixels (width x height)",
        ),
        (lambda e: e.self_attention(float("nan"), 0), SettingError, "pixel (nan, 0) is outside the image"),
        (
            lambda e: e.sampling_points(0),
            SettingError,
            "detr-r50 attends to a whole map and samples no points: use cross_attention",
        ),
        (lambda e: e.encoder_points(0, 0), SettingError, "detr-r50 attends to a whole map and samples no points"),
        (lambda e: e.reference_boxes(12), IndexError, "detection 12: there are 12 detections"),
        (lambda e: e.outside(0, 5), SettingError, "decoder layer 5: choose -3 to 2"),
    ],
)
def test_what_is_not_there_is_named(call, error, message, explained):
    with pytest.raises(error) as raised:
        call(explained(PLAIN)[1])
    assert str(raised.value).startswith(message)


def test_a_model_without_an_encoder_says_so(explained):
    with pytest.raises(
        SettingError, match="detr-r50 has no attention in its encoder, or keeps none: see cross_attention"
    ):
        explained("no-encoder")[1].self_attention(0, 0)


@pytest.mark.parametrize("kind", [PLAIN, TWO_STAGE])
def test_nothing_found(kind):
    explanation = detrkit.explain(detector_of(kind), image(), threshold=1.0)
    assert len(explanation) == 0 and explanation.queries.shape == (0,) and explanation.detections.near_miss is not None
    assert float(explanation.self_attention(5, 5).sum()) == pytest.approx(1, abs=1e-5)  # the encoder needs no detection
    with pytest.raises(IndexError, match="detection 0: there are no detections"):
        explanation.cross_attention(0)


def test_images_of_every_kind(tmp_path):
    detector = detector_of(PLAIN)
    pil = image()
    pil.save(tmp_path / "a.png")
    stream = io.BytesIO()
    pil.save(stream, "PNG")
    array = np.asarray(pil)
    want = detrkit.explain(detector, pil, threshold=0.0)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), stream.getvalue(), array, tensor):
        got = detrkit.explain(detector, given, threshold=0.0)
        assert torch.equal(got.detections.boxes, want.detections.boxes)
        assert torch.equal(got.cross_attention(0), want.cross_attention(0))
        assert got.image.size == (WIDTH, HEIGHT) and got.detections.image is got.image
    with pytest.raises(detrkit.DetrkitError, match=r"missing\.png"):
        detrkit.explain(detector, tmp_path / "missing.png")
    with pytest.raises(ValueError, match="threshold"):
        detrkit.explain(detector, pil, threshold=1.5)


@pytest.mark.parametrize("kind", [PLAIN, "detr-demo", DEFORMABLE, TWO_STAGE])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1)])
def test_odd_images(kind, height, width):
    detector = detector_of(kind, size=64)
    explanation = detrkit.explain(detector, image(0, height, width), threshold=0.0)
    assert explanation.image_size == (height, width)
    assert all(side >= 1 for level in explanation.maps.levels for side in level)
    for i in range(min(3, len(explanation))):
        got = explanation.cross_attention(i)
        assert got.shape == explanation.grid and (float(got.sum()) == pytest.approx(1, abs=1e-5) or not got.any())
        assert torch.isfinite(explanation.reference_boxes(i)).all()
    for x, y in ((0, 0), (width - 0.01, height - 0.01)):
        assert torch.isfinite(explanation.self_attention(x, y)).all()
    with pytest.raises(SettingError, match="outside the image"):
        explanation.self_attention(width, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [PLAIN, TWO_STAGE])
def test_models_of_other_dtypes(kind, dtype):
    detector = detector_of(kind)
    single = detrkit.explain(detector, image(), threshold=0.0)
    detector.model.to(dtype)
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    want = detector.predict(image(), threshold=0.0)
    assert torch.equal(explanation.detections.boxes, want.boxes)
    got = explanation.cross_attention(0, 0, 1)
    assert got.dtype == explanation.self_attention(3, 3).dtype == explanation.layer_scores(0).dtype == torch.float32
    assert float(got.sum()) == pytest.approx(1, abs=1e-5)
    if kind == PLAIN:  # the same query in both
        query = int(single.queries[0])
        i = explanation.queries.tolist().index(query)
        atol = 1e-6 if dtype == torch.float64 else 0.02
        torch.testing.assert_close(explanation.cross_attention(i), single.cross_attention(0), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [PLAIN, DEFORMABLE])
def test_settings_around_the_call_change_nothing(kind):
    detector = detector_of(kind)
    want = detrkit.explain(detector, image(), threshold=0.0)
    maps = want.cross_attention(0), want.self_attention(9, 9), want.reference_boxes(0)

    def check():
        got = detrkit.explain(detector, image(), threshold=0.0)
        assert torch.equal(got.detections.boxes, want.detections.boxes)
        assert not got.detections.boxes.is_inference() and not got.queries.is_inference()
        for a, b in zip((got.cross_attention(0), got.self_attention(9, 9), got.reference_boxes(0)), maps, strict=True):
            assert torch.equal(a, b)
        assert got.attention_inside(0) == pytest.approx(want.attention_inside(0), abs=1e-6)

    for around in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with around:
            check()
    try:
        torch.set_default_dtype(torch.float64)
        check()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        check()


def test_training_goes_on_after_an_explanation():
    """Nothing of an explanation has a gradient, and the detector keeps its mode and its parameters."""
    detector = detector_of(TWO_STAGE)
    before = {name: p.clone() for name, p in detector.model.named_parameters()}
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    assert not explanation.cross_attention(0).requires_grad and not explanation.layer_boxes(0).requires_grad
    assert not detector.model.training and not explanation.capture.stages
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in detector.model.named_parameters())


@pytest.mark.parametrize("kind", [PLAIN, "instance-two-stage"])
def test_an_explanation_is_copied_and_pickled(kind):
    explanation = detrkit.explain(detector_of(kind), image(), threshold=0.0)
    for other in (copy.deepcopy(explanation), pickle.loads(pickle.dumps(explanation))):
        assert torch.equal(other.cross_attention(0), explanation.cross_attention(0))
        assert torch.equal(other.reference_boxes(1), explanation.reference_boxes(1))
        assert other.detections.names == explanation.detections.names and other.image.size == explanation.image.size


def test_queries_that_come_from_padding_are_no_detections():
    """An image with fewer cells than queries, in a batch with a larger one."""
    detector = detector_of("two-stage-points", num_feature_levels=1, size=64)
    computed = detector.outputs([image(1, 64, 64), image(2, 64, 250)], capture="attention")
    capture = computed.outputs.capture
    cells = int((~capture.padding[0]).sum())
    assert cells == 4 and capture.proposal_index.shape[1] == 12
    explanation = explanation_of(detector, computed, 0, threshold=0.0)
    tokens = capture.proposal_index[0, explanation.queries]
    assert len(explanation) == 3 * cells and not capture.padding[0, tokens].any()
    alone = detrkit.explain(detector, image(1, 64, 64), threshold=0.0)
    assert len(alone) == len(explanation)
    torch.testing.assert_close(explanation.detections.scores, alone.detections.scores, rtol=0, atol=1e-3)


def test_official_padding_is_explained_too():
    """As published: the padding changes the result, but the image's part of the maps is shown."""
    detector = detector_of("deformable-detr-r50-refine", padding="official")
    computed = detector.outputs([image(1), image(2, 150, 90)], capture="attention")
    for number in (0, 1):
        explanation = explanation_of(detector, computed, number, threshold=0.0)
        height, width = computed.batch.sizes[number]
        assert explanation.grid == pytest.approx((height / 8, width / 8), abs=1)
        assert float(explanation.cross_attention(0).sum()) == pytest.approx(1, abs=1e-5)
        assert torch.equal(explanation.layer_boxes(0)[-1], explanation.detections.boxes[0])


def test_outputs_without_a_capture_are_refused():
    detector = detector_of(PLAIN)
    with pytest.raises(
        SettingError, match=r"of detr-r50 hold no attention: call detector\.outputs\(images, capture=True\)"
    ):
        explanation_of(detector, detector.outputs([image()]), 0, threshold=0.5)


def test_a_full_capture_is_explained_alike():
    detector = detector_of(TWO_STAGE)
    computed = detector.outputs([image()], capture=True)
    got = explanation_of(detector, computed, 0, threshold=0.0)
    want = detrkit.explain(detector, image(), threshold=0.0)
    assert torch.equal(got.cross_attention(3), want.cross_attention(3)) and got.proposal(3) == want.proposal(3)
    assert computed.outputs.capture.stages and not got.capture.stages


@pytest.mark.slow
def test_a_compiled_model_is_explained():
    detector = detector_of("deformable-detr-r50-refine", enc_layers=1, dec_layers=1)
    want = detrkit.explain(detector, image(), threshold=0.0)
    torch._dynamo.reset()
    detector.model.compile(backend="eager")
    got = detrkit.explain(detector, image(), threshold=0.0)
    torch.testing.assert_close(got.detections.boxes, want.detections.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(got.cross_attention(0), want.cross_attention(0), rtol=0, atol=1e-5)


def test_an_explanation_is_printed_in_one_line(explained):
    _, explanation = explained("detr-r50")
    want = f"<Explanation by detr-r50: {len(explanation)} detections, image of {WIDTH} x {HEIGHT} pixels>"
    assert repr(explanation) == want  # not every tensor of the capture


def test_an_encoder_of_one_map_beside_sampled_points():
    """RT-DETR: the cell of the coarsest map at a pixel attends to that map, whose cells are spread over the finest."""
    detector = detector_of("rtdetrv2-r18")
    explanation = detrkit.explain(detector, image(), threshold=0.0)
    assert explanation.deformable and not explanation.encoder_samples_points and explanation.encoder_layers == 2
    full = detector.outputs([image()], capture=True).outputs.capture.encoder_attention
    (height, width), (h, w) = explanation.grid, explanation.maps.levels[-1]
    assert full[0].shape == (1, 4, h * w, h * w)
    rows, columns = ([i * n // m for i in range(m)] for m, n in ((height, h), (width, w)))
    for x, y in ((0, 0), (WIDTH - 1, HEIGHT - 1), (70, 50)):
        cell = int(y / HEIGHT * h) * w + int(x / WIDTH * w)
        for layer in range(2):
            for level in (0, 2):
                got = explanation.self_attention(x, y, layer, 3, level=level)
                expected = full[layer][0, 3, cell].unflatten(0, (h, w))[rows][:, columns]
                torch.testing.assert_close(got, expected / expected.sum(), rtol=0, atol=1e-6)
    with pytest.raises(SettingError, match="attends to a whole map and samples no points: use self_attention"):
        explanation.encoder_points(5, 5)
    with pytest.raises(ValueError, match='samples no points: choose show="map"'):
        explanation.draw(pixel=(5, 5), show="points")
    assert explanation.draw(pixel=(5, 5)).width >= WIDTH


def test_levels_of_different_numbers_of_points():
    """RT-DETRv2's level_points: what fills a level up weighs nothing, and is neither drawn nor counted."""
    explanation = detrkit.explain(detector_of("rtdetrv2-r18", level_points=(3, 1, 2)), image(), threshold=0.0)
    points, weights = explanation.sampling_points(0)
    assert points.shape == (4, 3, 3, 2) and explanation.maps.points_by_level(0) == [3, 1, 2]
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4), rtol=0, atol=1e-6)
    assert not weights[:, 1, 1:].any() and not weights[:, 2, 2:].any() and (weights[:, 0] > 0).all()
    drawn, _, levels = flat_points(DetectionSubject(explanation, 0), 0, "mean")
    assert len(drawn) == 4 * 6 and [int((levels == level).sum()) for level in range(3)] == [12, 4, 8]
    assert explanation.draw(0).width >= WIDTH
