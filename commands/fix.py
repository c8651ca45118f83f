"""fix PATH...: write LoRA files again under names that load, verified, and leave
good ones alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LocksmithError, exhausted, fault_and_remedy
from ..files.atomic import check_free, making_folder, replacing
from ..files.hashes import file_hashes
from ..files.header import ENDINGS, LoraFileError
from ..identify.checkpoint import target_model_of_checkpoint
from ..identify.trainer import UNTOLD
from ..lora.rewrite.rename import (
    NATIVE,
    Refused,
    assumption,
    check_base_known,
    is_folder,
    losses,
    losses_told,
    plan_renames,
    writable,
)
from ..messages import Speaker, joined, message, text_of
from ..planning.disagreement import unreadable
from ..report.inspection import Inspection, inspect_file
from .arguments import DTYPES, add_json_each, add_path, dtype_of, every_path, is_named_as_file
from .inspect import loads_whole
from .language import add_language
from .output import FAILED, FINE, PROBLEMS, fault_of, one_line, progress, say, show_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..lora.io.writer import Written
    from ..lora.rewrite.convert import Conversion
    from ..planning.plan import Plan
    from ..planning.target_model import TargetModel

# Ids of what became of a file, and of many.
SOUND = "commands.loads_correctly"
ALREADY = "commands.has_these_names"
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
WAYS = (
    "commands.modules_renamed",
    "commands.modules_computed",
    "commands.modules_full",
)


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

    from ..lora.copies import compared
    from ..lora.io.mapped import map_tensors
    from ..lora.soundness import look_at_file

    dialect = options.to or NATIVE
    # Factors are small: more threads only wait for each other.
    torch.set_num_threads(1)
    inspection = inspect_file(path, target_model, whole=True)
    check_base_known(inspection, dialect, options.drop, "--against")
    sound = not options.to and loads_whole(inspection) and not inspection.gains
    # In a folder the numbers of a file whose header is right are sampled: reading all weights of a
    # library would take minutes.
    if (
        sound
        and path not in map(Path, options.paths)
        and look_at_file(path, inspection.header).finite
    ):
        return FixResult(os.fspath(path), FINE, message(SOUND), kept=SOUND)
    if options.in_place:
        _check_replaceable(path, dialect)
    tensors = map_tensors(path, inspection.header, passing=True, replaced=options.in_place)
    planned = inspection.with_plan(compared(inspection, tensors))
    dtype = dtype_of(options)
    inspection = planned.with_plan(_finite(planned, tensors, options.drop))
    if sound and inspection.plan is planned.plan:
        return FixResult(os.fspath(path), FINE, message(SOUND), kept=SOUND)
    conversion = _converted(inspection, tensors, dialect, dtype, options.drop)
    if dtype is None and _already(inspection, conversion):
        reason = (
            message("commands.already_but", reason=conversion.caution)
            if conversion.caution
            else message(ALREADY)
        )
        return FixResult(os.fspath(path), FINE, reason, kept=ALREADY)
    opened = _Opened(inspection, tensors, destination, target_model)
    return _new_file(opened, conversion, options)


class _Opened(NamedTuple):
    """A file that is to be written anew, where, and for which model (None: the file tells it)."""

    inspection: Inspection
    tensors: Mapping[str, Tensor]
    destination: Path
    target_model: TargetModel | None


def _new_file(opened: _Opened, conversion: Conversion, options: argparse.Namespace) -> FixResult:
    """Write the file, or say of a dry run what would be written."""
    inspection, dialect = opened.inspection, conversion.writing.dialect
    lost = losses(inspection.plan, conversion.left_out)
    cautions = *assumption(inspection, dialect, options.drop), *unreadable(inspection.config_beside)
    code = PROBLEMS if lost else FINE
    summary = _what_is_done(
        inspection, dialect, conversion.ways.values(), conversion.left_out, conversion.caution
    )
    if options.dry_run:
        _check_free(opened.destination, dialect, options)
        reason = joined([*cautions, message("commands.would_be_written", summary=summary)], "space")
        return FixResult(inspection.path, code, reason, lost=len(lost))
    written = _write(opened, conversion, options)
    parts = [
        summary,
        message("commands.rest_verified" if lost else "commands.verified"),
        _what_stock_does(written, opened.target_model),
    ]
    reason = joined([*cautions, joined(parts, "semicolon")], "space")
    return FixResult(inspection.path, code, reason, os.fspath(written.path), len(lost))


def _check_free(destination: Path, dialect: str, options: argparse.Namespace) -> None:
    """FileExistsError where a new file would find another in its place."""
    from ..lora.io.writer import place_of

    if not options.in_place:
        check_free(place_of(destination, dialect), options.overwrite)


def _finite(inspection: Inspection, tensors: Mapping[str, Tensor], drop: bool) -> Plan:
    """`without_odd`, whose refusal names --drop."""
    from ..lora.not_finite import NotFinite, without_odd

    try:
        return without_odd(inspection.plan, tensors.__getitem__, drop)
    except NotFinite as error:
        raise Refused((message("commands.or_leave_out", error=error),)) from None


def _check_replaceable(path: Path, dialect: str) -> None:
    """Refused where the new file cannot stand in the old one's place."""
    if path.is_symlink():
        raise Refused((message("commands.it_is_a_link", path=path.resolve()),))
    if is_folder(dialect):
        raise Refused((message("commands.peft_not_in_place"),))


def _converted(
    inspection: Inspection,
    tensors: Mapping[str, Tensor],
    dialect: str,
    dtype: torch.dtype | None,
    drop: bool,
) -> Conversion:
    """`convert`, whose refusal names --drop where that would help."""
    from ..lora.rewrite.convert import convert

    try:
        return convert(inspection.plan, tensors, dialect, dtype, drop)
    except Refused as error:
        if drop or not plan_renames(inspection.plan, dialect).refusals:
            raise
        rest = plan_renames(inspection.plan, dialect, drop=True)
        raise Refused(
            (
                *error.reasons,
                *(
                    [message("commands.drop_leaves_out")]
                    if rest.units and not rest.refusals
                    else ()
                ),
            )
        ) from None


def _already(inspection: Inspection, conversion: Conversion) -> bool:
    """Whether the file has the dialect's names, and its strength where the dialect's readers look
    for it.
    """
    if conversion.specs.keys() != inspection.header.tensors.keys():
        return False
    told = conversion.header_settings.keys() <= inspection.header.metadata.keys() or (
        "" in conversion.configs and inspection.config_beside
    )
    kept = {"tensor": True, "config": bool(told), "folded": False}
    return kept[conversion.writing.alpha] or all(
        item.scale == 1 for item in conversion.trained.values()
    )


def _write(opened: _Opened, conversion: Conversion, options: argparse.Namespace) -> Written:
    from ..lora.io.writer import write_as
    from ..lora.rewrite.verify import VerificationError

    inspection, destination = opened.inspection, opened.destination
    source = Path(inspection.path)
    provenance = {
        **inspection.family_metadata,
        "locksmith.source": source.name,
        "locksmith.source_sha256": file_hashes(source).sha256,
    }
    overwrite = options.overwrite or options.in_place
    backup = source.with_name(source.name + BACKUP)
    with making_folder(destination.parent), ExitStack() as stack:
        at_last = None
        if options.backup:
            check_backup(source, backup)
            # As late as can be: what fails before has made no backup, and of two runs at once both
            # keep the old file.
            at_last = partial(keep, source, backup, stack)
        try:
            return write_as(
                inspection.plan,
                opened.tensors,
                destination,
                conversion.writing.dialect,
                dtype=dtype_of(options),
                provenance=provenance,
                overwrite=overwrite,
                drop=options.drop,
                at_last=at_last,
                conversion=conversion,
            )
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


def _what_is_done(
    inspection: Inspection,
    dialect: str,
    ways: Iterable[int],
    left_out: Mapping[str, str],
    caution: str,
) -> str:
    if inspection.writer == UNTOLD:
        parts = [message("commands.to_dialect", dialect=dialect)]
    else:
        parts = [message("commands.from_to", source=inspection.writer, dialect=dialect)]
    parts += [message(way, count=count) for count, way in zip(ways, WAYS, strict=True) if count]
    lost = losses(inspection.plan, left_out)
    rest = len(left_out) - len(lost)
    if rest:
        parts.append(message("commands.left_out_without_effect", count=rest))
    told: list[str] = [*parts, *([caution] if caution else [])]
    return joined(filter(None, (losses_told(lost), joined(told))), "semicolon")


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
