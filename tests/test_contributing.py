"""What CONTRIBUTING shows must work as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from lora_locksmith.key_maps.header import Header, TensorInfo
from lora_locksmith.key_maps.inspection import inspect_header
from lora_locksmith.key_maps.own import read_own_maps
from lora_locksmith.key_maps.table import DIRECTIVES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_model_loads_the_example_file(tmp_path):
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "example.table").write_text(next(block for block in BLOCKS if block.startswith("@title")))
    own = read_own_maps(tmp_path)
    assert not own.errors
    lines = next(block for block in BLOCKS if block.startswith("transformer.")).splitlines()
    shapes = {key: tuple(map(int, sizes)) for key, *sizes in (line.split() for line in lines)}
    found = inspect_header("example", Header({key: TensorInfo("F32", shape) for key, shape in shapes.items()}, {}), None, own=own)
    assert found.family.title == "Example Model small"
    assert {outcome.category for outcome in found.plan.outcomes.values()} == {"placed"}
    places = {adapter.module.rpartition(".")[2]: adapter.target.pieces[0][:2] for adapter in found.plan.adapters}
    qkv = "diffusion_model.layers.0.qkv.weight"
    assert places["to_q"] == (qkv, (0, 64)) and places["to_k"] == (qkv, (64, 64))


def test_files_it_names_are_there():
    for name in re.findall(r"`((?:key_maps|lora|nodes|tests|web)/[\w/.]*)`", TEXT):
        assert (ROOT / name).exists() or name == "key_maps/families/example.table", name
    assert (ROOT / ".github" / "workflows" / "publish.yml").exists()


def test_a_version_stands_in_one_place():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for path in (*ROOT.glob("*/*.py"), *ROOT.glob("web/*.js")):
        assert f'"{version}"' not in path.read_text("utf-8"), path


def test_every_directive_is_explained():
    assert set(re.findall(r"^\| `@(\w+)", TEXT, re.MULTILINE)) == set(DIRECTIVES)
