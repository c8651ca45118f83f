"""LoRA Locksmith: load any LoRA in ComfyUI, correctly, whichever trainer made it."""

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = (0, 16, 3)
OLDEST_PYTHON = (3, 10)


async def comfy_entrypoint() -> object:
    """ComfyUI's V3 entry point; everything is imported here, so that importing the pack costs
    nothing.
    """
    import logging

    if too_old():
        from .messages import message

        raise RuntimeError(message("nodes.too_old"))
    try:
        from .nodes import LocksmithExtension
    except Exception:
        # The host reports a failing entry point in one line without a traceback.
        from .messages import message

        logging.getLogger("lora_locksmith").exception(message("nodes.log_pack_not_loaded"))
        raise
    return LocksmithExtension()


def __getattr__(name: str) -> object:
    """Every ComfyUI asks for this name first; those that are too old for `comfy_entrypoint` would
    then only say that they skip the pack.
    """
    if name == "NODE_CLASS_MAPPINGS":
        import logging

        if complaint := too_old():
            logging.getLogger("lora_locksmith").error(complaint)
    raise AttributeError(name)


def too_old() -> str:
    """What of this Python and ComfyUI is too old for the pack, and the remedy; ""
    where nothing is.
    """
    import re
    import sys
    from importlib.util import find_spec

    from .messages import joined, message

    try:
        from comfyui_version import __version__ as comfyui
    except ImportError:
        # It came in January 2025, after which comfy_api came; a fork may lack it.
        comfyui = "" if find_spec("comfy_api") else message("nodes.old_comfyui")
    version = tuple(int(number) for number in re.findall(r"\d+", comfyui)[:3])
    versions = []
    if version and version < OLDEST_COMFYUI:
        oldest = ".".join(map(str, OLDEST_COMFYUI))
        versions.append(message("nodes.comfyui_or_newer", oldest=oldest, version=comfyui))
    if sys.version_info < OLDEST_PYTHON:
        oldest, python = ".".join(map(str, OLDEST_PYTHON)), sys.version.split()[0]
        versions.append(message("nodes.python_or_newer", oldest=oldest, version=python))
    if not versions:
        return ""
    return message("nodes.needs_newer", versions=joined(versions, "semicolon"))
