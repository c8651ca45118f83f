"""extract BASE TUNED -o OUT: what a tuned model changed, as a LoRA."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from ..errors import LocksmithError
from ..messages import Speaker, joined, message
from .arguments import (
    add_cuts,
    add_dialect,
    add_output,
    add_path,
    add_written,
    check_output,
    dtype_of,
    number,
    rank_target_of,
    with_ending,
)
from .language import add_language, reading
from .output import FINE, PROBLEMS, failed, progress, show_json, shown, spread


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "extract",
        help=speak("commands.extract_help"),
        description=speak("commands.extract_description"),
    )
    add_path(command, speak, "base", metavar="BASE", help="commands.extract_base_help")
    add_path(command, speak, "tuned", metavar="TUNED", help="commands.extract_tuned_help")
    add_output(command, speak)
    add_cuts(command, speak)
    add_written(command, speak, speak("commands.dtype_as_tuned"))
    add_dialect(command, speak)
    command.add_argument(
        "--extras",
        action="store_true",
        help=speak("commands.extras_help"),
    )
    quantile = number("commands.quantile_is", float, 0, 1, above=True)
    command.add_argument(
        "--clamp",
        type=reading(quantile, speak),
        metavar="QUANTILE",
        help=speak("commands.clamp_help"),
    )
    command.add_argument("--device", default="cpu", help=speak("commands.device_help"))
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Extract the LoRA."""
    from ..lora.rewrite.extract import ExtractOptions, extract_file, not_asked
    from ..lora.rewrite.rename import is_folder

    how = ExtractOptions(rank_target_of(options), options.extras, options.clamp, options.device)
    try:
        if (options.rank, options.energy, options.error) == (None, None, None):
            raise ValueError(message("commands.extract_needs_size"))
        _check_device(options.device)
        options.output = with_ending(options.output, folder=is_folder(options.to))
        check_output(options.output, options.overwrite, folder=is_folder(options.to))
        with progress("commands.extracting", options.speak) as report_progress:
            extraction = extract_file(
                options.base,
                options.tuned,
                options.output,
                how,
                dialect=options.to,
                dtype=dtype_of(options),
                overwrite=options.overwrite,
                progress=report_progress,
            )
    except (OSError, ValueError, RuntimeError, LocksmithError) as error:
        return failed(error, options)
    if options.json:
        rows = [row._asdict() for row in extraction.rows]
        show_json(
            {
                "file": options.output,
                "kept_energy": extraction.kept_energy,
                "weights": rows,
                "left_out": extraction.left_out,
            }
        )
    else:
        print(shown(_summary(extraction, options.output, options.speak)))
    return (
        PROBLEMS if any(reason != not_asked() for reason in extraction.left_out.values()) else FINE
    )


def _check_device(name: str) -> None:
    """Raises ValueError for what torch does not know, or cannot use here."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            message(
                "commands.device_not_usable", device=name, error=str(error).splitlines()[0][:160]
            )
        ) from None


def _summary(extraction: Any, path: str, speak: Speaker) -> str:
    from ..lora.rewrite.extract import not_asked

    ranks = [row.rank for row in extraction.rows if row.rank]
    lost = sum(reason != not_asked() for reason in extraction.left_out.values())
    first = message(
        "commands.extracted",
        path=path,
        count=len(ranks),
        ranks=spread(ranks),
        differences=len(extraction.rows) - len(ranks),
        unchanged=extraction.unchanged,
    )
    if lost:
        first = joined([message("commands.not_whole", count=lost), first], "space")
    lines = [speak(first), speak("commands.kept_energy", energy=f"{extraction.kept_energy:.4%}")]
    lines += [
        speak(
            "commands.extract_left_out",
            number=count,
            name=_first(extraction, reason),
            reason=reason,
        )
        for reason, count in Counter(extraction.left_out.values()).most_common()
    ]
    return "\n".join(lines)


def _first(extraction: Any, reason: str) -> str:
    return next(str(name) for name, other in extraction.left_out.items() if other == reason)
