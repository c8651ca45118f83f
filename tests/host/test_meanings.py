"""What a writer means by its tensors, in the real ComfyUI: each weight is what that writer trained,
at every strength and beside layers.
"""

from __future__ import annotations

import json

import pytest
import torch
from lora_locksmith.key_maps.convention import conventions
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.writer import write_as
from lora_locksmith.lora.rewrite.rename import Refused, writable
from lora_locksmith.report.inspection import inspect_file
from safetensors.torch import save_file

MODULE = "final_layer.linear"
WEIGHT = f"diffusion_model.{MODULE}.weight"
BIAS = f"diffusion_model.{MODULE}.bias"
RANK, OUT, IN = 4, 64, 128
DOTTED, FLAT, PEFT = (
    f"diffusion_model.{MODULE}",
    "lora_unet_final_layer_linear",
    f"transformer.{MODULE}",
)
DOWN, UP = (
    torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 0.1
    for shape in ((RANK, IN), (OUT, RANK))
)
FIRST, SECOND = (
    torch.randn(shape, generator=torch.Generator().manual_seed(8)) * 0.1
    for shape in ((8, 8), (8, 16))
)
PAIR = {"lora_down.weight": DOWN, "lora_up.weight": UP}
PEFT_PAIR = {"lora_A.weight": DOWN, "lora_B.weight": UP}
WHOLE = {"lokr_w1": FIRST, "lokr_w2": SECOND}
PRODUCT, KRONECKER = UP @ DOWN, torch.kron(FIRST, SECOND)


def told(**arguments):
    """Metadata as sd-scripts and LyCORIS have it."""
    return {
        "ss_network_args": json.dumps(arguments),
        "ss_network_alpha": "2",
        "ss_network_dim": str(RANK),
    }


def peft(**settings):
    """Settings in the header, as diffusers writes them."""
    return {
        "lora_adapter_metadata": json.dumps(
            {f"transformer.{name}": value for name, value in settings.items()}
        )
    }


ANIMA = {
    "ss_network_args": json.dumps({"algo": "lokr", "factor": 8}),
    "ss_network_dim": "32",
    "ss_network_alpha": "1",
}
KRONA = {"ss_network_module": "networks.krona", "ss_network_dim": "32", "ss_network_alpha": "1"}
RS_LORA, DYLORA, OLD = (
    told(rs_lora="True"),
    told(algo="dylora", block_size="2"),
    peft(peft_type="LOKR", alpha=8, r=RANK),
)
# name: where, tensors, alpha, metadata, what it adds to the weight
ADDED = {
    "finetrainers": (
        PEFT,
        PEFT_PAIR,
        None,
        {"lora_config": json.dumps({"r": RANK, "lora_alpha": 2})},
        PRODUCT / 2,
    ),
    "bare parameters": (DOTTED, {"lora_a": DOWN, "lora_b": UP}, None, None, PRODUCT),
    "LightX2V": (PEFT, PEFT_PAIR, None, {"alpha": "8", "key_format": "x"}, PRODUCT * 2),
    "alibaba-pai": (FLAT, PAIR, None, {"lora_alpha": "2"}, PRODUCT / 2),
    "rs_lora, LyCORIS 3.0": (FLAT, PAIR, 2.0, RS_LORA, PRODUCT * 2 / RANK**0.5),
    "rs_lora, LyCORIS 3.1": (FLAT, PAIR, 2.0 * RANK**0.5, RS_LORA, PRODUCT * 2 / RANK**0.5),
    "DyLoRA": (FLAT, PAIR, 2.0, DYLORA, PRODUCT * 2 * 2 / RANK),
    "whole LoKr": (FLAT, WHOLE, float(RANK), None, KRONECKER),
    "whole LoKr, infinite alpha": (FLAT, WHOLE, float("inf"), None, KRONECKER),
    "whole LoKr, AnimaLoraToolkit": (FLAT, WHOLE, 1.0, ANIMA, KRONECKER / 32),
    "whole LoKr, KronA": (FLAT, WHOLE, 1.0, KRONA, KRONECKER),
    "whole LoKr, rs_lora": (FLAT, WHOLE, float(RANK), RS_LORA, KRONECKER * RANK**0.5),
    "LoKr of PEFT 0.13": (PEFT, WHOLE, None, OLD, KRONECKER),
    "LoKr of PEFT 0.14": (
        PEFT,
        WHOLE,
        None,
        peft(peft_type="LOKR", alpha=8, r=RANK, exclude_modules=None),
        KRONECKER * 2,
    ),
    "AI-Toolkit fullrank": (PEFT, {"lora_A.weight": PRODUCT}, None, None, PRODUCT),
    "AI-Toolkit fullrank, kohya's names": (
        FLAT,
        {"lora_down.weight": PRODUCT},
        2.0,
        told(),
        PRODUCT * 2 / RANK,
    ),
}


@pytest.fixture
def load(host, tiny_flux, tmp_path):
    """load(where, tensors, alpha, metadata, strength) -> (patcher before, patcher
    after, report).
    """

    def run(where, tensors, alpha=None, metadata=None, strength=1.0, bypass=False):
        named = {
            f"{where}.{name}".lstrip("."): tensor.clone().contiguous()
            for name, tensor in tensors.items()
        }
        if alpha is not None:
            named[f"{where}.alpha"] = torch.tensor(alpha)
        path = tmp_path / "some folder" / "x \u00e9.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(named, path, metadata)
        base = tiny_flux()
        patcher, _, report = host.load_and_fix(base, None, path, strength, bypass=bypass)
        return base, patcher, report

    return run


def weight_of(patcher):
    return patcher.model.diffusion_model.final_layer.linear.weight.detach().float()


def change_of(base, after):
    return after[WEIGHT] - weight_of(base)


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 2.0])
@pytest.mark.parametrize("name", ADDED)
def test_the_change_is_what_the_writer_trained(load, patched, name, strength):
    where, tensors, alpha, metadata, delta = ADDED[name]
    base, patcher, report = load(where, tensors, alpha, metadata, strength)
    torch.testing.assert_close(
        change_of(base, patched(patcher)), strength * delta, rtol=1e-4, atol=1e-6
    )
    assert not report.cautions


@pytest.mark.parametrize("name", ADDED)
def test_the_report_names_the_convention(load, name):
    where, tensors, alpha, metadata, _ = ADDED[name]
    _, _, report = load(where, tensors, alpha, metadata)
    titles = {
        f"{one.title}: {case.title}" if case.title else one.title
        for one in conventions()
        for case in one.cases
    }
    usual = metadata is None or name == "LoKr of PEFT 0.14"
    assert (report.strength_source in titles) == (not usual)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_was_taken_off_the_base_is_taken_off(load, patched, init, strength):
    base, patcher, _ = load(
        PEFT, PEFT_PAIR, None, peft(r=RANK, lora_alpha=8, init_lora_weights=init), strength
    )
    weight = weight_of(base).double()
    if init == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        taken = left[:, :RANK] @ torch.diag(values[:RANK]) @ right[:RANK]
    else:
        first, second = torch.linalg.qr(weight)
        taken = 2 * first[:, :RANK] @ second[:RANK]
    want = strength * (2 * PRODUCT.double() - taken)
    torch.testing.assert_close(
        change_of(base, patched(patcher)).double(), want, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "corda"},
        {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 4]]},
    ],
)
def test_what_no_weight_can_say_is_refused(load, patched, settings):
    _, patcher, report = load(PEFT, PEFT_PAIR, None, peft(r=RANK, lora_alpha=8, **settings))
    assert not patched(patcher) and report.modules["placed"] == 0


def test_a_bias_is_scaled_as_its_factors_are(load, patched):
    bias = torch.linspace(-1, 1, OUT)
    base, patcher, _ = load(FLAT, {**PAIR, "lora_up.bias": bias}, 1.0)
    after = patched(patcher)
    before = base.model.diffusion_model.final_layer.linear.bias.detach().float()
    torch.testing.assert_close(after[BIAS] - before, bias / RANK)
    torch.testing.assert_close(change_of(base, after), PRODUCT / RANK, rtol=1e-4, atol=1e-6)


def test_half_of_a_lora_is_no_full_rank_difference(load, patched):
    """A down factor may have the shape of its weight: where the file has an up, or another that
    does not fit, it is half a LoRA.
    """
    whole, thin = (
        {f"{PEFT}.lora_A.weight": PRODUCT},
        {"transformer.x_embedder.lora_A.weight": torch.ones(RANK, 64)},
    )
    for others in (thin, thin | {"transformer.x_embedder.lora_B.weight": torch.ones(128, RANK)}):
        _, patcher, report = load("", whole | others)
        assert WEIGHT not in patched(patcher)
        assert report.outcomes[f"{PEFT}.lora_A.weight"].category == "incomplete adapter"


def test_a_full_rank_difference_whose_rank_nobody_tells_is_refused(load, patched):
    _, patcher, report = load(FLAT, {"lora_down.weight": PRODUCT}, 2.0)
    assert not patched(patcher) and "AI-Toolkit fullrank" in str(report)


def test_an_oft_of_comfyuis_trainer_is_limited_by_alpha_itself(load, patched):
    blocks = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(9))
    base, patcher, _ = load(DOTTED, {"oft_blocks": blocks}, 1.0)
    skew = blocks - blocks.transpose(1, 2)
    skew = skew / skew.norm()
    identity = torch.eye(8)
    rotation = (identity + skew) @ torch.linalg.inv(identity - skew)
    want = torch.einsum("knm,kni->kmi", rotation, weight_of(base).view(8, 8, IN)).reshape(OUT, IN)
    torch.testing.assert_close(patched(patcher)[WEIGHT], want, rtol=1e-4, atol=1e-5)


def test_magnitudes_made_for_the_bases_length_divide_by_it(load, patched):
    scale = torch.linspace(0.5, 2, OUT)[:, None]
    metadata = {"anima_dora_scale_format": "comfy_output_axis_adjusted"}
    base, patcher, _ = load(FLAT, {**PAIR, "dora_scale": scale}, float(RANK), metadata)
    weight = weight_of(base)
    want = (weight + PRODUCT) * scale / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(patched(patcher)[WEIGHT], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora_F", "router.weight", "gate.weight"])
def test_a_tensor_that_means_another_formula_leaves_the_weight_alone(load, patched, name):
    _, patcher, report = load(PEFT, {**PEFT_PAIR, name: torch.ones(RANK, 1)})
    assert not patched(patcher) and name in str(report)


def test_where_the_evidence_contradicts_itself_the_report_says_so(load, patched):
    base, patcher, report = load(FLAT, PAIR, 3.0, RS_LORA)
    torch.testing.assert_close(
        change_of(base, patched(patcher)), PRODUCT * 3 / RANK, rtol=1e-4, atol=1e-6
    )
    assert report.cautions and "rs_lora" in report.cautions[0]


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 2.0])
def test_a_bias_that_was_trained_is_set_and_a_copy_of_the_base_is_not(load, patched, strength):
    bias = torch.linspace(-1, 1, OUT)
    settings = peft(r=RANK, lora_alpha=RANK, bias="lora_only")
    base, patcher, report = load(
        PEFT, {**PEFT_PAIR, "base_layer.bias": bias}, None, settings, strength
    )
    before = base.model.diffusion_model.final_layer.linear.bias.detach().float()
    after = next(value for name, value in patched(patcher).items() if name.endswith("linear.bias"))
    torch.testing.assert_close(after, before + strength * (bias - before), rtol=1e-4, atol=1e-6)
    assert report.unplaced() == []
    copies = {"base_layer.bias": bias, "base_layer.weight": torch.ones(OUT, IN)}
    _, patcher, _ = load(PEFT, {**PEFT_PAIR, **copies}, None, settings, strength)
    assert len(patched(patcher)) == 1


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 2.0])
def test_a_lone_down_of_the_weights_shape_is_the_whole_difference(load, patched, strength):
    whole = torch.linspace(-1, 1, OUT * IN).reshape(OUT, IN)
    base, patcher, _ = load(PEFT, {"lora_A.weight": whole}, None, None, strength)
    torch.testing.assert_close(
        change_of(base, patched(patcher)), strength * whole, rtol=1e-4, atol=1e-5
    )
    _, patcher, report = load(PEFT, {"lora_A.weight": whole[:RANK]}, None, None, strength)
    assert not patched(patcher) and "lora_up or lora_B is missing" in str(report)


BEYOND = {
    "DoRA adjusted for ComfyUI": (
        FLAT,
        {**PAIR, "dora_scale": torch.linspace(0.5, 2, OUT)[:, None]},
        float(RANK),
        {"anima_dora_scale_format": "comfy_output_axis_adjusted"},
    ),
    "OFT of ComfyUI's trainer": (
        DOTTED,
        {"oft_blocks": torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(9))},
        1.0,
        None,
    ),
    "PiSSA": (PEFT, PEFT_PAIR, None, peft(r=RANK, lora_alpha=8, init_lora_weights="pissa")),
    "OLoRA": (PEFT, PEFT_PAIR, None, peft(r=RANK, lora_alpha=8, init_lora_weights="olora")),
    "GLoRA of old LyCORIS": (
        FLAT,
        {"a1.weight": DOWN, "a2.weight": DOWN.T, "b1.weight": DOWN, "b2.weight": UP},
        2.0,
        None,
    ),
}
WRITTEN = {name: case[:4] for name, case in ADDED.items()} | BEYOND
# What of these a dialect has no word for, and says so.
NOT_IN = {
    "DoRA adjusted for ComfyUI": set(writable()) - {"comfyui"},
    "OFT of ComfyUI's trainer": set(writable()) - {"comfyui"},
    "PiSSA": set(writable()) - {"peft", "diffusers"},
    "OLoRA": set(writable()) - {"peft", "diffusers"},
}
NOT_IN |= {
    name: set(writable()) - {"comfyui", "kohya", "lycoris"}
    for name in WRITTEN
    if "GLoRA" in name or "fullrank" in name
}
PAIRS_ONLY = {"peft", "diffusers", "simpletuner", "onetrainer_diffusers", "diffusion_pipe"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_converted_file_means_what_its_source_means(load, patched, host, tmp_path, name):
    where, tensors, alpha, metadata = WRITTEN[name]
    base, patcher, _ = load(where, tensors, alpha, metadata)
    want = change_of(base, patched(patcher))
    source = tmp_path / "some folder" / "x \u00e9.safetensors"
    found = inspect_file(source, host.target_model_of(base, None), whole=True)
    tensors = map_tensors(source, found.header)
    refused = set()
    for dialect in writable():
        try:
            written = write_as(found.plan, tensors, tmp_path / f"{dialect}.safetensors", dialect)
        except Refused:
            refused.add(dialect)
            continue
        again, _, report = host.load_and_fix(base, None, written.path)
        assert report.modules["placed"] == 1
        torch.testing.assert_close(
            change_of(base, patched(again)),
            want,
            rtol=1e-4,
            atol=1e-6,
            msg=f"{dialect} says something else",
        )
    assert refused == NOT_IN.get(name, PAIRS_ONLY if "LoKr" in name else set())
