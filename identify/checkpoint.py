"""Makes the target model of a model from the header of its file alone: names and shapes as ComfyUI
has them once the model is loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from ..errors import system_reason
from ..files.header import MAX_HEADER_BYTES, Header, LoraFileError, TensorInfo, read_header
from ..key_maps.dialect import DENOISER
from ..key_maps.table import (
    Family,
    Match,
    Size,
    TableRow,
    evaluate,
    fill,
    flatten,
    generalise,
    in_one_form,
    parse_table,
    unify,
)
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps
from ..messages import joined, message
from ..planning.keys import parse_key
from ..planning.quantised import EXTRAS
from ..planning.target_model import (
    CLOSE,
    DIFFUSION_MODEL,
    SAMPLES,
    Network,
    Shape,
    TargetModel,
    encoder_networks,
    of_kind,
)
from .lora_family import WITHOUT_DIGITS, is_whole
from .trainer import model_title

# What may stand before a diffusion model's names: comfy/model_detection.py
# unet_prefix_from_state_dict, torch.compile and DDP.
PREFIXES = (
    "model.diffusion_model.",
    "model.model.",
    "diffusion_model.",
    "net.",
    "transformer.",
    "unet.",
    "module.",
    "_orig_mod.",
    "model.",
)
CERTAIN = ("model.diffusion_model.", "diffusion_model.")  # only diffusion models are called so
# Text encoders in a checkpoint and their slots: comfy/supported_models.py process_clip_state_dict.
ENCODERS = {
    "cond_stage_model.transformer.": "clip_l",
    "cond_stage_model.model.": "",
    "conditioner.embedders.0.transformer.": "clip_l",
    "conditioner.embedders.0.model.": "",
    "conditioner.embedders.1.model.": "",
}
NAMED_ENCODERS = ("text_encoders.", "text_encoder.")  # the slot follows
OPENCLIP_SLOTS = {1024: "clip_h", 1280: "clip_g"}  # by width
SLOT_TITLES = {"clip_l": "CLIP-L", "clip_h": "CLIP-H", "clip_g": "CLIP-G"}
# OpenCLIP's names: comfy/utils.py clip_text_transformers_convert, open_clip/transformer.py.
OPENCLIP = """
@title OpenCLIP
@kind text_encoder
text_projection                             p h = text_projection
text_model.embeddings.token_embedding       n h = token_embedding
text_model.embeddings.position_embedding    n h = positional_embedding
text_model.final_layer_norm                 h   = ln_final
[text_model.encoder.layers.{} = transformer.resblocks.{}]
self_attn.q_proj                            h h = attn.q_proj
self_attn.k_proj                            h h = attn.k_proj
self_attn.v_proj                            h h = attn.v_proj
self_attn.q_proj + self_attn.k_proj + self_attn.v_proj = attn.in_proj
self_attn.out_proj                          h h = attn.out_proj
mlp.fc1                                     m h = mlp.c_fc
mlp.fc2                                     h m = mlp.c_proj
layer_norm1                                 h   = ln_1
layer_norm2                                 h   = ln_2
"""
# Norms these families' files call .scale are .weight in ComfyUI: comfy/supported_models.py
# process_unet_state_dict.
SCALE_IS_WEIGHT = frozenset(
    {"flux1", "flux2", "chroma", "hunyuan_video", "hunyuan_video_15", "hunyuan_image_21"}
)
PACKED = ("bitsandbytes__nf4", "bitsandbytes__fp4")  # ends of bitsandbytes' quant_state tensors
FOUR_BIT = ("nvfp4", "convrot_w4a4")  # ComfyUI's formats with two values in a byte
# Positions and counters, no weights.
UNTRAINABLE = frozenset({"BOOL", "I16", "I32", "I64", "U16", "U32", "U64"})
SUFFIXES = (".weight", ".bias", ".scale")
GLUED = {"in_proj_weight": ".weight", "in_proj_bias": ".bias"}  # torch's MultiheadAttention
NO_ADAPTER = frozenset(
    {
        "weight",
        "bias",
        "set_weight",
        "alpha",
        "scalar",
        "magnitude",
        "a1",
        "a2",
        "b1",
        "b2",
        "rescale",
    }
)
CONTROLNET = "identify.controlnet"
# What else a file can be, by how some of its names begin: the id of what is said of it.
OTHERS = {
    "identify.vae": (
        "first_stage_model.",
        "vae.",
        "decoder.",
        "encoder.conv",
        "encoder.down",
        "quant_conv",
        "taesd_",
    ),
    CONTROLNET: (
        "control_model.",
        "controlnet_",
        "input_hint_block.",
        "zero_convs.",
        "controlnet_blocks.",
    ),
    "identify.image_encoder": ("vision_model.", "visual."),
}
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
NETWORK_FOLDERS = ("transformer", "unet")  # of a diffusers pipeline
MIN_KNOWN = 0.6  # share of a model's patterns its table must know
MIN_PRESENT = 0.5  # share of its table's patterns a model must have
RESHAPED = 0.5  # what a module counts whose shape fits but for dimensions of 1
MAX_SHARDS = 1000


class Checkpoint(NamedTuple):
    """A model read off its file: the target model, the title of the model, and what is worth
    knowing about the reading.
    """

    target_model: TargetModel
    title: str
    notes: list[str]


class TensorSize(NamedTuple):
    """What is known of a tensor's size: its logical shape, or (None) the number
    of values it packs.
    """

    shape: Shape | None
    values: int = 0


Tensors = Mapping[str, TensorSize]
# Module name -> suffix (".weight", ".bias", ".scale", "") -> size.
Modules = dict[str, dict[str, TensorSize]]


def target_model_of_checkpoint(
    path: str | os.PathLike[str], own: UserMaps = NO_USER_MAPS
) -> Checkpoint:
    """The target model of the model in `path`: a safetensors file, an index of shards, one shard,
    or a folder that holds one of these.

    Only headers are read. Names are ComfyUI's, whatever the file's; sizes that a header does not
    tell are 0. Modules that no table knows keep their names. Raises LoraFileError where there is no
    diffusion model or none that is known.
    """
    path = Path(path)
    notes: list[str] = []
    main, folder = network_path(path)
    tensors = _tensors(main, notes)
    denoiser, encoders, certain = _divide(tensors, own)
    modules = _modules(denoiser)
    reading = _identified(modules, of_kind("denoiser", own.families))
    _must_be_model(path, denoiser, reading, certain=certain, encoders=bool(encoders), own=own)
    family = reading.family if reading else None
    weights = {
        DIFFUSION_MODEL + name: shape for name, shape in _native(reading, modules, notes).items()
    }
    weights |= _beside(family, tensors)
    if folder is not None and family is not None:
        encoders.update(_pipeline_encoders(folder, family, notes))
    networks = [
        Network(DENOISER, DIFFUSION_MODEL, weights, family),
        *_encoder_networks(encoders, family, own, notes),
    ]
    target_model = TargetModel(networks, own)
    if family is None:
        notes.append(message("identify.own_names"))
    return Checkpoint(
        target_model,
        model_title(target_model) or message("identify.unknown_model"),
        list(dict.fromkeys(notes)),
    )


def network_path(path: Path) -> tuple[Path, Path | None]:
    """(the file or folder of the diffusion model, the folder of the pipeline it belongs to)."""
    if path.is_dir():
        inner = next((path / name for name in NETWORK_FOLDERS if (path / name).is_dir()), None)
        if inner is not None:
            return inner, path
    return path, None


def _tensors(path: Path, notes: list[str]) -> dict[str, TensorSize]:
    """Every tensor of a model's files with its logical size, without those that only serve
    quantisation.
    """
    tensors: dict[str, TensorInfo] = {}
    formats: dict[str, str] = {}
    for file in model_files(path):
        header = _header(file)
        tensors.update(header.tensors)
        formats.update(_stated_formats(header.metadata))
    if any(name.endswith(".qweight") for name in tensors):
        raise LoraFileError(path, message("identify.packed"), message("identify.packed_remedy"))
    return _logical(tensors, formats, notes)


def _header(file: Path) -> Header:
    try:
        return read_header(file)
    except LoraFileError as error:
        if "not safetensors" in error.fault:
            remedy = message("identify.give_safetensors")
            raise LoraFileError(file, error.fault, remedy) from None
        raise


def model_files(path: Path) -> list[Path]:
    """The safetensors files that hold a model."""
    if path.is_dir():
        return _files_in(path)
    if path.name.endswith(".json"):
        return _indexed(path)
    shard = SHARD.fullmatch(path.name)
    if shard:
        stem, _, count = shard.groups()
        return [
            path.with_name(f"{stem}-{number:05}-of-{count}.safetensors")
            for number in range(1, min(int(count), MAX_SHARDS) + 1)
        ]
    return [path]


def _files_in(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"), key=lambda path: len(path.name))
    if indices:
        return _indexed(indices[0])
    files = sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise LoraFileError(folder, message("identify.empty_folder"), message("identify.give_file"))
    # The same weights in another precision: model.safetensors and model.fp16.safetensors.
    others = [path.name for path in files[1:] if not path.name.startswith(files[0].stem + ".")]
    if others and not SHARD.fullmatch(files[0].name):
        raise LoraFileError(
            folder,
            message("identify.several_models", one=files[0].name, other=others[0]),
            message("identify.give_one"),
        )
    return model_files(files[0])


def _indexed(index: Path) -> list[Path]:
    """The shards that an index of a sharded model names."""
    try:
        if index.stat().st_size > MAX_HEADER_BYTES:
            raise ValueError(index)
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        if (
            not names
            or len(names) > MAX_SHARDS
            or any(not name or name != Path(name).name or not name.isprintable() for name in names)
        ):
            raise ValueError(index)
    except OSError as error:
        fault = message("files.not_opened", reason=system_reason(error))
        raise LoraFileError(index, fault, message("identify.check_name")) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LoraFileError(
            index, message("identify.no_index"), message("identify.no_index_remedy")
        ) from None
    return [index.with_name(name) for name in sorted(names)]


def _stated_formats(metadata: Mapping[str, str]) -> dict[str, str]:
    """Layer -> format, as ComfyUI's `_quantization_metadata` states it (comfy/utils.py
    convert_old_quants).
    """
    try:
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        return {layer: str(entry.get("format", "")) for layer, entry in layers.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _logical(
    tensors: Mapping[str, TensorInfo], formats: Mapping[str, str], notes: list[str]
) -> dict[str, TensorSize]:
    """Name -> logical size of every tensor that is a weight of the model."""
    kinds: Counter[str] = Counter(kind for kind in formats.values() if kind)
    packed = {name.rpartition(".quant_state.")[0] for name in tensors if name.endswith(PACKED)}
    sizes: dict[str, TensorSize] = {}
    for name, info in tensors.items():
        last = name[name.rfind(".") + 1 :]
        if last in EXTRAS:
            kinds[EXTRAS[last]] += 1
        elif ".weight." in name and not name.endswith(".weight._data"):
            kinds[last.removeprefix("bitsandbytes__")] += last in PACKED
        elif name in packed:
            sizes[name] = TensorSize(None, 2 * prod(info.shape))
        elif info.dtype not in UNTRAINABLE:
            layer = name.rpartition(".")[0]
            halved = info.dtype in ("U8", "I8") and len(info.shape) > 1
            if halved and (formats.get(layer) in FOUR_BIT or f"{layer}.weight_scale_2" in tensors):
                info = info._replace(shape=(*info.shape[:-1], 2 * info.shape[-1]))
            sizes[name.removesuffix("._data")] = TensorSize(info.shape)
    named = [kind for kind, count in kinds.most_common() if count and kind != "scaled"] or [
        kind for kind, count in kinds.items() if count
    ]
    if named:
        notes.append(message("identify.quantized", formats=joined(named)))
    return sizes


def _divide(
    tensors: Tensors, own: UserMaps
) -> tuple[dict[str, TensorSize], dict[str, dict[str, TensorSize]], bool]:
    """(the diffusion model's tensors, each text encoder's by the prefix before it, whether the
    names say what they are).
    """
    encoders: dict[str, dict[str, TensorSize]] = {}
    rest: dict[str, TensorSize] = {}
    starts = (*ENCODERS, *NAMED_ENCODERS)
    for name, size in tensors.items():
        start = (
            next((start for start in starts if name.startswith(start)), None)
            if name.startswith(("cond", "text_enc"))
            else None
        )
        if start is None:
            rest[name] = size
        else:
            encoders.setdefault(start, {})[name[len(start) :]] = size
    for start in CERTAIN:
        inner = {name[len(start) :]: size for name, size in rest.items() if name.startswith(start)}
        if inner:
            return _unwrapped(inner, own), encoders, True
    return _unwrapped(rest, own), encoders, False


def _beside(family: Family | None, tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """What ComfyUI keeps beside the diffusion model, by its names there."""
    return {
        name + key.removeprefix(stored): size.shape
        for name, stored in (family.beside if family else {}).items()
        for key, size in tensors.items()
        if key.startswith(f"{stored}.") and size.shape is not None
    }


def _unwrapped(tensors: dict[str, TensorSize], own: UserMaps) -> dict[str, TensorSize]:
    """The tensors without a prefix, where the tables know more names behind it than before."""
    known = of_kind("denoiser", own.families)
    best, most = tensors, _best_known(tensors, known)
    for start in PREFIXES:
        inner = {
            name[len(start) :]: size for name, size in tensors.items() if name.startswith(start)
        }
        count = _best_known(inner, known) if inner else 0
        if count > most or (not most and 0 < len(inner) == len(tensors) and best is tensors):
            best, most = inner, count
    return best if best is tensors else _unwrapped(best, own)


def _best_known(tensors: Tensors, known: Iterable[Family]) -> int:
    examples = {name.translate(WITHOUT_DIGITS): name for name in tensors}
    templates = {generalise(flatten(_split(name)[0]))[0] for name in examples.values()}
    return max(
        (sum(template in family.lookup for template in templates) for family in known), default=0
    )


def _modules(tensors: Tensors) -> Modules:
    modules: Modules = {}
    for name, size in tensors.items():
        module, suffix = _split(name)
        modules.setdefault(module, {})[suffix] = size
    return modules


def _split(name: str) -> tuple[str, str]:
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)], suffix
    for ending, suffix in GLUED.items():
        if name.endswith(ending):
            return name[: -len(suffix)], suffix
    return name, ""


def _main(tensors: Mapping[str, TensorSize]) -> TensorSize:
    """The size that tells what a module is: its weight's, else that of its only tensor."""
    return next(
        tensors[suffix] for suffix in (".weight", ".scale", "", ".bias") if suffix in tensors
    )


def _identified(modules: Modules, known: Sequence[Family]) -> TableMatch | None:
    """The reading by the family whose table, in any of its namings, knows most of the model's
    patterns, shapes included.
    """
    patterns: dict[str, list[str]] = {}
    for module, tensors in modules.items():
        if tensors.keys() != {".bias"}:
            patterns.setdefault(module.translate(WITHOUT_DIGITS), []).append(module)
    templates = {generalise(flatten(members[0]))[0] for members in patterns.values()}
    rough = {
        family.name: sum(template in family.lookup for template in templates) for family in known
    }
    best = max(rough.values(), default=0)
    close = [
        TableMatch(family, modules)
        for family in known
        if rough[family.name] and rough[family.name] >= CLOSE * best
    ]
    shares = {reading: reading.known(patterns.values()) for reading in close}
    most = max(shares.values(), default=0)
    if most < MIN_KNOWN:
        return None
    equal = [reading for reading, share in shares.items() if share == most]
    return max(equal, key=TableMatch.likelihood) if len(equal) > 1 else equal[0]


class TableMatch:
    """How one table reads the modules of a network; blocks repeat, so that one decision serves all
    of a pattern and shape.
    """

    def __init__(self, family: Family, modules: Modules):
        self.family, self.modules = family, modules
        self._decided: dict[tuple[str, Shape | None], Match | None] = {}
        self._memory: dict[str, Match | None] = {}

    def meaning(self, module: str) -> Match | None:
        """The row that a module's name means and its shape fits; its own native name goes first."""
        if module not in self._memory:
            self._memory[module] = self._decide(module, _main(self.modules[module]))
        return self._memory[module]

    def _decide(self, module: str, size: TensorSize) -> Match | None:
        flat = flatten(module)
        template, numbers = generalise(flat)
        groups = self.family.lookup.get(template)
        if groups is None:
            return None
        if len(groups) > 1 or groups[0][0]:
            # Some of its numbers are part of the name.
            return _meaning(self.family, flat, module, size)
        key = (template, size.shape)
        if key not in self._decided:
            self._decided[key] = _meaning(self.family, flat, module, size)
        match = self._decided[key]
        return match and match._replace(
            native=tuple([fill(name, numbers) for name in match.row.native])
        )

    def known(self, patterns: Iterable[list[str]]) -> float:
        """The share of the network's patterns that the table knows."""
        counted = []
        for members in patterns:
            for module in members[:: max(1, len(members) // SAMPLES)]:
                match = self.meaning(module)
                counted.append(_closeness(match, _main(self.modules[module])) if match else 0)
        return sum(counted) / len(counted) if counted else 0.0

    def present(self) -> float:
        """The share of the table's rows that the network has, of those that every published model
        has.
        """
        matches = [self.meaning(module) for module in self.modules]
        present = {native for match in matches if match is not None for native in match.row.native}
        natives = {
            row.native[0] for row in self.family.rows if len(row.native) == 1 and not row.optional
        }
        return len(natives & present) / len(natives) if natives else 1.0

    def likelihood(self) -> tuple[float, bool, float]:
        """What tells readings apart that know equally much: how whole the model is; a mere part is
        of a common model.
        """
        present = self.present()
        part = present < MIN_PRESENT
        return 0.0 if part else present, part and self.family.common, present


def _meaning(family: Family, flat: str, module: str, size: TensorSize) -> Match | None:
    fitting = [match for match in family.find(flat) if _fits(match, size)]
    if len(fitting) > 1:
        # Of layers that a model has fused or apart: ComfyUI fuses what it can.
        first = {row.native for row in in_one_form(family.rows)}
        fitting = [match for match in fitting if match.row.native in first] or fitting
    return next(
        (match for match in fitting if match.alternative < 0 and match.native[0] == module),
        fitting[0] if fitting else None,
    )


def _fits(match: Match, size: TensorSize) -> bool:
    row = match.row
    if size.shape is None or row.shape is None or len(row.native) > 1:
        return True
    if not is_whole(match):
        return unify(row.shape[1:], size.shape[1:]) is not None
    return _as_native(row, size.shape) is not None


def _closeness(match: Match, size: TensorSize) -> float:
    """1 where a fitting module has the very shape of its row, less where it is the same but for
    dimensions of 1.
    """
    row, shape = match.row, size.shape
    same = (
        shape is None
        or row.shape is None
        or len(row.native) > 1
        or not is_whole(match)
        or unify(row.shape, shape) is not None
    )
    return 1 if same else RESHAPED


def _as_native(row: TableRow, shape: Shape) -> Shape | None:
    """The shape the native weight has; tables of shifts have a leading 1 with some tools, and 1x1
    convolutions may be linear layers.
    """
    if row.shape is None or unify(row.shape, shape) is not None:
        return shape
    for variant in ((1, *shape), shape[1:]):
        if unify(row.shape, variant) is not None and prod(variant) == prod(shape):
            return variant
    flat = shape[:-2] if shape[2:] == (1, 1) else (*shape, 1, 1)
    return shape if unify(row.shape, flat) is not None else None


def _native(
    reading: TableMatch | None, modules: Modules, notes: list[str], bare: str = ""
) -> dict[str, Shape]:
    """ComfyUI's names and shapes of a network's tensors; `bare`: what ComfyUI appends to names
    without a suffix.
    """
    renamed = modules if reading is None else _renamed(reading, notes)
    family = reading.family.name if reading else ""
    suffixes = {"": bare, ".scale": ".weight" if family in SCALE_IS_WEIGHT else ".scale"}
    return {
        module + suffixes.get(suffix, suffix): (0, 0) if size.shape is None else size.shape
        for module, tensors in renamed.items()
        for suffix, size in tensors.items()
    }


def _renamed(reading: TableMatch, notes: list[str]) -> Modules:
    """A network's modules under ComfyUI's names, parts of one weight joined; what the table does
    not know keeps its name.
    """
    family, strange = reading.family, 0
    whole: dict[str, dict[str, TensorSize]] = {}
    pieces: dict[tuple[str, int, int], dict[int, Mapping[str, TensorSize]]] = {}
    for module, tensors in reading.modules.items():
        match = reading.meaning(module)
        if match is None:
            whole.setdefault(module, {}).update(tensors)
            strange += 1
        elif len(match.row.native) > 1:
            whole.update(_divided(family, match, tensors))
        elif is_whole(match):
            whole.setdefault(match.native[0], {}).update(
                _shaped(match.row, tensors) if match.alternative >= 0 else tensors
            )
        else:
            pieces.setdefault((match.native[0], match.index, match.alternative), {})[match.part] = (
                tensors
            )
    for (native, index, alternative), parts in pieces.items():
        whole.setdefault(native, {}).update(
            _joined(parts, len(family.rows[index].alternatives[alternative].parts))
        )
    if strange and any(module not in whole for module in reading.modules):
        notes.append(message("identify.names_kept", count=strange))
    _unpack(family, whole, notes)
    return whole


def _shaped(row: TableRow, tensors: Mapping[str, TensorSize]) -> dict[str, TensorSize]:
    shaped = dict(tensors)
    for suffix, size in tensors.items():
        if suffix != ".bias" and size.shape is not None:
            shaped[suffix] = TensorSize(_as_native(row, size.shape) or size.shape)
    return shaped


def _joined(parts: Mapping[int, Mapping[str, TensorSize]], needed: int) -> dict[str, TensorSize]:
    """Parts laid one after another over the output rows of one weight; its size is not known where
    one of them is missing.
    """
    joined: dict[str, TensorSize] = {}
    for suffix in dict.fromkeys(suffix for tensors in parts.values() for suffix in tensors):
        sizes = [tensors[suffix] for tensors in parts.values() if suffix in tensors]
        if len(sizes) < needed:
            joined[suffix] = TensorSize(None)
        elif any(not size.shape for size in sizes):
            joined[suffix] = TensorSize(
                None, sum(prod(size.shape) if size.shape else size.values for size in sizes)
            )
        else:
            shapes = [size.shape for size in sizes if size.shape]
            joined[suffix] = TensorSize((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    return joined


def _divided(family: Family, match: Match, tensors: Mapping[str, TensorSize]) -> Modules:
    """One tensor over several native modules, divided as the sizes in their own rows say."""
    rows = [_own_row(family, native) for native in match.native]
    shape = _main(tensors).shape
    known = _shares(rows, shape) if shape else None
    divided: Modules = {}
    for native, row in zip(match.native, rows, strict=True):
        share = (
            evaluate(row.shape[0], known)
            if known is not None and row is not None and row.shape
            else None
        )
        for suffix, size in tensors.items():
            rest = size.shape[1:] if size.shape else ()
            divided.setdefault(native, {})[suffix] = TensorSize(
                (share, *rest) if share and size.shape else None
            )
    return divided


def _own_row(family: Family, native: str) -> TableRow | None:
    return next(
        (
            match.row
            for match in family.find(flatten(native))
            if match.alternative < 0 and match.row.shape
        ),
        None,
    )


def _shares(rows: Sequence[TableRow | None], shape: Shape) -> dict[str, int] | None:
    """The rows' symbols, where their outputs add up to the first size of `shape`."""
    shapes = [row.shape for row in rows if row and row.shape]
    if len(shapes) < len(rows):
        return None
    total: Counter[str] = Counter()
    for symbolic in shapes:
        total.update(dict(symbolic[0]))
    fused: tuple[Size, ...] = (tuple(sorted(total.items())), *shapes[0][1:])
    return unify(fused, shape)


def _unpack(family: Family, modules: Modules, notes: list[str]) -> None:
    """Give packed weights the shapes that the sizes known of the table's symbols, the bias and the
    number of values leave.
    """
    waiting = [
        module
        for module, tensors in modules.items()
        if any(size.shape is None for size in tensors.values())
    ]
    if not waiting:
        return
    sizes = _symbols(family, modules)
    lost = 0
    for module in waiting:
        row = _own_row(family, module)
        for suffix, size in modules[module].items():
            if size.shape is None:
                shape = _unpacked(row, size.values, sizes, modules[module].get(".bias"), suffix)
                modules[module][suffix] = TensorSize(
                    shape or (0,) * (1 if suffix == ".bias" else 2)
                )
                lost += shape is None
    if lost:
        notes.append(message("identify.shapes_unknown", count=lost))


def _unpacked(
    row: TableRow | None,
    values: int,
    sizes: Mapping[str, int],
    bias: TensorSize | None,
    suffix: str,
) -> Shape | None:
    known = row.shape if row is not None and row.shape is not None else ()
    shape = tuple(
        [evaluate(size, sizes) or 0 for size in (known[:1] if suffix == ".bias" else known)]
    )
    if shape and 0 not in shape and prod(shape) == (values or prod(shape)):
        return shape
    out = bias.shape[0] if bias is not None and bias.shape else shape[0] if shape else 0
    return (
        (out, values // out)
        if suffix != ".bias" and values and out and values % out == 0 and len(shape) in (0, 2)
        else None
    )


def _symbols(family: Family, modules: Modules) -> dict[str, int]:
    """The table's symbols as most of the modules with known shapes tell them."""
    votes: dict[str, Counter[int]] = {}
    for module, tensors in modules.items():
        row, shape = _own_row(family, module), _main(tensors).shape
        if row is None or row.shape is None:
            continue
        bias = tensors.get(".bias", TensorSize(None)).shape
        symbolic, actual = (row.shape, shape) if shape is not None else (row.shape[:1], bias)
        solved = unify(symbolic, actual) if actual is not None else None
        for symbol, number in (solved or {}).items():
            votes.setdefault(symbol, Counter())[number] += 1
    return {symbol: counts.most_common(1)[0][0] for symbol, counts in votes.items()}


def _must_be_model(
    path: Path,
    tensors: Tensors,
    reading: TableMatch | None,
    *,
    certain: bool,
    encoders: bool,
    own: UserMaps,
) -> None:
    """Raise LoraFileError, saying what the file is instead, where it holds no whole diffusion
    model.
    """
    present = reading.present() if reading else 0.0
    other = "" if certain else _other(tensors, OTHERS)
    if present >= MIN_PRESENT and other != CONTROLNET:
        return
    roles = [parse_key(name).role for name in tensors]
    if sum(role is not None and role not in NO_ADAPTER for role in roles) > len(roles) / 4:
        raise _no_model(path, message("identify.is_lora"))
    if certain and reading is None:
        return
    if encoders or not tensors:
        raise _no_model(path, message("identify.no_diffusion_model"))
    if _identified(_modules(tensors), of_kind("text_encoder", own.families)) is not None:
        raise _no_model(path, message("identify.text_encoder"))
    if other:
        raise _no_model(path, message(other))
    if reading is not None:
        title = reading.family.title
        fault = message("identify.only_a_part", share=f"{present:.0%}", title=title)
        raise LoraFileError(path, fault, message("identify.give_whole_model"))
    raise LoraFileError(
        path, message("identify.model_in_no_table"), message("identify.give_known_model")
    )


def _no_model(path: Path, fault: str) -> LoraFileError:
    """The error for a file of another kind."""
    return LoraFileError(path, fault, message("identify.give_model"))


def _other(tensors: Tensors, kinds: Mapping[str, tuple[str, ...]]) -> str:
    return next(
        (
            kind
            for kind, starts in kinds.items()
            if any(name.startswith(starts) for name in tensors)
        ),
        "",
    )


@lru_cache(maxsize=1)
def _openclip() -> Family:
    return parse_table("openclip", OPENCLIP)


def _pipeline_encoders(
    folder: Path, family: Family, notes: list[str]
) -> dict[str, dict[str, TensorSize]]:
    """The text encoders in the folders of a diffusers pipeline, by ComfyUI's slots as the family's
    table numbers them.
    """
    encoders: dict[str, dict[str, TensorSize]] = {}
    for slot, prefixes in family.encoders.items():
        name = next((text[:-1] for text in prefixes if text.endswith(".")), "")
        if name and (folder / name).is_dir():
            members = {
                f"{slot}.transformer.{tensor}": size
                for tensor, size in _tensors(folder / name, notes).items()
            }
            encoders.setdefault(NAMED_ENCODERS[0], {}).update(members)
    return encoders


def _encoder_networks(
    encoders: Mapping[str, Tensors], family: Family | None, own: UserMaps, notes: list[str]
) -> list[Network]:
    """The text encoders of a checkpoint; `encoders`: prefix in the file -> what
    follows it -> size.
    """
    known = of_kind("text_encoder", own.families)
    weights: dict[str, Shape] = {}
    for start, tensors in encoders.items():
        if start in NAMED_ENCODERS:
            for slot, members in _by_slot(tensors).items():
                weights.update(_encoder_weights(slot, members, known, notes))
        elif ENCODERS[start]:
            weights.update(_encoder_weights(ENCODERS[start], tensors, known, notes))
        else:
            weights.update(_openclip_weights(tensors, family, notes))
    return encoder_networks(weights, own.families)


def _by_slot(tensors: Tensors) -> dict[str, dict[str, TensorSize]]:
    """Slot -> its network's tensors, without the slot and `transformer.`; beside these stand only
    tokenizers and scalars.
    """
    slots: dict[str, dict[str, TensorSize]] = {}
    for name, size in tensors.items():
        slot, _, inner = name.partition(".")
        if inner.startswith("transformer."):
            slots.setdefault(slot, {})[inner[len("transformer.") :]] = size
    return slots


def _encoder_weights(
    slot: str, tensors: Tensors, known: Sequence[Family], notes: list[str]
) -> dict[str, Shape]:
    modules = _modules(tensors)
    native = _native(_identified(modules, known), modules, notes)
    return _in_slot(slot, native)


def _openclip_weights(
    tensors: Tensors, family: Family | None, notes: list[str]
) -> dict[str, Shape]:
    """A text encoder with OpenCLIP's names; its image tower has no part in the model."""
    modules = _modules(
        {
            name: size
            for name, size in tensors.items()
            if not name.startswith("visual.") and name != "logit_scale"
        }
    )
    native = _native(TableMatch(_openclip(), modules), modules, notes, ".weight")
    width = (native.get("text_model.final_layer_norm.weight") or (0,))[0]
    possible = (
        [slot for slot in family.encoders if slot in SLOT_TITLES and slot != "clip_l"]
        if family
        else []
    )
    slot = OPENCLIP_SLOTS.get(width) or (possible or ["clip_g"])[0]
    notes.append(message("identify.openclip_names", encoder=SLOT_TITLES[slot]))
    return _in_slot(slot, native)


def _in_slot(slot: str, native: Mapping[str, Shape]) -> dict[str, Shape]:
    weights = {f"{slot}.transformer.{name}": shape for name, shape in native.items()}
    width = native.get("text_model.final_layer_norm.weight")
    if width:
        # ComfyUI's CLIP has one even where the file has none (comfy/clip_model.py CLIPTextModel).
        weights.setdefault(f"{slot}.transformer.text_projection.weight", (width[0], width[0]))
    return weights
