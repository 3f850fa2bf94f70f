"""Freezing of parameters by patterns over their names (`optim.freeze`)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrkit.utils.errors import SettingError
from detrkit.utils.messages import names_and_more
from detrkit.utils.similar import nearest_names


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match: they get no gradient and no weight decay, and stay as they are.

    Args:
        model: the model.
        patterns: names of parameters ("class_embed.bias"), of modules ("backbone", all below it), or globs over either
            ("transformer.encoder.layers.[01]", "*.norm?.*").

    Raises:
        SettingError: a pattern that matches nothing; names the nearest module or parameter.
    """
    for names in matched_names(model, patterns).values():
        for name in names:
            model.get_parameter(name).requires_grad_(False)


def matched_names(model: nn.Module, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return for each pattern the names of the parameters that it matches.

    Raises:
        SettingError: a pattern that matches nothing; names the nearest module or parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    matches = {}
    for pattern in patterns:
        below = f"{pattern}.*"
        matches[pattern] = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, below)]
        if not matches[pattern]:
            raise SettingError(_no_match(model, pattern, names))
    return matches


def _no_match(model: nn.Module, pattern: str, names: Sequence[str]) -> str:
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    stem = pattern.removesuffix("*").removesuffix(".")
    near = nearest_names([stem], [*modules, *names]) if stem else {}
    perhaps = f"perhaps {near[stem]}; " if near else ""
    top = [name for name in modules if "." not in name]
    return (
        f"optim.freeze: no parameter's name matches {pattern!r}: {perhaps}"
        f"the model has {names_and_more(top, 12)}, and modules below them"
    )


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose own parameters are all frozen.

    Their running statistics belong to the frozen weights: in training they stay as they are and are used, as in
    evaluation (`module.eval()`). Group and layer norms have no statistics.
    """
    norms: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(p.requires_grad for p in parameters):
                norms.append(module)
    return norms


def freeze_lines(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the lines that announce what is frozen by the patterns."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lines = []
    for pattern, names in matched_names(model, patterns).items():
        count = sum(sizes[name] for name in names)
        lines.append(f"frozen by {pattern}: {len(names)} tensors, {_in_words(count)} parameters")
    return lines


def _in_words(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"
