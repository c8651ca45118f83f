"""What CONTRIBUTING shows must work as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from devtools.type_check import check_types
from lora_locksmith.files.header import Header, TensorInfo
from lora_locksmith.key_maps.table import DIRECTIVES
from lora_locksmith.key_maps.user_maps import read_own_maps
from lora_locksmith.report.inspection import inspect_header

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"```(?:python)?\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_model_loads_the_example_file(tmp_path):
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "example.table").write_text(
        next(block for block in BLOCKS if block.startswith("@title"))
    )
    own = read_own_maps(tmp_path)
    assert not own.errors
    lines = next(block for block in BLOCKS if block.startswith("transformer.")).splitlines()
    shapes = {key: tuple(map(int, sizes)) for key, *sizes in (line.split() for line in lines)}
    found = inspect_header(
        "example",
        Header({key: TensorInfo("F32", shape) for key, shape in shapes.items()}, {}),
        None,
        own=own,
    )
    assert found.family.title == "Example Model small"
    assert {outcome.category for outcome in found.plan.outcomes.values()} == {"placed"}
    places = {
        adapter.module.rpartition(".")[2]: adapter.target.slices[0][:2]
        for adapter in found.plan.adapters
    }
    qkv = "diffusion_model.layers.0.qkv.weight"
    assert places["to_q"] == (qkv, (0, 64)) and places["to_k"] == (qkv, (64, 64))


USE_THE_KIND = """
import torch
from lora_locksmith.adapters.registry import named
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import Network, TargetModel
from lora_locksmith.lora.math.apply import kinds, patched_weight
from lora_locksmith.lora.from_plan import adapter_of

site = TargetModel([Network("denoiser", "diffusion_model.", {"diffusion_model.layer.weight": (3, 2)}, None)])
plan = make_plan({"base_model.model.layer.toy_scale": (3,)}, {}, site)
(adapter,) = plan.adapters
assert adapter.kind == "toy" and adapter.target.module == "layer" and "toy" in kinds() and named("toy").title == "Toy"
spec, tensors = adapter_of(adapter, {"toy_scale": torch.tensor([0.0, 1.0, 2.0])}, None)
assert patched_weight(spec, tensors, torch.ones(3, 2), 0.5)[:, 0].tolist() == [1.0, 1.5, 2.0]
"""


def test_the_example_kind_is_one_file_and_a_row(tmp_path):
    pack = tmp_path / "lora_locksmith"
    for room in ("adapters", "files", "key_maps", "lora", "planning"):
        shutil.copytree(ROOT / room, pack / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "locales", pack / "locales")
    shutil.copy(ROOT / "errors.py", pack)
    shutil.copy(ROOT / "messages.py", pack)
    (pack / "__init__.py").touch()
    (pack / "adapters" / "kinds" / "toy.py").write_text(
        next(block for block in BLOCKS if block.startswith('"""Toy'))
    )
    with open(pack / "key_maps" / "roles.table", "a", encoding="utf-8") as table:
        table.write(next(block for block in BLOCKS if block.startswith("toy_scale")))
    done = subprocess.run(
        [sys.executable, "-c", USE_THE_KIND],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_the_example_kind_has_true_types(tmp_path):
    kind = next(block for block in BLOCKS if block.startswith('"""Toy'))
    file = tmp_path / "toy.py"
    file.write_text(kind.replace("from ..", "from lora_locksmith.adapters."), encoding="utf-8")
    outcome = check_types(sys.executable, str(file))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_files_it_names_are_there():
    for name in re.findall(
        r"`((?:adapters|files|identify|key_maps|lora|nodes|planning|report|tests|web)/[\w/.]*)`",
        TEXT,
    ):
        assert (ROOT / name).exists() or name in (
            "key_maps/families/example.table",
            "adapters/kinds/toy.py",
        ), name
    assert (ROOT / ".github" / "workflows" / "publish.yml").exists()


def test_a_version_stands_in_one_place():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[
        1
    ]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for path in (*ROOT.glob("*/*.py"), *ROOT.glob("web/**/*.mjs")):
        assert f'"{version}"' not in path.read_text("utf-8"), path


def test_every_directive_is_explained():
    assert set(re.findall(r"^\| `@(\w+)", TEXT, re.MULTILINE)) == set(DIRECTIVES)
