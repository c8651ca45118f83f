"""The sum of two LoRAs at the rank of one, and a smaller rank, from the factors, against the peers'
ways over the dense delta.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

from .measuring import ERROR, Bench, Row, measurement

# FLUX.1's commonest layer and its largest (single_blocks.*.linear1).
SQUARE, LARGEST = (3072, 3072), (21504, 3072)
# A full decomposition of a FLUX layer takes from a quarter of a minute to minutes: the short form
# takes one of a third of the side.
SMALL = (1024, 1024)
LOWRANK, DENSE = (
    "`torch.svd_lowrank` of the dense sum",
    "full SVD of the dense sum, as sd-scripts' `svd_merge_lora` does it",
)


def pair(out: int, columns: int, rank: int):
    """Factors of two random LoRAs side by side, as their exact sum has them, fp32."""
    import torch
    from lora_locksmith.lora.math.low_rank import Factors, add

    generator = torch.Generator().manual_seed(out + rank)
    sizes = torch.logspace(0, -1, rank)

    def draw() -> Factors:
        return Factors(
            torch.randn(out, rank, generator=generator) * sizes,
            torch.randn(rank, columns, generator=generator),
        )

    return add([draw(), draw()])


def ours(delta, rank: int):
    from lora_locksmith.lora.math.truncate import truncated

    found = truncated(delta, rank).delta
    return found.up, found.down


def by_lowrank(delta, rank: int):
    """torch's randomised decomposition of the dense delta."""
    import torch

    left, values, right = torch.svd_lowrank(delta.dense(), q=rank)
    return left * values, right.T


def by_svd(delta, rank: int):
    """The method of sd-scripts (networks/svd_merge_lora.py), done anew here: a full decomposition
    of the dense delta.
    """
    import torch

    left, values, right = torch.linalg.svd(delta.dense())
    return left[:, :rank] * values[:rank], right[:rank]


@measurement(
    Row(
        "cut",
        "Sum of two of rank 16 at rank 16, 3072 x 3072",
        LOWRANK,
        "ours, 16",
        "lowrank, 16",
        0.007,
        0.2,
    ),
    Row(
        "cut, rank 64",
        "Sum of two of rank 64 at rank 64, 3072 x 3072",
        LOWRANK,
        "ours, 64",
        "lowrank, 64",
        0.03,
        0.2,
    ),
    Row(
        "cut, largest",
        "Sum of two of rank 16 at rank 16, 21504 x 3072",
        LOWRANK,
        "ours, largest",
        "lowrank, largest",
        0.007,
        0.1,
    ),
    rounds=5,
    short_rounds=2,
)
def cut(bench: Bench):
    runs = {}
    for name, shape, rank in (("16", SQUARE, 16), ("64", SQUARE, 64), ("largest", LARGEST, 16)):
        delta = pair(*shape, rank)
        ours(delta, rank)
        runs |= {
            f"ours, {name}": partial(ours, delta, rank),
            f"lowrank, {name}": partial(by_lowrank, delta, rank),
        }
    return bench.take_turns(runs)


@measurement(
    Row(
        "cut, full SVD",
        "Sum of two of rank 16 at rank 16, 3072 x 3072 (short: 1024 x 1024)",
        DENSE,
        "ours",
        "svd",
        0.002,
        0.1,
    ),
    Row(
        "cut, PEFT",
        "The same",
        "PEFT's `add_weighted_adapter`, svd",
        "ours",
        "peft",
        0.002,
        0.1,
    ),
    rounds=1,
    short_rounds=2,
)
def cut_as_peers(bench: Bench):
    """On FLUX.1's commonest layer, in the short form on a small one."""
    delta = pair(*(SMALL if bench.short else SQUARE), 16)
    ours(delta, 16)
    peers = bench.take_turns({"svd": partial(by_svd, delta, 16)}) | {
        "peft": [by_peft(delta, 16)[0] for _ in range(bench.rounds)]
    }
    # A thousandth of a round is too short to be taken once.
    quick = bench._replace(rounds=9).take_turns({"ours": partial(ours, delta, 16)})["ours"]
    return peers | {"ours": [statistics.median(quick)] * bench.rounds}


def by_peft(delta, rank: int):
    """PEFT's own `svd` combination of two adapters: (seconds of it alone, its factors)."""
    import peft
    import torch

    out, columns = delta.shape
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(columns, out, bias=False)), config, "first"
    )
    model.add_adapter("second", config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for place, name in enumerate(("first", "second")):
            rows = slice(place * rank, (place + 1) * rank)
            layer.lora_A[name].weight.copy_(delta.down[rows])
            layer.lora_B[name].weight.copy_(delta.up[:, rows])
    start = time.perf_counter()
    model.add_weighted_adapter(
        ["first", "second"], [1.0, 1.0], "sum", combination_type="svd", svd_rank=rank
    )
    return time.perf_counter() - start, (
        layer.lora_B["sum"].weight.data,
        layer.lora_A["sum"].weight.data,
    )


BEST = "the smallest possible"


@measurement(
    Row("error of a cut", "Error of that form", BEST, "ours", "optimum", 1, 1.00001),
    Row(
        "error of svd_lowrank",
        "Error of `torch.svd_lowrank`'s",
        BEST,
        "lowrank",
        "optimum",
        1.01,
        2,
    ),
    Row("error of a full SVD", "Error of a full SVD's", BEST, "svd", "optimum", 1, 1.00001),
    Row("error of PEFT", "Error of PEFT's", BEST, "peft", "optimum", 1, 1.00001),
    rounds=1,
    short_rounds=1,
    unit=ERROR,
)
def error(bench: Bench):
    """Of the sum of two of rank 16 on a layer of a third of the side."""
    import torch
    from lora_locksmith.lora.math.low_rank import Factors, add

    delta = pair(*SMALL, 16)
    outer, inner = (
        torch.linalg.qr(factor.double(), mode="r").R for factor in (delta.up, delta.down.T)
    )
    squares = torch.linalg.svdvals(outer @ inner.T).square()
    errors = {"optimum": [(squares[16:].sum() / squares.sum()).sqrt().item()]}
    made = {
        "ours": ours(delta, 16),
        "lowrank": by_lowrank(delta, 16),
        "svd": by_svd(delta, 16),
        "peft": by_peft(delta, 16)[1],
    }
    for name, (up, down) in made.items():
        # From the factors of the difference, in fp64.
        difference = add(
            [Factors(delta.up.double(), delta.down.double()), Factors(-up.double(), down.double())]
        )
        errors[name] = [difference.frobenius() / delta.frobenius()]
    return errors


@measurement(
    Row(
        "resize",
        "Resizing a file of rank 64 to 16",
        "full SVD of dense deltas, as sd-scripts' `resize_lora`",
        "ours",
        "svd",
        0.02,
        0.3,
    ),
    rounds=3,
    short_rounds=1,
)
def resize(bench: Bench):
    """The self-attention of SD 1.5's middle block, 1280 x 1280, in kohya's names; ours also reads,
    writes and verifies.
    """
    from lora_locksmith.lora.rewrite.resize import RankTarget, resize_file

    from .files import write_noise

    shapes = {}
    for name in ("to_q",) if bench.short else ("to_q", "to_k", "to_v", "to_out_0"):
        module = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_{name}"
        shapes |= {f"{module}.lora_down.weight": (64, 1280), f"{module}.lora_up.weight": (1280, 64)}
    path, new = (
        write_noise(bench.folder / "lora.safetensors", shapes),
        bench.folder / "small.safetensors",
    )
    make = lambda: resize_file(path, new, RankTarget(rank=16), overwrite=True)  # noqa: E731
    assert {row.rank for row in make().rows} == {16}
    return bench.take_turns({"ours": make, "svd": partial(resized_by_svd, path)})


def resized_by_svd(path: Path) -> None:
    """The method of sd-scripts (networks/resize_lora.py), done anew here, and nothing written."""
    from lora_locksmith.files.header import read_header
    from lora_locksmith.lora.io.mapped import map_tensors
    from lora_locksmith.lora.math.low_rank import Factors

    tensors = map_tensors(path, read_header(path))
    for name, down in tensors.items():
        if "lora_down" in name:
            by_svd(Factors(tensors[name.replace("lora_down", "lora_up")].float(), down.float()), 16)
