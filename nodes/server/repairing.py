"""Mends many listed files, one after another in a thread of its own: first told, then done. Nothing
is overwritten, so that a run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths

from ...errors import LocksmithError, exhausted, fault_and_remedy, system_reason
from ...files.atomic import check_free, making_folder
from ...files.header import ENDINGS, LoraFileError
from ...key_maps.user_maps import UserMaps
from ...lora.io.writer import place_of
from ...lora.not_finite import NotFinite
from ...lora.rewrite.rename import NATIVE, ModelNeeded, writable
from ...lora.rewrite.repair import Kept, NotWhole, Order, Repair, plan_repair, write_repair
from ...messages import joined, message, text_of, translations
from ..files import own_maps
from ..languages import answered
from .about_file import listed, names_in
from .saving import ENDING, SaveError, check_known, destination, titles_of

# Where new files go: each beside its own file, with the dialect in its name; or under the same
# names in one folder.
BESIDE, FOLDER = "beside", "folder"
PLACES = (BESIDE, FOLDER)
FOLDER_NAME = "repaired"  # in the first loras folder
# What became of a file, in words for programs.
REPAIRED, IN_PART, SOUND, EXISTS, REFUSED, FAILED = (
    "repaired",
    "in_part",
    "sound",
    "exists",
    "refused",
    "failed",
)


class RepairWish(NamedTuple):
    """Which listed files are to be mended, and how.

    place: one of PLACES. drop: what has no place is left out. models: name -> the family a person
    says the file is for. dry_run: it is only told what would become of them.
    """

    names: Sequence[str]
    dialect: str = NATIVE
    place: str = BESIDE
    drop: bool = False
    models: Mapping[str, str] = {}
    dry_run: bool = True


class Outcome(NamedTuple):
    """What becomes of one file: an end, why, the new file as it is listed, and the families among
    which a person has to choose where it `needs_model`; (): any.
    """

    end: str
    told: str
    new: str = ""
    needs_model: bool = False
    families: tuple[str, ...] = ()


class Running(LocksmithError):
    """A run cannot be started beside another."""

    def __init__(self) -> None:
        super().__init__(message("nodes.repair_is_running"))
        self.fault = message("nodes.repair_is_running")
        self.remedy = message("nodes.stop_it_or_wait")


class Repairs:
    """The newest run: its results so far, each as JSON text, and the thread that adds to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: list[str] = []
        self._texts: list[Mapping[str, Mapping[str, str]]] = []
        self._run, self._total, self._dry_run = "", 0, True
        self._running = self._stopping = False

    def start(self, wish: RepairWish) -> None:
        """Begin with the first file. Raises SaveError for a wish that is none, Running."""
        _check(wish)
        with self._lock:
            if self._running:
                raise Running
            self._run, self._total, self._dry_run = uuid.uuid4().hex, len(wish.names), wish.dry_run
            self._results, self._texts = [], []
            self._running, self._stopping = True, False
        try:
            name = "lora_locksmith repair"
            threading.Thread(target=self._work, args=(wish,), name=name, daemon=True).start()
        except BaseException:
            self._running = False
            raise

    def stop(self) -> None:
        """Have the run end behind the file it is at."""
        self._stopping = self._running

    def waiting(self, since: int) -> bool:
        """Whether a result beyond the first `since` is still to come, and none is there."""
        return self._running and len(self._results) <= since

    def answer(self, since: int, language: str = "") -> str:
        """What the route tells, as JSON text, and what to show instead in a language."""
        with self._lock:
            results, texts = self._results[since:], self._texts[since:]
            state = answered(
                {
                    "run": self._run,
                    "dry_run": self._dry_run,
                    "done": len(self._results),
                    "total": self._total,
                    "running": self._running,
                    "stopped": self._stopping,
                },
                language,
            )
        for known, table in state.get("translations", {}).items():
            for of_result in texts:
                table |= of_result.get(known, {})
        return f'{{"results": [{", ".join(results)}], {json.dumps(state)[1:]}'

    def _work(self, wish: RepairWish) -> None:
        own, taken = own_maps(), dict[Path, str]()
        try:
            names = names_in("loras")  # once: each new file would have the host list all again
            for name in wish.names:
                if self._stopping:
                    break
                outcome = outcome_of(name, wish, own, taken=taken, names=names)
                told = {"file": name, **outcome._asdict()}
                with self._lock:
                    self._texts.append(translations(told))
                    self._results.append(json.dumps(told))
        finally:
            self._running = False


def choices() -> dict[str, Any]:
    """What a person can choose from: dialects, places, and the models a file may be for."""
    return {
        "dialects": list(writable()),
        "native": NATIVE,
        "folder": FOLDER_NAME,
        "models": titles_of(()),
    }


def _check(wish: RepairWish) -> None:
    check_known(wish.dialect, writable())
    check_known(wish.place, PLACES)
    texts = [*wish.names, *wish.models.values()]
    if not all(isinstance(text, str) for text in texts):
        raise SaveError(message("nodes.names_are_no_texts"), message("nodes.give_listed_name"))
    models = titles_of(())
    for family in wish.models.values():
        check_known(family, models)


def outcome_of(
    name: str,
    wish: RepairWish,
    own: UserMaps | None = None,
    *,
    taken: dict[Path, str],
    names: Collection[str] | None = None,
) -> Outcome:
    """What becomes of one listed file, whatever happens. taken: new file -> the name it is of.
    names: see `listed`.
    """
    asked = name
    try:
        name, path = listed("loras", name, names)
        new = _new_place(name, Path(path), wish)
        if (other := taken.setdefault(new, name)) != name:
            return Outcome(REFUSED, message("nodes.same_new_file", other=other))
        check_free(place_of(new, wish.dialect), overwrite=False)
        family = wish.models.get(asked, "")
        return _mended(path, new, wish, family=family, own=own or own_maps())
    except FileExistsError as error:
        there = _listed_as(Path(error.filename))
        return Outcome(EXISTS, message("nodes.exists_already", name=there), there)
    except ModelNeeded as error:
        return Outcome(REFUSED, text_of(error), needs_model=True, families=error.families)
    except NotWhole as error:
        advice = [message("nodes.leave_out_advice")] if error.rest_fits else []
        return Outcome(REFUSED, joined([*error.reasons, *advice], "semicolon"))
    except NotFinite as error:
        remedy = message("nodes.merge_can_leave_out")
        return Outcome(REFUSED, fault_and_remedy(text_of(error), remedy))
    except Exception as error:
        return Outcome(*_fault(name, error))


def _fault(name: str, error: Exception) -> tuple[str, str]:
    """(end, why) for what one file raises, which must not keep the others from being mended."""
    if short := exhausted(error):
        return FAILED, short
    if isinstance(error, LoraFileError):
        return REFUSED, fault_and_remedy(error.fault, error.remedy)
    if isinstance(error, LocksmithError):
        return REFUSED, text_of(error)
    if isinstance(error, OSError):
        return FAILED, system_reason(error)
    logging.getLogger("lora_locksmith").exception(message("nodes.log_question_failed"))
    kind = type(error).__name__
    return FAILED, message("nodes.server_failed", type=kind, error=error)


def _mended(path: str, new: Path, wish: RepairWish, *, family: str, own: UserMaps) -> Outcome:
    order = Order(
        None if wish.dialect == NATIVE else wish.dialect,
        drop=wish.drop,
        sampled=True,
        glance=wish.dry_run,
        option=message("nodes.choice_of_model"),
    )
    found = plan_repair(path, order, own=own, family=family)
    if isinstance(found, Kept):
        return Outcome(SOUND, message(found.why))
    if not wish.dry_run:
        with making_folder(new.parent):
            written = write_repair(found, new)
        return _told(found, _listed_as(written.path))
    return _told(found, _listed_as(place_of(new, wish.dialect)))


def _told(repair: Repair, new: str) -> Outcome:
    told = joined([*repair.cautions, repair.summary], "space")
    return Outcome(IN_PART if repair.lost else REPAIRED, told, new)


def _new_place(name: str, path: Path, wish: RepairWish) -> Path:
    """Where a listed file's new one goes. Raises SaveError where that is outside of the loras
    folders: a link may lead there.
    """
    if wish.place == FOLDER:
        whole = name.replace("\\", "/")
        ending = next((ending for ending in ENDINGS if whole.lower().endswith(ending)), "")
        return destination(f"{FOLDER_NAME}/{whole[: len(whole) - len(ending)]}{ENDING}")
    new = path.with_name(f"{path.stem}.{wish.dialect}{ENDING}")
    if not any(new.resolve().is_relative_to(root) for root in _roots()):
        raise SaveError(
            message("nodes.leads_out_of_loras", name=name), message("nodes.choose_repaired_folder")
        )
    return new


def _roots() -> list[Path]:
    return [Path(folder).resolve() for folder in folder_paths.get_folder_paths("loras")]


def _listed_as(path: Path) -> str:
    """A file in the loras folders, as the host lists it."""
    for folder in folder_paths.get_folder_paths("loras"):
        for root in (Path(folder), Path(folder).resolve()):
            if path.is_relative_to(root):
                return os.path.relpath(path, root)
    return path.name
