"""Times a model's forward pass beside the original code, transformers and exported forms of it, with the same weights.

    python benchmarks/inference.py --original PATH            detr-r50 on one image of 800 x 1199 pixels
    python benchmarks/inference.py --original PATH --model deformable-detr-r50 --runtimes onnxruntime openvino
    python benchmarks/inference.py --model rtdetrv2-r18 --size 640 640 --runtimes onnxruntime openvino
    python benchmarks/inference.py --model detr-r50 --batch 32 --precision bf16 --device cuda

Every contender lives in a process of its own, with its own memory and its own malloc; they run one forward pass each,
by turns, and nothing else runs meanwhile. "tuned" is the same code under MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=
2147483647: glibc then keeps freed memory, which detrkit asks of it by itself. Outputs are compared, too: the largest
difference of a logit and of a box in [0, 1] from detrkit's. Weights are random, of seed 0; the image is noise.
Where the encoder chooses the queries (two-stage, DINO, RT-DETR), nearly equal tokens of such an image swap places, so
that the largest difference says nothing there: tests compare these models. "floor" is as many operations as the model
has, in matrix products: what the model takes at least if all is computed directly, and nothing else takes time.

--runtimes adds forms of detrkit's model that other programs run: compiled (torch.compile), onnxruntime and openvino
(both through torch.onnx, needing the packages onnxscript and onnxruntime or openvino).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from detrkit import build_model
from detrkit.profiling.floor import RateMeter, count_operations
from side_by_side import Report, add_options, checkout, peak_memory, synchronize

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
Run = Callable[[], tuple[Tensor, Tensor]]


def ours(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(args.model).eval().to(args.device)
    if args.precision == "bf16":
        model = model.to(torch.bfloat16)
    return model


def images(args: argparse.Namespace) -> Tensor:
    """(B, 3, H, W), the same in every process."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(args.batch, 3, *args.size, generator=random).to(args.device)
    return x.to(torch.bfloat16) if args.precision == "bf16" else x


# One function a contender: the forward pass that is timed, giving logits and boxes.


def detrkit(args: argparse.Namespace) -> Run:
    model, x = ours(args), images(args)

    def run() -> tuple[Tensor, Tensor]:
        outputs = model(list(x))
        return outputs.logits, outputs.boxes

    return run


def bfloat16(args: argparse.Namespace) -> Run:
    args.precision = "bf16"
    return detrkit(args)


def floor(args: argparse.Namespace) -> Run:
    """As many operations as the model's, in the fastest matrix products: what it takes at least, computed directly."""
    model, x = ours(args), images(args)
    outputs = model(list(x))
    operations, meter = count_operations(lambda: model(list(x))), RateMeter(x.device, x.dtype)
    count = max(1, round(operations / meter.operations))

    def run() -> tuple[Tensor, Tensor]:
        for _ in range(count):
            meter.product()
        return outputs.logits, outputs.boxes

    run.scale = operations / (count * meter.operations)  # type: ignore[attr-defined]
    return run


def original(args: argparse.Namespace) -> Run:
    from original_code import OriginalCode, match_weights

    code = OriginalCode(args.original)
    model, _ = code.build(code.arguments(args.model, args.device))
    match_weights(ours(args), model)
    model = model.eval().to(args.device)
    batch = code.misc.nested_tensor_from_tensor_list(list(images(args)))

    def run() -> tuple[Tensor, Tensor]:
        outputs = model(batch)
        return outputs["pred_logits"], outputs["pred_boxes"]

    return run


def transformers(args: argparse.Namespace) -> Run:
    import transformers as peer

    from detrkit.weights.checkpoint import published_spec, save_huggingface

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_huggingface(path, ours(args), published_spec(args.model))
        kind = peer.AutoConfig.from_pretrained(path).architectures[0]
        model = getattr(peer, kind).from_pretrained(path, dtype=torch.float32).eval().to(args.device)
    model.config.auxiliary_loss = False
    x = images(args)
    mask = torch.ones(len(x), *args.size, dtype=torch.long, device=args.device)

    def run() -> tuple[Tensor, Tensor]:
        outputs = model(pixel_values=x, pixel_mask=mask)
        return outputs.logits, outputs.pred_boxes

    return run


class Plain(nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to logits and boxes."""
        outputs = self.model(list(x))
        return outputs.logits, outputs.boxes


def compiled(args: argparse.Namespace) -> Run:
    model, x = torch.compile(Plain(ours(args))), images(args)
    return lambda: model(x)


def _onnx(args: argparse.Namespace, folder: str) -> str:
    path = str(Path(folder) / "model.onnx")
    torch.onnx.export(Plain(ours(args)), (images(args),), path, dynamo=True, optimize=True, verbose=False)
    return path


def onnxruntime(args: argparse.Namespace) -> Run:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        session = runtime.InferenceSession(_onnx(args, folder), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images(args).numpy()}
    return lambda: tuple(map(torch.from_numpy, session.run(None, feed)))  # type: ignore[return-value]


def openvino(args: argparse.Namespace) -> Run:
    import openvino as runtime

    # float32 as everybody else; by itself it would take bfloat16 where the CPU has it
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        model = runtime.Core().compile_model(_onnx(args, folder), "CPU", hints)
    x = images(args).numpy()

    def run() -> tuple[Tensor, Tensor]:
        found = model([x])
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    return run


class Contender:
    """A process that runs a forward pass each time it is told to.

    Args:
        kind: a function of this file.
        folder: where its outputs go.
        tuned: with glibc told to keep memory.
    """

    def __init__(self, kind: str, folder: Path, *, tuned: bool = False) -> None:
        self.name = f"{kind}, tuned" if tuned else kind
        self.saved = folder / f"{self.name}.pt"
        words = [sys.executable, __file__, *sys.argv[1:], "--worker", kind, "--save", str(self.saved)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (TUNED if tuned else {})
        )
        self.peak = float(self._answer())  # MiB in its first passes
        self.times: list[float] = []

    def turn(self) -> None:
        """One timed pass."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.times.append(float(self._answer()))

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Logits and boxes."""
        return torch.load(self.saved)  # type: ignore[no-any-return]

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:]
        raise SystemExit(f"{self.name} ended: {self.process.wait()}")


def work(args: argparse.Namespace) -> None:
    """What a contender's process does: outputs to a file, then a pass and its seconds for every line it reads."""
    import time

    with torch.inference_mode():
        run: Run = globals()[args.worker](args)
        logits, boxes = run()
        torch.save((logits.float().cpu(), boxes.float().cpu()), args.save)
        print(f"> {peak_memory(run)}", flush=True)
        for _ in sys.stdin:
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            print(f"> {(time.perf_counter() - start) * getattr(run, 'scale', 1.0)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="detr-r50", help="a name of `detrkit models` (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1199), metavar=("H", "W"), help="image, in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of detrkit (default %(default)s)")
    parser.add_argument("--runtimes", nargs="*", default=(), choices=("compiled", "onnxruntime", "openvino"))
    parser.add_argument("--without", nargs="*", default=(), help="contenders to leave out: transformers, bfloat16")
    checkout(parser, "--original", "facebookresearch/detr, or of fundamentalvision/Deformable-DETR")
    add_options(parser, repeats=9)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return work(args)

    peers = [*(["original"] if args.original else []), "transformers"]
    kinds: list[tuple[str, bool]] = [("detrkit", False), ("floor", False)]
    kinds += [(peer, tuned) for peer in peers for tuned in ((False, True) if args.device == "cpu" else (False,))]
    kinds += [(kind, False) for kind in ("bfloat16", *args.runtimes)]
    report = Report(f"{args.model}, forward pass of {args.batch} x {args.size[0]} x {args.size[1]}, {args.device}")
    with tempfile.TemporaryDirectory() as folder:
        contenders = [Contender(k, Path(folder), tuned=tuned) for k, tuned in kinds if k not in args.without]
        for turn in range(args.repeats + 1):
            for contender in contenders:
                contender.turn()
                if turn == 0:
                    contender.times.clear()  # a warm-up
        want = contenders[0].outputs()
        fastest = statistics.median(contenders[0].times)
        for contender in contenders:
            seconds = statistics.median(contender.times)
            bare = contender.name == "floor"  # no model
            off = [float((a - b).abs().max()) for a, b in zip(contender.outputs(), want, strict=True)]
            report.add(
                **{
                    "": contender.name,
                    "median, s": seconds,
                    "least, s": min(contender.times),
                    "times detrkit's": seconds / fastest,
                    "peak memory, MiB": "" if bare else round(contender.peak),
                    "logits off by": "" if bare else f"{off[0]:.1e}",
                    "boxes off by": "" if bare else f"{off[1]:.1e}",
                }
            )
            with suppress(BrokenPipeError):
                contender.process.communicate()
    report.write(args.json)


if __name__ == "__main__":
    main()
