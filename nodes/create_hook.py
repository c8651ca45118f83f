"""The nodes Create Hook LoRA (fixed): LoRAs that ComfyUI's hooks switch, schedule and give to
single conditionings.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..messages import as_sentence, message, text_of
from . import host
from .faults import NodeError, in_plain_words
from .files import listed_name, lora_names, lora_path, own_maps
from .hooked import HookedFile, combined, hooks_of
from .inputs import OfListedFile, strength_inputs
from .rows import OfRows, read_rows, rows_input

CATEGORY = "advanced/hooks/create"
STRONGEST = 20.0  # as of stock's Create Hook LoRA


class CreateHookLoRA(OfListedFile, io.ComfyNode):
    """Same inputs and output as stock's Create Hook LoRA, in the same order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithCreateHookLoRA",
            display_name="Create Hook LoRA (fixed)",
            category=CATEGORY,
            description=(
                "A hook of a LoRA from any trainer, with the right weights: for keyframes, single"
                " conditionings and Set CLIP Hooks. The log tells which keys have no effect and"
                " why."
            ),
            search_aliases=[
                "hook lora",
                "lora hook",
                "scheduled lora",
                "lora keyframes",
                "lora per prompt",
            ],
            inputs=[
                io.Combo.Input("lora_name", options=lora_names(), tooltip="The LoRA file."),
                *strength_inputs(STRONGEST),
                prev_hooks_input(),
            ],
            outputs=[hooks_output()],
        )

    @classmethod
    def execute(cls, lora_name, strength_model, strength_clip, prev_hooks=None) -> io.NodeOutput:
        """Add the hook to those before it; raises for an unreadable file. At strength 0 nothing is
        read.
        """
        return io.NodeOutput(
            with_hook(prev_hooks, listed_name(lora_name), strength_model, strength_clip)
        )


class CreateHookStack(OfRows, io.ComfyNode):
    """Does what as many Create Hook LoRA (fixed) nodes in a row would do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it; `loras` is that of the stack of loaders."""
        return io.Schema(
            node_id="LocksmithCreateHookLoRAStack",
            display_name="Create Hook LoRA (fixed, stack)",
            category=CATEGORY,
            description=(
                "Hooks of any number of LoRAs from any trainers in one node: for keyframes, single"
                " conditionings and Set CLIP Hooks."
            ),
            search_aliases=["hook lora stack", "lora hooks", "multiple lora hooks"],
            inputs=[
                rows_input("The LoRAs, from top to bottom. Rows that are off are not read."),
                prev_hooks_input(),
            ],
            outputs=[hooks_output()],
        )

    @classmethod
    def execute(cls, loras, prev_hooks=None) -> io.NodeOutput:
        """Add the hooks of all rows to those before them; an error names the row."""
        try:
            rows = read_rows(loras)
        except ValueError as fault:
            raise NodeError(as_sentence(text_of(fault))) from None
        hooks = combined(prev_hooks)
        for row in rows:
            try:
                if row.on:
                    hooks = with_hook(hooks, row.name, row.strength, row.strength_clip)
            except NodeError as error:
                raise NodeError(
                    message("nodes.row_error", number=row.number, error=error)
                ) from None
        return io.NodeOutput(hooks)


def prev_hooks_input() -> io.Input:
    """The input `prev_hooks` of both nodes."""
    return io.Hooks.Input(
        "prev_hooks", optional=True, tooltip="Hooks to which this node adds its own."
    )


def hooks_output() -> io.Output:
    """The output of both nodes."""
    return io.Hooks.Output("HOOKS", tooltip="The hooks before, and those of this node behind them.")


def with_hook(before, lora_name: str, strength_model: float, strength_clip: float):
    """A new HookGroup: the hooks before, which may be None, and that of a listed file behind them,
    unless both its strengths are 0. NodeError for an unreadable file.
    """
    if strength_model == 0 and strength_clip == 0:
        return combined(before)
    with in_plain_words(lora_name):
        shared = HookedFile(host.read(lora_path(lora_name)), lora_name, own_maps())
    return combined(before, hooks_of(shared, strength_model, strength_clip))
