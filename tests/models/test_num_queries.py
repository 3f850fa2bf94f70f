"""Another number of queries at inference: exact where it is the trained one, refused where queries are learned."""

import pytest
import torch
from PIL import Image

from detrkit.detector import Detector
from detrkit.models.proposals import observed_choice
from detrkit.utils.errors import DetrkitError, SettingError
from helpers.small_models import small_model

CHOOSING = ["deformable-detr-r50-two-stage", "rtdetr-r18", "rtdetrv2-r18"]  # no tensor depends on the number
WITH_CONTENTS = ["dino-r50-4scale", "h-deformable-detr-r50"]
LEARNED = ["detr-r50", "deformable-detr-r50", "detr-demo"]


def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", [*CHOOSING, *WITH_CONTENTS])
def test_the_trained_number_changes_nothing(name):
    model, spec = small_model(name)
    detector = Detector(model, spec, device="cpu")
    assert detector.with_num_queries(20) is detector
    other = detector.with_num_queries(7).with_num_queries(7)
    assert other.model.num_queries == 7 and detector.model.num_queries == 20
    plain, fewer = detector.predict(image(), threshold=0.0), other.predict(image(), threshold=0.0)
    again = detector.predict(image(), threshold=0.0)  # the model itself is as it was
    # a process's first forward pass may differ from its later ones in the last bits
    assert torch.allclose(plain.boxes, again.boxes, atol=1e-4) and torch.equal(plain.queries, again.queries)
    assert plain.queries.max() > 6 and fewer.queries.max() <= 6


@pytest.mark.parametrize("name", [*CHOOSING, *WITH_CONTENTS])
def test_the_best_tokens_become_the_queries(name):
    model, _ = small_model(name)
    batch = [torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad(), observed_choice() as choice:
        model(batch)
        expected = choice.indices
        for count in (5, 13):
            outputs = model.with_num_queries(count)(batch)
            assert outputs.logits.shape[1] == count
            assert torch.equal(choice.indices, expected[:, :count])


@pytest.mark.parametrize("name", CHOOSING)
def test_more_queries_give_more_detections(name):
    model, spec = small_model(name)
    detector = Detector(model, spec, device="cpu").with_num_queries(150)
    found = detector.predict(image(), threshold=0.0)
    assert found.queries.max() > 20 and len(found) == 150
    assert detector.spec.options["num_queries"] == 150  # as the model would be built
    assert detector.spec.build().num_queries == 150


@pytest.mark.parametrize("name", ["dino-r50-4scale", "h-deformable-detr-r50"])
def test_the_description_of_fewer_queries_fits_their_contents(name):
    model, spec = small_model(name)
    fewer = Detector(model, spec, device="cpu").with_num_queries(9)
    rebuilt = fewer.spec.build().eval()
    rebuilt.load_state_dict(fewer.model.state_dict())
    again = Detector(rebuilt, fewer.spec, device="cpu").predict(image(), threshold=0.0)
    found = fewer.predict(image(), threshold=0.0)
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_queries_have_their_number(name):
    model, spec = small_model(name)
    detector = Detector(model, spec, device="cpu")
    for count in (7, 21):
        with pytest.raises(SettingError, match=f"num_queries is {count}: the 20 queries of this model are learned"):
            detector.with_num_queries(count)
    assert detector.with_num_queries(20) is detector


@pytest.mark.parametrize("name", WITH_CONTENTS)
def test_there_are_no_contents_for_further_queries(name):
    model, spec = small_model(name)
    with pytest.raises(SettingError, match="num_queries is 21: this model learned the contents of its 20 queries"):
        Detector(model, spec, device="cpu").with_num_queries(21)


@pytest.mark.parametrize(("count", "reason"), [(0, "must be at least 1"), (2.5, "must be a whole number")])
def test_a_number_that_is_none_is_refused(count, reason):
    model, spec = small_model("rtdetr-r18")
    with pytest.raises(DetrkitError, match=f"count is {count}: {reason}"):
        Detector(model, spec, device="cpu").with_num_queries(count)


def test_tiles_and_queries_go_together():
    model, spec = small_model("deformable-detr-r50-two-stage", size=64)
    detector = Detector(model, spec, device="cpu").tiled(64).with_num_queries(3)
    found = detector.predict(Image.new("RGB", (150, 64), (90, 120, 30)), threshold=0.0)
    assert found.tiles is not None and found.queries.max() <= 2
