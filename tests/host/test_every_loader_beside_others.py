"""Fix LoRAs in every loader beside packs that wrap the same functions: in either order, turned on
and off meanwhile, and from many threads.
"""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import save_file
from test_as_stock import native_lora, nothing_knows
from wrong_in_stock import QKV, adapter, dora_of_peft, same, write


class OtherPack:
    """Wraps a function of a module as packs do, and keeps what it called."""

    def __init__(self, module, name):
        self.module, self.name = module, name
        self.below, self.calls = getattr(module, name), []

        def wrapper(*arguments, **named):
            self.calls.append(arguments)
            return self.below(*arguments, **named)

        self.wrapper = wrapper
        setattr(module, name, wrapper)

    def leave(self):
        """Put back what it found."""
        setattr(self.module, self.name, self.below)


@pytest.fixture
def other_pack(every):
    """other_pack(name of a function) -> a pack around it, in its module; gone after the test."""
    import comfy.lora
    import comfy.sd

    made = []

    def wrap(name):
        module = comfy.lora if name == "load_lora" else comfy.sd
        made.append((OtherPack(module, name), module, name))
        return made[-1][0]

    originals = {
        name: (module, getattr(module, name))
        for module, name in ((comfy.lora, "load_lora"), (comfy.sd, "load_lora_for_models"))
    }
    yield wrap
    for name, (module, function) in originals.items():
        setattr(module, name, function)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "unknown.safetensors"
    save_file(native_lora(nothing_knows), path)
    return path


NAMES = ("load_lora", "load_lora_for_models")


@pytest.mark.parametrize("name", NAMES)
def test_a_pack_that_wrapped_before_us_is_called_and_stays(
    every, other_pack, by_stock_nodes, patched, tiny_flux, file, host, name
):
    pack = other_pack(name)
    fixed = patched(host.load_and_fix(tiny_flux(), None, file)[0])
    every.turn(True)
    same(patched(by_stock_nodes(tiny_flux(), file)), fixed, 1e-5)
    assert len(pack.calls) == 1
    every.turn(False)
    assert getattr(pack.module, name) is pack.wrapper
    assert not by_stock_nodes(tiny_flux(), file).patches
    assert len(pack.calls) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_pack_that_wrapped_after_us_keeps_its_place_and_ours_passes_on(
    every, other_pack, by_stock_nodes, patched, tiny_flux, file, host, name
):
    fixed = patched(host.load_and_fix(tiny_flux(), None, file)[0])
    every.turn(True)
    pack = other_pack(name)
    same(patched(by_stock_nodes(tiny_flux(), file)), fixed, 1e-5)
    assert len(pack.calls) == 1
    every.turn(False)
    assert getattr(pack.module, name) is pack.wrapper
    assert not by_stock_nodes(tiny_flux(), file).patches
    assert len(pack.calls) == 2
    every.turn(True)
    same(patched(by_stock_nodes(tiny_flux(), file)), fixed, 1e-5)
    assert len(pack.calls) == 3
    every.turn(False)
    assert getattr(pack.module, name) is pack.wrapper


@pytest.mark.parametrize("name", NAMES)
def test_never_twice_however_often_both_come_and_go(
    every, other_pack, by_stock_nodes, patched, tiny_flux, file, functions, name, caplog
):
    originals = functions()
    for _ in range(3):
        every.turn(True)
        every.turn(True)
        pack = other_pack(name)
        every.turn(False)
        every.turn(True)
        caplog.clear()
        with caplog.at_level("INFO"):
            loaded = by_stock_nodes(tiny_flux(), file)
        entries = {len(patches) for patches in loaded.patches.values()}
        assert entries == {1}
        assert caplog.text.count("every loader") == 1
        every.turn(False)
        pack.leave()
        every.turn(True)
        every.turn(False)
        assert all(one is two for one, two in zip(functions(), originals, strict=True))


def test_a_pack_that_cannot_do_without_keys_that_are_ours_gets_all(
    every, other_pack, by_stock_nodes, tiny_flux, file
):
    pack, key = other_pack("load_lora"), next(iter(native_lora(nothing_knows)))
    below = pack.below
    pack.below = lambda lora, *rest, **named: lora[key] is None or below(lora, *rest, **named)
    every.turn(True)
    assert not by_stock_nodes(tiny_flux(), file).patches


def test_a_pack_that_cannot_do_with_adapters_of_ours_gets_the_hosts(
    every, other_pack, by_stock_nodes, patched, tiny_flux, tmp_path, caplog
):
    """As one that reads the factors of what was loaded, which it takes for the host's."""
    path = write(tmp_path, kinds_mixed())
    off = patched(by_stock_nodes(tiny_flux(), path))
    pack = other_pack("load_lora_for_models")
    below = pack.below

    def reads_factors(*arguments, **named):
        made = below(*arguments, **named)
        for ((_, patch, *_),) in made[0].patches.values():
            assert patch.weights[0].shape
        return made

    pack.below = reads_factors
    every.turn(True)
    caplog.clear()
    same(patched(by_stock_nodes(tiny_flux(), path)), off)
    assert "the stock loader's result is used" in caplog.text


def kinds_mixed():
    """A plain LoRA that stock reads, and a DoRA that it does not."""
    tensors, metadata, settings = dora_of_peft()
    down, up = adapter(384, 128)
    return (
        tensors | {f"{QKV}.lora_A.weight": down, f"{QKV}.lora_B.weight": up},
        metadata,
        settings,
    )


def test_a_pack_that_loads_onto_another_model_than_it_was_given(
    every, other_pack, host, patched, tiny_flux, base, tmp_path
):
    """Its key map says which: here one without the second block."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    name = "base_model.model.double_blocks.{}.img_attn.proj"
    tensors = {}
    for block in range(2):
        down, up = adapter(128, 128, seed=block)
        tensors[f"{name.format(block)}.lora_A.weight"] = down
        tensors[f"{name.format(block)}.lora_B.weight"] = up
    path, smaller = write(tmp_path, (tensors, {}, None)), base()
    pack = other_pack("load_lora_for_models")

    def onto_its_own(model, clip, lora, strength_model, strength_clip):
        names = comfy.lora.model_lora_keys_unet(smaller.model, {})
        clone = smaller.clone()
        loaded = comfy.lora.load_lora(lora, names)
        assert len(clone.add_patches(loaded, strength_model)) == len(loaded)
        return clone, clip

    pack.below = onto_its_own
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    loaded = comfy.sd.load_lora_for_models(tiny_flux(), None, lora, 1.0, 0)[0]
    same(patched(loaded), patched(host.load_and_fix(smaller, None, path)[0]), 1e-5)
    assert len(loaded.patches) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_pack_that_takes_ours_for_the_hosts_own_and_puts_it_back(
    every, other_pack, by_stock_nodes, patched, tiny_flux, file, host, functions, name
):
    """As one that replaces a function for a while, and was loaded when it was on."""
    originals, fixed = functions(), patched(host.load_and_fix(tiny_flux(), None, file)[0])
    every.turn(True)
    pack = other_pack(name)
    every.turn(False)
    pack.leave()
    assert getattr(pack.module, name) is pack.below
    assert not by_stock_nodes(tiny_flux(), file).patches
    every.turn(True)
    same(patched(by_stock_nodes(tiny_flux(), file)), fixed, 1e-5)
    every.turn(False)
    pack.leave()
    every.turn(False)
    assert not by_stock_nodes(tiny_flux(), file).patches
    every.turn(True)
    every.turn(False)
    assert all(one is two for one, two in zip(functions(), originals, strict=True))


def test_who_holds_the_function_from_before_holds_the_hosts(every, by_stock_nodes, tiny_flux, file):
    """As a module that did 'from comfy.lora import load_lora' does."""
    import comfy.lora
    import comfy.utils

    held, model = comfy.lora.load_lora, tiny_flux()
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    assert held(lora, names, log_missing=False) == {}
    assert comfy.lora.load_lora(lora, names, log_missing=False)


def test_who_holds_the_hosts_way_to_load_for_models_gets_ours_below(
    every, patched, tiny_flux, file, host
):
    """The host looks load_lora up where we stand; only what the call says besides is lost."""
    import comfy.sd
    import comfy.utils

    held = comfy.sd.load_lora_for_models
    every.turn(True)
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    loaded = held(tiny_flux(), None, lora, 1.0, 0)[0]
    same(patched(loaded), patched(host.load_and_fix(tiny_flux(), None, file)[0]), 1e-5)


def test_loads_from_many_threads_while_it_is_turned_on_and_off(
    every, by_stock_nodes, patched, tiny_flux, file, host, functions
):
    """Each load is the stock loader's or ours, whole; and nothing of ours is left in the end."""
    originals, model = functions(), tiny_flux()
    fixed = host.load_and_fix(model, None, file)[0].patches.keys()
    seen, faults, stop = [], [], threading.Event()

    def load():
        try:
            while not stop.is_set():
                seen.append(by_stock_nodes(model, file).patches.keys())
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        every.turn(turn % 2 == 0)
        torch.zeros(1).item()
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    kinds = {frozenset(keys) for keys in seen}
    assert kinds == {frozenset(), frozenset(fixed)}
    assert all(one is two for one, two in zip(functions(), originals, strict=True))
