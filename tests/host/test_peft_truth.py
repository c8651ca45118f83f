"""What PEFT's own merge makes of an adapter is what the host's model becomes, however the file
spells it.
"""

from __future__ import annotations

import copy

import pytest
from safetensors.torch import save_file
from trainers import ATTENTION, EVERYTHING, trained_by_peft, weights_by_peft
from truth import check


def simpletuner_broken(state_dict):
    """SimpleTuner 529895d to 166684b: PEFT's prefix left in place, the factors named lora.down and
    lora.up.
    """
    renamed = {}
    for key, value in state_dict.items():
        key = key.replace(".lora_A.weight", ".lora.down.weight").replace(
            ".lora_B.weight", ".lora.up.weight"
        )
        renamed["transformer." + key] = value.contiguous()
    return renamed


SPELLINGS = {
    "SimpleTuner's broken keys": simpletuner_broken,
    "raw PEFT": lambda state_dict: state_dict,
    "X-LoRA's doubled wrapper": lambda state_dict: {
        "model.model." + key.removeprefix("base_model.model."): v for key, v in state_dict.items()
    },
    "a named adapter": lambda state_dict: {
        key.replace(".lora_A.", ".lora_A.my_style.").replace(".lora_B.", ".lora_B.my_style."): v
        for key, v in state_dict.items()
    },
    "kohya's form on diffusers' names": lambda state_dict: {
        "lora_transformer_"
        + key.removeprefix("base_model.model.").rsplit(".", 2)[0].replace(".", "_")
        + tail(key): v
        for key, v in state_dict.items()
    },
}


def tail(key: str) -> str:
    return ".lora_down.weight" if "lora_A" in key else ".lora_up.weight"


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("targets", [ATTENTION, EVERYTHING], ids=["attention", "everything"])
def test_spellings_of_one_adapter(host, patched, both, tmp_path, spell, targets):
    from peft import LoraConfig, get_peft_model_state_dict

    model = trained_by_peft(both[1], LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    path = tmp_path / "adapter.safetensors"
    save_file(
        {key: value.contiguous() for key, value in spell(get_peft_model_state_dict(model)).items()},
        path,
    )
    report = check(host, patched, both, path, weights_by_peft(model))
    assert report.as_dict()["keys"]["placed"] == report.as_dict()["keys"]["total"]


def test_stock_places_nothing_of_the_broken_file_and_the_report_says_so(host, both, tmp_path):
    from peft import LoraConfig, get_peft_model_state_dict

    state_dict = simpletuner_broken(
        get_peft_model_state_dict(
            trained_by_peft(both[1], LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))
        )
    )
    save_file(state_dict, tmp_path / "broken.safetensors")
    report = host.load_and_fix(both[0], None, tmp_path / "broken.safetensors")[2].as_dict()
    assert report["stock"] == {"placed": 0, "modules": 0}
    assert report["keys"]["placed"] == len(state_dict)
    assert report["family"] == "flux1"
    assert "SimpleTuner" in report["trainer"]


STRENGTHS = {
    "alpha": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 4, "lora_alpha": 10, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 10,
        "rank_pattern": {"attn.to_q": 2},
        "alpha_pattern": {"attn.to_k": 3, "proj_out": 7},
    },
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True},
    "bias": {"r": 4, "lora_alpha": 10, "lora_bias": True},
}


@pytest.mark.parametrize("settings", STRENGTHS.values(), ids=STRENGTHS.keys())
def test_strength_that_stands_only_in_the_settings(host, patched, both, tmp_path, settings):
    from peft import LoraConfig

    model = trained_by_peft(both[1], LoraConfig(target_modules=EVERYTHING, **settings))
    model.save_pretrained(tmp_path)
    report = check(
        host, patched, both, tmp_path / "adapter_model.safetensors", weights_by_peft(model)
    )
    assert "adapter_config.json" in report.strength_source


def test_settings_in_the_header_that_diffusers_writes(host, patched, both, tmp_path):
    from diffusers import FluxPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    twin = copy.deepcopy(both[1])
    twin.add_adapter(
        LoraConfig(r=4, lora_alpha=10, target_modules=ATTENTION, init_lora_weights=False)
    )
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(twin),
        **_collate_lora_metadata({"transformer": twin}),
    )
    twin.fuse_lora()
    twin.unload_lora()
    report = check(
        host, patched, both, tmp_path / "pytorch_lora_weights.safetensors", twin.state_dict()
    )
    assert "header" in report.strength_source


def other_tuners():
    """PEFT's other adapters: name -> (configuration class, settings)."""
    feed_forward = ["net.0.proj", "net.2", "proj_mlp"]
    bdlora = {
        "target_modules_bd_a": ["to_q", "net.2"],
        "target_modules_bd_b": ["to_k", "proj_mlp"],
        "nblocks": 2,
        "match_strict": False,
    }
    return {
        "loha": ("LoHaConfig", {"r": 4, "alpha": 6}),
        "loha, patterns": (
            "LoHaConfig",
            {
                "r": 4,
                "alpha": 6,
                "rank_pattern": {"attn.to_q": 2},
                "alpha_pattern": {"proj_out": 3},
            },
        ),
        "lokr": ("LoKrConfig", {"r": 2, "alpha": 3}),
        "lokr, both decomposed": (
            "LoKrConfig",
            {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 8},
        ),
        "lokr, full factors": ("LoKrConfig", {"r": 256, "alpha": 64, "decompose_factor": 4}),
        "lokr, patterns": (
            "LoKrConfig",
            {
                "r": 4,
                "alpha": 6,
                "rank_pattern": {"attn.to_q": 2},
                "alpha_pattern": {"proj_out": 3},
            },
        ),
        "oft": ("OFTConfig", {"oft_block_size": 32}),
        "oft, exact": ("OFTConfig", {"oft_block_size": 16, "use_cayley_neumann": False}),
        "oft, three terms": ("OFTConfig", {"oft_block_size": 16, "num_cayley_neumann_terms": 3}),
        "oft, shared block": ("OFTConfig", {"oft_block_size": 32, "block_share": True}),
        "oft, constrained": ("OFTConfig", {"oft_block_size": 32, "coft": True, "eps": 1e-1}),
        "boft": ("BOFTConfig", {"boft_block_size": 8}),
        "ia3": ("IA3Config", {"feedforward_modules": feed_forward}),
        "hra": ("HRAConfig", {"r": 4}),
        "miss": ("MissConfig", {"r": 4}),
        "miss, bat": ("MissConfig", {"r": 4, "init_weights": "bat"}),
        "c3a": ("C3AConfig", {"block_size": 16}),
        "shira": ("ShiraConfig", {"r": 2}),
        "hira": ("HiraConfig", {"r": 32}),
        "delora": ("DeloraConfig", {"r": 4, "delora_lambda": 3}),
        "road": ("RoadConfig", {"group_size": 64}),
        "gralora": ("GraloraConfig", {"r": 4, "alpha": 6, "gralora_k": 2}),
        "vera": ("VeraConfig", {"r": 4}),
        "adalora": (
            "AdaLoraConfig",
            {"init_r": 6, "target_r": 3, "lora_alpha": 5, "total_step": 100},
        ),
        "kasa": (
            "LoraConfig",
            {"r": 4, "lora_alpha": 6, "kasa_config": {"beta": 1e-4, "gamma": 1e-3}},
        ),
        "bd-lora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_bdlora": bdlora}),
    }


@pytest.mark.parametrize("name, settings", other_tuners().values(), ids=other_tuners())
def test_other_adapters_as_peft_saves_them(host, patched, both, tmp_path, name, settings):
    import peft

    model = trained_by_peft(both.twin, getattr(peft, name)(target_modules=EVERYTHING, **settings))
    model.save_pretrained(tmp_path)
    report = check(
        host,
        patched,
        both,
        tmp_path / "adapter_model.safetensors",
        weights_by_peft(model),
        tolerance=1e-4,
    ).as_dict()
    assert report["keys"]["placed"] == report["keys"]["total"]


STRENGTHS_OF_WHOLE = (1.0, 0.5, -0.7, 2.0)


def trained_whole():
    """What PEFT saves whole beside its factors: settings of a LoRA."""
    return {
        "biases of its layers": {"bias": "lora_only", "target_modules": EVERYTHING},
        "all biases": {"bias": "all", "target_modules": ATTENTION},
        "layers": {"modules_to_save": ["x_embedder", "proj_out"], "target_modules": ATTENTION[:3]},
        "layers and all biases": {
            "bias": "all",
            "modules_to_save": ["norm_out.linear"],
            "target_modules": ATTENTION,
        },
    }


@pytest.mark.parametrize("settings", trained_whole().values(), ids=trained_whole())
def test_what_peft_saves_whole_takes_the_place_of_the_models_own(
    host, patched, both, tmp_path, settings
):
    from peft import LoraConfig

    model = trained_by_peft(both.twin, LoraConfig(r=4, lora_alpha=6, **settings))
    model.save_pretrained(tmp_path)
    truth = weights_by_peft(model)
    for strength in STRENGTHS_OF_WHOLE:
        path = tmp_path / "adapter_model.safetensors"
        report = check(
            host, patched, both, path, truth, strength=strength, but=("bookkeeping",)
        ).as_dict()
    assert set(report["categories"]) <= {"placed", "bookkeeping"}
    assert bool([note for note in report["notes"] if "trained biases" in note.lower()]) == (
        "bias" in settings or "modules_to_save" in settings
    )
