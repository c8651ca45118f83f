"""Times cutting the sum of two LoRAs to the rank of one, from its factors, against the peers' ways over the dense delta."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROUNDS = 3
RANKS = (16, 64)
# FLUX.1's smallest square layer and its largest (single_blocks.*.linear1).
SHAPES = ((3072, 3072), (21504, 3072))
# A full decomposition of a FLUX layer takes from a quarter of a minute to minutes, so the peers' way is timed on a smaller one.
SMALL = (1024, 1024)


def pair(out: int, columns: int, rank: int):
    """Factors of two random LoRAs side by side, as their exact sum has them, fp32."""
    import torch
    from lora_locksmith.lora.factors import Factors, add

    generator = torch.Generator().manual_seed(out + rank)
    sizes = torch.logspace(0, -1, rank)
    draw = lambda: Factors(torch.randn(out, rank, generator=generator) * sizes, torch.randn(rank, columns, generator=generator))  # noqa: E731
    return add([draw(), draw()])


def optimum(delta, rank: int) -> float:
    """|delta - best rank| / |delta|, by QR in fp64."""
    import torch

    outer, inner = (torch.linalg.qr(factor.double(), mode="r").R for factor in (delta.up, delta.down.T))
    squares = torch.linalg.svdvals(outer @ inner.T).square()
    return (squares[rank:].sum() / squares.sum()).sqrt().item()


def error_of(delta, up, down) -> float:
    """|delta - up @ down| / |delta|, from the factors of the difference in fp64."""
    from lora_locksmith.lora.factors import Factors, add

    difference = add([Factors(delta.up.double(), delta.down.double()), Factors(-up.double(), down.double())])
    return difference.frobenius() / delta.frobenius()


def ours(delta, rank: int):
    from lora_locksmith.lora.truncate import truncated

    found = truncated(delta, rank).delta
    return found.up, found.down


def by_lowrank(delta, rank: int):
    """torch's randomised decomposition of the dense delta."""
    import torch

    left, values, right = torch.svd_lowrank(delta.dense(), q=rank)
    return left * values, right.T


def by_svd(delta, rank: int):
    """What sd-scripts does (networks/svd_merge_lora.py): a full decomposition of the dense delta."""
    import torch

    left, values, right = torch.linalg.svd(delta.dense())
    return left[:, :rank] * values[:rank], right[:rank]


def by_peft(delta, rank: int):
    """PEFT's own `svd` combination of two adapters: (seconds of it alone, its factors)."""
    import peft
    import torch

    out, columns = delta.shape
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(columns, out, bias=False)), config, "first")
    model.add_adapter("second", config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for place, name in enumerate(("first", "second")):
            rows = slice(place * rank, (place + 1) * rank)
            layer.lora_A[name].weight.copy_(delta.down[rows])
            layer.lora_B[name].weight.copy_(delta.up[:, rows])
    start = time.perf_counter()
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "sum", combination_type="svd", svd_rank=rank)
    return time.perf_counter() - start, (layer.lora_B["sum"].weight.data, layer.lora_A["sum"].weight.data)


def measure(rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """For every shape and rank how many times faster the factors are than each other way, and how far each is above the optimum."""
    results = {
        f"{out}x{columns} rank {2 * rank} to {rank}": _against_lowrank(out, columns, rank, rounds)
        for out, columns in SHAPES
        for rank in RANKS
    }
    return results | {f"{SMALL[0]}x{SMALL[1]} rank 32 to 16, once": _against_full(*SMALL, 16)}


def _seconds(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _against_lowrank(out: int, columns: int, rank: int, rounds: int) -> dict[str, float]:
    delta = pair(out, columns, rank)
    best = optimum(delta, rank)
    ours(delta, rank)
    turns = [(_seconds(lambda: ours(delta, rank)), _seconds(lambda: by_lowrank(delta, rank))) for _ in range(rounds)]
    (_, mine), (_, theirs) = turns[-1]
    return {
        "our_ms": round(1000 * statistics.median(first for (first, _), _ in turns), 2),
        "times_faster_than_svd_lowrank": round(statistics.median(other / first for (first, _), (other, _) in turns), 1),
        "our_error_above_optimum": error_of(delta, *mine) / best - 1,
        "svd_lowrank_above_optimum": error_of(delta, *theirs) / best - 1,
    }


def _against_full(out: int, columns: int, rank: int) -> dict[str, float]:
    delta = pair(out, columns, rank)
    best = optimum(delta, rank)
    ours(delta, rank)
    first, mine = _seconds(lambda: ours(delta, rank))
    full, theirs = _seconds(lambda: by_svd(delta, rank))
    combined, peers = by_peft(delta, rank)
    return {
        "our_ms": round(1000 * first, 2),
        "times_faster_than_full_svd": round(full / first),
        "times_faster_than_peft_svd": round(combined / first),
        "our_error_above_optimum": error_of(delta, *mine) / best - 1,
        "full_svd_above_optimum": error_of(delta, *theirs) / best - 1,
        "peft_above_optimum": error_of(delta, *peers) / best - 1,
    }
