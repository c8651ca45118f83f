"""Tells the host which missing loaders of other packs Load and Fix LoRA stands in for."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyAPI, io

from .modes import PATCH

NEW = "LocksmithLoadAndFixLoRA"
SHARED = ("model", "lora_name", "strength_model")
STRENGTH_CLIP = 1.0
# Only loaders with the same inputs and no output beyond MODEL: the host reads a link to any other
# output as one to ours in that place.
# https://github.com/vjumpkung/ComfyUI-Musubi-Tuner-LoRA-Loader/blob/main/nodes.py
OLD = ("MusubiTunerLoRALoaderModelOnly",)


async def register() -> None:
    """Register all replacements, and keep prompts that lack a part of them from failing in the
    host.
    """
    from server import PromptServer

    api = ComfyAPI()
    for old in OLD:
        await api.node_replacement.register(
            io.NodeReplace(
                new_node_id=NEW,
                old_node_id=old,
                old_widget_ids=["lora_name", "strength_model"],
                input_mapping=[
                    *({"new_id": name, "old_id": name} for name in SHARED),
                    {"new_id": "strength_clip", "set_value": STRENGTH_CLIP},
                    {"new_id": "mode", "set_value": PATCH},
                ],
                output_mapping=[{"new_idx": 0, "old_idx": 0}],
            )
        )
    PromptServer.instance.add_on_prompt_handler(complete)


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """Give nodes that will be replaced the part `_meta`; one without all inputs becomes ours at
    once, and is then refused in plain words.

    The host's replacing ends in a KeyError for either.
    """
    from nodes import NODE_CLASS_MAPPINGS

    prompt = request.get("prompt")
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if (
            not isinstance(node, dict)
            or node.get("class_type") not in OLD
            or node["class_type"] in NODE_CLASS_MAPPINGS
        ):
            continue
        node.setdefault("_meta", {})
        inputs = node.get("inputs")
        if isinstance(inputs, dict) and not set(SHARED) <= set(inputs):
            inputs.setdefault("strength_clip", STRENGTH_CLIP)
            node["class_type"] = NEW
    return request
