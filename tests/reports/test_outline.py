"""What files share that are alike but for their ranks: exactly what each of them tells alone."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

import pytest
from cold import forget
from drawn import drawn_weights
from hollow_files import write_hollow
from lora_locksmith.files.header import read_header
from lora_locksmith.identify.variants import published
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from lora_locksmith.report import findings, inspection
from lora_locksmith.report.findings import findings_here, packed_findings
from lora_locksmith.report.listing import list_files
from lora_locksmith.report.outline import outline_of
from reports.small_files import flux_lora

MODELS = [name for name, family in families().items() if family.kind == DENOISER]
MOST = 48  # modules of one file
KOHYA = {"ss_network_module": "networks.lora", "ss_network_dim": "4"}


def told_of(listed) -> tuple[str, str]:
    """All that is found, messages with what stands in their gaps."""
    return packed_findings(findings_here(listed))


def told_alone(listed) -> tuple[str, str]:
    forget()
    return told_of(listed)


@pytest.fixture
def looked_into(monkeypatch) -> list[str]:
    """The files that were planned, one by one."""
    paths: list[str] = []
    inspect = findings.inspect_header
    monkeypatch.setattr(
        findings,
        "inspect_header",
        lambda path, *rest, **more: paths.append(Path(path).name) or inspect(path, *rest, **more),
    )
    return paths


def factors(module: str, shape: tuple, rank: int, dialect) -> dict[str, tuple]:
    """A LoRA on one module, in the dialect's own spelling."""
    down = next(role for role in dialect.roles if "down" in role or "lora_A" in role)
    up = down.replace("down", "up").replace("lora_A", "lora_B")
    out, *inner = shape
    joint = "" if down.startswith("_") else "."
    spelled = {
        f"{module}{joint}{down}": (rank, *inner),
        f"{module}{joint}{up}": (out, rank, *(1 for _ in inner[1:])),
    }
    spelled = {key.replace("<adapter>", "default"): one for key, one in spelled.items()}
    return spelled | ({f"{module}.alpha": ("F32",)} if "alpha" in dialect.roles else {})


def magnitudes(module: str, shape: tuple, dialect) -> dict[str, tuple]:
    flat = dialect.form == "flat"
    return {f"{module}.dora_scale": (shape[0], 1)} if flat else {
        f"{module}.lora_magnitude_vector": shape[:1]
    }  # fmt: skip


def modules_of(family: str, variant: str, dialect) -> list[tuple[str, tuple]]:
    target_model = TargetModel([denoiser_network(drawn_weights(family, variant))])
    spelled = spell(target_model, target_model.networks[DENOISER], dialect)
    return [(one.module, one.shape) for one in spelled if len(one.shape) > 1]


def odd_ones(tensors: dict[str, tuple], pairs: list, dialect, chance) -> dict[str, tuple]:
    """The tensors with one of the differences that matter."""
    name, shape = chance.choice(pairs)
    down, up, *_ = factors(name, shape, 4, dialect)
    if down not in tensors:
        return tensors
    alphas = [key for key in tensors if key.endswith(".alpha")]
    return chance.choice(
        [
            lambda: tensors | {down: (0, *shape[1:]), up: (shape[0], 0)},
            lambda: tensors | {up: (shape[0], 7, *(1 for _ in shape[2:]))},
            lambda: tensors | {down: (4, 5)},
            lambda: tensors | {down: (4,)},
            lambda: {key: one for key, one in tensors.items() if key != up},
            lambda: tensors | {f"{name}.lora_E": (4, 1)},
            lambda: tensors | {"nobody.knows.this": (4, 4)},
            lambda: tensors | {f"{name}.diff_b": shape[:1]},
            lambda: tensors | magnitudes(name, shape, dialect),
            lambda: tensors | dict.fromkeys(alphas[:1], ("BOOL",)),
            lambda: tensors | dict.fromkeys(alphas[:1], (2,)),
        ]
    )()


def metadata_of(chance) -> dict[str, str]:
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": chance.choice([4, 8])})
    own = {"modelspec.trigger_phrase": f"word {chance.random()}"}
    if chance.random() < 0.6:
        return own
    return own | chance.choice(
        [
            KOHYA,
            {"lora_adapter_metadata": settings},
            {"ss_base_model_version": chance.choice(["sdxl_base_v1-0", "flux1", "sd_v1"])},
            KOHYA | {"ss_network_args": '{"split_qkv": "true"}'},
            KOHYA | {"ss_network_alpha": "2", "ss_network_args": '{"lora_reg_dims": "a=2"}'},
            KOHYA | {"ss_network_alpha": "2"},
        ]
    )


def write_sweep(folder: Path, family: str, chance: random.Random, count: int = 14) -> None:
    """Files for one model: of one choice of layers or another, of one rank or many."""
    dialect = dialects()[chance.choice(sorted(dialects()))]
    modules = modules_of(family, chance.choice(published(families()[family])), dialect)
    usual = chance.sample(modules, min(MOST, len(modules)))
    folder.mkdir(exist_ok=True)
    for number in range(count):
        part = usual if chance.random() < 0.7 else usual[: chance.randint(1, len(usual))]
        rank = chance.choice([2, 4, 12])
        own = chance.random() < 0.4
        tensors: dict[str, tuple] = {}
        for module, shape in part:
            tensors |= factors(module, shape, chance.randint(1, 9) if own else rank, dialect)
        if chance.random() < 0.3:
            tensors = odd_ones(tensors, part, dialect, chance)
        alphas = [key for key, shape in tensors.items() if shape == ("F32",)]
        alpha = struct.pack("<f", chance.choice([1.0, 2.0, 8.0]))
        path = folder / f"{family} {number:02}.safetensors"
        write_hollow(path, tensors, metadata_of(chance), values=dict.fromkeys(alphas, alpha))


@pytest.mark.parametrize("half", range(2))
def test_what_is_shared_is_what_each_file_tells_alone(tmp_path, looked_into, half):
    chance = random.Random(half)
    folder = tmp_path / "loras"
    for family in MODELS[half::2]:
        write_sweep(folder, family, chance)
    listed = list_files(folder)
    alone = {name: told_alone(one) for name, one in listed.items()}
    assert len(looked_into) == len(listed) and len(set(alone.values())) > len(listed) / 8
    for _ in range(2):
        forget()
        looked_into.clear()
        for name in chance.sample(sorted(listed), len(listed)):
            assert told_of(listed[name]) == alone[name], name
        assert len(looked_into) < 0.85 * len(listed)


def test_files_of_ranks_of_their_own_are_planned_once(tmp_path, looked_into):
    chance = random.Random(1)
    for number in range(6):
        write_hollow(tmp_path / f"{number}.safetensors", flux_lora(number + 3))
    resized: dict[str, tuple] = {}
    for name, shape in flux_lora(4).items():
        if "lora_A" in name:
            rank = chance.randint(2, 64)
        resized[name] = tuple(rank if size == 4 else size for size in shape)
    write_hollow(tmp_path / "resized.safetensors", resized)
    forget()
    found = [findings_here(listed) for listed in list_files(tmp_path).values()]
    assert looked_into == ["0.safetensors"]
    assert [one.rank for one in found[:6]] == ["3", "4", "5", "6", "7", "8"]
    assert "most" in found[6].rank
    assert len({one._replace(rank="") for one in found}) == 1


A, B = (f"transformer.transformer_blocks.0.norm1.linear.lora_{side}.weight" for side in "AB")
FLAT = "lora_unet_double_blocks_0_img_attn_qkv"
SPLIT = KOHYA | {"ss_network_args": '{"split_qkv": "true"}'}
OF_EACH = KOHYA | {"ss_network_alpha": "2", "ss_network_args": '{"lora_reg_dims": "qkv=2"}'}


def flat(rank: int, alpha: tuple = ("F32",)) -> dict[str, tuple]:
    down, up = f"{FLAT}.lora_down.weight", f"{FLAT}.lora_up.weight"
    return {f"{FLAT}.alpha": alpha, down: (rank, 3072), up: (9216, rank)}


def bare(rank: int) -> dict[str, tuple]:
    module = "diffusion_model.double_blocks.0.img_attn.proj"
    return {f"{module}.lora_A": (rank, 3072), f"{module}.lora_B": (3072, rank)}


# name -> two files that are told differently: tensors, metadata, alpha
DIFFERENT = {
    "a key that nobody knows": ((flux_lora(4), {}, 1), (flux_lora(4) | {"odd": (4,)}, {}, 1)),
    "half of a pair": ((flux_lora(4), {}, 1), ({**flux_lora(4), B: (18432, 5)}, {}, 1)),
    "another layer's width": ((flux_lora(4), {}, 1), (flux_lora(4) | {A: (4, 3071)}, {}, 1)),
    "another number of outputs": ((flux_lora(4), {}, 1), (flux_lora(4) | {B: (18431, 4)}, {}, 1)),
    "an alpha that is no number": ((flat(4), {}, 1), (flat(4, ("BOOL",)), {}, 1)),
    "an alpha of two numbers": ((flat(4), {}, 1), (flat(4, ("F32", 2)), {}, 1)),
    "ranks that were added up": ((flat(4), SPLIT, 1), (flat(12), SPLIT, 1)),
    "alphas of all or of each": ((flat(2), OF_EACH, 1), (flat(2), OF_EACH, 2)),
    "bare factors of a rank above the width": ((bare(4), {}, 1), (bare(4000), {}, 1)),
    "what the metadata say": (
        (flux_lora(4), {}, 1),
        (flux_lora(4), {"ss_base_model_version": "sdxl_base_v1-0"}, 1),
    ),
    "a strength in the metadata": (
        (flux_lora(4), {"alpha": "8"}, 1),
        (flux_lora(8), {"alpha": "8"}, 1),
    ),
    "settings in the metadata": (
        (flux_lora(4), {"lora_adapter_metadata": '{"transformer.lora_alpha": 8}'}, 1),
        (flux_lora(8), {"lora_adapter_metadata": '{"transformer.lora_alpha": 8}'}, 1),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_that_matters_is_not_shared_over(tmp_path, name):
    for number, (tensors, metadata, alpha) in enumerate(DIFFERENT[name]):
        alphas = [key for key, shape in tensors.items() if shape == ("F32",)]
        values = dict.fromkeys(alphas, struct.pack("<f", alpha))
        write_hollow(tmp_path / f"{number}.safetensors", tensors, metadata, values=values)
    listed = list(list_files(tmp_path).values())
    alone = [told_alone(one) for one in listed]
    assert len({re.sub(r'"(4|8|12|4000)"', "", told) for told, _ in alone}) == 2, "but for the rank"
    for order in (listed, listed[::-1]):
        forget()
        assert sorted(map(told_of, order)) == sorted(alone)


def test_dtypes_count_for_whole_reports_too(tmp_path):
    states = []
    for number, alpha in enumerate([("F32",), ("BOOL",), ("F32",)]):
        path = write_hollow(tmp_path / f"{number}.safetensors", flat(4, alpha))
        states.append(inspection.inspect_file(path).report.modules["placed"])
    assert states == [1, 0, 1]


NAMES = (
    ("a.lora_A.weight", "a.lora_B.weight"),
    ("a.lora_A.weight\0a.lora_B.weight",),
    ("a.lora_A.weight", "b.lora_B.weight"),
    ("a.lora_B.weight", "a.lora_A.weight"),
    ("a.lora_A.weight",),
    ("\ud800.lora_A.weight", "\ud800.lora_B.weight"),
)


def test_the_outline_tells_names_shapes_and_their_order_apart(tmp_path):
    digests = set()
    for names in NAMES:
        shapes = ((4, 8), (6, 4)), ((4, 8), (4, 6)), ((4, 8), (6, 4, 1)), ((8, 4), (4, 6))
        for number, pair in enumerate(shapes):
            path = tmp_path / f"{len(digests)} {number}.safetensors"
            write_hollow(path, dict(zip(names, pair, strict=False)))
            told = outline_of(read_header(path))
            assert (told is None) == ("\0" in names[0])
            digests |= {told.digest} if told else set()
    assert len(digests) == 4 * 4 + 2  # a lone tensor has one of two shapes
