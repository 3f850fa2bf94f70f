"""`detrkit models`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from detrkit.utils.console import console, table_console

_METRICS = ("AP", "AP50", "AP_segm", "PQ")


@dataclass(frozen=True)
class Models:
    """List the models: name, trainable parameters, published metrics on COCO val2017, published weights."""

    def run(self) -> int:
        """Print the table."""
        import torch

        from detrkit.models.registry import ARCHITECTURES
        from detrkit.weights.build import build_model

        table = Table(title="Models", title_justify="left")
        table.add_column("name", no_wrap=True)
        for name in ("params (M)", "AP", "AP50", "mask AP", "PQ"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("weights", no_wrap=True)
        by_hand = {}
        for arch in ARCHITECTURES.values():
            with torch.device("meta"):  # shapes without memory
                model = build_model(arch.name)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            metrics = [f"{100 * arch.published[m]:.1f}" if m in arch.published else "-" for m in _METRICS]
            if arch.row is None:
                weights = "-"
            elif arch.weights is None:
                weights, by_hand[arch.name] = "by path, see below", arch.row.file
            else:
                weights = arch.weights
            table.add_row(arch.name, f"{count / 1e6:.1f}", *metrics, weights)
        table_console(150).print(table)
        say = console.print
        say("Weights with a file name are downloaded at the first use, and verified. Of the others give the path:")
        say("they have no fixed address. `detrkit reproduce --weights FOLDER` looks for them under these names:")
        for name, file in by_hand.items():
            say(f"  {name}: {file}")
        return 0
