"""Parts that only some models of a family have: their loss is no wrong base, and is said."""

from __future__ import annotations

import pytest
from lora_locksmith.files.header import Header, TensorInfo
from lora_locksmith.report.inspection import inspect_header


def pair(module, out, inner):
    return {
        f"diffusion_model.{module}.lora_A.weight": (4, inner),
        f"diffusion_model.{module}.lora_B.weight": (out, 4),
    }


def report_on(target_model, *modules):
    keys = {key: shape for module in modules for key, shape in pair(*module).items()}
    tensors, end = {}, 0
    for key, shape in keys.items():
        size = 4 * shape[0] * shape[1]
        tensors[key] = TensorInfo("F32", shape, end, end + size)
        end += size
    return inspect_header("x.safetensors", Header(tensors, {}), None, target_model).report


WAN = [("blocks.3.self_attn.q", 5120, 5120), ("blocks.3.ffn.0", 13824, 5120)]


@pytest.mark.parametrize(("modules", "branch"), [
    ([("blocks.3.cross_attn.k_img", 5120, 5120)], "1 module is of the image branch (Wan 2.1 I2V)"),
    ([("blocks.3.cross_attn.k_img", 5120, 5120), ("img_emb.proj.1", 1280, 1280)], "2 modules are of the image branch (Wan 2.1 I2V)"),
    ([("vace_blocks.0.before_proj", 5120, 5120)], "VACE blocks"),
    ([("face_adapter.fuser_blocks.0.linear2", 5120, 5120)], "face branch (Wan Animate)"),
    ([("blocks.3.cross_attn.v_img", 5120, 5120), ("vace_blocks.0.after_proj", 5120, 5120)], "VACE blocks, image branch"),
])  # fmt: skip
def test_a_branch_that_the_model_lacks(target_model_of, modules, branch):
    report = report_on(target_model_of("wan21_t2v_14b"), *WAN, *modules)
    assert report.mismatch == "" and report.state == "part"
    assert branch in str(report.remedy) or branch in report.text()
    assert "which this Wan model does not have; the rest loads." in report.text()


def test_another_loss_beside_it_is_told_as_before(target_model_of):
    report = report_on(
        target_model_of("wan21_t2v_14b"),
        *WAN,
        ("blocks.3.cross_attn.k_img", 5120, 5120),
        ("blocks.3.no_such_layer", 5120, 5120),
    )
    assert "the rest loads" not in report.text()


def test_another_size_is_told_with_both_names(target_model_of):
    report = report_on(target_model_of("wan21_t2v_1_3b"), *WAN)
    assert "made for Wan 14B; this is Wan 2.1 1.3B: nothing can load." in report.text()
    assert report.state == "bad"
