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
        from detrkit.models.pretrained import PUBLISHED
        from detrkit.models.registry import ARCHITECTURES
        from detrkit.utils.meta import on_meta
        from detrkit.weights.build import build_model

        table = Table(title="Models", title_justify="left")
        table.add_column("name", no_wrap=True)
        for name in ("params (M)", "AP", "AP50", "mask AP", "PQ"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("weights", no_wrap=True)
        for arch in ARCHITECTURES.values():
            with on_meta():  # shapes without memory
                model = build_model(arch.name)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            metrics = [f"{100 * arch.published[m]:.1f}" if m in arch.published else "-" for m in _METRICS]
            weights = "-" if arch.row is None else arch.weights or "by path, see below"
            table.add_row(arch.name, f"{count / 1e6:.1f}", *metrics, weights)
        table_console(150).print(table)
        say = console.print
        say("Weights with a file name are downloaded at the first use, and verified. Of the others give the path: they")
        say("have no fixed address, or no hash to verify them. `detrkit reproduce NAME --coco FOLDER --weights FOLDER`")
        say("looks for them under these file names, and compares AP:")
        for row in PUBLISHED.values():
            if not row.downloadable:
                ap, epochs = 100 * row.published["AP"], "" if row.epochs is None else f", {row.epochs} epochs"
                say(f"  {row.name} (AP {ap:.1f}{epochs}): {row.file}", soft_wrap=True)
        return 0
