"""Convolutions of 3 x 3 by Winograd's method beside oneDNN's direct ones, at the sizes of the models.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --avx2        the same with AVX2 alone, on a processor with AVX-512

Both have their weights prepared, as `detrkit.layers.folding` prepares them. The error is the largest difference from
the same convolution in float64, of values of standard deviation 1. "chosen" says what `detrkit.ops.winograd.pays` says.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from detrkit.ops import winograd
from detrkit.ops.dense import convolve, pack
from side_by_side import Report, add_options, by_turns

# channels, height, width: DETR R50 at 800 x 1199, then RT-DETR at 640 x 640, then R50 at 256 x 256
SHAPES = [(64, 200, 300), (128, 100, 150), (256, 50, 75), (512, 25, 38)]
SHAPES += [(64, 160, 160), (128, 80, 80), (256, 80, 80), (256, 40, 40), (256, 20, 20), (512, 20, 20)]
SHAPES += [(128, 32, 32), (256, 16, 16), (512, 8, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=15)
    args = parser.parse_args()
    report = Report("Convolutions of 3 x 3")
    torch.manual_seed(0)
    for channels, height, width in SHAPES:
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(layer.weight, std=(9 * channels) ** -0.5)
        x = torch.randn(1, channels, height, width).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            want = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
            packed, transformed = pack(layer.weight, layer, x.shape), winograd.transformed(layer.weight)
            ways = {
                "direct": lambda x=x, w=packed, b=layer.bias: convolve(x, w, b, padding=(1, 1)),
                "winograd": lambda x=x, w=transformed, b=layer.bias: convolve(x, w, b, padding=(1, 1)),
            }
            errors = {name: float((way() - want).abs().max()) for name, way in ways.items()}
            seconds = by_turns(ways, repeats=args.repeats, warmup=2)
        operations = 18 * channels**2 * height * width
        report.add(
            **{
                "channels": channels,
                "map": f"{height} x {width}",
                "direct, ms": 1000 * seconds["direct"],
                "billion operations/s": round(operations / seconds["direct"] / 1e9),
                "Winograd, ms": 1000 * seconds["winograd"],
                "times faster": seconds["direct"] / seconds["winograd"],
                "chosen": "yes" if winograd.pays(layer.weight, layer, height, width) else "no",
                "error, direct": f"{errors['direct']:.1e}",
                "error, Winograd": f"{errors['winograd']:.1e}",
            }
        )
    report.write(args.json)


if __name__ == "__main__":
    main()
