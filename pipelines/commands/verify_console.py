"""The output of `pipelines verify`: a table on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.commands.progress import console_stages
from pipelines.commands.verify import MAX_FLOAT32_RATIO, Comparison, Distance, prepare, verify
from pipelines.config import PipelineConfig

TOLERANCES = {"cpu": 1e-4, "gpu": 5e-2}
"""Tolerances by device kind, as fractions of the largest logit: activations are float32 on CPU, bfloat16 on GPU."""
ROUNDED_TOLERANCE = 5e-2
"""Tolerance of a run that rounds activations to int8 or bfloat16, whose steps are about the same."""


def verify_to_console(
    config: PipelineConfig, prompts: Sequence[str], lengths: Sequence[int], tolerance: float | None
) -> bool:
    """Prints the distances of ours and of transformers' float32 from float64, two rows per prompt.

    Args:
        config: The run.
        prompts: Texts.
        lengths: Lengths of prompts of random tokens.
        tolerance: Fraction of the largest logit; None: that of the activations' type.

    Returns:
        Whether all prompts are within the tolerance, or as near to float64 as float32 allows.
    """
    prepared = prepare(config, console_stages(sys.stderr))
    if tolerance is None:
        tolerance = _tolerance(prepared.config)
    comparisons = verify(prepared, prompts, lengths)
    _print_table(comparisons, tolerance)
    is_equal = all(comparison.is_within(tolerance) or comparison.is_as_float32 for comparison in comparisons)
    print(
        f"{'equal' if is_equal else 'NOT equal'} to transformers in float64: logits within {tolerance:g} of the "
        f"largest, or within {MAX_FLOAT32_RATIO:g} times the distance of transformers' own float32"
    )
    return is_equal


def _tolerance(config: PipelineConfig) -> float:
    """Tolerance of a run, whose encoding is chosen."""
    return ROUNDED_TOLERANCE if config.rounds_activations else TOLERANCES[config.device_kind]


def _print_table(comparisons: Sequence[Comparison], tolerance: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("tokens", justify="right")
    table.add_column("float64 beside")
    for column in ("max diff", "mean diff", "top-1", "KL", "worst position", "greedy"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for c in comparisons:
        table.add_row(str(c.num_tokens), "ours", *_cells(c.ours, c.num_greedy), _verdict(c, tolerance))
        table.add_row("", "transformers float32", *_cells(c.float32, c.num_greedy))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cells(distance: Distance, num_greedy: int) -> tuple[str, ...]:
    return (
        f"{distance.max_difference:.1e}",
        f"{distance.mean_difference:.1e}",
        f"{distance.top1_agreement:.2%}",
        f"{distance.kl:.1e}",
        str(distance.worst_position),
        f"{distance.num_same_greedy}/{num_greedy}",
    )


def _verdict(comparison: Comparison, tolerance: float) -> str:
    if comparison.is_within(tolerance):
        return "equal"
    return "as float32" if comparison.is_as_float32 else "NOT equal"
