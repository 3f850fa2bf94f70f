"""The models against the official code, stage by stage."""

from __future__ import annotations

import pytest
import torch

import goldens

FORWARD = sorted(goldens.cases("model_forward"), key=lambda c: c["variant"])


def test_every_model_has_a_case_alone_and_in_a_padded_batch():
    """But for the demo, which its notebook runs on single images alone."""
    sizes = {(c["variant"], len({tuple(row[1:]) for row in c["images"]})) for c in FORWARD}
    wanted = {(variant, count) for variant in goldens.VARIANTS for count in (1, 2)} - {("detr_demo", 2)}
    assert wanted <= sizes


@pytest.mark.parametrize("case", FORWARD, ids=lambda c: c["file"].removesuffix(".npz"))
def test_outputs_and_stages(case):
    model = goldens.model(case["variant"])
    goldens.set_padding(model, "official")
    demo = case["variant"] == "detr_demo"
    with torch.inference_mode():
        out = model(goldens.images(case), capture=True)
    stages = out.capture.stages
    got = {"pred_logits": out.logits, "pred_boxes": out.boxes}
    if out.masks is not None:
        got |= {"pred_masks": out.masks, "pred_masks_mean_hw": out.masks.double().mean((2, 3))}
    if case["variant"].startswith("deformable"):
        got |= _deformable(out)
    elif demo:
        got |= {
            "conv": stages["projection.0"],
            "memory": stages["memory"].flatten(2).permute(2, 0, 1),
        }
    else:
        got |= {
            "aux_logits": torch.stack([a.logits for a in out.aux]),
            "aux_boxes": torch.stack([a.boxes for a in out.aux]),
            "input_proj": stages["projection.0"],
            "pos": stages["position.0"],
            "memory": stages["memory"],
            "hs": stages["queries"],
            "mask": out.capture.padding.unflatten(1, out.capture.feature_shapes[0]),
        }
    got["feature"] = stages["backbone.5"]
    known = {name.split("__")[0] for name in goldens.arrays(case["file"])}
    measured = {name: goldens.difference(case["file"], name, value) for name, value in got.items() if name in known}
    print(case["file"], {k: f"{v:.1e}" for k, v in measured.items()})
    assert known <= set(measured), known - set(measured)
    wrong = {name: d for name, d in measured.items() if not d <= goldens.ATOL[name]}
    assert not wrong, wrong


def _deformable(out):
    stages = out.capture.stages
    got = {
        "aux_logits": torch.stack([a.logits for a in out.aux]),
        "aux_boxes": torch.stack([a.boxes for a in out.aux]),
        # at padded positions the official encoder gives float noise, which nothing reads
        "memory": stages["memory"].masked_fill(out.capture.padding[..., None], 0.0),
        "hs": stages["queries"],
        "init_reference": stages["init_reference"],
        "inter_references": stages["inter_references"],
    }
    if out.encoder is not None:
        got |= {
            "enc_logits": out.encoder.logits,
            "enc_scores": out.encoder.logits[..., 0],
            "enc_boxes": out.encoder.boxes,
            "topk_indices": stages["proposal_index"],
        }
    return got
