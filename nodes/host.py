"""The door to ComfyUI's internals: it reads files and models, has plans executed (patches.py,
bypass.py), and asks what stock would do.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..adapters.registry import named
from ..adapters.spec import AdapterError
from ..errors import exhausted
from ..files.gc_pause import without_collection
from ..files.hashes import Hashes, file_hashes
from ..files.header import (
    ENDINGS,
    PICKLED,
    Header,
    LoraFileError,
    TensorInfo,
    adapter_config_beside,
    read_header,
    stock_fault,
)
from ..identify.stock_loader import StockKeys, missing
from ..key_maps.arithmetic import as_number
from ..key_maps.user_maps import NO_USER_MAPS, UserMaps, own_maps_stamp, read_own_maps
from ..lora.copies import same_change
from ..lora.io.mapped import map_tensors
from ..lora.io.watch import Watch, WatchedTensors
from ..lora.math.faults import first_line
from ..lora.own_base import rounded_base, strangers
from ..lora.soundness import Look, cautions, look_at_file, look_at_tensors
from ..lora.statistics import measure_modules
from ..messages import message
from ..planning.keys import parse_key
from ..planning.plan import Plan, make_plan, without_adapters
from ..planning.target_model import (
    DIFFUSION_MODEL,
    Network,
    TargetModel,
    denoiser_network,
    encoder_networks,
    names_beside,
    of_kind,
)
from ..report.beside import beside_stamp, read_beside
from ..report.inspection import Inspection, inspect_header
from ..report.listing import Stamp, stamp_of
from ..report.load_report import Report
from ..report.metadata import read_metadata, with_words, words_to_use
from .auto import choose, counted, patched_each_step, where_they_act
from .bypass import add_bypass_hooks, did_not_run
from .layer_weights import layer_weights
from .modes import AUTO, BYPASS, PATCH
from .patches import Tensors, build_patches, host_applies, weight_of
from .together import settle
from .unpatched import is_quantised
from .watched import watched

MAX_SAID = 200  # characters of an error of the host
# The stock loader's, as it was before anything of ours stands around it: see every_loader.py.
STOCK_LOAD = comfy.lora.load_lora


class LoraFile(NamedTuple):
    """A LoRA file in memory: tensors by key, its header, PEFT's adapter_config.json beside it, and
    an eye on the file on disk.
    """

    tensors: Tensors
    header: Header
    config_beside: Mapping[str, Any] | None
    watch: Watch | None = None
    look: Look | None = None

    def to_be_written(self) -> Tensors:
        """The tensors, for what is made into another file: reading them fails where this one is
        overwritten meanwhile.
        """
        return WatchedTensors(self.tensors, self.watch) if self.watch else self.tensors

    def unchanged(self) -> bool:
        """Whether it is still the same on disk, as far as can be told."""
        return self.watch is None or self.watch.unchanged()


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read a LoRA file; pickles only through the host's safe loader. Raises LoraFileError with
    file, fault and remedy.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise LoraFileError(path, message("files.gone"), message("nodes.check_the_name"))
    ending = os.path.splitext(path)[1].lower()
    if ending in PICKLED:
        return _read_pickle(path)
    header = read_header(path)
    if _host_reads_headers():
        header = header._replace(refusal="")
    if ending not in ENDINGS:
        raise LoraFileError(
            path,
            message("nodes.ending_not_loaded", ending=ending)
            if ending
            else message("nodes.no_ending"),
            message("nodes.rename_to_safetensors"),
        )
    try:
        tensors = _read_tensors(path, header)
        look = look_at_file(path, header)
    except LoraFileError:
        raise
    except Exception as error:
        if exhausted(error):
            raise  # no fault of the file
        raise LoraFileError(
            path,
            message("nodes.tensors_not_read", fault=first_line(error)[:160]),
            message("files.export_again"),
        ) from None
    return LoraFile(tensors, header, adapter_config_beside(path), Watch(path, header.stamp), look)


def _read_tensors(path: str, header: Header) -> Tensors:
    """The tensors, mapped from the file; by the host where it tracks their place in the file or may
    not map at all.
    """
    if _host_reads_headers() or getattr(comfy.utils, "DISABLE_MMAP", False):
        return comfy.utils.load_torch_file(path, safe_load=True)
    return map_tensors(path, header)


def _host_reads_headers() -> bool:
    """Whether the host maps files itself, and tracks their place, instead of asking safetensors."""
    return bool(getattr(getattr(comfy, "memory_management", None), "aimdo_enabled", False))


def _read_pickle(path: str) -> LoraFile:
    try:
        content = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:
        if exhausted(error):
            raise  # no fault of the file
        fault = message("nodes.pickle_refused", fault=first_line(error)[:160])
        raise LoraFileError(path, fault, message("nodes.pickle_holds_more")) from None
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise LoraFileError(
            path, message("nodes.no_tensors_by_name"), message("nodes.get_safetensors")
        )
    infos = {
        key: TensorInfo(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for key, value in tensors.items()
    }
    return LoraFile(tensors, Header(infos, {}), adapter_config_beside(path))


class FileCache:
    """Keeps the last files read, by path, size and time of change, so that a
    re-run reads nothing.
    """

    def __init__(self, most: int = 2):
        self.most = most
        self.entries: OrderedDict[str, tuple[Stamp | None, LoraFile]] = OrderedDict()

    def read(self, path: str | os.PathLike[str]) -> LoraFile:
        """The file at `path`, read again only if it changed on disk."""
        path = os.path.realpath(path)
        stamp = stamp_of(path)
        known = self.entries.pop(path, None)
        content = (
            known[1] if known and known[0] == stamp and known[1].unchanged() else read_lora(path)
        )
        self.entries[path] = (stamp, content)
        while len(self.entries) > self.most:
            self.entries.popitem(last=False)
        return content


_files = FileCache()


class PlanCache:
    """Keeps the last plans of files on disk, so that another strength plans nothing.

    A plan is for one reading of a file, whose values may have decided something (`FileCache` reads
    it anew when it or its settings change), and for the networks of one model, which are made anew
    for other maps of the user's.
    """

    def __init__(self, most: int = 4):
        self.plans: deque[tuple[Header, UserMaps, Plan]] = deque(maxlen=most)

    def plan(
        self, file: LoraFile, target_model: TargetModel, own: UserMaps, make: Callable[[], Plan]
    ) -> Plan:
        """The plan of this file for this target model; `make` where it is not known."""
        if file.watch is None:
            return make()
        for header, maps, plan in self.plans:
            networks = plan.target_model.networks
            if (
                header is file.header
                and maps is own
                and networks.keys() == target_model.networks.keys()
                and all(networks[name] is one for name, one in target_model.networks.items())
            ):
                return plan
        plan = make()
        self.plans.append((file.header, own, plan))
        return plan


_plans = PlanCache()


def read(path: str | os.PathLike[str]) -> LoraFile:
    """The LoRA file at `path`, read again only if it changed on disk. Raises LoraFileError."""
    return _files.read(path)


def logical_shape(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape a weight stands for, whatever its storage: GGUF and quantised tensors tell it
    themselves, NF4 by its state.
    """
    state = getattr(weight, "quant_state", None)
    shape = getattr(state, "shape", None) or getattr(weight, "tensor_shape", None) or weight.shape
    return tuple(shape)


_networks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_stock_names: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def _shapes(
    module: torch.nn.Module, starts: str | tuple[str, ...] = ""
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters and buffers whose names begin with one of `starts`.

    One walk: torch's own two, through a generator for each level, are a tenth of what loading onto
    a new model takes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    waiting = [("", module)]
    while waiting:
        before, owner = waiting.pop()
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (before + name).startswith(starts):
                    shapes[before + name] = logical_shape(tensor)
        for name, child in reversed(owner._modules.items()):
            if child is not None:
                waiting.append((f"{before}{name}.", child))
    return shapes


def _remembered(
    store: weakref.WeakKeyDictionary,
    module: Any,
    make: Callable[[], Any],
    own: UserMaps = NO_USER_MAPS,
) -> Any:
    """What `make` gave for this module and these maps; made anew for others."""
    remembered = store.get(module)
    if remembered is None or remembered[0] is not own:
        remembered = store[module] = (own, make())
    return remembered[1]


def target_model_of(model, clip, own: UserMaps = NO_USER_MAPS) -> TargetModel:
    """The target model a ModelPatcher and a CLIP (either may be None) make; what names they have is
    remembered per model.
    """
    networks: list[Network] = []
    if model is not None:
        network = model.model
        starts = (DIFFUSION_MODEL, *names_beside(of_kind("denoiser", own.families)))
        networks.append(
            _remembered(
                _networks,
                network,
                lambda: denoiser_network(_shapes(network, starts), own.families),
                own,
            )
        )
    if clip is not None:
        encoder = clip.cond_stage_model
        networks.extend(
            _remembered(
                _networks,
                encoder,
                lambda: encoder_networks(_shapes(encoder), own.families),
                own,
            )
        )
    return TargetModel(networks, own)


def wired_model(model, clip, own: UserMaps = NO_USER_MAPS) -> TargetModel | None:
    """The target model of what is connected; None where nothing is, so that the model is drawn from
    the tables.
    """
    return None if model is None and clip is None else target_model_of(model, clip, own)


_own_maps: list[tuple[tuple, UserMaps]] = []


def own_maps(folder: str | os.PathLike[str]) -> UserMaps:
    """The user's own tables and records in `folder`, read again when a file there changes."""
    stamp = own_maps_stamp(Path(folder))
    if not stamp:
        return NO_USER_MAPS
    if not _own_maps or _own_maps[0][0] != stamp:
        _own_maps[:] = [(stamp, read_own_maps(Path(folder)))]
    return _own_maps[0][1]


def stock_placed(model, clip, file: LoraFile) -> StockKeys:
    """The keys of a file that the stock loader would use, asked of the host's own code over the
    names that matter.

    That code raises on files of all kinds; what it says is a part of the answer, for what is loaded
    stays loaded.
    """
    try:
        return StockKeys.of(*_placed_by_stock(model, clip, file))
    except MemoryError:
        raise
    except Exception as error:
        return StockKeys.raising(
            missing(error.args[0])
            if isinstance(error, KeyError) and error.args
            else first_line(error)[:MAX_SAID]
        )


def _placed_by_stock(model, clip, file: LoraFile) -> tuple[set[str], set[str]]:
    """(the keys that the host's own code uses, those of them that fail while it samples)."""
    names: dict[str, Any] = {}
    if model is not None:
        names |= _remembered(
            _stock_names, model.model, lambda: comfy.lora.model_lora_keys_unet(model.model, {})
        )
    if clip is not None:
        encoder = clip.cond_stage_model
        names |= _remembered(
            _stock_names, encoder, lambda: comfy.lora.model_lora_keys_clip(encoder, {})
        )
    converted = comfy.lora_convert.convert_lora(dict(file.tensors))
    original = _original_names(file.tensors, converted)
    known = _known_in(converted, names)
    if not known:
        return set(), set()
    loaded = STOCK_LOAD(converted, known, log_missing=False)
    used = {key for patch in loaded.values() for key in getattr(patch, "loaded_keys", ())}
    used |= {
        f"{name}.{role}"
        for name in known
        for role in ("diff", "diff_b", "set_weight", "w_norm")
        if f"{name}.{role}" in converted
    }
    failing = _failing_in_stock(loaded, converted, target_model_of(model, clip))
    return (
        {original[key] for key in used if key in original},
        {original[key] for key in failing if key in original},
    )


def stock_patches(converted: Tensors, names: Mapping[str, Any]) -> dict[Any, Any]:
    """The patches that the stock loader makes of a file, after its own conversion.

    names: its key map, name -> weight. Raises what that code raises.
    """
    known = _known_in(converted, names)
    return STOCK_LOAD(converted, known, log_missing=False) if known else {}


def _known_in(converted: Tensors, names: Mapping[str, Any]) -> dict[str, Any]:
    """What of a key map a file can have anything for, in its order, as the last name counts."""
    wanted = {prefix for key in converted for prefix in _prefixes(key)}
    return {name: weight for name, weight in names.items() if name in wanted}


def _failing_in_stock(
    loaded: Mapping[Any, Any], converted: Tensors, target_model: TargetModel
) -> set[str]:
    """The converted keys of the host's patches that its own code cannot compute for the weights
    they are for. An alpha goes with its module's tensors.
    """
    shapes = {
        weight: shape
        for network in target_model.networks.values()
        for weight, shape in network.weights.items()
    }
    failing: set[int] = set()
    for target, patch in loaded.items():
        weight, *rows = (target,) if isinstance(target, str) else target
        shape = shapes.get(weight)
        if shape and not host_applies(patch, shape, *rows[:1]):
            parts = patch[1] if isinstance(patch, tuple) else patch.weights
            failing |= {id(part) for part in parts if isinstance(part, torch.Tensor)}
    keys = {key for key, tensor in converted.items() if id(tensor) in failing}
    modules = {parse_key(key).module for key in keys}
    return keys | {f"{module}.alpha" for module in modules}


def inspect(
    model, clip, path: str | os.PathLike[str], own: UserMaps = NO_USER_MAPS, whole: bool = False
) -> Inspection:
    """What is in the LoRA file at `path`: exact for what is connected, else for the model it was
    made for. Raises LoraFileError.

    whole: text encoders that are not connected are drawn, for whoever writes the file again.
    """
    file = _files.read(path)
    target_model = wired_model(model, clip, own)
    ask = (lambda plan: stock_placed(model, clip, file)) if model is not None else None
    return inspect_header(
        path, file.header, file.config_beside, target_model, own=own, stock=ask, whole=whole
    )


def measure(inspection: Inspection) -> tuple[dict[str, Any], Hashes]:
    """(the measured weights of an inspected file, its hashes); stops when the user does."""
    file = _files.read(inspection.path)
    hashes = file_hashes(
        inspection.path,
        lambda done, total: comfy.model_management.throw_exception_if_processing_interrupted(),
    )
    return measure_modules(inspection.plan, file.tensors, file.config_beside).as_dict(), hashes


def _prefixes(key: str) -> tuple[str, ...]:
    first, second, third = key.rsplit(".", 1)[0], key.rsplit(".", 2)[0], key.rsplit(".", 3)[0]
    return parse_key(key).module, first, second, third


def _original_names(tensors: Tensors, converted: Tensors) -> dict[str, str]:
    """Key after the host's conversion -> key in the file, by the identity of the tensor."""
    by_identity = {id(tensor): key for key, tensor in tensors.items()}
    return {
        key: by_identity[id(tensor)]
        for key, tensor in converted.items()
        if id(tensor) in by_identity
    }


def words_of(path: str) -> list[str]:
    """The trigger words of a LoRA file, from its header and from what lies beside it."""
    return list(_words(path, (stamp_of(path), beside_stamp(path))))


@lru_cache(maxsize=256)
def _words(path: str, now: tuple[Any, ...]) -> tuple[str, ...]:
    """Remembered, as metadata may be megabytes of tags; now: changes with the file and with what
    lies beside it.
    """
    metadata = read_metadata(_files.read(path).header.metadata)
    return tuple(words_to_use(with_words(metadata, read_beside(path).words)))


def progress_bar() -> Callable[[int, int], None]:
    """Called as (done, total): moves the node's bar, and stops the work when the user stops the
    run.
    """
    bars: list[comfy.utils.ProgressBar] = []

    def report_progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return report_progress


def weights_of(model, clip) -> Callable[[str], torch.Tensor] | None:
    """Full native name -> the weight without patches, fp32 on the CPU; AdapterError for a name the
    model lacks.
    """
    stored_as = stored_weights(model, clip)

    def weight(name: str) -> torch.Tensor:
        stored, convert = stored_as(name)
        return convert(stored.detach().to("cpu"), inplace=False).to(torch.float32)

    return None if model is None and clip is None else weight


def patched_weights_of(model, clip) -> Callable[[str], torch.Tensor]:
    """Full native name -> the weight as the model's patches make it, fp32 on the CPU, not rounded;
    what acts beside a layer is not in it.
    """
    bare = weights_of(model, clip)
    assert bare is not None
    patches = patches_of(model, clip)

    def weight(name: str) -> torch.Tensor:
        if name not in patches:
            return bare(name)
        return comfy.lora.calculate_weight(patches[name], bare(name).clone(), name)

    return weight


def patches_of(model, clip) -> dict[str, Any]:
    """Full native name -> the patches there are for it."""
    return {
        name: patches
        for patcher in _patchers(model, clip)
        for name, patches in patcher.patches.items()
    }


def beside_layers(model, clip) -> list[str]:
    """What hangs on the layers of a model, by the names it was put there under."""
    return [name for patcher in _patchers(model, clip) for name in patcher.injections]


def computing_device(size: int) -> torch.device:
    """Where the host computes, with room made for so many bytes."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(size, device)
    return device


def _patchers(model, clip) -> list[Any]:
    return [patcher for patcher in (model, clip and clip.patcher) if patcher is not None]


def stored_weights(model, clip) -> Callable[[str], tuple[torch.Tensor, Callable]]:
    """Full native name -> (the parameter as it is stored, the host's way to compute with it).

    As the host's own `get_key_patches`, which fails on models with quantised weights, whose state
    dict names what no module has.
    """
    patchers = _patchers(model, clip)

    def stored(name: str) -> tuple[torch.Tensor, Callable]:
        for patcher in patchers:
            try:
                weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, name)
            except AttributeError:
                continue
            kept, hooked = patcher.backup.get(name), patcher.hook_backup.get(name)
            weight = (
                hooked[0] if hooked is not None else kept.weight if kept is not None else weight
            )
            return weight, convert or as_it_is
        raise AdapterError(message("nodes.model_lacks_weight", name=name))

    return stored


def as_it_is(weight: torch.Tensor, **_: Any) -> torch.Tensor:
    """How a weight is computed with that is stored as it is."""
    return weight


def forget(*, files: bool = True, models: bool = True) -> None:
    """Drop what is remembered of files and models, as a new process would know it."""
    _plans.plans.clear()
    if files:
        _files.entries.clear()
    if models:
        _networks.clear()
        _stock_names.clear()


def load_and_fix(
    model,
    clip,
    path,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    *,
    own: UserMaps = NO_USER_MAPS,
    bypass: bool = False,
    name: str = "",
    mode: str = "",
    blocks: str = "",
) -> tuple[Any, Any, Report]:
    """Load the LoRA at `path` onto clones of `model` (ModelPatcher) and `clip` (CLIP); either may
    be None.

    bypass: adapters act in the layers' forward passes, and the weights stay as they are, where that
    is exact.
    mode: one of `modes`, which says more than `bypass` and counts in its place: AUTO chooses for
    each weight, and the report says which.
    name: what the report calls the file; its path's last part where none is given.
    blocks: layer weights, `double_blocks.0-5=0.5, te=0`: what the strength of each layer is
    multiplied with (`lora.merge.block_weights`).
    Returns (model, clip, Report). Works on weights of any storage and on the meta device: it reads
    names and shapes only, and the weights of a layer or two where an adapter can tell by them
    whether this is the model it was trained on. Raises LoraFileError for a file that cannot be
    read; a file that does not fit is no error, the report says so.
    """
    file = _files.read(path)
    return apply_file(
        model,
        clip,
        file,
        name or os.path.basename(path),
        strength_model=strength_model,
        strength_clip=strength_clip,
        own=own,
        bypass=bypass,
        mode=mode,
        blocks=blocks,
    )


def apply_file(
    model,
    clip,
    file: LoraFile,
    name: str,
    *,
    strength_model: float,
    strength_clip: float,
    own: UserMaps,
    bypass: bool,
    mode: str = "",
    blocks: str = "",
) -> tuple[Any, Any, Report]:
    """Apply a LoRA in memory, which the report calls `name`; see `load_and_fix`."""
    mode = mode or (BYPASS if bypass else PATCH)
    with without_collection():
        plan, rounded = planned(file, model, clip, own)
        candidates = ((model, strength_model), (clip and clip.patcher, strength_clip))
        applied = [one for one, strength in candidates if one is not None and strength]
        chosen, kept = choose(plan, applied if mode == AUTO else (), logical_shape, is_quantised)
        patches = build_patches(plan, file.tensors, ours=chosen if mode == AUTO else mode == BYPASS)
        weighed = layer_weights(plan, blocks)
        layers = weighed.shares(watched(patches.layers, file.watch))
        doubted, checked = doubts(file, plan)
        metadata = dict(file.header.metadata)
        left: Counter[str] = Counter()
        only = chosen if mode == AUTO else None if mode == BYPASS else ()
        apply = partial(
            apply_layers,
            shares=layers,
            metadata=metadata,
            left=left,
            only=only,
            fast=patched_each_step(kept),
        )
        new_model, met = apply(model, strength=strength_model)
        new_clip, met_in_clip = apply(clip, strength=strength_clip)
    left_out = _notes_on_bypass(left) if mode == BYPASS else ()
    report = Report(
        plan,
        name,
        failures=patches.failures,
        stock=partial(stock_placed, model, clip, file),
        errors=(
            *(own.errors + left_out + weighed.notes + _notes_on_meetings(met + met_in_clip)),
            *(_notes_on_silence(plan, new_model, new_clip) if mode != PATCH else ()),
        ),
        cautions=(*doubted, *rounded),
        checked=checked,
        stock_fault=stock_fault(file.header),
        acts=where_they_act(chosen, kept, left),
        layer_weights=weighed.by_layer,
    )
    return new_model, new_clip, report


def planned(file: LoraFile, model, clip, own: UserMaps) -> tuple[Plan, tuple[str, ...]]:
    """(what a LoRA in memory does to a ModelPatcher's model and a CLIP's encoders, without what was
    trained on another base than these; cautions where the base is quantised).
    """
    target_model = target_model_of(model, clip, own)
    make = partial(
        make_plan,
        file.header.tensors,
        file.header.metadata,
        target_model,
        config_beside=file.config_beside,
        number=partial(_number_in, file.tensors),
        same=partial(same_change, file.tensors),
    )
    plan = _plans.plan(file, target_model, own, make)
    return _on_this_base(plan, file.tensors, model, clip)


def doubts(file: LoraFile, plan: Plan) -> tuple[tuple[str, ...], str]:
    """(what makes it doubtful that the file comes out as trained, how much of its numbers was
    looked at).
    """
    look = file.look or look_at_tensors(file.tensors)
    changed = file.watch.cautions if file.watch else ()
    return (*changed, *cautions(plan, file.tensors, look)), look.at


def _on_this_base(plan: Plan, tensors: Tensors, model, clip) -> tuple[Plan, tuple[str, ...]]:
    """The plan without adapters that were trained on another base than this, and cautions where
    this one is quantised.
    """
    if not any(named(adapter.kind).of_its_base for adapter in plan.adapters):
        return plan, ()
    stored = stored_weights(model, clip)
    weights = weights_of(model, clip)
    reasons = strangers(plan, tensors, weights) if weights else {}
    plan = without_adapters(plan, reasons) if reasons else plan
    return plan, rounded_base(plan, lambda name: is_quantised(stored(name)[0]))


def _number_in(tensors: Tensors, key: str) -> float | None:
    """The value of a tensor of one element, None where it is no finite number."""
    tensor = tensors[key]
    return as_number(tensor.item()) if tensor.numel() == 1 and not tensor.is_meta else None


def _notes_on_bypass(patched: Counter[str]) -> tuple[str, ...]:
    if not patched:
        return ()
    return (message("nodes.bypass_note", count=sum(patched.values()), kinds=counted(patched)),)


def _notes_on_silence(plan: Plan, model, clip) -> tuple[str, ...]:
    layers = frozenset(
        weight.removesuffix(".weight")
        for adapter in plan.adapters
        for weight, _, _ in adapter.target.slices
    )
    notes = (did_not_run(patcher, layers) for patcher in _patchers(model, clip))
    return tuple(note for note in notes if note)


def _notes_on_meetings(met: int) -> tuple[str, ...]:
    if not met:
        return ()
    return (message("nodes.adapters_meet", count=met),)


def apply_layers(
    patcher,
    shares: Sequence[tuple[float, Sequence[dict[Any, Any]]]],
    strength: float,
    metadata: dict[str, str],
    *,
    left: Counter[str],
    only: Container[str] | None,
    fast: Container[str] = (),
) -> tuple[Any, int]:
    """(a clone of a ModelPatcher or CLIP with the patches that are for it, on how many weights they
    meet others: see `settle`).

    shares: layers of patches, with what the strength of each is multiplied with. At strength 0 the
    clone is left as it was.
    only: the weights whose adapters are to act beside their layers; None: all. The kinds of those
    that change the weights even so are counted in `left`.
    fast: the weights on which a plain pair that is alone need not be the host's patch to the bit.
    """
    if patcher is None:
        return None, 0
    clone, met = patcher.clone(), 0
    weights = getattr(clone, "patcher", clone)
    if strength != 0:
        reached: set[str] = set()
        for share, layers in shares:
            if only is None or only:
                own = strength * share
                layers, kinds = add_bypass_hooks(weights, layers, own, logical_shape, only)
                left.update(kinds)
            for layer in layers:
                added = weights.add_patches(layer, strength * share)
                reached |= set(map(weight_of, added))
        met = settle(weights.patches, sorted(reached), fast)
        if metadata and hasattr(weights, "set_attachments"):
            weights.set_attachments("lora_metadata", metadata)
    return clone, met
