"""resize FILE -o OUT: a LoRA at a smaller rank, each module at its best."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import LocksmithError
from ..messages import Speaker, message
from .arguments import (
    add_cuts,
    add_output,
    add_path,
    add_written,
    check_output,
    dtype_of,
    rank_target_of,
    with_ending,
)
from .language import add_language
from .output import FINE, failed, show_json, shown, spread


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "resize",
        help=speak("commands.resize_help"),
        description=speak("commands.resize_description"),
    )
    add_path(command, speak, "file", metavar="FILE", help="commands.lora_help")
    add_output(command, speak)
    add_cuts(command, speak)
    add_written(command, speak, speak("commands.dtype_as_in_source"))
    add_path(command, speak, "--against", metavar="MODEL", help="commands.resize_against_help")
    command.add_argument(
        "--dora",
        action="store_true",
        help=speak("commands.dora_help"),
    )
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Resize the file."""
    from ..identify.checkpoint import target_model_of_checkpoint
    from ..lora.rewrite.resize import resize_file

    try:
        if (options.rank, options.energy, options.error) == (None, None, None):
            raise ValueError(message("commands.resize_needs_size"))
        options.output = with_ending(options.output)
        check_output(options.output, options.overwrite)
        target_model = (
            target_model_of_checkpoint(options.against).target_model if options.against else None
        )
        made = resize_file(
            options.file,
            options.output,
            rank_target_of(options),
            dtype=dtype_of(options),
            dora=options.dora,
            overwrite=options.overwrite,
            target_model=target_model,
        )
    except (OSError, ValueError, LocksmithError) as error:
        return failed(error, options)
    if options.json:
        show_json(
            {
                "file": options.output,
                "kept_energy": made.kept_energy,
                "modules": [row._asdict() for row in made.rows],
            }
        )
    else:
        print(shown(_summary(made, options.output, options.speak)))
    return FINE


def _summary(made: Any, path: str, speak: Speaker) -> str:
    rows = [row for row in made.rows if not row.note]
    worst = max(rows, key=lambda row: row.error, default=None)
    lines = [
        speak(
            "commands.resized",
            path=path,
            count=len(rows),
            before=spread([row.before for row in rows]),
            rank=spread([row.rank for row in rows]),
        )
    ]
    if worst:
        lines.append(
            speak(
                "commands.kept_energy_worst",
                energy=f"{made.kept_energy:.4%}",
                error=f"{worst.error:.2e}",
                module=worst.module,
            )
        )
    lines += [
        speak("joints.about", subject=row.module, text=row.note) for row in made.rows if row.note
    ]
    return "\n".join(lines)
