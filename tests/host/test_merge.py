"""The nodes Merge LoRAs and Apply LoRA on a real model: a merge does what its LoRAs do, stacked by
the loaders.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

H = 128


WIDTH = 3072


@pytest.fixture
def nodes(comfy, tmp_path):
    """nodes/merge.py, with a loras folder of its own."""
    import folder_paths
    from lora_locksmith.nodes import merge

    before = list(folder_paths.folder_names_and_paths["loras"][0])
    folder_paths.add_model_folder_path("loras", str(tmp_path), is_default=True)
    yield merge
    folder_paths.folder_names_and_paths["loras"][0][:] = before


def factors(module, out, inner, rank, seed, names=("lora_A.weight", "lora_B.weight"), alpha=None):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.{names[0]}": torch.randn(rank, inner, generator=generator) * 0.1,
        f"{module}.{names[1]}": torch.randn(out, rank, generator=generator) * 0.1,
    }
    return tensors | ({} if alpha is None else {f"{module}.alpha": torch.tensor(float(alpha))})


def ai_toolkit(seed, rank):
    """As AI-Toolkit names a FLUX LoRA: diffusers' modules, split q, k, v."""
    shapes = {
        f"transformer_blocks.{block}.attn.{name}": (H, H)
        for block in range(2)
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    shapes |= {
        "single_transformer_blocks.1.proj_mlp": (4 * H, H),
        "transformer_blocks.0.ff.net.2": (H, 4 * H),
        "norm_out.linear": (2 * H, H),
    }
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        tensors |= factors(f"transformer.{name}", *shape, rank, seed + number)
    return tensors


def kohya(seed, rank=5):
    shapes = {
        "double_blocks_0_img_attn_qkv": (3 * H, H),
        "single_blocks_1_linear1": (7 * H, H),
        "double_blocks_1_txt_mlp_0": (4 * H, H),
    }
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        tensors |= factors(
            f"lora_unet_{name}",
            *shape,
            rank,
            seed + number,
            ("lora_down.weight", "lora_up.weight"),
            2.0,
        )
    return tensors


@pytest.fixture
def merged(nodes, tiny_flux):
    """merged(rows of (file or LORA_MODEL, strength, blocks), method) -> (LORA_MODEL, report, report
    as a dictionary).

    Files of a tiny model need the model: no table has its sizes.
    """
    return lambda rows, method="sum", **settings: run(
        nodes, rows, method, **{"model": tiny_flux(), **settings}
    )


def run(nodes, rows, method="sum", **settings):
    listed, connected = [], {}
    for number, (lora, strength, *blocks) in enumerate(rows):
        name = lora if isinstance(lora, str) else f"lora_{number}"
        listed.append({"name": name, "strength": strength, "blocks": blocks[0] if blocks else ""})
        connected |= {} if isinstance(lora, str) else {name: lora}
    options = method if isinstance(method, dict) else {"method": method}
    output = nodes.MergeLoRAs.execute(json.dumps(listed), options, connected=connected, **settings)
    return output.result[0], output.result[1], json.loads(output.result[2])


def assert_same(ours, expected, tolerance=1e-5):
    assert set(ours) == set(expected) and ours
    for name, weight in expected.items():
        assert (ours[name] - weight).norm() <= tolerance * weight.norm(), name


def test_two_ai_toolkit_files_and_one_of_kohya_are_the_three_loaders(
    nodes, merged, host, tiny_flux, patched, tmp_path
):
    import comfy.sd

    files = {
        "one.safetensors": ai_toolkit(1, 4),
        "two.safetensors": ai_toolkit(50, 7),
        "three.safetensors": kohya(90),
    }
    strengths = (0.8, -0.5, 1.3)
    stacked = tiny_flux()
    for (name, tensors), strength in zip(files.items(), strengths, strict=True):
        save_file(tensors, tmp_path / name)
        stacked = host.load_and_fix(stacked, None, tmp_path / name, strength)[0]
    lora, report, told = merged(list(zip(files, strengths, strict=True)))
    expected = patched(stacked)
    by_stock = comfy.sd.load_lora_for_models(tiny_flux(), None, lora, 1.0, 0.0)[0]
    by_us = nodes.ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0).result
    assert_same(patched(by_stock), expected)
    assert_same(patched(by_us[0]), expected)
    assert (
        "3 LoRAs merged by weighted sum: 8 weights" in report
        and not told["unplaced"]
        and told["kept"] == 1
    )
    beside = nodes.ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0, mode="bypass").result[0]
    assert not beside.patches


def test_one_file_at_half_is_the_loader_at_half(nodes, merged, host, tiny_flux, patched, tmp_path):
    save_file(ai_toolkit(1, 4), tmp_path / "one.safetensors")
    lora, _, _ = merged([("one.safetensors", 0.5)])
    expected = patched(host.load_and_fix(tiny_flux(), None, tmp_path / "one.safetensors", 0.5)[0])
    assert_same(patched(nodes.ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0).result[0]), expected)


def test_a_merge_is_merged_again_and_taken_away(nodes, merged, tiny_flux, patched, tmp_path):
    save_file(ai_toolkit(1, 4), tmp_path / "one.safetensors")
    save_file(kohya(90), tmp_path / "two.safetensors")
    both, _, _ = merged([("one.safetensors", 1.0), ("two.safetensors", 1.0)])
    first, _, told = merged([(both, 1.0), ("two.safetensors", -1.0)])
    change = nodes.ApplyLoRA.execute(tiny_flux(), first, 1.0, 1.0).result[0]
    alone = merged([("one.safetensors", 1.0)])[0]
    expected = patched(nodes.ApplyLoRA.execute(tiny_flux(), alone, 1.0, 1.0).result[0])
    found = patched(change)
    assert_same({name: found[name] for name in expected}, expected)
    assert told["sources"][0]["name"] == "lora_0"


def test_dora_is_folded_with_the_model(nodes, merged, host, tiny_flux, patched, tmp_path):
    dora = factors("transformer.transformer_blocks.0.attn.to_k", H, H, 4, 1)
    dora |= {
        "transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector.weight": (
            torch.rand(H) + 0.5
        )
    }
    save_file(dora, tmp_path / "dora.safetensors")
    save_file(
        kohya(90)
        | factors(
            "lora_unet_single_blocks_0_linear2",
            H,
            5 * H,
            2,
            4,
            ("lora_down.weight", "lora_up.weight"),
        ),
        tmp_path / "two.safetensors",
    )
    rows = [("dora.safetensors", 0.6), ("two.safetensors", 1.0, "double_blocks=0")]
    lora, _, told = merged(rows, rank=H)
    expected = patched(host.load_and_fix(tiny_flux(), None, tmp_path / "dora.safetensors", 0.6)[0])
    found = patched(nodes.ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0).result[0])
    assert_same({name: found[name] for name in expected}, expected, 1e-4)
    assert [row["weight"].removeprefix("diffusion_model.") for row in told["weights"]] == [
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear2.weight",
        "single_blocks.1.linear1.weight",
    ]


def test_a_dora_and_a_lora_on_one_weight_are_the_loaders_in_any_order(
    nodes, merged, host, tiny_flux, patched, tmp_path
):
    module = "transformer.transformer_blocks.0.attn.to_k"
    save_file(
        factors(module, H, H, 4, 1)
        | {f"{module}.lora_magnitude_vector.weight": torch.rand(H) + 0.5},
        tmp_path / "dora.safetensors",
    )
    save_file(factors(module, H, H, 4, 2), tmp_path / "lora.safetensors")
    rows = [("lora.safetensors", 1.5), ("dora.safetensors", 0.6)]
    lora, _, _ = merged(rows, rank=H)
    found = patched(nodes.ApplyLoRA.execute(tiny_flux(), lora, 1.0, 1.0).result[0])
    for order in (rows, rows[::-1]):
        model = tiny_flux()
        for name, strength in order:
            model = host.load_and_fix(model, None, tmp_path / name, strength)[0]
        assert_same(found, patched(model), 1e-4)


def test_without_the_model_it_is_drawn_and_dora_refused(nodes, tmp_path):
    plain = factors("transformer.transformer_blocks.0.ff.net.0.proj", 4 * WIDTH, WIDTH, 1, 1)
    dora = plain | {
        "transformer.transformer_blocks.0.ff.net.0.proj.lora_magnitude_vector.weight": torch.ones(
            4 * WIDTH
        )
    }
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(dora, tmp_path / "dora.safetensors")
    with pytest.raises(RuntimeError, match=r"dora.safetensors: .*proj \(DoRA\)"):
        run(nodes, [("plain.safetensors", 1.0), ("dora.safetensors", 1.0)])
    lora, _, _ = run(nodes, [("plain.safetensors", 1.0), ("plain.safetensors", 2.0)])
    name = "diffusion_model.double_blocks.0.img_mlp.0"
    assert {key: tuple(tensor.shape) for key, tensor in lora.items()} == {
        f"{name}.lora_up.weight": (4 * WIDTH, 2),
        f"{name}.lora_down.weight": (2, WIDTH),
    }


def test_methods_ranks_and_the_report(merged, tmp_path):
    save_file(ai_toolkit(1, 4), tmp_path / "one.safetensors")
    save_file(ai_toolkit(1, 4) | kohya(90), tmp_path / "two.safetensors")
    rows = [("one.safetensors", 1.0), ("two.safetensors", 1.0)]
    lora, report, told = merged(
        rows, {"method": "ties", "density": 0.3, "scale": 1.0}, rank=3, dtype="bf16"
    )
    downs = [tensor for name, tensor in lora.items() if name.endswith("lora_down.weight")]
    assert downs and all(
        tensor.shape[0] == 3 and tensor.dtype == torch.bfloat16 for tensor in downs
    )
    assert "arXiv:2306.01708" in report and "What was cut" in report and "nearly parallel" in report
    assert told["recipe"]["options"] == {"density": 0.3, "scale": 1.0}
    assert max(
        meeting["cosine"] for row in told["weights"] for meeting in row["meetings"]
    ) == pytest.approx(1)


def test_what_is_wrong_is_told(merged, tmp_path):
    save_file(ai_toolkit(1, 4), tmp_path / "one.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for rows, fault in (
        ([("one.safetensors", 1.0), ("bad.safetensors", 1.0)], "bad.safetensors"),
        ([("one.safetensors", 1.0, "double_bloks=0")], "did you mean 'double_blocks'"),
        ([({}, 1.0)], "lora_0: none of its keys"),
        ([], "no LoRA to merge"),
    ):
        with pytest.raises(RuntimeError, match=fault):
            merged(rows)


def test_rows_of_one_name_are_told_apart(merged, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("same.safetensors", "sub/same.safetensors"):
        save_file(ai_toolkit(1, 4), tmp_path / name)
    _, report, told = merged(
        [("same.safetensors", 1.0), ("sub/same.safetensors", 0.5), ("same.safetensors", 0.25)]
    )
    names = [source["name"] for source in told["sources"]]
    assert names == ["same.safetensors (1)", "sub/same.safetensors", "same.safetensors (2)"]
    assert all(f"| {name} |" in report for name in names)


def test_rows_that_are_off_stay_out_and_connected_ones_come_in(nodes, tiny_flux, tmp_path):
    one, two = ai_toolkit(1, 4), ai_toolkit(2, 3)
    save_file(one, tmp_path / "one.safetensors")
    rows = json.dumps([{"name": "one.safetensors", "on": False}, {"name": "lora_1", "on": False}])
    output = nodes.MergeLoRAs.execute(
        rows,
        {"method": "sum"},
        model=tiny_flux(),
        connected={"lora_0": two, "lora_1": one, "lora_2": None},
    )
    assert [source["name"] for source in json.loads(output.result[2])["sources"]] == ["lora_0"]


def test_a_dry_run_tells_and_gives_nothing(merged, tmp_path):
    from comfy_execution.graph_utils import ExecutionBlocker

    save_file(ai_toolkit(1, 4), tmp_path / "one.safetensors")
    lora, report, told = merged(
        [("one.safetensors", 1.0), ("one.safetensors", 0.5)], rank=2, dry_run=True
    )
    assert isinstance(lora, ExecutionBlocker) and "would be merged" in report
    assert told["forecast"] and 0 < told["kept"] <= 1


@pytest.mark.parametrize(
    "rows, fault",
    [
        ("[", "not JSON"),
        ('[{"name": "none.safetensors"}]', "Row 1: LoRA 'none.safetensors'"),
        ('[{"name": "lora_3"}]', None),
        ('[{"name": "lora_x"}]', "lora_x"),
        ('[{"name": "none.safetensors", "on": false}]', None),
        ('[{"name": "lora_0", "blocks": 1}]', "blocks"),
    ],
)
def test_rows_are_looked_at_before_anything_runs(nodes, rows, fault):
    found = nodes.MergeLoRAs.validate_inputs(loras=rows)
    assert found is True if fault is None else fault in found


def test_the_schema_offers_every_method(nodes):
    from lora_locksmith.lora.merge.methods import methods

    schema = nodes.MergeLoRAs.define_schema()
    schema.validate()
    choices = {
        option.key: [entry.id for entry in option.inputs] for option in schema.inputs[1].options
    }
    assert choices == {
        name: [option.name for option in method.options] for name, method in methods().items()
    }


def with_text_encoder(seed):
    """A LoRA of the tiny model and of CLIP-L and T5, as kohya numbers them for FLUX.1."""
    names = ("lora_down.weight", "lora_up.weight")
    clip, t5 = (
        "lora_te1_text_model_encoder_layers_1_mlp_fc1",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    )
    encoders = {clip: (3072, 768), t5: (4096, 4096)}
    tensors = kohya(seed)
    for number, (name, shape) in enumerate(encoders.items()):
        tensors |= factors(name, *shape, 2, seed + 20 + number, names, 2.0)
    return tensors


def test_text_encoders_stay_where_only_the_model_is_connected(nodes, merged, tiny_flux, tmp_path):
    save_file(with_text_encoder(1), tmp_path / "one.safetensors")
    save_file(with_text_encoder(40), tmp_path / "two.safetensors")
    lora, report, told = merged([("one.safetensors", 0.5), ("two.safetensors", 1.0)])
    clip = "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1"
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    assert {key.partition(".lora_")[0] for key in lora if key.startswith("text_encoders.")} == {
        clip,
        t5,
    }
    assert not told["losses"] and "Nothing was lost" in report
    name = "lora_te1_text_model_encoder_layers_1_mlp_fc1"
    want = sum(
        strength
        * tensors[f"{name}.lora_up.weight"]
        @ tensors[f"{name}.lora_down.weight"]
        * tensors[f"{name}.alpha"]
        / 2
        for strength, tensors in ((0.5, with_text_encoder(1)), (1.0, with_text_encoder(40)))
    )
    assert (
        lora[f"{clip}.lora_up.weight"] @ lora[f"{clip}.lora_down.weight"] - want
    ).norm() < 1e-5 * want.norm()


def test_a_change_without_exact_factors_is_cut_with_a_word_or_kept_whole(nodes, merged, tmp_path):
    generator, files = torch.Generator().manual_seed(4), []
    for number in range(2):
        first, second = (
            torch.randn(16, 16, generator=generator),
            torch.randn(8 * 3, 8, generator=generator),
        )
        files.append((first, second))
        name = "diffusion_model.double_blocks.0.img_attn.qkv"
        save_file(
            {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second},
            tmp_path / f"{number}.safetensors",
        )
    rows = [("0.safetensors", 1.0), ("1.safetensors", 1.0)]
    lora, _, told = merged(rows, exact=True)
    want = sum(torch.kron(*halves) for halves in files)
    assert (lora[f"{name}.diff"] - want).norm() < 1e-6 * want.norm() and not told["losses"]
    with pytest.raises(RuntimeError, match="an exact merge is not cut"):
        merged(rows, exact=True, rank=4)


def test_nan_is_refused_by_name_and_left_out_by_a_weight(nodes, merged, tmp_path):
    tensors = ai_toolkit(1, 4)
    key = next(key for key in tensors if "norm_out" in key and "lora_B" in key)
    tensors[key] = tensors[key].index_fill(0, torch.tensor([3]), float("nan"))
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(RuntimeError, match=f"nan.safetensors: {key} holds NaN"):
        merged([("nan.safetensors", 1.0)])
    lora, _, _ = merged([("nan.safetensors", 1.0, "final_layer=0")])
    assert lora and all(tensor.isfinite().all() for tensor in lora.values())
