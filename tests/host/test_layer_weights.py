"""Layer weights while loading multiply the strength of each layer, exactly."""

from __future__ import annotations

import pytest
import torch
from many_kinds import plain_kinds, turning_kinds
from safetensors.torch import save_file

QKV = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
SINGLE = "diffusion_model.single_blocks.0.linear1.weight"


@pytest.fixture
def path(tmp_path):
    save_file(plain_kinds() | turning_kinds(), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def changes(host, patched, patcher, path, strength=1.0, **how):
    """Weight -> its change, and the report."""
    loaded, _, report = host.load_and_fix(patcher, None, path, strength, **how)
    return {
        name: value - patcher.model.state_dict()[name].float()
        for name, value in patched(loaded).items()
    }, report


@pytest.mark.parametrize("factor", [0.5, -1.0, 2.0])
def test_a_layer_gets_its_share_of_the_strength(host, patched, base, path, factor):
    whole, _ = changes(host, patched, base(), path, 0.4)
    share, _ = changes(host, patched, base(), path, 0.4 * factor)
    text = f"double_blocks={factor}"
    some, report = changes(host, patched, base(), path, 0.4, blocks=text)
    assert some.keys() == whole.keys() and report.unplaced() == []
    for name, change in some.items():
        expected = share if ".double_blocks." in name else whole
        torch.testing.assert_close(change, expected[name], rtol=1e-5, atol=1e-6)
    assert any(f"layer weights {text}: " in note for note in report.notes())
    told = report.as_dict()["layer_weights"]["denoiser"]
    assert set(told.values()) == {factor}
    assert {f"diffusion_model.{name}.weight" for name in told} == {
        name for name in some if ".double_blocks." in name and name.endswith(".weight")
    }


def test_a_layer_of_weight_0_is_left_alone(host, patched, base, path):
    some, report = changes(host, patched, base(), path, blocks="double_blocks=0")
    assert some and not any(".double_blocks." in name for name in some)
    assert report.modules["placed"] == report.modules["total"]


def test_the_same_beside_the_layers(host, base, path):
    """In bypass mode the strengths of the parts that hang beside a layer."""
    loaded, _, _ = host.load_and_fix(
        base(), None, path, 0.4, mode="bypass", blocks="*.qkv=0.5, single_blocks=0"
    )
    [injection] = loaded.injections["lora_locksmith"]
    parts = injection.inject.__self__.parts
    assert {part.strength for part in parts[QKV.removesuffix(".weight")]} == {0.2}
    assert SINGLE.removesuffix(".weight") not in parts


@pytest.mark.parametrize("text", ["nothing_here=0.5", "double_blocks", "double_blocks=x", "1,2,3"])
def test_a_text_that_is_none_is_named(host, base, path, text):
    from lora_locksmith.adapters.spec import AdapterError

    with pytest.raises(AdapterError):
        host.load_and_fix(base(), None, path, blocks=text)


def test_a_vector_is_that_of_its_blocks(host, patched, base, path):
    vector = ["1"] * 61
    vector[3], vector[3 + 19] = "0.5", "0"  # the first double and the first single block
    by_vector, _ = changes(host, patched, base(), path, blocks=",".join(vector))
    by_name, _ = changes(
        host, patched, base(), path, blocks="double_blocks.0=0.5, single_blocks.0=0"
    )
    assert by_vector.keys() == by_name.keys()
    assert all(torch.equal(by_vector[name], by_name[name]) for name in by_name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SD-FACE", "changes nothing"),
        ("model=0", "changes nothing"),
        ("te=0", "keep their strength"),
        ("no text encoder", "keep their strength"),
    ],
)
def test_weights_that_leave_nothing_or_hit_nothing_are_told(host, base, path, text, said):
    _, _, report = host.load_and_fix(base(), None, path, blocks=text)
    assert any(f"layer weights {text}: " in note and said in note for note in report.notes())
