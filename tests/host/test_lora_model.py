"""The output LORA_MODEL of the loader and of the stack: what they loaded, for every node that takes
one, and nothing at all where none does.
"""

from __future__ import annotations

import copy
import json
import operator
import pickle

import pytest
import torch
from many_kinds import plain_kinds, turning_kinds
from safetensors.torch import load_file, save_file
from tiny_models import diffusers_lora, encoder_lora, kohya_lora, simpletuner_broken_lora

FILES = {
    "broken.safetensors": simpletuner_broken_lora,
    "plain.safetensors": lambda: diffusers_lora(seed=3),
    "kohya.safetensors": kohya_lora,
    "kinds.safetensors": lambda: plain_kinds() | turning_kinds(),
}
STOCK_READS = ["broken.safetensors", "plain.safetensors", "kohya.safetensors"]


@pytest.fixture
def files(loras):
    for name, make in FILES.items():
        save_file(make(), loras / name)
    return loras


@pytest.fixture
def loader(comfy):
    """loader(model, name, strength, **inputs) -> (MODEL, LORA_MODEL)."""
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA

    def load(model, name, strength=1.0, **inputs):
        given = LoadAndFixLoRA.execute(model, name, strength, strength, **inputs).result
        return given[0], given[5]

    return load


@pytest.fixture
def stack(comfy):
    """stack(model, rows of (name, strength, blocks), **inputs) -> (MODEL, LORA_MODEL)."""
    from lora_locksmith.nodes.stack import LoadAndFixStack

    def load(model, rows, **inputs):
        fields = ("name", "strength", "blocks")
        listed = [dict(zip(fields, row, strict=False)) for row in rows]
        given = LoadAndFixStack.execute(json.dumps(listed), model=model, **inputs).result
        return given[0], given[7]

    return load


@pytest.fixture
def applied(comfy):
    """applied(model, LORA_MODEL, strength) -> the model, by our Apply LoRA."""
    from lora_locksmith.nodes.merge import ApplyLoRA

    return lambda model, lora, strength=1.0: ApplyLoRA.execute(model, lora, strength, 1.0).result[0]


@pytest.fixture
def by_stock(comfy):
    """by_stock(model, LORA_MODEL, strength) -> the model, by stock's Load LoRA Model."""
    from comfy_extras.nodes_train import LoraModelLoader

    return lambda model, lora, strength=1.0: LoraModelLoader.execute(model, lora, strength).result[
        0
    ]


def assert_same(ours, expected, tolerance=1e-5):
    assert set(ours) == set(expected) and ours
    for name, weight in expected.items():
        assert (ours[name] - weight).norm() <= tolerance * weight.norm(), name


@pytest.mark.parametrize("name", FILES)
def test_the_loader_gives_what_it_loads(files, loader, applied, tiny_flux, patched, name):
    model, lora = loader(tiny_flux(), name)
    assert_same(patched(applied(tiny_flux(), lora)), patched(model))


@pytest.mark.parametrize("name", STOCK_READS)
def test_stock_takes_it_and_gives_it_its_strength(
    files, loader, by_stock, tiny_flux, patched, name
):
    """The strength of the loader is not in it: that is stock's to give."""
    _, lora = loader(tiny_flux(), name, 0.3)
    model, _ = loader(tiny_flux(), name, -0.7)
    assert_same(patched(by_stock(tiny_flux(), lora, -0.7)), patched(model))


def test_it_is_the_file_that_save_lora_writes(loras, loader, tiny_flux):
    from lora_locksmith.nodes.save import SaveLoRA

    model = tiny_flux()
    save_file(plain_kinds(), loras / "kinds.safetensors")
    path = SaveLoRA.execute("kinds.safetensors", "saved", model=model).args[0]
    _, lora = loader(model, "kinds.safetensors")
    saved = load_file(path)
    assert lora.keys() == saved.keys()
    assert all(torch.equal(lora[name], tensor) for name, tensor in saved.items())


def test_text_encoders_are_in_it_where_only_a_model_is_connected(loras, loader, tiny_flux):
    save_file(encoder_lora(), loras / "both.safetensors")
    _, lora = loader(tiny_flux(), "both.safetensors")
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    assert f"{layer}.lora_up.weight" in lora


def test_layer_weights_are_in_it(files, loader, applied, tiny_flux, patched):
    weights = "double_blocks.0=0.5, single_blocks=0"
    model, lora = loader(tiny_flux(), "broken.safetensors", layer_weights=weights)
    assert_same(patched(applied(tiny_flux(), lora)), patched(model))


def test_at_strength_0_nothing_is_loaded_and_it_is_there(files, loader, tiny_flux):
    model = tiny_flux()
    same, lora = loader(model, "plain.safetensors", 0.0)
    _, expected = loader(model, "plain.safetensors")
    assert same is model and lora.keys() == expected.keys()
    assert all(torch.equal(lora[name], tensor) for name, tensor in expected.items())


def test_it_does_not_change_with_the_file(files, loader, tiny_flux):
    _, lora = loader(tiny_flux(), "plain.safetensors")
    before = {name: tensor.clone() for name, tensor in lora.items()}
    with open(files / "plain.safetensors", "r+b") as file:
        file.truncate(64)
    assert all(torch.equal(lora[name], tensor) for name, tensor in before.items())


def test_the_stack_gives_its_rows_as_one(files, stack, applied, by_stock, tiny_flux, patched):
    rows = [
        ("broken.safetensors", 0.8),
        ("kohya.safetensors", -0.5, "double_blocks.1=0.25"),
        ("plain.safetensors", 1.5),
    ]
    model, lora = stack(tiny_flux(), rows)
    assert_same(patched(applied(tiny_flux(), lora)), patched(model))
    assert_same(patched(by_stock(tiny_flux(), lora)), patched(model))


def test_of_an_empty_stack_it_is_empty(files, stack, tiny_flux, by_stock):
    _, lora = stack(tiny_flux(), [("plain.safetensors", 0.0)])
    assert lora == {} and not lora and len(by_stock(tiny_flux(), lora).patches) == 0


def test_what_a_stack_cannot_join_exactly_is_told_as_merge_tells_it(
    files, stack, tiny_flux, caplog
):
    """Two Kronecker products of whole matrices have no small exact form."""
    layer = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    names = ("one.safetensors", "two.safetensors")
    for name in names:
        product = {f"{layer}.lokr_w1": torch.randn(64, 16), f"{layer}.lokr_w2": torch.randn(48, 48)}
        save_file(kohya_lora() | product, files / name)
    _, lora = stack(tiny_flux(), [(name, 1.0) for name in names])
    assert not caplog.records
    lora.make()
    [told] = [record.getMessage() for record in caplog.records]
    assert "Not exact" in told and "LORA_MODEL" in told


def test_rows_for_other_models_are_an_error_that_names_the_row(files, stack, tiny_flux):
    save_file({"some.key.lora_up.weight": torch.zeros(2, 2)}, files / "strange.safetensors")
    model, lora = stack(tiny_flux(), [("plain.safetensors", 1.0), ("strange.safetensors", 1.0)])
    assert model.patches
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"no LORA_MODEL to give.*strange\.safetensors"):
            lora.make()


def test_a_file_that_fits_nowhere_is_an_error_only_where_it_is_used(files, loader, tiny_flux):
    save_file({"some.key.lora_up.weight": torch.zeros(2, 2)}, files / "strange.safetensors")
    model, lora = loader(tiny_flux(), "strange.safetensors")
    assert not model.patches
    with pytest.raises(RuntimeError, match=r"strange\.safetensors: .*unlink the output LORA_MODEL"):
        lora.items()


WAYS = {
    "len": len,
    "bool": lambda lora: len(lora) if lora else 0,
    "dict": lambda lora: len(dict(lora)),
    "star": lambda lora: len({**lora}),
    "named": lambda lora: len((lambda **named: named)(**lora)),
    "or": lambda lora: len(lora | {}),
    "ror": lambda lora: len({} | lora),
    "update": lambda lora: len(_updated(lora)),
    "list": lambda lora: len(list(lora)),
    "items": lambda lora: len(lora.items()),
    "values": lambda lora: len(lora.values()),
    "copy": lambda lora: len(lora.copy()),
    "copy.copy": lambda lora: len(copy.copy(lora)),
    "deepcopy": lambda lora: len(copy.deepcopy(lora)),
    "pickle": lambda lora: len(pickle.loads(pickle.dumps(lora))),
    "equal": lambda lora: 2 if lora == {"a": 1, "b": 2} else 0,
    "reflected": lambda lora: 2 if operator.eq({"a": 1, "b": 2}, lora) else 0,
    "both": lambda lora: 2 if lora == type(lora)(lambda: {"a": 1, "b": 2}) else 0,
}


def _updated(lora):
    into = {}
    into.update(lora)
    return into


@pytest.mark.parametrize("way", WAYS)
def test_it_is_a_dictionary_whichever_way_it_is_read(comfy, way):
    from lora_locksmith.nodes.lora_model import MadeWhenUsed

    made = []

    def make():
        made.append(way)
        return {"a": 1, "b": 2}

    lora = MadeWhenUsed(make)
    assert isinstance(lora, dict) and repr(lora) == "{}" and not made
    assert WAYS[way](lora) == 2 and WAYS[way](lora) == 2
    assert made == [way]


def test_what_cannot_be_made_is_tried_again(comfy):
    from lora_locksmith.nodes.lora_model import MadeWhenUsed

    tries = iter([RuntimeError("once"), None])

    def make():
        fault = next(tries)
        if fault:
            raise fault
        return {"a": torch.zeros(1)}

    lora = MadeWhenUsed(make)
    with pytest.raises(RuntimeError, match="once"):
        lora["a"]
    assert list(lora) == ["a"]


def test_stock_saves_it(files, loader, tiny_flux, tmp_path, monkeypatch):
    import folder_paths
    from comfy_extras.nodes_train import SaveLoRA

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    _, lora = loader(tiny_flux(), "broken.safetensors")
    SaveLoRA.execute(lora, "loras/made")
    [path] = tmp_path.glob("loras/made*.safetensors")
    saved = load_file(path)
    assert saved.keys() == lora.keys()


def test_merge_and_save_take_it(files, loader, tiny_flux, patched):
    from lora_locksmith.nodes.merge import ApplyLoRA, MergeLoRAs
    from lora_locksmith.nodes.save import SaveLoRA

    _, lora = loader(tiny_flux(), "broken.safetensors")
    both = MergeLoRAs.execute(
        json.dumps([{"name": "plain.safetensors", "strength": 0.5}]),
        {"method": "sum"},
        model=tiny_flux(),
        connected={"lora_0": lora},
    ).result[0]
    expected, _ = loader(loader(tiny_flux(), "broken.safetensors")[0], "plain.safetensors", 0.5)
    made = ApplyLoRA.execute(tiny_flux(), both, 1.0, 1.0).result[0]
    assert_same(patched(made), patched(expected))
    path = SaveLoRA.execute("the connected lora", "again", "kohya", lora=lora, model=tiny_flux())
    again, _ = loader(tiny_flux(), "again.safetensors")
    assert path.args[0].endswith("again.safetensors")
    assert_same(patched(again), patched(loader(tiny_flux(), "broken.safetensors")[0]))
