"""The nodes, as one extension for ComfyUI's V3 API."""

import logging

from comfy_api.latest import ComfyExtension

from ..messages import message
from .create_hook import CreateHookLoRA, CreateHookStack
from .extract import ExtractLoRA
from .inspect import InspectLoRAKeys
from .load_and_fix import LoadAndFixLoRA
from .merge import ApplyLoRA, MergeLoRAs
from .repaired_path import RepairedLoRAPath
from .save import SaveLoRA
from .stack import LoadAndFixStack


class LocksmithExtension(ComfyExtension):
    """All nodes of the pack."""

    async def on_load(self):
        """Add what the front end asks. The nodes work without it, so whatever it lacks must not
        keep them from loading.
        """
        try:
            from .server.routes import register

            register()
        except Exception:
            logging.getLogger("lora_locksmith").exception(message("nodes.log_routes_not_added"))
        try:
            from .every_setting import turn_on_if_wanted

            turn_on_if_wanted()
        except Exception:
            logging.getLogger("lora_locksmith").exception(message("nodes.log_every_switch_failed"))
        try:
            from .replacements import register as register_replacements

            await register_replacements()
        except Exception:
            logging.getLogger("lora_locksmith").exception(
                message("nodes.log_loaders_not_registered")
            )

    async def get_node_list(self):
        """The node classes, in the order of the menu."""
        return [
            LoadAndFixLoRA,
            LoadAndFixStack,
            CreateHookLoRA,
            CreateHookStack,
            InspectLoRAKeys,
            MergeLoRAs,
            ExtractLoRA,
            ApplyLoRA,
            SaveLoRA,
            RepairedLoRAPath,
        ]
