"""Finds or fetches the Chromium that the front end is tested in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .environment import environment_python
from .steps import ROOT, WORK, Fault, make_once, say, try_step

BROWSER_TESTS = ROOT / "tests" / "browser"
OWN_BROWSERS = WORK / "browsers"
# Commands, then where Windows and macOS keep them, then the names of what playwright downloads.
BROWSER_COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
BROWSER_PLACES = (
    "{ProgramFiles}/Google/Chrome/Application/chrome.exe",
    "{ProgramFiles(x86)}/Google/Chrome/Application/chrome.exe",
    "{ProgramFiles(x86)}/Microsoft/Edge/Application/msedge.exe",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
DOWNLOADED_BROWSERS = (
    "chrome-headless-shell",
    "headless_shell",
    "chrome-headless-shell.exe",
    "headless_shell.exe",
)


def browser_at_hand() -> Path | None:
    """The Chromium, Chrome or Edge to test with if there is one already: CHROMIUM_PATH, the
    system's, or .dev's.
    """
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        if not Path(named).is_file():
            raise Fault(f"CHROMIUM_PATH is {named}, but that is no file. Correct or unset it.")
        return Path(named).absolute()
    commands = [Path(found) for command in BROWSER_COMMANDS if (found := shutil.which(command))]
    folders = {name: os.environ.get(name, "") for name in ("ProgramFiles", "ProgramFiles(x86)")}
    places = [Path(place.format(**folders)) for place in BROWSER_PLACES]
    own = [file for file in OWN_BROWSERS.rglob("*") if file.name in DOWNLOADED_BROWSERS]
    return next((file for file in (*commands, *places, *own) if file.is_file()), None)


def ensure_browser() -> None:
    """Get a browser unless there is one; where that is not possible, the tests that need it fail
    and say so.
    """
    make_once(browser_at_hand, fetch_browser)


def fetch_browser() -> None:
    say(f"Getting a browser for {BROWSER_TESTS} (set CHROMIUM_PATH to use one of yours)")
    apt = apt_get()
    if apt:
        install = [
            *apt,
            "install",
            "--yes",
            "--no-install-recommends",
            "chromium",
            "fonts-dejavu-core",
        ]
        title, variables = (
            "Chromium from the system's packages (40 s)",
            {"DEBIAN_FRONTEND": "noninteractive"},
        )
        if try_step(title, install, **variables):
            return
        if try_step("the list of the system's packages (10 s)", [*apt, "update"]) and try_step(
            title, install, **variables
        ):
            return
    download = [
        str(environment_python()),
        "-m",
        "playwright",
        "install",
        "--only-shell",
        "chromium",
    ]
    if not try_step(
        "Chromium as playwright offers it (1 minute)",
        download,
        PLAYWRIGHT_BROWSERS_PATH=str(OWN_BROWSERS),
    ):
        say("  There is no browser to test with: the tests in the browser will fail.")


def apt_get() -> list[str]:
    """How to call apt-get here without being asked for a password; nothing where it is not allowed
    or not there.
    """
    if not shutil.which("apt-get"):
        return []
    if os.geteuid() == 0:
        return ["apt-get"]
    return ["sudo", "-n", "apt-get"] if shutil.which("sudo") else []
