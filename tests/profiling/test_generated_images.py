"""Generated images are as heavy as photographs and fill the input; objects lie in their images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detrkit.data.geometry import resized_size
from detrkit.profiling.generated_images import generated_dataset, write_images


@pytest.mark.parametrize("shape", [(800, 1199), (800, 1333), (128, 192), (512, 512), (640, 853)])
def test_pictures_fill_the_input(tmp_path, shape):
    (file,) = write_images(tmp_path, 1, shape)
    with Image.open(file) as picture:
        assert picture.width == 640 and picture.format == "JPEG"
        assert resized_size(picture.height, picture.width, *shape) == shape


def test_pictures_differ_and_weigh_what_photographs_do(tmp_path):
    files = write_images(tmp_path, 3, (480, 640))
    contents = [file.read_bytes() for file in files]
    assert len(set(contents)) == 3
    assert all(100_000 < len(content) < 150_000 for content in contents)


@pytest.mark.parametrize("classes", [1, 91])
def test_objects_lie_in_their_pictures(tmp_path, classes):
    files = write_images(tmp_path, 4, (480, 640))
    dataset = generated_dataset(files * 10, num_classes=classes, masks=True)
    counts = [len(record.labels) for record in dataset.records]
    assert min(counts) == 1 and 5 < np.mean(counts) < 9 and max(counts) <= 13
    for record in dataset.records:
        x0, y0, x1, y1 = record.boxes.T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= 640).all() and (y1 <= 480).all()
        assert (x1 - x0 > 10).all() and (y1 - y0 > 9).all()
        assert ((record.labels >= 0) & (record.labels < classes)).all()
    sample = dataset[0]
    areas = sample.masks.flatten(1).sum(1).numpy()
    # 24 corners cut 1.1 % off an ellipse; pixels at the border count whole
    assert np.allclose(areas, dataset.records[0].areas, rtol=0.1)
