"""compare A B: what two LoRA files have in common, layer by layer, whatever their dialects."""

from __future__ import annotations

import argparse
from typing import Any

from ..messages import Speaker
from ..report.compare import FileComparison, compare_files
from .arguments import add_path
from .language import add_language
from .output import FINE, PROBLEMS, show_json, show_markdown


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "compare",
        help=speak("commands.compare_help"),
        description=speak("commands.compare_description"),
    )
    add_path(command, speak, "first", metavar="A", help="commands.lora_help")
    add_path(command, speak, "second", metavar="B", help="commands.another_lora_help")
    command.add_argument(
        "--weights",
        action="store_true",
        help=speak("commands.compare_weights_help"),
    )
    command.add_argument("--json", action="store_true", help=speak("commands.json_help"))
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Compare the two files."""
    comparison = compare_files(options.first, options.second)
    weights = _weights(comparison) if options.weights else None
    if options.json:
        show_json(comparison.as_dict() | ({"weights": weights} if weights else {}))
    else:
        markdown = comparison.markdown(weights, language=options.speak.language)
        show_markdown(markdown, options.speak)
    return FINE if comparison.same_layers else PROBLEMS


def _weights(comparison: FileComparison) -> dict[str, Any]:
    from ..lora.by_layer import compared_weights

    return compared_weights(comparison)
