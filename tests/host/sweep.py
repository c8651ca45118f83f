"""Every adapter kind that PEFT and LyCORIS save, on every sort of layer, through every way of the
pack: right, or refused with a reason.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import toy_layers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ERROR = 2e-4  # of the change of a layer's outputs
STRENGTHS = (1.0, 0.5, -0.7, 2.0)
AS_BEFORE = "likewise"
RIGHT = "right"
WAYS = ("load", "bypass", "fix", "merge", "resize")
LAYERS = tuple(toy_layers.INPUTS)
PREFIX = "diffusion_model."
NAMES = {
    "linear": "Linear",
    "square": "square Linear",
    "conv1": "Conv1d",
    "point1": "1x1 Conv1d",
    "conv2": "Conv2d",
    "point2": "1x1 Conv2d",
    "square2": "square Conv2d",
    "conv3": "Conv3d",
    "point3": "1x1 Conv3d",
}
TABLE = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
HEAD = """# What becomes of each adapter kind

Every kind that the newest PEFT and LyCORIS save, on every sort of layer that they adapt, in the real ComfyUI: loaded onto the weights,
loaded in bypass mode, written by `fix` under ComfyUI's names and loaded, merged alone (`--exact`) and loaded, resized without loss and
loaded, at the strengths 1, 0.5, -0.7 and 2. *right*: every layer's outputs differ from the trainer's own by less than 0.02 % of the
change. Anything else is refused, with the reason; *likewise*: with that of the column before. This table is written by
`tests/host/test_sweep.py` and compared with each run.

"""

Truth = Callable[[str, float], Tensor]  # layer, strength -> outputs for `inputs`


class Saved(NamedTuple):
    """A file as its trainer saved it, the layers that the trainer adapts, and what they give by the
    trainer's own forward.
    """

    path: Path
    layers: tuple[str, ...]
    truth: Truth


def inputs(layer: str) -> Tensor:
    """The same random inputs for a layer each time."""
    return torch.randn(toy_layers.INPUTS[layer], generator=torch.Generator().manual_seed(11))


def bare(net: torch.nn.Module, layer: str) -> Tensor:
    """What the layer gives without an adapter."""
    return net.get_submodule(layer)(inputs(layer))


def blended(net: torch.nn.Module, full: Mapping[str, Tensor]) -> Truth:
    """The outputs at a strength: on the line from the base's to those under the whole adapter."""
    return lambda layer, strength: torch.lerp(bare(net, layer), full[layer], strength)


def by_peft(
    net: torch.nn.Module,
    folder: Path,
    configuration: type,
    settings: Mapping[str, Any],
    merged: bool = False,
) -> Saved:
    """PEFT's adapter on every layer that it supports, moved at random and saved.

    A setting `...` becomes the layers themselves. merged: the truth is PEFT's merge, as its forward
    of a convolution is no convolution.
    """
    import peft

    def make(layers: list[str]) -> Any:
        torch.manual_seed(5)
        told = {name: layers if value is ... else value for name, value in settings.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.get_peft_model(
                copy.deepcopy(net), configuration(target_modules=layers, **told)
            ).eval()

    def runs(layer: str) -> bool:
        try:
            make([layer]).base_model.model.get_submodule(layer)(inputs(layer))
        except Exception:
            return False
        return True

    layers = [layer for layer in LAYERS if runs(layer)]
    model = make(layers)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    trained = model.merge_and_unload() if merged else model.base_model.model
    full = {layer: bare(trained, layer) for layer in layers}
    layers = [layer for layer in layers if not torch.equal(full[layer], bare(net, layer))]
    return Saved(folder / "adapter_model.safetensors", tuple(layers), blended(net, full))


def by_lycoris(net: torch.nn.Module, folder: Path, settings: Mapping[str, Any]) -> Saved:
    """LyCORIS' adapter on every layer that runs with it, moved at random and saved."""
    from trainers import trained_by_lycoris

    wrapped = copy.deepcopy(net)
    settings = {"conv_dim": 4, "conv_alpha": 2, **settings}
    preset = {"target_module": [], "target_name": settings.pop("layers", list(LAYERS))}
    network = trained_by_lycoris(wrapped, preset, folder, settings)
    for name, parameter in network.named_parameters():
        if "hada" in name:  # a product of so many small numbers would be lost in rounding
            parameter.data *= 3
    layers = tuple(layer for layer in preset["target_name"] if _runs(wrapped, layer))
    path = folder / "lycoris.safetensors"
    network.save_weights(path, torch.float32, {})
    with safe_open(path, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys() if layer_of(key) in layers}  # noqa: SIM118
        save_file(kept, path, file.metadata())

    def stagewise(layer: str, strength: float) -> Tensor:
        network.set_multiplier(strength)
        return bare(wrapped, layer)

    if settings["algo"] == "boft":  # its strength blends each stage
        return Saved(path, layers, stagewise)
    return Saved(path, layers, blended(net, {layer: bare(wrapped, layer) for layer in layers}))


def _runs(net: torch.nn.Module, layer: str) -> bool:
    try:
        bare(net, layer)
    except Exception:
        return False
    return True


def layer_of(key: str) -> str:
    """The layer that a key of a file is about, "" for one about the whole file."""
    return next((layer for layer in LAYERS if re.search(rf"(^|[._]){layer}[._]", key)), "")


class Ways:
    """What each way of the pack makes of a file: layer -> RIGHT, or why it is refused.
    AssertionError where it is wrong.
    """

    def __init__(self, host: Any, patched: Any, patcher: Any, folder: Path):
        self.host, self.patched, self.patcher, self.folder = host, patched, patcher, folder
        self.net = patcher.model.diffusion_model
        self.target_model = host.target_model_of(patcher, None)

    def outcomes(self, saved: Saved, way: str) -> dict[str, str]:
        """Each layer's outcome; a file that is refused as a whole is tried layer by layer."""
        if way in ("load", "bypass"):
            return self._applied(saved, saved.path, STRENGTHS, way == "bypass")
        try:
            return getattr(self, f"_{way}")(saved)
        except self._refusals() as error:
            if len(saved.layers) == 1:
                return {saved.layers[0]: reason(error)}
        return {
            layer: outcome
            for one in self._single(saved)
            for layer, outcome in self.outcomes(one, way).items()
        }

    def _refusals(self) -> tuple[type[Exception], ...]:
        from lora_locksmith.errors import LocksmithError

        return (LocksmithError,)

    def _single(self, saved: Saved) -> Iterator[Saved]:
        with safe_open(saved.path, "pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        beside = saved.path.with_name("adapter_config.json")
        for layer in saved.layers:
            folder = self._folder()
            save_file(
                {key: tensor for key, tensor in tensors.items() if layer_of(key) in ("", layer)},
                folder / saved.path.name,
                metadata,
            )
            if beside.exists():
                (folder / beside.name).write_bytes(beside.read_bytes())
            yield Saved(folder / saved.path.name, (layer,), saved.truth)

    def _folder(self) -> Path:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        return folder

    def _applied(
        self,
        saved: Saved,
        path: Path,
        strengths: tuple[float, ...],
        bypass=False,
        made: float = 1.0,
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for strength in strengths:
            loaded, _, report = self.host.load_and_fix(
                self.patcher, None, path, strength, bypass=bypass
            )
            told = report.as_dict()["unplaced"]
            outputs = (
                self._beside(loaded, saved.layers)
                if bypass
                else self._patched(loaded, saved.layers)
            )
            for layer in saved.layers:
                found[layer] = self._outcome(
                    layer, outputs[layer], saved.truth(layer, made * strength), told
                )
        return found

    def _patched(self, loaded: Any, layers: tuple[str, ...]) -> dict[str, Tensor]:
        after = self.patched(loaded)
        outputs = {}
        for layer in layers:
            names = {name: f"{PREFIX}{layer}.{name}" for name in ("weight", "bias")}
            weights = {
                name: after[full].reshape(getattr(self.net.get_submodule(layer), name).shape)
                for name, full in names.items()
                if full in after
            }
            outputs[layer] = torch.func.functional_call(
                self.net.get_submodule(layer), weights, inputs(layer)
            )
        return outputs

    def _beside(self, loaded: Any, layers: tuple[str, ...]) -> dict[str, Tensor]:
        loaded.patch_model(toy_layers.CPU)
        try:
            return {layer: bare(self.net, layer) for layer in layers}
        finally:
            loaded.unpatch_model(toy_layers.CPU)

    def _outcome(
        self, layer: str, outputs: Tensor, truth: Tensor, told: list[Mapping[str, str]]
    ) -> str:
        before = bare(self.net, layer)
        change = (truth - before).norm()
        assert change > 1e-3 * before.norm(), f"{layer}: the trainer's own change is nothing"
        if torch.equal(outputs, before):
            reasons = [one["reason"] for one in told if layer_of(one["key"]) in (layer, "")]
            assert reasons, f"{layer}: unchanged, and nothing is told"
            return plain(reasons[0])
        error = (outputs - truth).norm() / change
        assert error < ERROR, f"{layer}: {error:.1e} of the change"
        return RIGHT

    def _fix(self, saved: Saved) -> dict[str, str]:
        from lora_locksmith.lora.io.writer import write_as

        plan, tensors = self._planned(saved)
        path = self._folder() / "fixed.safetensors"
        write_as(plan, tensors, path, "comfyui")
        return self._applied(saved, path, STRENGTHS)

    def _merge(self, saved: Saved) -> dict[str, str]:
        from lora_locksmith.lora.io.lora_model import native_tensors
        from lora_locksmith.lora.merge.collect import Source
        from lora_locksmith.lora.merge.merge import MergeConfig, merge

        plan, tensors = self._planned(saved)
        path, outcomes = self._folder() / "merged.safetensors", {}
        for strength in STRENGTHS:
            source = Source(plan, tensors, strength)
            results = merge(
                [source], MergeConfig(exact=True), self.host.weights_of(self.patcher, None)
            )
            save_file(native_tensors(merged.native for _, merged in results), path)
            folded = blended(self.net, {layer: saved.truth(layer, 1.0) for layer in saved.layers})
            outcomes = self._applied(saved._replace(truth=folded), path, (1.0,), made=strength)
        return outcomes

    def _resize(self, saved: Saved) -> dict[str, str]:
        from lora_locksmith.lora.rewrite.resize import RankTarget, resize_file

        path = self._folder() / saved.path.name
        resize_file(saved.path, path, RankTarget(error=1e-6), target_model=self.target_model)
        return self._applied(saved, path, STRENGTHS)

    def _planned(self, saved: Saved):
        from lora_locksmith.lora.io.mapped import map_tensors
        from lora_locksmith.report.inspection import inspect_file

        found = inspect_file(saved.path, self.target_model, whole=True)
        self._whole(found.plan)
        return found.plan, map_tensors(saved.path, found.header, passing=True)

    def _whole(self, plan: Any) -> None:
        """A refusal where something of the file has no place."""
        from lora_locksmith.errors import LocksmithError
        from lora_locksmith.planning.plan import NO_FAULT

        for outcome in plan.outcomes.values():
            if outcome.category not in NO_FAULT:
                raise LocksmithError(outcome.reason)


def reason(error: Exception) -> str:
    """Why something is refused, without the places and numbers of this file."""
    return plain(str(error).splitlines()[0])


def plain(text: str) -> str:
    """A reason without the names and numbers of one layer."""
    text = re.sub(r"[\w.]*\b(?:\w*_)?(?:" + "|".join(LAYERS) + r")\b[\w.]*(?:: )?", "...", text)
    return re.sub(r" {2,}", " ", re.sub(r"\[[\d, ]*\]", "[...]", text)).strip()


def row(
    library: str, name: str, layers: tuple[str, ...], outcomes: Mapping[str, Mapping[str, str]]
) -> str:
    """A line of the table."""
    adapted = "all" if set(layers) == set(LAYERS) else ", ".join(NAMES[layer] for layer in layers)
    cells = [_cell(outcomes[way]) for way in WAYS]
    said = [
        AS_BEFORE if index and cell != RIGHT and cell == cells[index - 1] else cell
        for index, cell in enumerate(cells)
    ]
    return f"| {' | '.join((library, name, adapted, *said))} |"


def _cell(outcomes: Mapping[str, str]) -> str:
    by_outcome: dict[str, list[str]] = {}
    for layer, outcome in outcomes.items():
        by_outcome.setdefault(outcome, []).append(NAMES[layer])
    if len(by_outcome) == 1:
        return "".join(
            outcome if outcome == RIGHT else f"refused: {outcome}" for outcome in by_outcome
        )
    told = [
        f"refused on {', '.join(layers)}: {outcome}"
        for outcome, layers in by_outcome.items()
        if outcome != RIGHT
    ]
    return "; ".join(([RIGHT] if RIGHT in by_outcome else []) + told)


def written_rows() -> dict[tuple[str, str], str]:
    """(library, kind) -> its line of the table in docs/, in their order."""
    lines = (
        [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]
        if TABLE.exists()
        else []
    )
    return {tuple(line[2:].split(" | ")[:2]): line for line in lines}


def write_rows(rows: Mapping[tuple[str, str], str], order: list[tuple[str, str]]) -> None:
    """The table anew, of the rows that there are."""
    titles = ("by", "kind", "layers", *WAYS)
    lines = [
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
        *(rows[key] for key in order if key in rows),
    ]
    TABLE.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
