"""The demo: the example workflow on a tiny FLUX, run without a LoRA, with the stock loader and with
this pack's (standard library only).
"""

from __future__ import annotations

import copy
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from comfy_server import Server, prompt_of
from tiny_models import BROKEN_LORA, CLIP_L, FLUX

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "load_and_fix_lora.json"
DEMO_WORKFLOW = "load_and_fix_lora_demo.json"
OUR_LOADER = "LocksmithLoadAndFixLoRA"
STOCK_LOADER = "LoraLoader"
STOCK_COMPLAINT = "lora key not loaded: "

# What the tiny demo has in place of the example's full-size models: node type -> (node type, widget
# values).
TINY_NODES = {
    "UNETLoader": ("UNETLoader", [FLUX, "default"]),
    "DualCLIPLoader": ("CLIPLoader", [CLIP_L, "stable_diffusion", "default"]),
    "VAELoader": ("VAELoader", ["taef1"]),
    "EmptySD3LatentImage": ("EmptySD3LatentImage", [256, 256, 1]),
    "KSampler": ("KSampler", [42, "fixed", 4, 1.0, "euler", "simple", 1.0]),
    OUR_LOADER: (OUR_LOADER, [BROKEN_LORA, 1.0, 1.0, "report"]),
}


@dataclass(frozen=True)
class Picture:
    """One run's result: the PNG's pixels and where the server keeps the file."""

    pixels: bytes
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What the three runs gave; `stock_placed` is counted from the server's own log."""

    names: tuple[str, ...]
    stock_placed: int
    report: dict
    report_text: str
    bare: Picture
    stock: Picture
    ours: Picture

    @property
    def keys(self) -> int:
        return len(self.names)

    @property
    def example_key(self) -> str:
        return next(name for name in self.names if "single_transformer_blocks.0.attn.to_k" in name)

    @property
    def as_promised(self) -> bool:
        """Stock places nothing and changes nothing; this pack places every key and changes the
        picture.
        """
        stock_idle = self.stock_placed == 0 and self.stock.pixels == self.bare.pixels
        return (
            stock_idle
            and self.our_keys == (self.keys, self.keys)
            and self.ours.pixels != self.bare.pixels
        )

    @property
    def our_keys(self) -> tuple[int, int]:
        return self.report["keys"]["placed"], self.report["keys"]["total"]

    def lines(self) -> list[str]:
        def row(name: str, keys: str, picture: Picture) -> str:
            same = "picture unchanged" if picture.pixels == self.bare.pixels else "PICTURE CHANGED"
            return f"  {name:<30} {keys:<26} {same:<18} {picture.path}"

        placed, total = self.our_keys
        return [
            f"  {'no LoRA':<30} {'-':<26} {'-':<18} {self.bare.path}",
            row("stock 'Load LoRA'", f"{self.stock_placed} of {self.keys} keys placed", self.stock),
            row("ours 'Load and Fix LoRA'", f"{placed} of {total} keys placed", self.ours),
        ]


def demo_workflow() -> dict:
    """The example workflow as the front end saves it, with the tiny models in place of the
    full-size ones.
    """
    workflow = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] in TINY_NODES:
            node["type"], node["widgets_values"] = copy.deepcopy(TINY_NODES[node["type"]])
            node["properties"]["Node name for S&R"] = node["type"]
    return workflow


def save_workflow(path: Path) -> None:
    """Write the demo workflow where the front end lists it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(demo_workflow(), indent=2), encoding="utf-8")


def demo_prompt(object_info: dict) -> dict:
    """The API prompt of the demo workflow, which uses this pack's loader."""
    return prompt_of(demo_workflow(), object_info)


def loader_id(prompt: dict) -> str:
    return next(
        node for node, spec in prompt.items() if spec["class_type"] in (OUR_LOADER, STOCK_LOADER)
    )


def with_stock_loader(prompt: dict) -> dict:
    """The same prompt with the stock loader in the place of ours."""
    prompt = _without_report(prompt)
    loader = prompt[loader_id(prompt)]
    loader["class_type"] = STOCK_LOADER
    loader["inputs"] = {
        name: loader["inputs"][name]
        for name in ("model", "clip", "lora_name", "strength_model", "strength_clip")
    }
    return prompt


def without_loader(prompt: dict) -> dict:
    """The same prompt with the model and the text encoder wired past the loader."""
    prompt = _without_report(prompt)
    identifier = loader_id(prompt)
    loader = prompt.pop(identifier)
    sources = [loader["inputs"]["model"], loader["inputs"]["clip"]]
    for spec in prompt.values():
        for name, value in spec["inputs"].items():
            if isinstance(value, list) and value[0] == identifier:
                spec["inputs"][name] = sources[value[1]]
    return prompt


def with_report(prompt: dict) -> dict:
    """The same prompt with a node 'report_json' that shows our loader's fourth output."""
    return {
        **prompt,
        "report_json": {"class_type": "PreviewAny", "inputs": {"source": [loader_id(prompt), 3]}},
    }


def _without_report(prompt: dict) -> dict:
    return copy.deepcopy(
        {node: spec for node, spec in prompt.items() if spec["class_type"] != "PreviewAny"}
    )


def report_of(entry: dict) -> dict:
    """The report a run of a prompt made by with_report() gave."""
    return json.loads(entry["outputs"]["report_json"]["text"][0])


def report_text_of(entry: dict) -> str:
    """The readable report, as the example's text preview shows it."""
    previews = [
        node
        for node, spec in entry["prompt"][2].items()
        if spec["class_type"] == "PreviewAny" and node != "report_json"
    ]
    return entry["outputs"][previews[0]]["text"][0]


def picture_of(server: Server, entry: dict) -> Picture:
    file = next(output["images"][0] for output in entry["outputs"].values() if "images" in output)
    return Picture(
        pixels_of(server.fetch(file)), server.base / "output" / file["subfolder"] / file["filename"]
    )


def pixels_of(png: bytes) -> bytes:
    """The pixel data of a PNG without its text chunks, which hold the prompt and so differ from run
    to run.
    """
    position, data = 8, b""
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        if kind == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += 12 + length
    return zlib.decompress(data)


def run_demo(server: Server) -> Outcome:
    """Run the three prompts on a server whose base holds the tiny models."""
    names = tensor_names(server.base / "models" / "loras" / BROKEN_LORA)
    prompt = demo_prompt(server.object_info())
    bare = picture_of(server, server.run(without_loader(prompt)))
    before = server.log_text().count(STOCK_COMPLAINT)
    stock = picture_of(server, server.run(with_stock_loader(prompt)))
    complaints = server.log_text().count(STOCK_COMPLAINT) - before
    entry = server.run(with_report(prompt))
    placed = len(names) - complaints
    return Outcome(
        names,
        placed,
        report_of(entry),
        report_text_of(entry),
        bare,
        stock,
        picture_of(server, entry),
    )


def tensor_names(path: Path) -> tuple[str, ...]:
    """The keys of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return tuple(name for name in header if name != "__metadata__")
