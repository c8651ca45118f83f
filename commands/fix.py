"""fix PATH...: write LoRA files again under names that load, verified, and leave
good ones alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LocksmithError, exhausted, fault_and_remedy
from ..files.atomic import check_free, making_folder, replacing
from ..files.header import ENDINGS, LoraFileError
from ..identify.checkpoint import target_model_of_checkpoint
from ..lora.rewrite.rename import NATIVE, Refused, is_folder, writable
from ..lora.rewrite.repair import (
    ALREADY,
    SOUND,
    Kept,
    NotWhole,
    Order,
    Repair,
    plan_repair,
    write_repair,
)
from ..messages import Speaker, joined, message, text_of
from ..report.inspection import inspect_file
from .arguments import DTYPES, add_json_each, add_path, dtype_of, every_path, is_named_as_file
from .language import add_language
from .output import FAILED, FINE, PROBLEMS, fault_of, one_line, progress, say, show_json

if TYPE_CHECKING:
    from ..lora.io.writer import Written
    from ..planning.target_model import TargetModel

# Ids of what became of many files.
ENDS = (
    "commands.files_need_nothing",
    "commands.files_have_names",
    "commands.files_written",
    "commands.files_written_in_part",
    "commands.files_not_written",
    "commands.files_not_accessible",
)
ENDS_OF_DRY_RUN = (
    *ENDS[:2],
    "commands.files_would_be_written",
    "commands.files_would_be_written_in_part",
    *ENDS[4:],
)
BACKUP = ".bak"


class FixResult(NamedTuple):
    """What became of one file: its exit code, one sentence, where the new file is, and how many
    keys that count are not in it. kept: SOUND or ALREADY where it needs no new file.
    """

    file: str
    code: int
    told: str
    written: str = ""
    lost: int = 0
    kept: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: value for name, value in self._asdict().items() if name != "kept"}


def add(commands: Any, speak: Speaker) -> None:
    """Add this command to the command line, with its help in a language."""
    command = commands.add_parser(
        "fix", help=speak("commands.fix_help"), description=speak("commands.fix_description")
    )
    add_path(command, speak, "paths", nargs="+", metavar="PATH", help="commands.paths_help")
    command.add_argument(
        "--to",
        choices=writable(),
        metavar="DIALECT",
        help=speak("commands.fix_to_help", names=", ".join(writable())),
    )
    where = command.add_mutually_exclusive_group()
    add_path(where, speak, "-o", "--output", metavar="OUT", help="commands.fix_output_help")
    where.add_argument(
        "--in-place",
        action="store_true",
        help=speak("commands.in_place_help"),
    )
    command.add_argument(
        "--backup", action="store_true", help=speak("commands.backup_help", ending=BACKUP)
    )
    add_path(command, speak, "--against", metavar="MODEL", help="commands.fix_against_help")
    command.add_argument("--recursive", action="store_true", help=speak("commands.recursive_help"))
    command.add_argument("--dtype", choices=DTYPES, help=speak("commands.fix_dtype_help"))
    command.add_argument(
        "--drop",
        action="store_true",
        help=speak("commands.drop_help"),
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help=speak("commands.fix_overwrite_help"),
    )
    command.add_argument("--dry-run", action="store_true", help=speak("commands.fix_dry_run_help"))
    add_json_each(command, speak)
    add_language(command, speak)
    command.set_defaults(run=run, speak=speak)


def run(options: argparse.Namespace) -> int:
    """Fix every file; one that cannot be read or written does not keep the others from being."""
    if options.backup and not options.in_place:
        raise LoraFileError(
            "--backup",
            message("commands.backup_without_in_place"),
            message("commands.both_or_neither"),
        )
    options.paths = every_path(options.paths)
    _check_output(options)
    target_model = (
        target_model_of_checkpoint(options.against).target_model if options.against else None
    )
    files, named = list(_files(options)), set(map(Path, options.paths))
    with progress("commands.fixing", options.speak) as report_progress:
        worst, ends = FINE, Counter[int]()
        taken: dict[Path, Path] = {}
        for path, destination in files:
            if report_progress:
                report_progress(ends.total(), len(files))
            other = taken.setdefault(destination, path)
            outcome = (
                _outcome(path, destination, target_model, options)
                if other == path
                else _collision(path, destination, other)
            )
            worst = max(worst, outcome.code)
            ends[_end(outcome)] += 1
            if options.json or outcome.kept != SOUND or path in named:
                _show(outcome, options)
    if not options.json and any(map(os.path.isdir, options.paths)):
        say(_summary(ends, options))
    return worst


def _outcome(
    path: Path, destination: Path, target_model: TargetModel | None, options: argparse.Namespace
) -> FixResult:
    """Fix one file, and tell what became of it whatever happens."""
    try:
        return _fix(path, destination, target_model, options)
    except LoraFileError as error:
        return FixResult(
            os.fspath(path),
            FAILED,
            fault_and_remedy(error.fault, error.remedy),
        )
    except (LocksmithError, FileExistsError) as error:
        return FixResult(
            os.fspath(path),
            PROBLEMS,
            message("commands.not_written_because", reason=_reason(error)),
        )
    except (OSError, MemoryError, RuntimeError) as error:
        fault = exhausted(error)
        if not fault and not isinstance(error, OSError):
            raise
        return FixResult(
            os.fspath(path),
            FAILED,
            message("commands.not_written_because", reason=fault or fault_of(error)),
        )


def _collision(path: Path, destination: Path, other: Path) -> FixResult:
    reason = message("commands.same_new_name", destination=destination, other=other)
    return FixResult(os.fspath(path), PROBLEMS, reason)


def _end(outcome: FixResult) -> int:
    """The outcome's place in ENDS."""
    if outcome.lost:
        return 3
    if outcome.code != FINE:
        return 4 if outcome.code == PROBLEMS else 5
    return {SOUND: 0, ALREADY: 1}.get(outcome.kept, 2)


def _summary(ends: Counter[int], options: argparse.Namespace) -> str:
    speak: Speaker = options.speak
    if not ends:
        return speak("commands.no_lora_in_folder", folder=options.paths[0])
    ids = ENDS_OF_DRY_RUN if options.dry_run else ENDS
    parts = [message(ids[end], count=ends[end]) for end in sorted(ends)]
    return speak("commands.files_summary", count=ends.total(), parts=joined(parts))


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError):
        return message("commands.new_file_exists", name=os.path.basename(error.filename or ""))
    return text_of(error)


def _show(outcome: FixResult, options: argparse.Namespace) -> None:
    if options.json:
        show_json(outcome.as_dict())
    else:
        line = message("joints.about", subject=outcome.file, text=outcome.told)
        print(
            one_line(options.speak("joints.sentence", text=line)),
            file=sys.stderr if outcome.code == FAILED else sys.stdout,
            flush=True,
        )


def _check_output(options: argparse.Namespace) -> None:
    """Raises LoraFileError where the new files cannot have the place that is asked for."""
    if not options.output:
        return
    one = len(options.paths) == 1 and not os.path.isdir(options.paths[0])
    if is_named_as_file(options.output) and not one:
        raise LoraFileError(
            options.output,
            message("commands.several_need_a_folder"),
            message("commands.name_a_folder"),
        )
    if os.path.isfile(options.output) and not is_named_as_file(options.output):
        raise LoraFileError(
            options.output,
            message("files.is_a_file"),
            message("commands.name_a_folder_or_file"),
        )


def _files(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """(file, where its new file goes) for all that was named."""
    for name in options.paths:
        path = Path(name)
        if not path.is_dir():
            yield path, _destination(path, Path(path.name), options)
            continue
        # The list is made before anything is written, so that new files are not taken for old ones.
        pattern = "**/*" if options.recursive else "*"
        for file in sorted(
            item for item in path.glob(pattern) if item.suffix.lower() in ENDINGS and item.is_file()
        ):
            if not file.name.startswith("."):
                yield file, _destination(file, file.relative_to(path), options)


def _destination(path: Path, inside: Path, options: argparse.Namespace) -> Path:
    if options.in_place:
        return path
    if options.output:
        return (
            Path(options.output)
            if is_named_as_file(options.output)
            else Path(options.output, inside)
        )
    return path.with_name(f"{path.stem}.{options.to or NATIVE}{path.suffix}")


def _fix(
    path: Path, destination: Path, target_model: TargetModel | None, options: argparse.Namespace
) -> FixResult:
    import torch

    # Factors are small: more threads only wait for each other.
    torch.set_num_threads(1)
    found = _planned(path, target_model, options)
    if isinstance(found, Kept):
        caution = found.caution and message("commands.already_but", reason=found.caution)
        return FixResult(os.fspath(path), FINE, caution or message(found.why), kept=found.why)
    if options.in_place:
        _check_replaceable(path, options.to or NATIVE)
    return _new_file(found, destination, target_model, options)


def _planned(
    path: Path, target_model: TargetModel | None, options: argparse.Namespace
) -> Repair | Kept:
    """`plan_repair`, whose refusals name --drop where that would help."""
    from ..lora.not_finite import NotFinite

    order = Order(
        options.to,
        dtype_of(options),
        options.drop,
        # In a folder the numbers of a file whose header is right are sampled: reading all weights
        # of a library would take minutes.
        sampled=path not in map(Path, options.paths),
        replaced=options.in_place,
        option="--against",
    )
    try:
        return plan_repair(path, order, target_model)
    except NotFinite as error:
        raise Refused((message("commands.or_leave_out", error=error),)) from None
    except NotWhole as error:
        advice = [message("commands.drop_leaves_out")] if error.rest_fits else []
        raise Refused((*error.reasons, *advice)) from None


def _new_file(
    repair: Repair, destination: Path, target_model: TargetModel | None, options: argparse.Namespace
) -> FixResult:
    """Write the file, or say of a dry run what would be written."""
    lost, source = repair.lost, repair.inspection.path
    code = PROBLEMS if lost else FINE
    if options.dry_run:
        _check_free(destination, repair.order.dialect, options)
        would = message("commands.would_be_written", summary=repair.summary)
        return FixResult(source, code, joined([*repair.cautions, would], "space"), lost=len(lost))
    written = _write(repair, destination, options)
    parts = [
        repair.summary,
        message("commands.rest_verified" if lost else "commands.verified"),
        _what_stock_does(written, target_model),
    ]
    reason = joined([*repair.cautions, joined(parts, "semicolon")], "space")
    return FixResult(source, code, reason, os.fspath(written.path), len(lost))


def _check_free(destination: Path, dialect: str, options: argparse.Namespace) -> None:
    """FileExistsError where a new file would find another in its place."""
    from ..lora.io.writer import place_of

    if not options.in_place:
        check_free(place_of(destination, dialect), options.overwrite)


def _check_replaceable(path: Path, dialect: str) -> None:
    """Refused where the new file cannot stand in the old one's place."""
    if path.is_symlink():
        raise Refused((message("commands.it_is_a_link", path=path.resolve()),))
    if is_folder(dialect):
        raise Refused((message("commands.peft_not_in_place"),))


def _write(repair: Repair, destination: Path, options: argparse.Namespace) -> Written:
    from ..lora.rewrite.verify import VerificationError

    source = Path(repair.inspection.path)
    backup = source.with_name(source.name + BACKUP)
    with making_folder(destination.parent), ExitStack() as stack:
        at_last = None
        if options.backup:
            check_backup(source, backup)
            # As late as can be: what fails before has made no backup, and of two runs at once both
            # keep the old file.
            at_last = partial(keep, source, backup, stack)
        overwrite = options.overwrite or options.in_place
        try:
            return write_repair(repair, destination, overwrite=overwrite, at_last=at_last)
        except VerificationError as error:
            raise Refused((message("commands.verification_failed", error=error),)) from None


def check_backup(source: Path, backup: Path) -> bool:
    """Whether the backup is there already, by another run or one that was killed. Raises Refused
    where it is another file's.
    """
    if os.path.lexists(backup) and not (backup.exists() and backup.samefile(source)):
        raise Refused((message("commands.backup_exists", name=backup.name),))
    return backup.exists()


def keep(source: Path, backup: Path, stack: ExitStack) -> None:
    """A second name for the old file, which the rename leaves alone; a copy where the file system
    has no links.

    `stack` takes it away again where the old file stays in its place. Raises Refused and OSError.
    """
    if check_backup(source, backup):
        return
    before = _file_at(source)
    try:
        os.link(source, backup)
    except OSError:
        with open(source, "rb") as old, replacing(backup, overwrite=False) as (new, _):
            shutil.copyfileobj(old, new)
    stack.callback(lambda: backup.unlink() if _file_at(source) == before else None)


def _file_at(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _what_stock_does(written: Written, target_model: TargetModel | None) -> str:
    """Where the new file is, and what the stock loader makes of it, where its header says so."""
    path = os.fspath(written.path)
    if written.dialect != NATIVE:
        return message("commands.wrote", path=path)
    again = inspect_file(written.path, target_model, whole=True)
    if not again.gains:
        return message("commands.wrote_loads", path=path)
    gains = joined(again.gains, "semicolon")
    return message("commands.wrote_still_differs", gains=gains, path=path)
