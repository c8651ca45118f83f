"""Makes the environment in .dev/env with uv, from the pins in tests/requirements.txt."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from .steps import ROOT, SETUP_LOG, WORK, Fault, make_once, run_step, say, try_step

ENVIRONMENT = WORK / "env"
STAMP = ENVIRONMENT / "made-from.txt"
REQUIREMENTS = ROOT / "tests" / "requirements.txt"
PUBLISH = ROOT / ".github" / "publish.txt"
LOCKED = """\
# What dev.py installs: pyproject.toml's group "dev", pinned with all it asks for, by
# "python dev.py lock". For Python 3.10 and later on every platform; torch's CUDA packages are left
# to torch itself.
"""
LOCKED_TOOL = """\
# What the workflow "publish" installs: pyproject.toml's group "publish", pinned with all it asks
# for, by "python dev.py lock".
"""
CUDA = ("cuda-", "nvidia-", "triton==")  # names of torch's own packages on Linux
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
CURED = "# added by this project's dev.py: torchvision's compiled operators do not fit this torch"
NMS_STUBS = f"""
{CURED}
if not _has_ops():
    for _operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{_operator}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


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
    has_uv = try_step("uv, the installer (5 s)", pip("install", "uv"))
    install_torch(has_uv)
    run_step(*everything_else(has_uv))
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
    return [str(environment_python()), "-m", "uv", "pip", *arguments]


def uv_install(*arguments: str) -> list[str]:
    return uv("install", "--python", str(environment_python()), *arguments)


def pins(names: tuple[str, ...]) -> list[str]:
    """What tests/requirements.txt pins of these packages, without hashes."""
    lines = without_hashes(REQUIREMENTS.read_text(encoding="utf-8")).splitlines()
    return [line for name in names for line in lines if line.startswith(f"{name}==")]


def without_hashes(text: str) -> str:
    """A file of requirements, each in one line."""
    return re.sub(r" \\\n +--hash=\S+", "", text)


def install_torch(has_uv: bool) -> None:
    """Install a CPU build of torch: one that pip's settings offer on this machine, else the one
    that uv finds. Where there is neither, torch comes with everything else, as its index has it.
    """
    offered = pip("install", "--no-index", "--no-deps", *pins(("torch",)))
    if not try_step("torch, a CPU build from this machine's disk (40 s)", offered) and has_uv:
        found = uv_install("--torch-backend", "cpu", *pins(TORCH_PACKAGES))
        try_step("torch, a CPU build (1 minute)", found)


def everything_else(has_uv: bool) -> tuple[str, list[str], str]:
    """The step that installs all pins: its title, its command, and what to do if it fails.

    uv compares the hashes of what it fetches. pip would ask for those of torch's own packages
    for CUDA too, which are not pinned, so it gets the pins without hashes.
    """
    pinned = REQUIREMENTS
    if not has_uv:
        pinned = SETUP_LOG.with_name("pinned.txt")
        pinned.write_text(without_hashes(REQUIREMENTS.read_text("utf-8")), encoding="utf-8")
    command = uv_install if has_uv else partial(pip, "install")
    return (
        "everything else (20 to 90 s; with CUDA's torch up to 10 minutes)",
        command("-r", str(pinned)),
        "Check the network, then run this again: it goes on where it stopped. Python 3.11 to 3.13"
        " are safe choices.",
    )


def lock() -> None:
    """Pin anew, with hashes, what pyproject.toml's groups "dev" and "publish" ask for, for every
    platform and each Python from 3.10 on, and keep the versions that are pinned already where
    they still serve.
    """
    for group, file, head in (("dev", REQUIREMENTS, LOCKED), ("publish", PUBLISH, LOCKED_TOOL)):
        pinned = SETUP_LOG.with_name("pinned.txt")
        pinned.write_text(file.read_text("utf-8") if file.exists() else "", encoding="utf-8")
        asked = ("--group", f"{ROOT / 'pyproject.toml'}:{group}", "--generate-hashes")
        everywhere = ("--universal", "--python-version", "3.10", "--no-python-downloads")
        plain = ("--no-annotate", "--no-header", "--output-file", str(pinned))
        run_step(
            f"the versions of all packages of the group {group} (20 s)",
            uv("compile", *asked, *everywhere, *plain),
            "Check the network and run it again.",
        )
        file.write_text(head + without_cuda(pinned.read_text("utf-8")), encoding="utf-8")
        say(f"{file} is written: see what changed with git diff.")


def without_cuda(text: str) -> str:
    """A file of requirements without torch's own packages for CUDA."""
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not entry.startswith(CUDA))


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
