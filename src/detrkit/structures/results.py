"""Results of one image under the name of earlier versions; they stand in `detections`, `panoptic` and `rle`."""

from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.structures.rle import encode_masks

__all__ = ["Detections", "PanopticResult", "Segment", "encode_masks"]
