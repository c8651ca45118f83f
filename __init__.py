"""LoRA Locksmith: every LoRA loads in ComfyUI, right, whoever trained it."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; everything is imported here, so that importing the pack costs nothing."""
    import logging

    try:
        from .nodes import LocksmithExtension
    except Exception:
        # The host reports a failing entry point in one line without a traceback.
        logging.getLogger("lora_locksmith").exception("LoRA Locksmith could not be loaded")
        raise
    return LocksmithExtension()
