"""What weigh and compare_weights say, against dense fp64 deltas: PEFT's and LyCORIS' own, on the
tiny FLUX of the real ComfyUI.
"""

import copy
import json
import math

import peft
import pytest
import torch
from lora_locksmith.files.header import read_header
from lora_locksmith.lora.io.stream import TensorStream
from lora_locksmith.lora.statistics import NEEDS_MODEL, OUTSIDE, compare_weights, measure_modules
from lora_locksmith.messages import message
from lora_locksmith.planning.plan import make_plan
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from peft.tuners.boft.layer import BOFTLayer
from safetensors.torch import save_file
from torch import nn
from trainers import trained_by_lycoris, trained_by_peft

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

H = 128
PREFIX = "diffusion_model."
CLOSE = 1e-6


@pytest.fixture
def planned(target_model):
    """planned(tensors, metadata) -> plan of a file on the tiny FLUX."""
    return lambda tensors, metadata=None, config=None: make_plan(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        metadata or {},
        target_model,
        config_beside=config,
    )


@pytest.fixture
def weighed(planned):
    return lambda tensors, metadata=None: measure_modules(planned(tensors, metadata), tensors)


def by_module(weights):
    return {row.module: row for row in weights.modules}


def assert_row(row, dense):
    """All numbers of a row, against the dense fp64 delta."""
    values = torch.linalg.svdvals(
        dense.double().flatten(1) if dense.dim() > 1 else dense.double()[:, None]
    )
    energies = values.square() / values.square().sum()
    present = energies[energies > 0]
    assert row.frobenius == pytest.approx(dense.double().norm().item(), rel=CLOSE)
    assert row.spectral == pytest.approx(values[0].item(), rel=CLOSE)
    assert row.effective_rank == pytest.approx(
        (-(present * present.log()).sum()).exp().item(), rel=1e-5
    )
    assert row.stable_rank == pytest.approx(1 / energies[0].item(), rel=1e-5)
    assert row.top_share == pytest.approx(energies[0].item(), rel=1e-5)
    assert row.rank_99 == int((energies.cumsum(0) < 0.99).sum()) + 1
    assert (row.dead, row.nans, row.infs) == (False, 0, 0)


def peft_deltas(model):
    """PEFT's own fp64 delta of every adapted layer, by diffusers' name."""
    layers = {
        name: module
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return {
        name: layer.double().get_delta_weight("default").detach() for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    "settings",
    [{"lora_alpha": 2}, {"lora_alpha": 8, "use_rslora": True, "rank_pattern": {"to_k": 2}}],
)
def test_peft_lora_with_its_strength_in_the_metadata(both, weighed, settings):
    config = peft.LoraConfig(
        r=4, target_modules=["to_q", "to_k", "proj_mlp", "ff.net.2", "norm_out.linear"], **settings
    )
    model = trained_by_peft(both.twin, config)
    tensors = peft.get_peft_model_state_dict(model)
    fields = {"r": 4, "use_rslora": False, "rank_pattern": {}, **settings}
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {f"transformer.{name}": value for name, value in fields.items()}
        )
    }
    weights = weighed(
        {
            f"transformer.{name.removeprefix('base_model.model.')}": tensor
            for name, tensor in tensors.items()
        },
        metadata,
    )
    truth = peft_deltas(model)
    assert len(weights.modules) == len(truth) == 13
    for row in weights.modules:
        assert_row(row, truth[row.module.removeprefix("transformer.")])
    assert weights.energy == pytest.approx(
        sum(delta.square().sum().item() for delta in truth.values()), rel=CLOSE
    )
    assert [row.energy for row in weights.modules] == sorted(
        (row.energy for row in weights.modules), reverse=True
    )
    assert weights.energy_placed == 1


def test_peft_dora_gives_its_low_rank_part(both, weighed):
    model = trained_by_peft(
        both.twin, peft.LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["to_q"])
    )
    tensors = peft.get_peft_model_state_dict(model)
    weights = weighed(
        {
            f"transformer.{name.removeprefix('base_model.model.')}": tensor
            for name, tensor in tensors.items()
        }
    )
    for row in weights.modules:
        layer = model.base_model.model.get_submodule(row.module.removeprefix("transformer."))
        assert row.frobenius == pytest.approx(
            (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).norm().item(),
            rel=1e-5,
        )
        assert "DoRA" in row.note
    assert len(weights.modules) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "loha"},
        {"algo": "lokr", "factor": 4},
        {"algo": "lokr", "full_matrix": True},
        {"algo": "full"},
    ],
)
def test_lycoris_kinds(both, weighed, settings, tmp_path):
    preset = {
        "target_module": ["FluxSingleTransformerBlock"],
        "target_name": ["norm_out.linear"],
        "exclude_name": ["transformer_blocks.1"],
    }
    twin = copy.deepcopy(both.twin)
    network = trained_by_lycoris(twin, preset, tmp_path, settings)
    tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    rows = [row for row in weighed(tensors).modules if row.kind != "bias_diff"]
    adapters = {adapter.lora_name: adapter for adapter in network.loras}
    assert {row.module for row in rows} == set(adapters) and len(rows) == len(adapters) > 5
    for row in rows:
        if settings["algo"] == "full":
            assert_row(row, tensors[f"{row.module}.diff"])
        else:
            adapter = adapters[row.module].double()
            assert_row(row, adapter.get_weight(adapter.shape).detach() * adapter.scalar.detach())


def random_lora(
    module, out, inner, rank=4, alpha=None, names=("lora_A.weight", "lora_B.weight"), seed=1
):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.{names[0]}": torch.randn(rank, inner, generator=generator),
        f"{module}.{names[1]}": torch.randn(out, rank, generator=generator),
    }
    return tensors | ({} if alpha is None else {f"{module}.alpha": torch.tensor(float(alpha))})


KOHYA = ("lora_down.weight", "lora_up.weight")


def product(tensors, module, names=("lora_A.weight", "lora_B.weight")):
    down, up = (tensors[f"{module}.{name}"].double() for name in names)
    return (
        up
        @ down
        * (tensors[f"{module}.alpha"].item() / down.shape[0] if f"{module}.alpha" in tensors else 1)
    )


def test_rows_blocks_components_and_kinds_of_layers(weighed):
    tensors = random_lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, alpha=2, names=KOHYA)
    tensors |= random_lora("transformer.transformer_blocks.1.attn.to_k", H, H, alpha=8)
    tensors |= random_lora("transformer.transformer_blocks.1.attn.to_q", H, H)
    tensors |= random_lora("transformer.x_embedder", H, 64)
    tensors |= {"transformer.transformer_blocks.1.attn.to_q.diff_b": torch.full((H,), 3.0)}
    weights = weighed(tensors)
    rows = {(row.module.rpartition(".")[2], row.kind): row for row in weights.modules}
    assert rows["to_k", "lora"].places == (
        f"{PREFIX}double_blocks.1.img_attn.qkv.weight[{H}:{2 * H}]",
    )
    assert rows["to_q", "bias_diff"].places == (
        f"{PREFIX}double_blocks.1.img_attn.qkv.bias[0:{H}]",
    )
    assert rows["to_q", "bias_diff"].frobenius == pytest.approx(3 * math.sqrt(H))
    assert (rows["to_k", "lora"].scale, rows["to_k", "lora"].rank) == (2, 4)
    assert (
        rows["to_k", "lora"].layer_kind
        == f"{PREFIX}double_blocks.{{}}.img_attn.qkv.weight[{H}:{2 * H}]"
    )
    fused = product(tensors, "lora_unet_double_blocks_0_img_attn_qkv", KOHYA)
    assert_row(rows["lora_unet_double_blocks_0_img_attn_qkv", "lora"], fused)
    blocks = {share.name: share for share in weights.blocks}
    assert set(blocks) == {"double_blocks.0", "double_blocks.1", message(OUTSIDE)}
    assert blocks["double_blocks.0"].energy == pytest.approx(fused.square().sum().item())
    assert blocks["double_blocks.1"].modules == 3
    for shares in (weights.blocks, weights.networks, weights.layer_kinds):
        assert sum(share.energy for share in shares) == pytest.approx(weights.energy)
        assert sum(share.share for share in shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "lost, category",
    [
        ("transformer.transformer_blocks.99.attn.to_q", "unknown module"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "not wired"),
        ("transformer.transformer_blocks.0.ff.net.2", "shape conflict"),
    ],
)
def test_energy_that_found_no_place(weighed, lost, category):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H) | random_lora(
        lost, H, H, alpha=12, seed=2
    )
    weights = weighed(tensors)
    placed, missing = (
        product(tensors, name).square().sum().item()
        for name in ("transformer.transformer_blocks.0.attn.to_q", lost)
    )
    assert weights.energy_placed == pytest.approx(placed / (placed + missing), rel=CLOSE)
    assert [(found, row.module) for found, row in weights.unplaced] == [(category, lost)]
    assert weights.unplaced[0][1].rank == 4
    assert (
        weights.verdict
        == f"{100 * placed / (placed + missing):.1f} % of the LoRA's effect is placed."
    )


def test_what_found_no_place_has_the_strength_of_the_metadata(weighed):
    lost = "transformer.transformer_blocks.99.attn.to_q"
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H) | random_lora(
        lost, H, H
    )
    metadata = {
        "lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    }
    weights = weighed(tensors, metadata)
    assert weights.unplaced[0][1].scale == 0.5
    assert weights.energy_placed == pytest.approx(0.5)


def test_what_found_no_place_has_the_strength_of_the_config_beside(planned):
    lost = "transformer.transformer_blocks.99.attn.to_q"
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H) | random_lora(
        lost, H, H
    )
    config = {"r": 4, "lora_alpha": 8, "use_rslora": True}
    weights = measure_modules(planned(tensors, None, config), tensors, config)
    assert weights.unplaced[0][1].scale == weights.modules[0].scale == 4
    assert weights.energy_placed == pytest.approx(0.5)


def test_a_second_copy_is_no_loss(weighed):
    """Fused and split spellings of one training in one file, as some Z-Image files have them: the
    plan drops the fused one.
    """
    fused = f"{PREFIX}double_blocks.0.img_attn.qkv"
    tensors = random_lora(fused, 3 * H, H)
    for name in ("to_q", "to_k", "to_v"):
        tensors |= random_lora(f"{PREFIX}transformer_blocks.0.attn.{name}", H, H)
    weights = weighed(tensors)
    assert [(category, row.module) for category, row in weights.unplaced] == [
        ("duplicate target", fused)
    ]
    assert weights.energy_placed == 1
    assert weights.verdict == "100 % of the LoRA's effect is placed."


def test_nearly_all_is_not_all(weighed):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H)
    tensors |= {
        name.replace("blocks.0", "blocks.99"): tensor * 1e-3 for name, tensor in tensors.items()
    }
    weights = weighed(tensors)
    assert weights.verdict == "99.9 % of the LoRA's effect is placed."


def test_dead_modules(weighed):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H) | random_lora(
        "transformer.transformer_blocks.0.attn.to_k", H, H
    )
    tensors["transformer.transformer_blocks.0.attn.to_k.lora_B.weight"].zero_()
    weights = weighed(tensors)
    dead = weights.modules[-1]
    assert (dead.dead, dead.frobenius, dead.spectral, dead.rank_99) == (True, 0, None, None)
    assert weights.as_dict()["dead"] == ["transformer.transformer_blocks.0.attn.to_k"]
    only = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert weighed(only).energy_placed is None
    assert "Nothing" in weighed(only).verdict


def test_nan_and_inf_are_counted_and_do_not_spread(weighed):
    good, bad = (
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.transformer_blocks.0.attn.to_k",
    )
    tensors = random_lora(good, H, H) | {
        name: tensor.half() for name, tensor in random_lora(bad, H, H).items()
    }
    tensors[f"{bad}.lora_A.weight"][0, :3] = math.nan
    tensors[f"{bad}.lora_B.weight"][:2, 1] = -math.inf
    largest = max(
        tensor[tensor.isfinite()].abs().max().item()
        for name, tensor in tensors.items()
        if name.startswith(bad)
    )
    weights = weighed(tensors)
    rows = by_module(weights)
    assert (rows[bad].nans, rows[bad].infs, rows[bad].max_abs, rows[bad].frobenius) == (
        3,
        2,
        largest,
        None,
    )
    assert weights.energy == pytest.approx(product(tensors, good).square().sum().item())
    assert "1 adapter could not be measured" in weights.verdict
    json.dumps(weights.as_dict(), allow_nan=False)


def test_an_alpha_of_nan_or_of_many_numbers(weighed):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H, alpha=math.nan)
    for alpha in (math.nan, math.inf, [1.0, 1.0, 1.0]):
        tensors["transformer.transformer_blocks.0.attn.to_q.alpha"] = torch.tensor(alpha)
        weights = weighed(tensors)
        assert weights.modules == () and "alpha" in weights.faults[0][1]


def test_tensors_that_are_not_what_the_plan_says(planned):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H) | random_lora(
        "transformer.transformer_blocks.0.attn.to_k", H, H
    )
    plan = planned(tensors)
    changed = dict(tensors)
    changed["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"] = torch.ones(7, 3)
    del changed["transformer.transformer_blocks.0.attn.to_k.lora_B.weight"]
    weights = measure_modules(plan, changed)
    assert [module.rpartition(".")[2] for module, _ in weights.faults] == ["to_q", "to_k"]
    compared = compare_weights(plan, changed, plan, tensors)
    assert math.isnan(compared.norm_a) and compared.energy_only_b == 0
    assert len(compare_weights(plan, changed, plan, tensors).left_out) == 2


@pytest.mark.parametrize("seed", range(3))
def test_hostile_shapes_never_raise(weighed, seed):
    generator = torch.Generator().manual_seed(seed)
    roles = [
        "lora_A.weight",
        "lora_B.weight",
        "alpha",
        "dora_scale",
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "lokr_w1",
        "lokr_w2",
    ]
    roles += [
        "diff",
        "diff_b",
        "w_norm",
        "oft_blocks",
        "oft_R.weight",
        "a1.weight",
        "a2.weight",
        "b1.weight",
        "b2.weight",
        "lora_B.bias",
    ]
    tensors = {}
    for number in range(60):
        module = f"transformer.transformer_blocks.{number % 3}.attn.{('to_q', 'to_k', 'norm_q')[number % 3]}\udc80"[
            : None if number % 5 == 0 else -1
        ]
        for role in roles:
            if torch.rand((), generator=generator) < 0.4:
                shape = torch.randint(
                    0, 5, (int(torch.randint(0, 4, (), generator=generator)),), generator=generator
                ).tolist()
                tensors[f"{module}.{number}.{role}" if number % 2 else f"{module}.{role}"] = (
                    torch.ones(shape)
                )
    json.dumps(weighed(tensors).as_dict(), allow_nan=False)


def test_outliers_and_rank_use(weighed):
    tensors = {}
    for number, name in enumerate(
        ("attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.2")
    ):
        for block in range(2):
            width = 4 * H if "net" in name else H
            tensors |= random_lora(
                f"transformer.transformer_blocks.{block}.{name}", H, width, seed=number
            )
    tensors |= {
        name.replace("lora_A.", "lora_A.second.").replace(
            "lora_B.", "lora_B.second."
        ): tensor.clone()
        for name, tensor in tensors.items()
    }
    assert weighed(tensors).outliers == ()
    strong = "transformer.transformer_blocks.1.attn.to_out.0"
    tensors[f"{strong}.lora_B.second.weight"] *= 25
    tensors[f"{strong}.lora_A.second.weight"][1:] *= 1e-3
    weights = weighed(tensors)
    assert [(outlier.module, outlier.times > 10) for outlier in weights.outliers] == [
        (strong, True)
    ]
    assert weights.as_dict()["outliers"][0]["median"] == pytest.approx(
        weights.outliers[0].spectral / weights.outliers[0].times
    )
    assert weights.rank_use()[4] == {"adapters": 16, "median": 4, "most": 4}
    assert min(row.rank_99 for row in weights.modules) == 1


def test_an_open_stream_serves_as_well(planned, tmp_path):
    tensors = random_lora("transformer.transformer_blocks.0.attn.to_q", H, H, alpha=1)
    save_file(tensors, tmp_path / "lora.safetensors")
    with TensorStream(
        tmp_path / "lora.safetensors", read_header(tmp_path / "lora.safetensors")
    ) as stream:
        assert measure_modules(planned(tensors), stream) == measure_modules(
            planned(tensors), tensors
        )


@pytest.mark.parametrize("module_class", [DiagOFTModule, ButterflyOFTModule])
def test_lycoris_rotations(weighed, module_class):
    layer = nn.Linear(H, H)
    module = module_class("lycoris_x", layer, 1.0, lora_dim=8, constraint=1e-2, rescaled=True)
    with torch.no_grad():
        module.oft_blocks.normal_(std=0.2)
        module.rescale.add_(0.3)
    tensors = {
        f"lycoris_transformer_blocks_0_attn_to_out_0.{name}": tensor.detach()
        for name, tensor in module.state_dict().items()
    }
    row = weighed(tensors).modules[0]
    with torch.no_grad():
        module.rescale.fill_(1)
        layer.weight.copy_(torch.eye(H))
        turned = module.get_merged_weight(1)[0]
    assert row.relative == pytest.approx((turned - torch.eye(H)).norm().item(), rel=1e-4)
    assert row.frobenius is None and "rotation" in row.note


@pytest.mark.parametrize("shared", [False, True])
def test_peft_rotations(weighed, shared):
    holder = nn.ModuleDict({"layer": nn.Linear(4 * H, H, bias=False)})
    config = peft.OFTConfig(
        r=0,
        oft_block_size=8,
        block_share=shared,
        target_modules=["layer"],
        init_weights=False,
        use_cayley_neumann=True,
    )
    model = peft.get_peft_model(holder, config)
    layer = model.base_model.model["layer"]
    with torch.no_grad():
        layer.oft_R["default"].weight.normal_(std=0.02)
    row = weighed(
        {
            "transformer.transformer_blocks.0.ff.net.2.oft_R.weight": (
                layer.oft_R["default"].weight.detach()
            )
        }
    ).modules[0]
    rotation = layer.get_delta_weight("default").detach()
    assert rotation.shape == (4 * H, 4 * H)
    assert row.relative == pytest.approx((rotation - torch.eye(4 * H)).norm().item(), rel=1e-4)


def test_peft_butterfly(weighed):
    holder = nn.ModuleDict({"layer": nn.Linear(H, H, bias=False)})
    config = peft.BOFTConfig(
        boft_block_size=8, boft_n_butterfly_factor=2, target_modules=["layer"], init_weights=False
    )
    layer = peft.get_peft_model(holder, config).base_model.model["layer"]
    assert isinstance(layer, BOFTLayer)
    with torch.no_grad():
        layer.boft_R["default"].normal_(std=0.1)
    module = "transformer.transformer_blocks.0.attn.to_out.0"
    tensors = {
        f"{module}.boft_R": layer.boft_R["default"].detach(),
        f"{module}.boft_s": layer.boft_s["default"].detach() + 1,
    }
    rotation = layer.get_delta_weight("default")[0].detach()
    assert weighed(tensors).modules[0].relative == pytest.approx(
        (rotation - torch.eye(H)).norm().item(), rel=1e-4
    )


def test_kinds_that_depend_on_the_weight(weighed):
    block = "lycoris_transformer_blocks_0_attn"
    glora = {"a1": (H, 3), "a2": (3, H), "b1": (H, 3), "b2": (3, H)}
    tensors = {
        f"{block}_to_out_0.{role}.weight": torch.randn(shape) for role, shape in glora.items()
    }
    tensors[f"{block}_to_out_0.alpha"] = torch.tensor(1.5)
    tensors |= {
        f"{block}_to_add_out.weight": torch.randn(H),
        f"{block}_to_add_out.on_input": torch.tensor(0),
    }
    tensors |= {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.randn(H)}
    weights = weighed(tensors)
    rows = {row.kind: row for row in weights.modules}
    a1, a2, b1, b2 = (tensors[f"{block}_to_out_0.{role}.weight"].double() for role in glora)
    assert rows["glora"].frobenius == pytest.approx((b1 @ b2).norm().item() / 2, rel=CLOSE)
    assert rows["glora"].relative == pytest.approx((a1 @ a2).norm().item() / 2, rel=1e-5)
    assert rows["ia3"].relative == pytest.approx(
        tensors[f"{block}_to_add_out.weight"].norm().item(), rel=CLOSE
    )
    assert rows["ia3"].frobenius is rows["set"].frobenius is rows["set"].relative is None
    assert all(row.note for row in rows.values())
    swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {
        f"{block}_to_out_0.{role}.weight": tensors[f"{block}_to_out_0.{swapped[role]}.weight"]
        for role in glora
    }
    row = weighed(old | {f"{block}_to_out_0.alpha": torch.tensor(1.5)}).modules[0]
    assert (row.frobenius, row.relative) == (rows["glora"].frobenius, rows["glora"].relative)


def test_a_full_matrix_too_large_for_singular_values(weighed, monkeypatch):
    monkeypatch.setattr("lora_locksmith.lora.statistics.LARGEST_CORE", 100)
    change = torch.randn(H, H)
    row = weighed({"transformer.transformer_blocks.0.attn.to_q.diff": change}).modules[0]
    assert row.frobenius == pytest.approx(change.norm().item())
    assert row.spectral is row.effective_rank is None and "full matrix" in row.note


def split_of(fused, module, names, parts, own_rank=False):
    """The rows of a fused kohya LoRA as LoRAs of their own in diffusers' names; with own_rank of
    another factorisation.
    """
    down, up, alpha = (
        fused[f"{module}.lora_down.weight"],
        fused[f"{module}.lora_up.weight"],
        fused[f"{module}.alpha"].item(),
    )
    tensors = {}
    for name, part in zip(names, up.split(parts), strict=True):
        part = part * (alpha / down.shape[0])
        if own_rank:
            outer, inner = torch.linalg.qr(part.double())
            part, below = outer.float(), (inner @ down.double()).float()
        tensors |= {
            f"{name}.lora_B.weight": part,
            f"{name}.lora_A.weight": below if own_rank else down,
        }
    return tensors


SPLIT = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
SINGLE = [
    f"transformer.single_transformer_blocks.1.{name}"
    for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
]


@pytest.mark.parametrize("own_rank", [False, True])
def test_fused_and_split_spellings_of_one_lora_are_the_same(planned, own_rank):
    double, single = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear1"
    kohya = random_lora(double, 3 * H, H, alpha=2, names=KOHYA) | random_lora(
        single, 7 * H, H, alpha=3, names=KOHYA, seed=2
    )
    diffusers = split_of(kohya, double, SPLIT, [H] * 3, own_rank) | split_of(
        kohya, single, SINGLE, [H, H, H, 4 * H], own_rank
    )
    comparison = compare_weights(planned(kohya), kohya, planned(diffusers), diffusers)
    truth = math.sqrt(
        sum(product(kohya, module, KOHYA).square().sum().item() for module in (double, single))
    )
    assert comparison.cosine == pytest.approx(1, abs=1e-9)
    assert comparison.norm_a == pytest.approx(truth, rel=CLOSE)
    assert comparison.norm_b == pytest.approx(truth, rel=CLOSE)
    assert (comparison.energy_only_a, comparison.energy_only_b, comparison.left_out) == (0, 0, ())
    assert next(
        meeting.rows for meeting in comparison.overlaps if meeting.weight.endswith("linear1.weight")
    ) == (3 * H, 4 * H)
    assert len(comparison.overlaps) == 7
    assert all(meeting.cosine == pytest.approx(1, abs=1e-9) for meeting in comparison.overlaps)
    json.dumps(comparison.as_dict(), allow_nan=False)


def test_cosines_against_dense_deltas(planned):
    """Two of three parts in B, one turned round, one other; and a weight that only one of the files
    has.
    """
    kohya = random_lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, alpha=2, names=KOHYA)
    split = split_of(kohya, "lora_unet_double_blocks_0_img_attn_qkv", SPLIT, [H] * 3)
    split = {name: tensor for name, tensor in split.items() if not name.startswith(SPLIT[2])}
    split[f"{SPLIT[0]}.lora_B.weight"] *= -2
    split[f"{SPLIT[1]}.lora_A.weight"] = torch.randn(4, H)
    split |= random_lora("transformer.transformer_blocks.1.attn.to_out.0", H, H)
    comparison = compare_weights(planned(kohya), kohya, planned(split), split)
    a = product(kohya, "lora_unet_double_blocks_0_img_attn_qkv", KOHYA)
    b = torch.cat((*(product(split, name) for name in SPLIT[:2]), torch.zeros(H, H)))
    alone = product(split, "transformer.transformer_blocks.1.attn.to_out.0").norm()
    cosines = {
        meeting.rows[0]: meeting.cosine
        for meeting in comparison.overlaps
        if "qkv" in meeting.weight
    }
    assert cosines[0] == pytest.approx(-1)
    assert cosines[H] == pytest.approx(
        torch.cosine_similarity(a[H : 2 * H].flatten(), b[H : 2 * H].flatten(), 0).item(), abs=1e-9
    )
    assert cosines[2 * H] is None
    assert comparison.energy_only_a == pytest.approx(a[2 * H :].square().sum().item(), rel=CLOSE)
    assert comparison.energy_only_b == pytest.approx(alone.square().item(), rel=CLOSE)
    overall = (a * b).sum() / a.norm() / (b.square().sum() + alone.square()).sqrt()
    assert comparison.cosine == pytest.approx(overall.item(), abs=1e-9)


def test_swapped_halves_meet(planned):
    native = random_lora("final_layer.adaLN_modulation.1", 2 * H, H)
    turned = {
        f"transformer.norm_out.linear.{name.rpartition('.1.')[2]}": tensor
        for name, tensor in native.items()
    }
    turned["transformer.norm_out.linear.lora_B.weight"] = native[
        "final_layer.adaLN_modulation.1.lora_B.weight"
    ].roll(H, 0)
    assert compare_weights(
        planned(native), native, planned(turned), turned
    ).cosine == pytest.approx(1)


def test_adapters_on_the_same_rows_add_up(planned):
    first, second = random_lora(SPLIT[0], H, H, seed=3), random_lora(SPLIT[0], H, H, seed=4)
    both = {name.replace(".weight", ".one.weight"): tensor for name, tensor in first.items()}
    both |= {name.replace(".weight", ".two.weight"): tensor for name, tensor in second.items()}
    both |= {f"{SPLIT[0]}.diff": product(first, SPLIT[0]).float()}
    total = {f"{SPLIT[0]}.diff": (2 * product(first, SPLIT[0]) + product(second, SPLIT[0])).float()}
    comparison = compare_weights(planned(both), both, planned(total), total)
    assert comparison.cosine == pytest.approx(1, abs=1e-9)
    assert comparison.norm_a == pytest.approx(total[f"{SPLIT[0]}.diff"].norm().item(), rel=CLOSE)
    assert len(comparison.overlaps) == 1


def test_what_is_not_linear_or_not_finite_is_left_out_of_the_sums(planned):
    lora = random_lora(SPLIT[0], H, H) | random_lora(SPLIT[1], H, H)
    other = {name: tensor.clone() for name, tensor in lora.items()} | {
        f"{SPLIT[0]}.dora_scale": torch.ones(H, 1)
    }
    other[f"{SPLIT[1]}.lora_A.weight"][0, 0] = math.nan
    comparison = compare_weights(planned(lora), lora, planned(other), other)
    assert comparison.left_out == (
        ("b", SPLIT[0], message(NEEDS_MODEL)),
        ("b", SPLIT[1], message("lora.norm_not_finite")),
    )
    assert comparison.cosine is None and math.isnan(comparison.norm_b)
    assert comparison.energy_only_a == 0, "B changes both layers, how is not known"
    whole = torch.cat([product(lora, module) for module in SPLIT[:2]])
    assert comparison.norm_a == pytest.approx(whole.norm().item())
    json.dumps(comparison.as_dict(), allow_nan=False)
