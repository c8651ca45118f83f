"""Prompts and LoRA files to run on the real server."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import comfy_server
import demo
import pytest
import torch
from devtools.steps import ROOT
from safetensors.torch import load


@dataclass(frozen=True)
class Result:
    """What one run gave: the sampled latent, and the history entry it comes from."""

    latent: torch.Tensor
    entry: dict

    @property
    def report(self) -> dict:
        return demo.report_of(self.entry)


@dataclass(frozen=True)
class Bench:
    """Runs the demo's prompt, which ends in a saved latent here, with one loader or another."""

    server: comfy_server.Server
    prompt: dict

    @property
    def loras(self) -> Path:
        return self.server.base / "models" / "loras"

    def bare(self) -> torch.Tensor:
        """The latent without any LoRA."""
        return self.run(demo.without_loader(self.prompt)).latent

    def stock(self, lora_name: str, **inputs) -> torch.Tensor:
        """The latent with the stock loader."""
        return self.run(demo.with_stock_loader(self._with_inputs(lora_name, inputs))).latent

    def ours(self, lora_name: str, **inputs) -> Result:
        """What this pack's loader gives, with its report."""
        return self.run(demo.with_report(self._with_inputs(lora_name, inputs)))

    def stack(self, loras: list[dict] | str, **inputs) -> Result:
        """What this pack's stack gives; `loras`: its rows, or the node's value as it stands."""
        return self.run(self.with_stack(loras, **inputs))

    def with_stack(self, loras: list[dict] | str, **inputs) -> dict:
        """The prompt with a stack in the loader's place."""
        prompt = copy.deepcopy(self.prompt)
        loader = prompt[demo.loader_id(prompt)]
        loader["class_type"] = "LocksmithLoRAStack"
        loader["inputs"] = {
            "model": loader["inputs"]["model"],
            "clip": loader["inputs"]["clip"],
            "loras": loras if isinstance(loras, str) else json.dumps(loras),
            **inputs,
        }
        return prompt

    def on_model(self, file: str) -> Bench:
        """The bench with another file for the diffusion model."""
        prompt = copy.deepcopy(self.prompt)
        loader = next(spec for spec in prompt.values() if spec["class_type"] == "UNETLoader")
        loader["inputs"]["unet_name"] = file
        return replace(self, prompt=prompt)

    def _with_inputs(self, lora_name: str, inputs: dict) -> dict:
        prompt = copy.deepcopy(self.prompt)
        prompt[demo.loader_id(prompt)]["inputs"] |= {"lora_name": lora_name, **inputs}
        return prompt

    def run(self, prompt: dict) -> Result:
        """What a prompt gives that ends in a saved latent."""
        entry = self.server.run(prompt)
        file = entry["outputs"]["latent"]["latents"][0]
        return Result(load(self.server.fetch(file))["latent_tensor"], entry)


@pytest.fixture(scope="module", autouse=True)
def _shelves(shelves_put_back: None) -> None:
    """Every module here leaves the LoRA files as it found them."""


@pytest.fixture(scope="session")
def bench(server: comfy_server.Server, object_info: dict) -> Bench:
    return Bench(server, ending_in_a_latent(demo.demo_prompt(object_info)))


@pytest.fixture(scope="session")
def own_bench(comfyui_path, tiny_models_folder, tmp_path_factory):
    """own_bench(*packs) -> in a `with` statement, the bench on a server of its own, with the other
    packs in these folders.
    """

    @contextmanager
    def own(*packs: Path) -> Iterator[Bench]:
        base = comfy_server.prepare_base(tmp_path_factory.mktemp("own"), ROOT)
        shutil.copytree(tiny_models_folder, base / "models", dirs_exist_ok=True)
        for pack in packs:
            shutil.copytree(pack, base / "custom_nodes" / pack.name)
        with comfy_server.Server(
            Path(sys.executable), comfyui_path, base, base / "server.log"
        ) as running:
            yield Bench(running, ending_in_a_latent(demo.demo_prompt(running.object_info())))

    return own


def ending_in_a_latent(prompt: dict) -> dict:
    """The prompt with its picture nodes replaced by a node 'latent' that saves what the sampler
    gives.
    """
    sampler = next(node for node, spec in prompt.items() if spec["class_type"] == "KSampler")
    pictures = ("VAELoader", "VAEDecode", "SaveImage")
    kept = {
        node: copy.deepcopy(spec)
        for node, spec in prompt.items()
        if spec["class_type"] not in pictures
    }
    return kept | {
        "latent": {
            "class_type": "SaveLatent",
            "inputs": {"samples": [sampler, 0], "filename_prefix": "tests"},
        }
    }


@pytest.fixture
def lora_file(bench: Bench) -> Iterator[Callable[[str, bytes], Path]]:
    """Writes a file among the server's LoRA files, and removes it after the test."""
    written = []

    def write(name: str, content: bytes) -> Path:
        path = bench.loras / name
        path.write_bytes(content)
        written.append(path)
        return path

    yield write
    for path in written:
        path.unlink(missing_ok=True)
