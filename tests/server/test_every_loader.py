"""Fix LoRAs in every loader on the real server, turned on and off by its route: stock's nodes sample
what Load and Fix LoRA does where stock is wrong, and stock's own latent to the bit where it is right.
"""

from __future__ import annotations

import copy
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy_server
import demo
import pytest
import torch
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, KOHYA_LORA
from wrong_in_stock import WRONG, write

ROOT = Path(__file__).resolve().parents[2]
ROUTE = "/lora_locksmith/every_loader"
LOADERS = (
    "LoraLoader",
    "LoraLoaderModelOnly",
    "CreateHookLoraModelOnly",
    "LoraLoaderBypassModelOnly",
)


def turn(server: comfy_server.Server, on: object, kind: str = "application/json") -> dict:
    body = json.dumps({"on": on}).encode()
    request = urllib.request.Request(server.url + ROUTE, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=comfy_server.PATIENCE) as answer:
        return json.load(answer)


@pytest.fixture
def every(bench) -> Iterator[Callable[[bool], None]]:
    """every(on) turns it on or off; it is off before and after each test."""
    assert bench.server.get(ROUTE) == {"on": False}

    def act(on: bool) -> None:
        assert turn(bench.server, on) == bench.server.get(ROUTE) == {"on": on}
        # The host drops what it keeps of former runs when it has nothing to do, or after a run.
        bench.bare()

    yield act
    turn(bench.server, False)


def with_loader(bench, kind: str, lora_name: str, strength: float) -> dict:
    """The bench's prompt with a loader of the host's, for the diffusion model alone."""
    prompt = copy.deepcopy(bench.prompt)
    place = demo.loader_id(prompt)
    sources = prompt[place]["inputs"]
    model, clip = sources["model"], sources["clip"]
    prompt = demo.without_loader(prompt)
    inputs = {"lora_name": lora_name, "strength_model": strength}
    sampler = next(spec for spec in prompt.values() if spec["class_type"] == "KSampler")["inputs"]
    if kind == "CreateHookLoraModelOnly":
        prompt["hook"] = {"class_type": kind, "inputs": inputs}
        for side in ("positive", "negative"):
            prompt[side] = {
                "class_type": "ConditioningSetProperties",
                "inputs": {
                    "cond_NEW": sampler[side],
                    "strength": 1.0,
                    "set_cond_area": "default",
                    "hooks": ["hook", 0],
                },
            }
            sampler[side] = [side, 0]
        return prompt
    inputs["model"] = model
    if kind == "LoraLoader":
        inputs |= {"clip": clip, "strength_clip": 0.0}
    prompt["loader"] = {"class_type": kind, "inputs": inputs}
    sampler["model"] = ["loader", 0]
    return prompt


def ids_of(prompt: dict) -> set[str]:
    """The nodes that load a LoRA."""
    return {node for node, spec in prompt.items() if spec["class_type"] in LOADERS}


def relative(latent: torch.Tensor, other: torch.Tensor) -> float:
    return float((latent - other).norm() / other.norm())


@pytest.mark.parametrize("loader", LOADERS)
def test_what_stock_loads_rightly_gives_the_same_bits(bench, every, loader):
    # As stock acts beside layers it drops what goes to rows of a fused layer: there only whole
    # layers are right.
    name = KOHYA_LORA if "Bypass" in loader else DIFFUSERS_LORA
    prompt = with_loader(bench, loader, name, 0.7)
    off = bench.run(prompt).latent
    every(True)
    on = bench.run(prompt)
    assert ids_of(prompt) <= comfy_server.executed_nodes(on.entry)
    assert not torch.equal(off, bench.bare())
    assert torch.equal(on.latent, off)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", WRONG)
def test_what_stock_gets_wrong_is_what_load_and_fix_makes(bench, every, lora_file, loader, kind):
    name = f"{kind}/adapter_model.safetensors"
    (bench.loras / kind).mkdir(exist_ok=True)
    write(bench.loras / kind, WRONG[kind]())
    prompt = with_loader(bench, loader, name, 0.3)
    mode = "bypass" if "Bypass" in loader else "patch"
    fixed = bench.ours(name, strength_model=0.3, strength_clip=0.0, mode=mode).latent
    off = bench.run(prompt).latent
    every(True)
    on = bench.run(prompt)
    assert relative(off, fixed) > 1e-3, "stock is right here, and the test can say nothing"
    assert relative(on.latent, fixed) < 1e-5
    every(False)
    assert torch.equal(bench.run(prompt).latent, off)


def test_the_log_has_one_line_for_a_file_that_needs_it_and_none_for_others(bench, every):
    every(True)
    before = len(bench.server.log_text())
    for name in (BROKEN_LORA, DIFFUSERS_LORA):
        bench.run(with_loader(bench, "LoraLoader", name, 0.4))
    said = [
        line for line in bench.server.log_text()[before:].splitlines() if "every loader" in line
    ]
    assert len(said) == 1
    assert BROKEN_LORA in said[0] and "that the stock loader leaves out" in said[0]


def test_it_is_stored_for_the_next_start(bench, every):
    stored = bench.server.base / "user" / "lora-locksmith" / "settings.json"
    every(True)
    assert json.loads(stored.read_text())["every_loader"] is True
    every(False)
    assert json.loads(stored.read_text())["every_loader"] is False


@pytest.mark.parametrize(
    "wish, kind", [("yes", "application/json"), (1, "application/json"), (True, "text/plain")]
)
def test_other_wishes_are_refused(bench, every, wish, kind):
    with pytest.raises(urllib.error.HTTPError) as refused:
        turn(bench.server, wish, kind)
    answer = json.load(refused.value)
    assert refused.value.code == 400 and answer["error"] and answer["remedy"]
    assert bench.server.get(ROUTE) == {"on": False}


def test_the_environment_decides_where_it_says_so(comfyui_path, tmp_path, monkeypatch):
    """As for a server without a browser; what is stored does not count, and cannot be changed."""
    base = comfy_server.prepare_base(tmp_path / "base", ROOT)
    monkeypatch.setenv("LORA_LOCKSMITH_EVERY_LOADER", "1")
    with comfy_server.Server(
        Path(sys.executable), comfyui_path, base, base / "server.log"
    ) as server:
        assert server.get(ROUTE) == {"on": True}
        assert "Fix LoRAs in every loader is on" in server.log_text()
        with pytest.raises(urllib.error.HTTPError) as refused:
            turn(server, False)
        assert refused.value.code == 409
        assert "LORA_LOCKSMITH_EVERY_LOADER" in json.load(refused.value)["error"]
        assert server.get(ROUTE) == {"on": True}
        assert not (base / "user" / "lora-locksmith" / "settings.json").exists()
