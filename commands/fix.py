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

from ..errors import LocksmithError, exhausted
from ..files.atomic import check_free, making_folder, replacing
from ..files.hashes import file_hashes
from ..files.header import LoraFileError
from ..identify.checkpoint import target_model_of_checkpoint
from ..lora.rewrite.rename import (
    NATIVE,
    Refused,
    check_base_known,
    is_folder,
    losses,
    losses_told,
    plan_renames,
    writable,
)
from ..planning.disagreement import unreadable
from ..report.inspection import Inspection, inspect_file
from ..report.library import ENDINGS
from ..report.load_report import plural
from .arguments import DTYPES, a_path, dtype_of, every_path, is_named_as_file
from .inspect import loads_whole
from .output import FAILED, FINE, PROBLEMS, one_line, progress, say, show_json, told_fault

if TYPE_CHECKING:
    from ..lora.io.writer import Written
    from ..lora.rewrite.convert import Conversion
    from ..planning.plan import Plan
    from ..planning.target_model import TargetModel

DESCRIPTION = """\
Writes LoRA files in the names of another tool: fused and split exactly, read back and compared
before they are put in place. Without --to: in ComfyUI's own names, and only files that the
stock loader does not load completely and correctly.
To go on training, give --to the trainer's name; the README says where each trainer wants the
file.
Exit code 0: all is done; 1: a file could not be written so, or not whole (--drop), and why; 2:
a file cannot be read."""
SOUND = "already loads correctly; unchanged"
ALREADY = "already has these names; unchanged"
ENDS = (
    "need nothing",
    "have these names already",
    "written",
    "written, but not whole",
    "not written",
    "cannot be read or written",
)
BACKUP = ".bak"
WAYS = (
    "renamed",
    "fused, split or turned",
    "written as full matrices, as nothing smaller is exact",
)


class FixResult(NamedTuple):
    """What became of one file: its exit code, one sentence, where the new file is, and how many
    keys that count are not in it.
    """

    file: str
    code: int
    told: str
    written: str = ""
    lost: int = 0


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = commands.add_parser(
        "fix", help="write LoRA files in names that load", description=DESCRIPTION
    )
    command.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        type=a_path,
        help="a LoRA as .safetensors, or a folder of them",
    )
    command.add_argument(
        "--to", choices=writable(), metavar="DIALECT", help=f"one of: {', '.join(writable())}"
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=a_path,
        help=(
            "the folder for the new files, or the new file's name where there is one file (default:"
            " beside the old ones, as NAME.DIALECT)"
        ),
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="put the new file in the old one's place, in one step",
    )
    command.add_argument(
        "--backup", action="store_true", help=f"with --in-place: keep the old file as NAME{BACKUP}"
    )
    command.add_argument(
        "--against",
        metavar="MODEL",
        type=a_path,
        help="the checkpoint or diffusion model the files are for: names and sizes are exact",
    )
    command.add_argument(
        "--recursive", action="store_true", help="folders: all that is below them, too"
    )
    command.add_argument(
        "--dtype", choices=DTYPES, help="of the new file's tensors (default: each as it was)"
    )
    command.add_argument(
        "--drop",
        action="store_true",
        help="leave out what has no place in the model, no name in DIALECT, or is NaN",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files of the same name in the place of the new ones",
    )
    command.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    command.add_argument(
        "--json",
        action="store_true",
        help="for programs: one JSON object for each file, one to a line",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fix every file; one that cannot be read or written does not keep the others from being."""
    if options.backup and not options.in_place:
        raise LoraFileError("--backup", "it belongs to --in-place", "Give both, or neither")
    options.paths = every_path(options.paths)
    _check_output(options)
    target_model = (
        target_model_of_checkpoint(options.against).target_model if options.against else None
    )
    files, named = list(_files(options)), set(map(Path, options.paths))
    with progress("Fixing") as told:
        worst, ends = FINE, Counter()
        taken: dict[Path, Path] = {}
        for path, destination in files:
            if told:
                told(ends.total(), len(files))
            other = taken.setdefault(destination, path)
            outcome = (
                _outcome(path, destination, target_model, options)
                if other == path
                else _collision(path, destination, other)
            )
            worst = max(worst, outcome.code)
            ends[_end(outcome)] += 1
            if options.json or outcome.told != SOUND or path in named:
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
        return FixResult(os.fspath(path), FAILED, f"{error.fault}. {error.remedy}")
    except (LocksmithError, FileExistsError) as error:
        return FixResult(os.fspath(path), PROBLEMS, f"not written: {_reason(error)}")
    except (OSError, MemoryError, RuntimeError) as error:
        fault = exhausted(error)
        if not fault and not isinstance(error, OSError):
            raise
        return FixResult(os.fspath(path), FAILED, f"not written: {fault or told_fault(error)}")


def _collision(path: Path, destination: Path, other: Path) -> FixResult:
    told = (
        f"not written: {destination} is the new file's name for {other} already; give each its own"
        " --output"
    )
    return FixResult(os.fspath(path), PROBLEMS, told)


def _end(outcome: FixResult) -> int:
    """The outcome's place in ENDS."""
    if outcome.lost:
        return 3
    if outcome.code != FINE:
        return 4 if outcome.code == PROBLEMS else 5
    return {SOUND: 0, ALREADY: 1}.get(outcome.told, 2)


def _summary(ends: Counter[int], options: argparse.Namespace) -> str:
    if not ends:
        return f"{options.paths[0]}: there is no LoRA file in it; --recursive looks below it, too."
    words = [
        f"would be {words}" if options.dry_run and place in (2, 3) else words
        for place, words in enumerate(ENDS)
    ]
    told = [f"{ends[end]:,} {words[end]}" for end in sorted(ends)]
    return f"{plural(ends.total(), 'file')}: {', '.join(told)}."


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError):
        return (
            f"there is a {os.path.basename(error.filename or '')} already; --overwrite replaces it"
        )
    return str(error)


def _show(outcome: FixResult, options: argparse.Namespace) -> None:
    if options.json:
        show_json(outcome._asdict())
    else:
        print(
            one_line(f"{outcome.file}: {outcome.told}."),
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
            "several new files need a folder, and this is the name of a file",
            "Name a folder",
        )
    if os.path.isfile(options.output) and not is_named_as_file(options.output):
        raise LoraFileError(
            options.output,
            "it is a file, not a folder",
            "Name a folder, or a file that ends with .safetensors",
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
    from ..lora.rewrite.verify import VerificationError
    from ..lora.soundness import look_at_file

    dialect = options.to or NATIVE
    # Factors are small: more threads only wait for each other.
    torch.set_num_threads(1)
    found = inspect_file(path, target_model, whole=True)
    check_base_known(found, dialect, options.drop, "--against")
    sound = not options.to and loads_whole(found) and not found.gains
    # In a folder the numbers of a file whose header is right are sampled: reading all weights of a
    # library would take minutes.
    if sound and path not in map(Path, options.paths) and look_at_file(path, found.header).finite:
        return FixResult(os.fspath(path), FINE, SOUND)
    if options.in_place:
        _check_replaceable(path, dialect)
    tensors = map_tensors(path, found.header, passing=True, replaced=options.in_place)
    found.plan = planned = compared(found, tensors)
    dtype = dtype_of(options)
    found.plan = _finite(found, tensors, options.drop)
    if sound and found.plan is planned:
        return FixResult(os.fspath(path), FINE, SOUND)
    conversion = _converted(found, tensors, dialect, dtype, options.drop)
    if dtype is None and _already(found, conversion):
        summary = ", but ".join(filter(None, (ALREADY, conversion.caution)))
        return FixResult(os.fspath(path), FINE, summary)
    lost = losses(found.plan, conversion.left_out)
    code = PROBLEMS if lost else FINE
    if options.dry_run:
        _check_free(destination, dialect, options)
        told = _told(
            found, dialect, conversion.ways.values(), conversion.left_out, conversion.caution
        )
        return FixResult(os.fspath(path), code, f"would be written: {told}", lost=len(lost))
    try:
        written = _write(found, tensors, destination, dialect, dtype, options)
    except VerificationError as error:
        raise Refused((f"verification failed ({error})",)) from None
    told = _told(
        found,
        dialect,
        (written.renamed, written.computed, written.full),
        written.left_out,
        written.caution,
    )
    verified = "the rest is verified" if lost else "verified"
    told = f"{told}; {verified}; {_now(written, target_model)} {written.path}".rstrip()
    return FixResult(os.fspath(path), code, told, os.fspath(written.path), len(lost))


def _check_free(destination: Path, dialect: str, options: argparse.Namespace) -> None:
    """FileExistsError where a new file would find another in its place."""
    from ..lora.io.writer import place_of

    if not options.in_place:
        check_free(place_of(destination, dialect), options.overwrite)


def _finite(found: Inspection, tensors, drop: bool) -> Plan:
    """`without_odd`, whose refusal names --drop."""
    from ..lora.not_finite import NotFinite, without_odd

    try:
        return without_odd(found.plan, tensors.__getitem__, drop)
    except NotFinite as error:
        raise Refused((f"{error}, or leave those modules out with --drop",)) from None


def _check_replaceable(path: Path, dialect: str) -> None:
    """Refused where the new file cannot stand in the old one's place."""
    if path.is_symlink():
        raise Refused(
            (f"it is a link, which would be replaced; name the file itself, {path.resolve()}",)
        )
    if is_folder(dialect):
        raise Refused(("PEFT's files are a folder, which cannot stand in a file's place",))


def _converted(found: Inspection, tensors, dialect: str, dtype, drop: bool) -> Conversion:
    """`convert`, whose refusal names --drop where that would help."""
    from ..lora.rewrite.convert import convert

    try:
        return convert(found.plan, tensors, dialect, dtype, drop)
    except Refused as error:
        if drop or not plan_renames(found.plan, dialect).refusals:
            raise
        rest = plan_renames(found.plan, dialect, drop=True)
        raise Refused(
            (
                *error.reasons,
                *(["--drop leaves that out"] if rest.units and not rest.refusals else ()),
            )
        ) from None


def _already(found: Inspection, conversion: Conversion) -> bool:
    """Whether the file has the dialect's names, and its strength where the dialect's readers look
    for it.
    """
    if conversion.specs.keys() != found.header.tensors.keys():
        return False
    told = conversion.header_settings.keys() <= found.header.metadata.keys() or (
        "" in conversion.configs and found.config_beside
    )
    kept = {"tensor": True, "config": bool(told), "folded": False}
    return kept[conversion.writing.alpha] or all(
        item.scale == 1 for item in conversion.trained.values()
    )


def _write(
    found: Inspection, tensors, destination: Path, dialect: str, dtype, options: argparse.Namespace
) -> Written:
    from ..lora.io.writer import write_as

    source = Path(found.path)
    provenance = {
        **found.family_metadata,
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
        return write_as(
            found.plan,
            tensors,
            destination,
            dialect,
            dtype=dtype,
            provenance=provenance,
            overwrite=overwrite,
            drop=options.drop,
            at_last=at_last,
        )


def check_backup(source: Path, backup: Path) -> bool:
    """Whether the backup is there already, by another run or one that was killed. Raises Refused
    where it is another file's.
    """
    if os.path.lexists(backup) and not (backup.exists() and backup.samefile(source)):
        raise Refused((f"there is a {backup.name} already; move it elsewhere",))
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


def _told(
    found: Inspection,
    dialect: str,
    ways: Iterable[int],
    left_out: Mapping[str, str],
    caution: str,
) -> str:
    parts = [f"{found.writer} -> {dialect}" if found.writer != "cannot tell" else f"-> {dialect}"]
    parts += [
        f"{plural(count, 'module')} {way}" for count, way in zip(ways, WAYS, strict=True) if count
    ]
    lost = losses(found.plan, left_out)
    rest = len(left_out) - len(lost)
    parts += [caution.rstrip(".") for caution in unreadable(found.config_beside)]
    parts += [
        f"{plural(rest, 'key')} without an effect of {'its' if rest == 1 else 'their'} own left out"
    ] * bool(rest)
    missing = losses_told(lost)
    return (f"{missing}; " if missing else "") + ", ".join([*parts, caution] if caution else parts)


def _now(written: Written, target_model: TargetModel | None) -> str:
    """What the stock loader makes of the new file, where that is told by its header."""
    if written.dialect != NATIVE:
        return "wrote"
    again = inspect_file(written.path, target_model, whole=True)
    if not again.gains:
        return "the stock loader now loads it completely and correctly; wrote"
    return f"the stock loader still differs ({'; '.join(again.gains)}); wrote"
