"""compare A B: what two LoRA files have in common, layer by layer, whatever their dialects."""

from __future__ import annotations

import argparse
from typing import Any

from ..report.compare import compare_files
from .arguments import a_path
from .output import FINE, PROBLEMS, show_json, show_markdown

DESCRIPTION = """\
Compares two LoRA files by the layers they change, however each spells its names. With --weights
also how alike the changes are: the cosine of the two for every layer. Exit code 0: they change
the same layers; 1: they do not; 2: a file cannot be read."""


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "compare", help="what two LoRA files have in common", description=DESCRIPTION
    )
    command.add_argument("first", metavar="A", type=a_path, help="a LoRA, as .safetensors")
    command.add_argument("second", metavar="B", type=a_path, help="another one")
    command.add_argument(
        "--weights",
        action="store_true",
        help="also compare the weights; reads both files and needs torch",
    )
    command.add_argument("--json", action="store_true", help="for programs: one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare the two files."""
    found = compare_files(options.first, options.second)
    weights = _weights(found) if options.weights else None
    if options.json:
        show_json(found.as_dict() | ({"weights": weights.as_dict()} if weights else {}))
    else:
        show_markdown(found.markdown(weights and weights.as_dict()))
    return FINE if found.same_layers else PROBLEMS


def _weights(found: Any) -> Any:
    from ..lora.io.stream import TensorStream
    from ..lora.statistics import compare_weights

    first, second = found.first, found.second
    with (
        TensorStream(first.path, first.header) as tensors_a,
        TensorStream(second.path, second.header) as tensors_b,
    ):
        return compare_weights(first.plan, tensors_a, second.plan, tensors_b)
