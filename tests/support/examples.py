"""The example workflows, as what stands in them: the real front end builds, draws and saves them
from this (tests/browser/test_examples.py).

Models and LoRAs have the names that users' files have; TINY says what stands for them in the tests.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, KOHYA_LORA

YOURS, ANOTHER, THIRD = (
    "your_lora.safetensors",
    "another_lora.safetensors",
    "third_lora.safetensors",
)
MODEL, TUNED = "flux1-dev.safetensors", "flux1-dev-tuned.safetensors"
PROMPT = "a brass key in an old lock, morning light"
# What the tests have in place of users' files and of sizes that take long.
TINY: dict[str, Any] = {
    YOURS: BROKEN_LORA,
    ANOTHER: DIFFUSERS_LORA,
    THIRD: KOHYA_LORA,
    MODEL: FLUX,
    TUNED: FLUX,
    "ae.safetensors": "taef1",
    "<lora:another_lora:": f"<lora:{DIFFUSERS_LORA.removesuffix('.safetensors')}:",
}


class Part(NamedTuple):
    """A node: its number, type, place (x, y, width, height; 0: as high as it is) and values."""

    id: int
    type: str
    place: tuple[int, int, int, int]
    values: dict[str, Any]


class Example(NamedTuple):
    """A workflow: its nodes, and its links as (node, output, node, input)."""

    parts: list[Part]
    links: list[tuple[int, str, int, str]]


def note(text: str, height: int = 330) -> Part:
    """A note in the upper left corner."""
    return Part(1, "MarkdownNote", (0, 0, 330, height), {"": text})


def rows(*entries: tuple[str, float]) -> str:
    """The value of a list of LoRAs."""
    return json.dumps([{"on": True, "name": name, "strength": value} for name, value in entries])


def flux(left: int, top: int) -> list[Part]:
    """FLUX's files, one below the other: model 2, text encoders 3, VAE 4."""
    return [
        Part(2, "UNETLoader", (left, top, 320, 90), {"unet_name": MODEL}),
        Part(
            3,
            "DualCLIPLoader",
            (left, top + 150, 320, 140),
            {
                "clip_name1": "clip_l.safetensors",
                "clip_name2": "t5xxl_fp16.safetensors",
                "type": "flux",
            },
        ),
        Part(4, "VAELoader", (left, top + 350, 320, 60), {"vae_name": "ae.safetensors"}),
    ]


def sampled(left: int, name: str) -> list[Part]:
    """From a prompt (20) to a picture (26), drawn from the left on."""
    return [
        Part(20, "CLIPTextEncode", (left, 150, 340, 140), {"text": PROMPT}),
        Part(21, "FluxGuidance", (left + 390, 150, 260, 60), {"guidance": 3.5}),
        Part(22, "ConditioningZeroOut", (left + 390, 270, 260, 30), {}),
        Part(23, "EmptySD3LatentImage", (left, 350, 340, 110), {}),
        Part(24, "KSampler", (left + 700, 0, 300, 270), {"seed": 42, "cfg": 1.0, "steps": 20}),
        Part(25, "VAEDecode", (left + 700, 330, 300, 50), {}),
        Part(26, "SaveImage", (left + 1050, 0, 400, 440), {"filename_prefix": name}),
    ]


SAMPLING = [
    (20, "CONDITIONING", 21, "conditioning"),
    (20, "CONDITIONING", 22, "conditioning"),
    (21, "CONDITIONING", 24, "positive"),
    (22, "CONDITIONING", 24, "negative"),
    (23, "LATENT", 24, "latent_image"),
    (24, "LATENT", 25, "samples"),
    (4, "VAE", 25, "vae"),
    (25, "IMAGE", 26, "images"),
]


def with_loader(loader: Part, name: str, text: str) -> Example:
    """A picture by FLUX with a loader (10) between model and prompt."""
    parts = [
        Part(1, "MarkdownNote", (0, 470, 320, 200), {"": text}),
        *flux(0, 0),
        loader,
        *sampled(loader.place[0] + loader.place[2] + 50, name),
    ]
    links = [
        (2, "MODEL", 10, "model"),
        (3, "CLIP", 10, "clip"),
        (10, "MODEL", 24, "model"),
        (10, "CLIP", 20, "clip"),
        *SAMPLING,
    ]
    return Example(parts, links)


def load_and_fix_lora() -> Example:
    example = with_loader(
        Part(10, "LocksmithLoadAndFixLoRA", (370, 0, 360, 0), {"lora_name": YOURS}),
        "load_and_fix_lora",
        "Choose your FLUX files on the left and any LoRA in **Load and Fix LoRA**: its report says"
        " for each key where it went, or why it could not be used.\n\nThe node takes the place of"
        " the stock *Load LoRA*: same inputs, same first two outputs.",
    )
    report = Part(11, "PreviewAny", (370, 470, 360, 240), {})
    return Example([*example.parts, report], [*example.links, (10, "report", 11, "source")])


def lora_stack() -> Example:
    return with_loader(
        Part(
            10,
            "LocksmithLoRAStack",
            (370, 0, 480, 0),
            {"loras": rows((YOURS, 0.8), (ANOTHER, 0.6), (THIRD, 1.0))},
        ),
        "lora_stack",
        "Any number of LoRAs in one node. *Add LoRA* opens the list; drag rows to sort them;"
        " right-click a row for its details, trigger words and layer weights.\n\nLoRAs of a prompt"
        " (`<lora:name:0.8>`) and of other packs' LORA_STACK go into **text** and **lora_stack**.",
    )


def layer_weights() -> Example:
    return with_loader(
        Part(
            10,
            "LocksmithLoadAndFixLoRA",
            (370, 0, 360, 0),
            {"lora_name": YOURS, "layer_weights": "double_blocks=0.4, *.img_attn=0.2"},
        ),
        "layer_weights",
        "**layer_weights** multiplies the strength of parts: here the double blocks get 0.4, their"
        " attention to the image 0.2, all else 1.\n\nA name is the beginning of a layer's"
        " name; `*.` begins at any word; the last entry that matches counts. Presets and block"
        " weight vectors work too: see the node's help.",
    )


def loras_in_prompt() -> Example:
    example = with_loader(
        Part(10, "LocksmithLoRAStack", (370, 0, 480, 0), {"loras": rows((YOURS, 0.8))}),
        "loras_in_prompt",
        "A prompt may name LoRAs, `<lora:name:0.8>`, by the file's name without folder and ending."
        " They are loaded behind the rows, and the output **text** is the prompt without them.\n\n"
        "**lora_stack** takes LoRAs of other packs' stackers, randomizers and cyclers likewise.",
    )
    prompt = Part(
        11,
        "PrimitiveStringMultiline",
        (370, 470, 480, 140),
        {"value": f"{PROMPT} <lora:another_lora:0.6>"},
    )
    links = [*example.links, (11, "STRING", 10, "text"), (10, "text", 20, "text")]
    return Example([*example.parts, prompt], links)


def hooked(hook: Part, name: str, text: str, keyframes: bool) -> Example:
    """A picture by FLUX whose LoRAs come by a hook (10)."""
    parts = [
        Part(1, "MarkdownNote", (0, 470, 320, 220), {"": text}),
        *flux(0, 0),
        hook,
        Part(14, "SetClipHooks", (880, 120, 250, 110), {}),
        *sampled(1180, name),
    ]
    links = [
        (3, "CLIP", 14, "clip"),
        (14, "CLIP", 20, "clip"),
        (2, "MODEL", 24, "model"),
        *SAMPLING,
    ]
    if not keyframes:
        return Example(parts, [(10, "HOOKS", 14, "hooks"), *links])
    parts += [
        Part(11, "CreateHookKeyframe", (370, 270, 360, 90), {"strength_mult": 0.0}),
        Part(
            12,
            "CreateHookKeyframe",
            (370, 420, 360, 90),
            {"strength_mult": 1.0, "start_percent": 0.4},
        ),
        Part(13, "SetHookKeyframes", (880, 0, 250, 60), {}),
    ]
    links += [
        (10, "HOOKS", 13, "hooks"),
        (11, "HOOK_KF", 12, "prev_hook_kf"),
        (12, "HOOK_KF", 13, "hook_kf"),
        (13, "HOOKS", 14, "hooks"),
    ]
    return Example(parts, links)


def schedule_lora() -> Example:
    return hooked(
        Part(10, "LocksmithCreateHookLoRA", (370, 0, 360, 0), {"lora_name": YOURS}),
        "schedule_lora",
        "The model makes the composition alone, and the LoRA joins in after 40 % of the steps. The"
        " log of ComfyUI tells what of the LoRA loads.\n\nThe node takes the place of stock's"
        " *Create Hook LoRA*: same inputs, same output.",
        keyframes=True,
    )


def hook_stack() -> Example:
    return hooked(
        Part(
            10,
            "LocksmithCreateHookLoRAStack",
            (370, 0, 460, 0),
            {"loras": rows((YOURS, 0.8), (ANOTHER, 0.5))},
        ),
        "hook_stack",
        "Several LoRAs as one hook, for this prompt alone: another prompt of the same picture, or"
        " its negative one, goes without them.\n\nThe log of ComfyUI tells what of each LoRA loads.",
        keyframes=False,
    )


def inspect_lora_keys() -> Example:
    text = (
        "## What is in this LoRA?\n\nChoose a file and run. The report shows on the node: model,"
        " trainer, rank, trigger words, which layers were trained and which were silently missed,"
        " what loads here and with the stock loader.\n\nConnect a **model** (and a **clip**) for"
        " the exact answer. Set **weights** to *on* to measure the weights and compute the file's"
        " hashes."
    )
    inspect = Part(10, "LocksmithInspectLoRAKeys", (380, 0, 520, 600), {"lora_name": YOURS})
    return Example([note(text), inspect], [])


def merge_loras() -> Example:
    text = (
        "## Several LoRAs become one\n\nAdd LoRAs of any trainers. A strength means what it means"
        " on a loader; a negative one takes away what a LoRA has learned.\n\n**sum** is exact. A"
        " **rank** or an **energy** makes the file smaller, and the report says what that costs."
        " Connect the **model** for DoRA and OFT.\n\n**Apply LoRA** uses the result at once, **Save"
        " LoRA** writes it."
    )
    parts = [
        note(text),
        Part(2, "UNETLoader", (0, 400, 330, 90), {"unet_name": MODEL}),
        Part(
            10,
            "LocksmithMergeLoRAs",
            (380, 0, 560, 0),
            {"loras": rows((YOURS, 0.8), (ANOTHER, 0.5))},
        ),
        Part(11, "LocksmithApplyLoRA", (1000, 0, 330, 0), {}),
        Part(12, "LocksmithSaveLoRA", (1000, 300, 330, 0), {"filename": "merged/both"}),
    ]
    links = [
        (2, "MODEL", 10, "model"),
        (2, "MODEL", 11, "model"),
        (10, "lora", 11, "lora"),
        (10, "lora", 12, "lora"),
    ]
    return Example(parts, links)


def convert_lora() -> Example:
    text = (
        "## The same LoRA for another tool\n\nChoose a file, a name for the new one, and as"
        " **dialect** whose names it shall have: `comfyui` loads everywhere in ComfyUI, `kohya`,"
        " `peft` and the others let training go on there.\n\nThe new file is read back and compared"
        " before it is put in place. Nothing is overwritten unless you say so."
    )
    save = Part(
        10,
        "LocksmithSaveLoRA",
        (380, 0, 400, 0),
        {"lora_name": YOURS, "filename": "converted/your_lora_kohya", "dialect": "kohya"},
    )
    return Example([note(text, 300), save], [])


def extract_lora() -> Example:
    text = (
        "## What a tuned model has learned, as a LoRA\n\nChoose the tuned model and the one it was"
        " made from. Each weight gets its best low-rank form; the report says how much of the"
        " change that keeps.\n\nPatches on the models count, so a merge of models or a loaded LoRA"
        " can be extracted too."
    )
    parts = [
        note(text, 300),
        Part(2, "UNETLoader", (380, 0, 330, 90), {"unet_name": TUNED}),
        Part(3, "UNETLoader", (380, 160, 330, 90), {"unet_name": MODEL}),
        Part(4, "LocksmithLoadAndFixLoRA", (760, 0, 330, 0), {"lora_name": YOURS}),
        Part(10, "LocksmithExtractLoRA", (1140, 0, 360, 0), {"rank": 32}),
        Part(11, "LocksmithSaveLoRA", (1550, 0, 330, 0), {"filename": "extracted/difference"}),
    ]
    links = [
        (2, "MODEL", 4, "model"),
        (4, "MODEL", 10, "model"),
        (3, "MODEL", 10, "base"),
        (10, "lora", 11, "lora"),
    ]
    return Example(parts, links)


def repaired_path() -> Example:
    text = (
        "## A file that another pack's loader reads\n\nNunchaku, WanVideoWrapper and others read"
        " LoRA files with code of their own. Choose whose loader it is for, and connect **path**,"
        " **name** (into an input *lora_name*) or **lora** (WANVIDLORA) to it.\n\nThe file itself"
        " is given where that loader reads it rightly; else one is written once, verified, and used"
        " again."
    )
    parts = [
        note(text, 300),
        Part(
            10,
            "LocksmithRepairedLoRAPath",
            (380, 0, 400, 0),
            {"lora_name": YOURS, "reader": "Nunchaku FLUX.1"},
        ),
        Part(11, "PreviewAny", (830, 0, 420, 240), {}),
    ]
    return Example(parts, [(10, "report", 11, "source")])


def swap() -> Example:
    """Stock's loaders in a row: where the film in the README begins."""
    loaders = [
        Part(5, "LoraLoader", (370, 0, 340, 130), {"lora_name": YOURS}),
        Part(6, "LoraLoader", (370, 240, 340, 130), {"lora_name": ANOTHER}),
    ]
    links = [
        (2, "MODEL", 5, "model"),
        (3, "CLIP", 5, "clip"),
        (5, "MODEL", 6, "model"),
        (5, "CLIP", 6, "clip"),
        (6, "MODEL", 24, "model"),
        (6, "CLIP", 20, "clip"),
        *SAMPLING,
    ]
    return Example([*flux(0, 0), *loaders, *sampled(760, "swap")], links)


EXAMPLES = {
    made.__name__: made()
    for made in (
        load_and_fix_lora,
        lora_stack,
        layer_weights,
        loras_in_prompt,
        schedule_lora,
        hook_stack,
        inspect_lora_keys,
        merge_loras,
        convert_lora,
        extract_lora,
        repaired_path,
    )
}
