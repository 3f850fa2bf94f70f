"""AP over the seconds of training: detrkit's fast-converging models beside transformers' two-stage Deformable DETR.

    python benchmarks/learning_curves.py --out curves --minutes 3                     all of them, one after the other
    python benchmarks/learning_curves.py --out curves --minutes 3 --only dino hybrid  these; finished ones are kept
    python benchmarks/learning_curves.py --out curves --minutes 3 --picture docs/images/learning-curves.png \
        --json docs/measurements/learning-curves.json                                 once all are there: writes them
    python benchmarks/learning_curves.py --out blood --minutes 10 --study bccd-six-small --data $DETRKIT_DATA/bccd

All train on the same images, by default generated shapes: the same batches in the same order (a loader with one seed),
the same AdamW, clipping, warm-up and peak rate. The rate falls as a cosine of the share of the time that has passed, to
zero at its end, so that each gets the most of the same minutes whatever its step takes. Time is that of training steps
with their data; evaluation, by detrkit on the same images for all, stops the clock. With one thread (OMP_NUM_THREADS=1)
on a CPU it is the time of that core alone, so that curves may be trained side by side and beside other work.

transformers' model has a backbone of the same size. Its frozen statistics would be no normalization at all with random
weights, and its rule for what to train freezes the whole of a ResNet of its own: here it has group norm as
detrkit's, and all of it trains. "transformers" has the loss that its `labels` give: detrkit's with a
classification weight of 1 in place of 2 and without the term of the encoder's proposals, which so learn nothing (the
two are equal to the last digit). "transformers-full" has the whole of detrkit's criterion on the same model.

A curve is a file, CURVE-seed0.json: a stopped command goes on with the first curve that is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.config import TrainConfig
from detrkit.data import make_loader, train_transform
from detrkit.data.loader import Loader
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.class_weights import make_criterion
from detrkit.engine.evaluating import eval_loader
from detrkit.engine.evaluation_loop import EvaluationAccumulator, run_evaluation
from detrkit.engine.evaluation_targets import EvaluationTargets
from detrkit.engine.optim import build_optimizer
from detrkit.engine.setup import make_model
from detrkit.engine.splits import Splits, open_splits
from detrkit.layers.norms import GROUPS
from detrkit.models.criterion import build_criterion
from detrkit.models.spec import ModelSpec
from detrkit.profiling import machine
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs, Target
from detrkit.study import load_study
from detrkit.utils.atomic import write_atomic
from detrkit.visualize import save_figure
from detrkit.visualize.colors import LINE_COLORS
from detrkit.visualize.style import TEXT_COLOR, new_figure, set_titles
from side_by_side import DEVICE, Report

STUDIES = ("shapes-six", "bccd-six-small")  # whose shared settings and members the models have
# curve -> member of the study; the transformers ones are siblings of two-stage
MEMBERS = {"two-stage": "two-stage", "tricks": "tricks", "hybrid": "hybrid", "dino": "dino"}
# curve -> settings of the model in place of the member's: RT-DETRv2 as small as the others
MODELS: dict[str, dict[str, Any]] = {
    "rtdetr": {
        "name": "rtdetrv2-r18",
        "backbone": "presnet10",
        "backbone_norm": "batch",
        "backbone_stages": None,
        "num_feature_levels": None,
        "enc_hidden_dim": 64,
        "enc_dim_feedforward": 128,
        "num_select": 100,
        "dn_number": 50,  # pairs: as many denoising queries as one-to-many ones of hybrid matching
    }
}
SQUARES = {"shapes-six": 112, "bccd-six-small": 184}  # sides in pixels, of as many pixels as the others' images have
TITLES = {
    "two-stage": "detrkit, ++ two-stage",
    "tricks": "detrkit, + mixed selection, look forward twice",
    "hybrid": "detrkit, + hybrid matching",
    "dino": "detrkit, DINO",
    "rtdetr": "detrkit, RT-DETRv2",
    "transformers": "transformers, two-stage, its own loss",
    "transformers-full": "transformers, two-stage, detrkit's loss",
}
WARMUP_STEPS = 100
ONE_CORE = DEVICE.type == "cpu" and torch.get_num_threads() == 1
clock = time.process_time if ONE_CORE else time.perf_counter


class Contender(NamedTuple):
    """A model with its loss.

    Attributes:
        model: to train; called by `predict` alone.
        loss: of a batch.
        predict: outputs of a batch in eval mode, as a module.
        spec: how its outputs are post-processed and its images prepared.
    """

    model: nn.Module
    loss: Callable[[Batch, list[Target]], Tensor]
    predict: nn.Module
    spec: ModelSpec


class TransformersOutputs(nn.Module):
    """A model of transformers that takes a `Batch` and returns `Outputs`.

    Args:
        model: a `DeformableDetrForObjectDetection`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, defer_masks: bool | None = None) -> Outputs:
        """Logits (B, Q, C) and boxes (B, Q, 4), those of earlier layers and, in training, of the proposals."""
        result = self.model(pixel_values=batch.images, pixel_mask=(~batch.mask()).long())
        hidden_states = result.intermediate_hidden_states.unbind(1)
        references = [result.init_reference_points, *result.intermediate_reference_points.unbind(1)]
        outputs = Outputs(result.logits, result.pred_boxes)
        if not self.training:
            return outputs
        for i, hidden in enumerate(hidden_states[:-1]):
            boxes = (self.model.bbox_embed[i](hidden) + references[i].logit(eps=1e-5)).sigmoid()
            outputs.aux.append(Outputs(self.model.class_embed[i](hidden), boxes))
        # proposals outside of the image are infinite before the sigmoid, and at its ends after it
        outputs.encoder = Outputs(result.enc_outputs_class, result.enc_outputs_coord_logits.sigmoid())
        return outputs


def transformers_model(config: TrainConfig, classes: int) -> Any:
    """A `DeformableDetrForObjectDetection` as large as the config's two-stage model, with random weights."""
    import transformers

    model = config.model
    assert model.backbone == "resnet10" and model.backbone_stages == (3, 4)
    width = int(model.backbone_width or 64)
    backbone = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )
    settings = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        num_labels=classes,
        num_queries=model.num_queries,
        two_stage_num_proposals=model.num_queries,
        two_stage=True,
        with_box_refine=True,
        d_model=model.hidden_dim,
        num_feature_levels=model.num_feature_levels,
        encoder_layers=model.enc_layers,
        decoder_layers=model.dec_layers,
        encoder_attention_heads=model.nheads,
        decoder_attention_heads=model.nheads,
        encoder_ffn_dim=model.dim_feedforward,
        decoder_ffn_dim=model.dim_feedforward,
        dropout=model.dropout,
        auxiliary_loss=True,
        class_cost=2,
    )
    built = transformers.DeformableDetrForObjectDetection(settings)
    body = built.model.backbone
    for name, module in list(body.named_modules()):
        if "BatchNorm2d" in type(module).__name__:
            parent, _, child = name.rpartition(".")
            channels = int(module.weight.shape[0])
            setattr(body.get_submodule(parent), child, nn.GroupNorm(min(GROUPS, channels // 4), channels))
    built.requires_grad_(True)
    return built


def contender(curve: str, config: TrainConfig, splits: Splits) -> Contender:
    """The model of a curve with its loss."""
    model, spec, _ = make_model(config, splits.train)
    if not curve.startswith("transformers"):
        criterion = make_criterion(config, spec, splits.train)
        model.to(DEVICE)
        return Contender(
            model, lambda batch, targets: criterion.total(criterion(model(batch, targets), targets)), model, spec
        )
    torch.manual_seed(config.run.seed)
    theirs = transformers_model(config, spec.num_classes).to(DEVICE)
    wrapped = TransformersOutputs(theirs)
    if curve == "transformers-full":
        assert config.model.name is not None
        full = build_criterion(config.model.name, num_classes=spec.num_classes, **config.loss.overrides())
        return Contender(theirs, lambda batch, targets: full.total(full(wrapped(batch), targets)), wrapped, spec)

    def loss(batch: Batch, targets: list[Target]) -> Tensor:
        labels = [{"class_labels": t.labels.long(), "boxes": t.boxes} for t in targets]
        return theirs(pixel_values=batch.images, pixel_mask=(~batch.mask()).long(), labels=labels).loss

    return Contender(theirs, loss, wrapped, spec)


def loader_of(config: TrainConfig, splits: Splits, spec: ModelSpec) -> Loader:
    """The batches of training, the same for every curve of a seed."""
    return make_loader(
        splits.train,
        transform=train_transform(spec.size, spec.max_size, square=spec.square, augment=config.data.augment),
        batch_size=config.data.batch_size,
        training=True,
        seed=config.run.seed,
        workers=config.data.workers,
        mean=spec.mean,
        std=spec.std,
        device=DEVICE,
    )


def learn(curve: str, config: TrainConfig, splits: Splits, *, seconds: float, points: int) -> dict[str, Any]:
    """Train for some seconds and evaluate at even distances of time.

    Args:
        curve: one of TITLES.
        config: of the run.
        splits: the images.
        seconds: of training steps.
        points: number of evaluations.

    Returns:
        "points": rows of seconds, steps, loss, AP, AP50; "parameters": number of those that train.
    """
    torch.manual_seed(config.run.seed)
    model, loss_of, predict, spec = contender(curve, config, splits)
    assert splits.val is not None
    optimizer = build_optimizer(model, config.optim)
    loader = loader_of(config, splits, spec)
    held_out = eval_loader(splits.val, spec, batch_size=config.data.eval_batch_size or 8, workers=0, device=DEVICE)
    ground_truth = EvaluationTargets.of(splits.val, spec, make_model(config, splits.train)[0])
    rows: list[dict[str, float]] = []
    spent, step, epoch, recent = 0.0, 0, 0, list[float]()
    model.train()
    while spent < seconds:
        loader.set_epoch(epoch)
        batches = iter(loader)
        while spent < seconds:
            begin = clock()
            part = next(batches, None)
            if part is None:
                break
            batch, targets = part
            factor = min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * spent / seconds))
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            loss = loss_of(batch, [t.to(DEVICE) for t in targets])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_max_norm)
            optimizer.step()
            recent.append(float(loss.detach()))
            spent, step = spent + clock() - begin, step + 1
            if spent >= seconds * (len(rows) + 1) / points:
                evaluation = EvaluationAccumulator(ground_truth, spec)
                run_evaluation(predict, held_out, evaluation)
                metrics = evaluation.compute()
                model.train()
                row = {"seconds": spent, "steps": step, "loss": sum(recent) / len(recent)}
                rows.append({**row, "AP": metrics.AP, "AP50": metrics.AP50})
                recent.clear()
                print(f"{curve}: {spent:.0f} s, {step} steps, AP {metrics.AP * 100:.1f}", flush=True)
        epoch += 1
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"points": rows, "parameters": size}


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One picture: AP over seconds, a line for each curve, the mean of its seeds with a band from lowest to highest."""
    figure, (ax,) = new_figure(8.0, 4.8)
    for i, (name, runs) in enumerate(curves.items()):
        count = min(len(run["points"]) for run in runs)
        x = [sum(run["points"][k]["seconds"] for run in runs) / len(runs) for k in range(count)]
        aps = [[run["points"][k]["AP"] * 100 for run in runs] for k in range(count)]
        style = {"linestyle": "--"} if name.startswith("transformers") else {}
        mean = [sum(values) / len(values) for values in aps]
        ax.plot(x, mean, label=TITLES[name], color=LINE_COLORS[i], linewidth=2, marker="o", markersize=3, **style)
        if len(runs) > 1:
            ax.fill_between(x, list(map(min, aps)), list(map(max, aps)), color=LINE_COLORS[i], alpha=0.2, linewidth=0)
    set_titles(ax, "AP (percent)", "seconds of training")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=TEXT_COLOR)
    save_figure(figure, path)
    print(f"wrote {path}")


def report(curves: dict[str, list[dict[str, Any]]], path: Path | None) -> None:
    """A row for each curve: its last AP, its steps, when it passes the last AP of transformers' own."""
    table = Report("Learning curves at equal time")
    for name, runs in curves.items():
        last = [run["points"][-1] for run in runs]
        row: dict[str, Any] = {
            "model": TITLES[name],
            "seeds": len(runs),
            "parameters (M)": runs[0]["parameters"] / 1e6,
            "seconds": round(sum(p["seconds"] for p in last) / len(last)),
            "steps": round(sum(p["steps"] for p in last) / len(last)),
            "a step, ms": 1000 * sum(p["seconds"] / p["steps"] for p in last) / len(last),
            "AP": 100 * sum(p["AP"] for p in last) / len(last),
            "AP50": 100 * sum(p["AP50"] for p in last) / len(last),
        }
        table.add(**row)
    table.write(path)


def stored(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of a folder by name, each with its seeds.

    Raises:
        SystemExit: there are none, or they are of different budgets.
    """
    found = {
        name: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}-seed[0-9]*.json"))]
        for name in TITLES
    }
    curves = {name: runs for name, runs in found.items() if runs}
    budgets = {(run["minutes"], run["images"]) for runs in curves.values() for run in runs}
    if len(budgets) != 1:
        raise SystemExit(f"{folder}: no curves, or curves of different --minutes or --images: {sorted(budgets)}")
    return curves


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the curves and the shapes")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training steps, a curve (default %(default)s)")
    parser.add_argument("--points", type=int, default=12, help="evaluations of a curve (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES), metavar="CURVE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--study", choices=STUDIES, default=STUDIES[0], help="of the models (default %(default)s)")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="to train on; by default generated shapes")
    parser.add_argument("--images", type=int, default=2000, help="generated to train on (default %(default)s)")
    parser.add_argument("--picture", type=Path, help="draw all curves of the folder there (default: FOLDER/curves.png)")
    parser.add_argument("--json", type=Path, help="also write a row for each curve, for docs/measured_tables.py")
    args = parser.parse_args(words)
    data = args.data or args.out / "shapes"
    if args.data is None and not data.exists():
        write_shapes(data, images={"train": args.images, "val": 200}, seed=0)
    study = load_study(args.study, data=str(data))
    for seed in args.seeds:
        for curve in args.only:
            file = args.out / f"{curve}-seed{seed}.json"
            if file.exists():
                print(f"{file}: is there")
                continue
            name = MEMBERS.get(curve, "two-stage")
            config = study.config(next(m for m in study.members if m.name == name), seed=seed)
            if curve in MODELS:
                config = config.changed(model=MODELS[curve], data={"size": SQUARES[args.study], "max_size": None})
            splits = open_splits(config)
            record = learn(curve, config, splits, seconds=60 * args.minutes, points=args.points)
            budget = {"curve": curve, "seed": seed, "minutes": args.minutes, "images": args.images}
            write_atomic(file, json.dumps({**budget, **record, "machine": machine(DEVICE)}, indent=1) + "\n")
    curves = stored(args.out)
    report(curves, args.json)
    draw(curves, args.picture or args.out / "curves.png")


if __name__ == "__main__":
    main()
