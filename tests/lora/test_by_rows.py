"""Patching in place, a piece of rows at a time: the same as at once, in a fraction of the memory."""

from __future__ import annotations

import pytest
import torch
from lora_locksmith.adapters.rows import Rows
from lora_locksmith.adapters.spec import AdapterSpec
from lora_locksmith.lora.math import by_rows
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.math.by_rows import Change, add_changes, patch_in_place
from torch.utils._python_dispatch import TorchDispatchMode

OUT, INPUTS, RANK = 96, 40, 3


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


PAIR = {"up": numbers(OUT, RANK), "down": numbers(RANK, INPUTS)}
LOKR = {"lokr_w1": numbers(6, 4), "lokr_w2": numbers(16, 10)}
LOHA = {
    "hada_w1_a": numbers(OUT, RANK),
    "hada_w1_b": numbers(RANK, INPUTS),
    "hada_w2_a": numbers(OUT, RANK) + 1,
    "hada_w2_b": numbers(RANK, INPUTS),
}
PER_OUTPUT = {"dora_scale": numbers(OUT, 1).abs() + 1}
BY_ROWS = {
    "lora": ("lora", PAIR),
    "loha": ("loha", LOHA),
    "lokr": ("lokr", LOKR),
    "DoRA": ("lora", PAIR | PER_OUTPUT),
    "DoRA of a loha": ("loha", LOHA | PER_OUTPUT),
    "DoRA of a lokr": ("lokr", LOKR | {"magnitude": numbers(OUT).abs() + 1}),
    "oft": ("oft", {"oft_blocks": numbers(12, 8, 8), "rescale": numbers(OUT, 1) + 1}),
    "oft of inputs": ("oft_peft", {"oft_R": numbers(5, 28)}),
}
AT_ONCE = {
    "DoRA per input": ("lora", PAIR | {"dora_scale": numbers(1, INPUTS).abs() + 1}),
    "BOFT": ("boft", {"oft_blocks": numbers(2, 12, 8, 8)}),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(by_rows, "PIECE", 20 * INPUTS)


def both(spec, tensors, weight, strength):
    expected = patched_weight(spec, tensors, weight, strength)
    got = weight.clone()
    patch_in_place(spec, tensors, got, strength)
    return got, expected


@pytest.mark.parametrize("strength", [1.0, -0.7])
@pytest.mark.parametrize("name", [*BY_ROWS, *AT_ONCE])
def test_is_what_it_is_at_once(name, strength):
    kind, tensors = (BY_ROWS | AT_ONCE)[name]
    got, expected = both(AdapterSpec(kind, alpha=2.0), tensors, numbers(OUT, INPUTS), strength)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in BY_ROWS if name != "oft of inputs"])
@pytest.mark.parametrize("swap", [False, True])
def test_of_a_part_of_the_module_and_turned_halves(name, swap):
    kind, tensors = BY_ROWS[name]
    for rows in (None, Rows(32, 64)):
        spec = AdapterSpec(kind, alpha=2.0, rows=rows, swap=swap)
        got, expected = both(spec, tensors, numbers(rows.length if rows else OUT, INPUTS), 0.5)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_of_another_type_keeps_it():
    spec, weight = AdapterSpec("lora", alpha=2.0), numbers(OUT, INPUTS).to(torch.bfloat16)
    got, expected = both(spec, PAIR | PER_OUTPUT, weight, 1.0)
    assert got.dtype == torch.bfloat16 and torch.equal(got, expected.to(torch.bfloat16))


class Largest(TorchDispatchMode):
    """How many fp32 numbers the largest memory holds that is made, beside what is there."""

    def __init__(self, *there):
        super().__init__()
        self.there, self.numbers = {one.untyped_storage().data_ptr() for one in there}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                memory = one.untyped_storage()
                if memory.data_ptr() not in self.there:
                    self.numbers = max(self.numbers, memory.nbytes() // 4)
        return result


@pytest.mark.parametrize("name", [*BY_ROWS, *AT_ONCE])
def test_a_piece_is_all_that_is_made(name):
    """Of those that need all rows at once the whole weight is made, which shows that it is seen."""
    kind, tensors = (BY_ROWS | AT_ONCE)[name]
    weight = numbers(OUT, INPUTS)
    with Largest(weight, *tensors.values()) as largest:
        patch_in_place(AdapterSpec(kind, alpha=2.0), tensors, weight, 1.0)
    assert (largest.numbers < weight.numel() / 2) == (name in BY_ROWS)


@pytest.mark.parametrize("name", [*BY_ROWS, *AT_ONCE])
def test_changes_of_another_weight_are_added_in_pieces_of_it(name):
    """Two of them, as strong as both are told to be, to a weight that is changed already."""
    kind, tensors = (BY_ROWS | AT_ONCE)[name]
    own, weight = numbers(OUT, INPUTS), numbers(OUT, INPUTS) * 2
    spec = AdapterSpec(kind, alpha=2.0)
    whole = [patched_weight(spec, tensors, own, strength) - own for strength in (0.5, -2.0)]
    expected = weight + 0.7 * sum(whole)
    changes = [Change(strength, spec, tensors) for strength in (0.5, -2.0)]

    def rows_of(rows):
        return (own.narrow(0, *rows) if rows else own).clone()

    with Largest(own, weight, *tensors.values()) as largest:
        add_changes(changes, weight, rows_of, 0.7)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-5)
    assert (largest.numbers < weight.numel() / 2) == (name in BY_ROWS)
