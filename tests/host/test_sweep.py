"""The sweep: no kind of PEFT's or LyCORIS' newest is wrong on any layer in any way, and the table
in docs/ says what is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
import sweep
import torch
import toy_layers
from threads import one_thread

ACCEPT = "LOCKSMITH_ACCEPT_REPORTS"
PEFT: dict[str, tuple[str, Mapping[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "LoRA, rslora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "LoRA, bias": ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True}),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 6}),
    "LoHa, effective": ("LoHaConfig", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 3}),
    "LoKr, effective": ("LoKrConfig", {"r": 1, "alpha": 3, "use_effective_conv2d": True}),
    "LoKr, both decomposed": ("LoKrConfig", {"r": 1, "alpha": 3, "decompose_both": True}),
    "LoKr, whole": ("LoKrConfig", {"r": 64, "alpha": 16}),
    "OFT": ("OFTConfig", {"oft_block_size": 4}),
    "OFT, exact": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "(IA)3": ("IA3Config", {"feedforward_modules": []}),
    "(IA)3, feed-forward": ("IA3Config", {"feedforward_modules": ...}),
    "LN tuning": ("LNTuningConfig", {}),
    "VeRA": ("VeraConfig", {"r": 4}),
    "VeRA without its matrices": ("VeraConfig", {"r": 4, "save_projection": False}),
    "PVeRA": ("PveraConfig", {"r": 4}),
    "PVeRA without its matrices": ("PveraConfig", {"r": 4, "save_projection": False}),
    "RandLoRA": ("RandLoraConfig", {"r": 4}),
    "RandLoRA without its matrices": ("RandLoraConfig", {"r": 4, "save_projection": False}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 50}),
    "WaveFT": ("WaveFTConfig", {"n_frequency": 50}),
    "WaveFT, longer wavelets": ("WaveFTConfig", {"n_frequency": 64, "wavelet_family": "db4"}),
    "WaveFT, other wavelets": ("WaveFTConfig", {"n_frequency": 64, "wavelet_family": "sym4"}),
    "WaveFT, places alone": ("WaveFTConfig", {"n_frequency": 64, "use_idwt": False}),
    "HRA": ("HRAConfig", {"r": 4}),
    "HRA, orthogonal": ("HRAConfig", {"r": 4, "apply_GS": True}),
    "VB-LoRA": ("VBLoRAConfig", {"r": 4, "vector_length": 2, "num_vectors": 8}),
    "VB-LoRA, largest alone": (
        "VBLoRAConfig",
        {"r": 4, "vector_length": 2, "num_vectors": 8, "save_only_topk_weights": True},
    ),
    "Uni-LoRA": ("UniLoraConfig", {"r": 4, "init_theta_d_bound": 0.5}),
    "MiSS": ("MissConfig", {"r": 4}),
    "MiSS, mini": ("MissConfig", {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "MiSS, bat": ("MissConfig", {"r": 4, "init_weights": "bat"}),
    "C3A": ("C3AConfig", {"block_size": 6}),
    "SHiRA": ("ShiraConfig", {"r": 2}),
    "HiRA": ("HiraConfig", {"r": 4}),
    "DeLoRA": ("DeloraConfig", {"r": 4, "delora_lambda": 3}),
    "RoAd": ("RoadConfig", {"group_size": 4}),
    "GLoRA": ("GloraConfig", {"r": 4}),
    "GraLoRA": ("GraloraConfig", {"r": 4, "alpha": 6, "gralora_k": 2}),
    "BEFT": ("BeftConfig", {}),
    "PEANuT": ("PeanutConfig", {}),
    "PEANuT, deep": ("PeanutConfig", {"depth": 2, "act_fn": "gelu"}),
    "DEFT": ("DeftConfig", {}),
    "DEFT, orthogonal": ("DeftConfig", {"r": 4, "alpha": 6, "decomposition_method": "qr"}),
    "PaRa": ("DeftConfig", {"para": True}),
    "Lily": ("LilyConfig", {}),
    "TinyLoRA": ("TinyLoraConfig", {}),
    "PSOFT": ("PsoftConfig", {"r": 4}),
    "OSF": ("OSFConfig", {}),
    "Supertuning": ("SupertuningConfig", {}),
    "Supertuning with a LoRA": ("SupertuningConfig", {"r": 4, "lora_alpha": 6}),
    "Supertuning without its places": ("SupertuningConfig", {"save_precomputed_indices": False}),
    "FRoD": ("FrodConfig", {}),
}
# What steers a language model at run time or needs more than a layer's weight; AdaMSS, which needs
# scikit-learn; and trainable tokens, which are of embeddings: see test_bypass.py and
# tests/lora/test_peft_kinds.py.
NOT_OF_WEIGHTS = (
    *(
        "AdaptionPromptConfig",
        "CartridgeConfig",
        "CPTConfig",
        "PromptTuningConfig",
        "MultitaskPromptTuningConfig",
        "PromptEncoderConfig",
    ),
    *(
        "PrefixTuningConfig",
        "PolyConfig",
        "ShadowConfig",
        "TrainableTokensConfig",
        "XLoraConfig",
        "AdamssConfig",
    ),
)
LYCORIS: dict[str, Mapping[str, Any]] = {
    "LoCon": {"algo": "locon"},
    "LoCon, Tucker": {"algo": "locon", "use_tucker": True},
    "DoRA on outputs": {"algo": "locon", "dora_wd": True, "wd_on_output": True},
    "DoRA on inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "LoHa": {"algo": "loha"},
    "LoHa, Tucker": {"algo": "loha", "use_tucker": True},
    "LoHa, DoRA": {"algo": "loha", "dora_wd": True, "wd_on_output": True},
    "LoKr": {"algo": "lokr", "factor": 4},
    "LoKr, Tucker": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "LoKr, whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "LoKr, DoRA": {"algo": "lokr", "factor": 4, "dora_wd": True, "wd_on_output": True},
    "GLoRA": {"algo": "glora"},
    "full": {"algo": "full"},
    "diag-OFT": {"algo": "diag-oft", "linear_dim": 4, "conv_dim": 4},
    "diag-OFT, constraint": {
        "algo": "diag-oft",
        "linear_dim": 4,
        "conv_dim": 4,
        "constraint": 1e-2,
    },
    "BOFT": {
        "algo": "boft",
        "linear_dim": 4,
        "conv_dim": 4,
        "layers": ["conv1", "point1", "point2", "square2", "point3"],
    },
    "(IA)3": {"algo": "ia3"},
    "T-LoRA": {"algo": "tlora"},
}


@pytest.fixture(scope="module", autouse=True)
def in_one_thread():
    """Matrices this small only lose by threads."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def patcher(comfy):
    return toy_layers.patcher()


@pytest.fixture
def ways(host, patched, patcher, tmp_path):
    (tmp_path / "made").mkdir()
    with torch.no_grad():
        yield sweep.Ways(host, patched, patcher, tmp_path / "made")


@pytest.fixture
def saved(patcher, tmp_path):
    import peft

    def make(library, name):
        net = patcher.model.diffusion_model
        if library == "LyCORIS":
            return sweep.by_lycoris(net, tmp_path, LYCORIS[name])
        configuration, settings = PEFT[name]
        return sweep.by_peft(
            net, tmp_path, getattr(peft, configuration), settings, merged=name.startswith("OFT")
        )

    return make


CASES = [*(("PEFT", name) for name in PEFT), *(("LyCORIS", name) for name in LYCORIS)]


@pytest.mark.parametrize(("library", "name"), CASES)
def test_a_kind_is_right_or_refused_on_every_layer_in_every_way(ways, saved, library, name):
    found = saved(library, name)
    assert found.layers
    row = sweep.row(
        library, name, found.layers, {way: ways.outcomes(found, way) for way in sweep.WAYS}
    )
    if os.environ.get(ACCEPT):
        sweep.write_rows(sweep.written_rows() | {(library, name): row}, CASES)
    assert sweep.written_rows()[library, name] == row, (
        f"{ACCEPT}=1 writes it anew; read what changed before it is kept"
    )


def test_the_table_holds_just_these_kinds():
    assert list(sweep.written_rows()) == CASES
    assert sweep.TABLE.read_text("utf-8").startswith(sweep.HEAD)


def test_no_type_of_peft_is_left_out():
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    types = {configuration.__name__ for configuration in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert types == {configuration for configuration, _ in PEFT.values()} | set(NOT_OF_WEIGHTS)
    assert all(hasattr(peft, name) for name in NOT_OF_WEIGHTS)


def test_no_algorithm_of_lycoris_is_left_out():
    from lycoris.wrapper import network_module_dict

    same = {"lora": "locon", "dylora": "locon"}  # saved as such
    assert {same.get(name, name) for name in network_module_dict} == {
        settings["algo"] for settings in LYCORIS.values()
    }
