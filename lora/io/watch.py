"""Whether a file that was mapped is still the one it was mapped from: it may be overwritten, or cut
short, while its tensors live.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from torch import Tensor

from ...files.header import LoraFileError, identity_of
from ...messages import Message, message

logger = logging.getLogger("lora_locksmith")
SECONDS = 0.05  # between two looks at the disk
REMEDY = "lora.run_again"
_told: dict[str, str] = {}  # path -> what is to be said of it when it is read anew


class Watch:
    """Of one mapped file. cautions: what has been found since it was read, for the next report."""

    def __init__(self, path: str | os.PathLike[str], stamp: tuple[int, ...]):
        self.path, self.stamp = os.path.realpath(path), stamp
        caution = _told.pop(self.path, None)
        self.cautions: list[str] = [caution] if caution else []
        self._next, self._said = 0.0, False
        self._seen: set[object] = set()

    def unchanged(self) -> bool:
        """Whether the path still leads to the very file, not written to since."""
        return not self.stamp or self._now() == self.stamp

    def check(self) -> None:
        """Look, at most every SECONDS, before bytes are used. Logs once that the file was
        overwritten.

        Raises LoraFileError where it was cut short: to read what is gone would end the process
        (SIGBUS). A file that was replaced or removed is still there for those who have it mapped.
        """
        moment = time.monotonic()
        if moment < self._next or not self.stamp:
            return
        self._next = moment + SECONDS
        now = self._now()
        if now is None or now == self.stamp or now[:2] != self.stamp[:2]:
            return
        name, remedy = os.path.basename(self.path), message(REMEDY)
        if now[2] < self.stamp[2]:
            self._tell(message("lora.cut_after_load", name=name, remedy=remedy))
            raise LoraFileError(self.path, message("lora.cut_short"), remedy)
        self._tell(message("lora.overwritten_after_load", name=name, remedy=remedy))

    def demand(self) -> None:
        """LoraFileError where the file was overwritten or cut short: for reading what is written
        somewhere else.
        """
        self.check()
        if self._said:
            raise LoraFileError(
                self.path, message("lora.overwritten_while_read"), message("lora.run_when_finished")
            )

    def first_use(self, name: object) -> bool:
        """Whether this name is asked for the first time."""
        if name in self._seen:
            return False
        self._seen.add(name)
        return True

    def caution(self, sentence: str) -> None:
        """Log it, and have the next report say it."""
        if sentence not in self.cautions:
            self.cautions.append(sentence)
            logger.warning("LoRA Locksmith: %s", sentence)

    def _tell(self, caution: Message) -> None:
        if self._said:
            return
        self._said = True
        _told[self.path] = caution
        logger.warning("LoRA Locksmith: %s", caution)

    def _now(self) -> tuple[int, ...] | None:
        try:
            return identity_of(os.stat(self.path))
        except OSError:
            return None


class WatchedTensors(dict[str, Tensor]):
    """A mapped file's tensors by name; LoraFileError where the file does not stay
    as it was mapped.
    """

    def __init__(self, tensors: Mapping[str, Tensor], watch: Watch):
        super().__init__(tensors)
        self._watch = watch

    def __getitem__(self, name: str) -> Tensor:
        self._watch.demand()
        return super().__getitem__(name)
