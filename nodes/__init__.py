"""The nodes, as one extension for ComfyUI's V3 API."""

from comfy_api.latest import ComfyExtension

from .inspect import InspectLoRAKeys
from .load_and_fix import LoadAndFixLoRA
from .merge import ApplyLoRA, MergeLoRAs
from .save import SaveLoRA


class LocksmithExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self):
        """The node classes, in the order of the menu."""
        return [LoadAndFixLoRA, InspectLoRAKeys, MergeLoRAs, ApplyLoRA, SaveLoRA]
