"""`detrkit models`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Models:
    """List the models: name, trainable parameters, published AP on COCO val2017, published weights."""

    def run(self) -> int:
        """Prints the table."""
        import torch

        from detrkit.build import build_model
        from detrkit.registry import ARCHITECTURES, OFFICIAL_URL

        table = Table(title="Models", title_justify="left")
        table.add_column("name", no_wrap=True)
        for name in ("params (M)", "AP", "AP50"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("weights", no_wrap=True)
        for known in ARCHITECTURES.values():
            with torch.device("meta"):  # shapes without memory
                model = build_model(known.name)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            figures = [f"{100 * known.published[m]:.1f}" if m in known.published else "-" for m in ("AP", "AP50")]
            table.add_row(known.name, f"{count / 1e6:.1f}", *figures, known.weights or "-")
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a pipe has no width to fit
        console.print(table)
        console.print(
            f"Published weights are downloaded from {OFFICIAL_URL} at the first use.", highlight=False, soft_wrap=True
        )
        return 0
