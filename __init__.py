"""LoRA Locksmith: load any LoRA in ComfyUI, correctly, whichever trainer made it."""

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = (0, 16, 3)
OLDEST_PYTHON = (3, 10)


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; everything is imported here, so that importing the pack costs
    nothing.
    """
    import logging

    if too_old():
        raise RuntimeError("something here is too old for LoRA Locksmith, as it says above")
    try:
        from .nodes import LocksmithExtension
    except Exception:
        # The host reports a failing entry point in one line without a traceback.
        logging.getLogger("lora_locksmith").exception("LoRA Locksmith could not be loaded")
        raise
    return LocksmithExtension()


def __getattr__(name):
    """Every ComfyUI asks for this name first; those that are too old for `comfy_entrypoint` would
    then only say that they skip the pack.
    """
    if name == "NODE_CLASS_MAPPINGS":
        import logging

        if complaint := too_old():
            logging.getLogger("lora_locksmith").error(complaint)
    raise AttributeError(name)


def too_old():
    """What of this Python and ComfyUI is too old for the pack, and the remedy; ""
    where nothing is.
    """
    import re
    import sys
    from importlib.util import find_spec

    try:
        from comfyui_version import __version__ as comfyui
    except ImportError:
        # It came in January 2025, after which comfy_api came; a fork may lack it.
        comfyui = "" if find_spec("comfy_api") else "0.0 (2024 or before)"
    found = tuple(int(number) for number in re.findall(r"\d+", comfyui)[:3])
    faults = []
    if found and found < OLDEST_COMFYUI:
        faults.append(
            f"ComfyUI {'.'.join(map(str, OLDEST_COMFYUI))} or newer, and this is ComfyUI {comfyui}"
        )
    if sys.version_info < OLDEST_PYTHON:
        faults.append(
            f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, and this is Python"
            f" {sys.version.split()[0]}"
        )
    return (
        f"LoRA Locksmith needs {'; '.join(faults)}. Update ComfyUI and what it runs in, then start"
        " it again."
        if faults
        else ""
    )
