"""The node Save LoRA: writes a LoRA in any dialect into the loras folder, verified."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..key_maps.hashes import file_hashes
from ..key_maps.header import LoraFileError
from ..key_maps.inspection import Inspection, inspect_header
from ..key_maps.respell import Refused, rivals_apart, writable
from ..lora.reader import header_of
from ..lora.verify import Unverified
from ..lora.writer import Written, write_as
from . import host
from .files import lora_changed, lora_is_listed, lora_names, own_folder

CONNECTED = "the connected lora"
KEEP, DTYPES = "as it is", ("fp32", "fp16", "bf16")
ENDING = ".safetensors"


class SaveLoRA(io.ComfyNode):
    """An output node: a connected LORA_MODEL or a file of the loras folder, in another tool's names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the front end sees it."""
        return io.Schema(
            node_id="LocksmithSaveLoRA",
            display_name="Save LoRA",
            category="model/loaders",
            description="Writes a LoRA in the names of another tool into the loras folder: fused, split and verified exactly.",
            search_aliases=["save lora", "convert lora", "export lora", "lora to kohya", "lora to diffusers", "lora to peft"],
            inputs=[
                io.Custom("LORA_MODEL").Input("lora", optional=True, tooltip="A LoRA made in this workflow, merged or trained."),
                io.Combo.Input("lora_name", options=[CONNECTED, *lora_names()], tooltip="Or a LoRA file to convert."),
                io.String.Input("filename", default="locksmith/lora", tooltip="Name in the loras folder; / makes folders."),
                io.Combo.Input("dialect", options=list(writable()), default="comfyui", tooltip="Whose names the file gets."),
                io.Combo.Input("dtype", options=[KEEP, *DTYPES], default=KEEP, tooltip="Of the file's tensors."),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of this name. Off: that is an error."),
                io.Model.Input("model", optional=True, tooltip="Makes names and sizes exact, and is needed for models no table knows."),
                io.Clip.Input("clip", optional=True, tooltip="The same for the text encoder."),
            ],
            outputs=[
                io.String.Output("path", display_name="path", tooltip="The file that was written."),
                io.String.Output("report", display_name="report", tooltip="What was renamed, fused or split, and left out."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, lora_name) -> bool | str:
        """Refuse a name that is not in the loras folders before anything runs."""
        return True if lora_name == CONNECTED else lora_is_listed(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name, **_) -> tuple:
        """Makes the node run again when the file changes on disk."""
        return (CONNECTED,) if lora_name == CONNECTED else lora_changed(lora_name)

    @classmethod
    def execute(
        cls, lora_name, filename, dialect="comfyui", dtype=KEEP, overwrite=False, lora=None, model=None, clip=None
    ) -> io.NodeOutput:
        """Write the file; raises for what the dialect cannot say, for a file that is there already, and where nothing is connected."""
        try:
            found, tensors, provenance = _connected(lora, model, clip) if lora_name == CONNECTED else _of_file(lora_name, model, clip)
            if apart := rivals_apart(found, dialect):
                raise Refused((f"it fits several models, of which {', '.join(apart)} would name it otherwise; connect the right one",))
            written = write_as(
                found.plan, tensors, destination(filename), dialect,
                dtype=_dtype(dtype), provenance=provenance, overwrite=overwrite,
            )  # fmt: skip
        except FileExistsError:
            raise RuntimeError(f"{filename} is there already. Choose another filename, or turn overwrite on.") from None
        except Refused as error:
            raise RuntimeError(f"This LoRA cannot be written as {dialect}: {error}.") from None
        except Unverified as error:
            raise RuntimeError(f"Nothing was written, because what was made did not do the same: {error}.") from None
        except LoraFileError as error:
            raise RuntimeError(f"{lora_name}: {error.fault}. {error.remedy}.") from None
        text = _report(written)
        told = {"file": lora_name, "path": str(written.path), "difference": written.difference, "left_out": dict(written.left_out)}
        return io.NodeOutput(str(written.path), text, ui={"text": [text], "report_json": [json.dumps(told)]})


def destination(filename: str) -> Path:
    """The file a name stands for, inside the first loras folder. Raises ValueError for a name that leads out of it."""
    folder = Path(folder_paths.get_folder_paths("loras")[0]).resolve()
    name = filename.strip().removesuffix(ENDING)
    whole = name and not name.endswith(("/", "\\")) and "\x00" not in name
    path = (folder / f"{name}{ENDING}").resolve() if whole else folder
    if not whole or not path.is_relative_to(folder):
        raise ValueError(f"{filename!r} is no name inside the loras folder. Give a name such as folder/name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _dtype(name: str):
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(name)


def _connected(lora, model, clip) -> tuple[Inspection, dict, dict[str, str]]:
    if not lora:
        raise RuntimeError("There is no LoRA to save. Connect a LORA_MODEL, or choose a file as lora_name.")
    own = host.own_maps(own_folder())
    site = host.site_of(model, clip, own) if model is not None or clip is not None else None
    return inspect_header(CONNECTED, header_of(lora), None, site, own), lora, {}


def _of_file(lora_name: str, model, clip) -> tuple[Inspection, dict, dict[str, str]]:
    path = folder_paths.get_full_path_or_raise("loras", lora_name)
    found = host.inspect(model, clip, path, host.own_maps(own_folder()))
    provenance = {"locksmith.source": Path(path).name, "locksmith.source_sha256": file_hashes(path).sha256}
    return found, host.read_lora(path).tensors, provenance


def _report(written: Written) -> str:
    lines = [f"Wrote {written.path} ({written.bytes:,} bytes) as {written.dialect}, read it back and compared it."]
    lines.append(f"{written.renamed} modules only renamed, {written.computed} fused, split or turned.")
    lines += [f"{written.full} are full matrices now, as nothing smaller is exact."] * bool(written.full)
    lines += [f"Left out: {key} ({reason})" for key, reason in list(written.left_out.items())[:20]]
    return "\n".join(lines)
