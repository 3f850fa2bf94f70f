"""Two processes, one without any object, train DINO, H-Deformable-DETR and RT-DETR as one process does."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

import goldens
from detrkit.engine.processes import global_normalizers
from detrkit.models.criterion import build_criterion
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from helpers.weights import randomize

SMALL = {
    "num_classes": 4,
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 12,
}
# groups are as many as fit: without noise all are alike, so that their number makes no difference
QUIET = {"dn_label_noise_ratio": 0.0, "dn_box_noise_scale": 0.0}
MODELS = {
    "denoising": ("dino-r50-4scale", {"dn_number": 60, "masks": True, **QUIET}),
    "real time": ("rtdetrv2-r18", {"dn_number": 60, "enc_hidden_dim": 32, "enc_dim_feedforward": 32, **QUIET}),
    "hybrid": ("h-deformable-detr-r50", {"num_queries_one2many": 20, "k_one2many": 3, "masks": True}),
}
SIZES, COUNTS = [(70, 90), (33, 20), (64, 64), (40, 72)], [2, 1, 0, 0]


def _step(case: str, images: range, *, parts: int, world: int) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Mean loss terms and gradients of the processes, each with its images in so many parts."""
    name, options = MODELS[case]
    model = randomize(build_model(name, **SMALL, **options)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # whose statistics are those of a process's own images
    replica = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    criterion = build_criterion(name, num_classes=4)
    device, per_part = torch.device("cpu"), len(images) // parts
    shares = [images[start : start + per_part] for start in range(0, len(images), per_part)]
    targets = [[_target(i) for i in share] for share in shares]
    normalizers = global_normalizers(criterion, targets, 12, device, world)
    assert parts == 1 or world == 1
    terms: dict[str, torch.Tensor] = {}
    for share, some in zip(shares, targets, strict=True):
        outputs = replica([goldens.image(f"two {i}", *SIZES[i]) for i in share], some)
        losses = criterion(outputs, some, normalizers=normalizers)
        criterion.total(losses).backward()
        terms = {key: value.detach() + terms.get(key, 0) for key, value in losses.items()}
    stack = torch.stack([value for key, value in terms.items() if key.startswith("loss")])
    if world > 1:
        dist.all_reduce(stack)
    values = (stack / world).tolist()
    names = [key for key in terms if key.startswith("loss")]
    return dict(zip(names, values, strict=True)), [p.grad for p in model.parameters() if p.requires_grad]


def _target(i: int) -> Target:
    generator = torch.Generator().manual_seed(i)
    boxes = 0.2 + 0.5 * torch.rand(COUNTS[i], 4, generator=generator)
    masks = torch.rand(COUNTS[i], *SIZES[i], generator=generator) > 0.5
    return Target(torch.randint(4, (COUNTS[i],), generator=generator), boxes, masks)


def _join(rank: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=240)
    )


def _second(store: str) -> None:
    """Run all cases as the process without objects."""
    torch.set_num_threads(1)
    _join(1, store)
    for case in MODELS:
        _step(case, range(2, 4), parts=1, world=2)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path):
    """The objects are all in the first process, this one; one process has the whole batch in two parts."""
    store = str(tmp_path / "store")
    second = multiprocessing.get_context("spawn").Process(target=_second, args=(store,))
    second.start()
    _join(0, store)
    try:
        found = {case: _step(case, range(2), parts=1, world=2) for case in MODELS}
    finally:
        dist.destroy_process_group()
        second.join(240)
    assert second.exitcode == 0
    for case in MODELS:
        losses, gradients = found[case]
        expected, wanted = _step(case, range(4), parts=2, world=1)
        assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6), case
        scale = torch.stack([one.norm() for one in wanted]).norm()
        distance = torch.stack([(one - other).norm() for one, other in zip(gradients, wanted, strict=True)]).norm()
        assert distance <= 1e-4 * scale, case
