"""A fuzzer that is guided by coverage: files that reach new lines of the readers are kept and changed
further. `python guided.py SECONDS`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "support"), str(HERE)]

MAX_BYTES = 20_000
# The rooms that read headers.
WATCHED = tuple(
    f"{HERE.parents[1] / room}{os.sep}"
    for room in ("files", "key_maps", "planning", "identify", "report")
)
Line = tuple[str, int]


class Finding(NamedTuple):
    """A file on which something other than a report or a clear error came out."""

    fault: str
    content: bytes


class Coverage:
    """The lines of the readers that were reached, since the start and by the last file."""

    def __init__(self):
        self.lines: set[Line] = set()
        self.new: set[Line] = set()

    def run(self, work: Callable[[], Any]) -> int:
        """How many lines `work` reaches that nothing reached before."""
        self.new = set()
        watch, forget = (
            (self._monitor, self._unmonitor)
            if hasattr(sys, "monitoring")
            else (self._trace, lambda: sys.settrace(None))
        )
        watch()
        try:
            work()
        finally:
            forget()
            self.lines |= self.new
        return len(self.new)

    def _seen(self, code: CodeType, line: int) -> None:
        if (code.co_filename, line) not in self.lines:
            self.new.add((code.co_filename, line))

    def _trace(self) -> None:
        def line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                self._seen(frame.f_code, frame.f_lineno)
            return line

        sys.settrace(
            lambda frame, event, _: line if frame.f_code.co_filename.startswith(WATCHED) else None
        )

    def _monitor(self) -> None:
        monitoring = sys.monitoring

        def line(code: CodeType, number: int) -> Any:
            if code.co_filename.startswith(WATCHED):
                self._seen(code, number)
            return monitoring.DISABLE  # What was seen once is not told again, which makes it cheap.

        monitoring.use_tool_id(monitoring.COVERAGE_ID, "guided")
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, line)
        monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)

    def _unmonitor(self) -> None:
        sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, 0)
        sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)


class Guided:
    """The corpus that grows, and what was found. The same seed gives the same files, as far as time
    allows.
    """

    def __init__(self, folder: Path, seed: int = 1):
        import judge
        import seeds

        self.judge, self.seeds, self.path = judge.judge, seeds, folder / "guided.safetensors"
        self.chance, self.coverage = random.Random(seed), Coverage()
        self.corpus = [content for content in seeds.CORPUS.values() if len(content) < MAX_BYTES]
        self.tried = self.kept = 0
        self.became: dict[str, int] = {}
        self.findings: dict[str, Finding] = {}

    def run(self, seconds: float) -> None:
        """Try the corpus, then change files of it until the time is over."""
        for content in list(self.corpus):
            self.coverage.run(lambda content=content: self._try(content))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            content = self.change(self.chance.choice(self.corpus))
            if len(content) < MAX_BYTES and self.coverage.run(
                lambda content=content: self._try(content)
            ):
                self.corpus.append(content)
                self.kept += 1

    def _try(self, content: bytes) -> None:
        self.path.write_bytes(content)
        self.tried += 1
        try:
            became = "read" if self.judge(self.path) == "read" else "refused"
        except Exception as error:
            became = "fault"
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = (
                f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}:"
                f" {str(error)[:200]}"
            )
            self.findings.setdefault(
                f"{type(error).__name__} {place.filename} {place.lineno}", Finding(fault, content)
            )
        self.became[became] = self.became.get(became, 0) + 1

    def change(self, content: bytes) -> bytes:
        """Bytes changed blindly, or the header taken apart, changed and put together with as much
        data as it asks for.
        """
        if self.chance.random() < 0.3:
            return self._blindly(content)
        try:
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            for _ in range(self.chance.choice((1, 1, 2, 4))):
                header = self._header(header)
            return self._whole(header)
        except Exception:  # It is no header.
            return self._blindly(content)

    def _whole(self, header: dict[str, Any]) -> bytes:
        told = header.pop("__metadata__", None)
        tensors = [(name, tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()]
        return self.seeds.sound(tensors, told, fill=self.chance.choice(self.seeds.FLOATS))

    def _header(self, header: dict[str, Any]) -> dict[str, Any]:
        chance, seeds = self.chance, self.seeds
        entries = [item for item in header.items() if item[0] != "__metadata__"]
        choice = chance.randrange(6)
        if choice == 0:
            told = header.get("__metadata__") or {}
            header["__metadata__"] = {
                **told,
                chance.choice(seeds.TOLD): chance.choice(seeds.VALUES),
            }
        elif choice == 1:
            other = self._of_another()
            header = {**header, **dict(chance.sample(sorted(other.items()), min(3, len(other))))}
        elif choice == 2 and len(entries) > 1:
            del header[chance.choice(entries)[0]]
        elif entries:
            name, entry = chance.choice(entries)
            changed = {
                3: lambda: (self._name(name), entry),
                4: lambda: (
                    name,
                    {
                        **entry,
                        "shape": [
                            chance.choice((0, 1, 2, 3, 4, 8, size)) for size in entry["shape"]
                        ],
                    },
                ),
                5: lambda: (name.rpartition(".")[0] + "." + chance.choice(seeds.ROLES), entry),
            }.get(
                choice,
                lambda: (
                    self._name(name),
                    {**entry, "shape": list(chance.choice(seeds.SHAPES[:8]))},
                ),
            )()
            header = {**header, changed[0]: changed[1]}
        return header

    def _of_another(self) -> dict[str, Any]:
        content = self.chance.choice(self.corpus)
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        header.pop("__metadata__", None)
        return header

    def _name(self, name: str) -> str:
        chance = self.chance
        words = name.split(".") if chance.random() < 0.5 else name.split("_")
        glue = chance.choice("._")
        place = chance.randrange(len(words))
        words[place : place + chance.choice((0, 1))] = [
            chance.choice((*self.seeds.NUMBERS[:4], *self.seeds.ROLES, *NAMES, words[place] * 2))
        ]
        return glue.join(words)[:400]

    def _blindly(self, content: bytes) -> bytes:
        whole, chance = bytearray(content), self.chance
        for _ in range(chance.choice((1, 1, 2, 5))):
            start = chance.randrange(max(1, min(len(whole), chance.choice((9, 300, 10**5)))))
            end = start + chance.choice((0, 1, 4))
            whole[start:end] = chance.choice(
                (
                    b"",
                    bytes(whole[start:end]) * 2,
                    chance.randbytes(1),
                    b'"',
                    b"}",
                    b"0",
                    b"-",
                    b"9" * 20,
                    b"\\ud800",
                )
            )
        return bytes(whole)

    def told(self) -> str:
        """The counts in a few lines."""
        lines = [
            f"{self.tried:,} files tried:"
            f" {', '.join(f'{count:,} {what}' for what, count in sorted(self.became.items()))}"
        ]
        lines += [
            f"{self.kept:,} kept for reaching new lines; {len(self.coverage.lines):,} lines of"
            " the readers reached"
        ]
        return "\n".join(
            [
                *lines,
                *(
                    f"FAULT {finding.fault}\n      {finding.content[:400]!r}"
                    for finding in self.findings.values()
                ),
            ]
        )


NAMES = (
    "transformer",
    "lora_unet",
    "lora_te1",
    "text_encoder",
    "base_model.model",
    "double_blocks",
    "single_transformer_blocks",
    "down_blocks",
    "input_blocks",
    "attn1",
    "to_k",
    "img_attn_qkv",
    "qkv",
    "layers",
    "blocks",
    "self_attn",
    "q_proj",
    "proj_out",
    "x_embedder",
    "default",
)


def main() -> int:
    """Run for some seconds, tell the counts, and keep the files that are faults; the exit code is 1
    where there are any.
    """
    import tempfile

    import conftest  # noqa: F401 - it loads the pack under the name lora_locksmith

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("seconds", type=float)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--keep", type=Path, help="a folder for files that are faults")
    wish = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Guided(Path(folder), wish.seed)
        fuzzer.run(wish.seconds)
    sys.stdout.write(fuzzer.told() + "\n")
    for number, finding in enumerate(fuzzer.findings.values()):
        if wish.keep:
            (wish.keep / f"{number}.safetensors").write_bytes(finding.content)
    return bool(fuzzer.findings)


if __name__ == "__main__":
    sys.exit(main())
