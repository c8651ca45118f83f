"""Rotations whose trainers are not on PyPI, against the dense matrices that their
sources describe.
"""

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterSpec
from lora_locksmith.lora.math.apply import patched_weight


def skew(blocks):
    return blocks - blocks.transpose(-1, -2)


def cayley(q):
    identity = torch.eye(q.shape[-1])
    return (identity + q) @ torch.linalg.inv(identity - q)


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("alpha", [None, 1e-3, 0.02, 100.0])
@pytest.mark.parametrize("parts", [(32,), (8, 8, 16)])
def test_kohya(assert_close, parts, alpha, strength):
    """sd-scripts networks/oft.py and oft_flux.py: out = blockdiag(R)^T W, |Q| of each part at most
    alpha * its rows.
    """
    weight, tensors, rotation = torch.randn(sum(parts), 24), {}, []
    for index, rows in enumerate(parts):
        blocks = torch.randn(4, rows // 4, rows // 4) * 0.3
        tensors[f"oft_blocks.{index}" if len(parts) > 1 else "oft_blocks"] = blocks
        q = skew(blocks)
        if alpha is not None and q.norm() > alpha * rows:
            q = q * (alpha * rows / q.norm())
        rotation += list(cayley(q))
    expected = torch.block_diag(*rotation).T @ weight
    patched = patched_weight(AdapterSpec("oft_kohya", alpha), tensors, weight, strength)
    assert_close(patched, weight + strength * (expected - weight))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(32, 24), (32, 6, 2, 2)])
def test_onetrainer(assert_close, shape, scaled, share):
    """OneTrainer oft_utils.py: the input of a linear layer is turned (x R, so W R^T), a
    convolution's weight is (W R).
    """
    packed = torch.randn(1 if share else 3, 28) * 0.1
    q = torch.zeros(packed.shape[0], 8, 8)
    row, column = torch.triu_indices(8, 8, 1)
    q[:, row, column] = packed / (2 * 7**0.5) if scaled else packed
    q = skew(q)
    blocks = torch.eye(8) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    rotation = torch.block_diag(*(list(blocks) * 3 if share else blocks))
    weight = torch.randn(shape)
    expected = weight.flatten(1) @ (rotation.T if len(shape) == 2 else rotation)
    tensors = {"oft_R": packed, **({"scaled_oft": torch.tensor(True)} if scaled else {})}
    assert_close(
        patched_weight(AdapterSpec("oft_onetrainer"), tensors, weight, 1.0), expected.reshape(shape)
    )


@pytest.mark.parametrize(
    "kind, role, shape",
    [
        ("oft", "oft_blocks", (8, 4, 4)),
        ("oft_kohya", "oft_blocks", (8, 4, 4)),
        ("boft", "oft_blocks", (3, 8, 4, 4)),
        ("boft_peft", "boft_R", (2, 8, 4, 4)),
    ],
)
def test_rotations_keep_lengths(kind, role, shape):
    weight = torch.randn(32, 32)
    patched = patched_weight(AdapterSpec(kind), {role: torch.randn(shape)}, weight, 1.0)
    assert not torch.allclose(patched, weight)
    torch.testing.assert_close(
        torch.linalg.svdvals(patched), torch.linalg.svdvals(weight), rtol=1e-4, atol=1e-4
    )


def test_old_lycoris_files_hold_the_rotations_themselves(assert_close):
    rotations = torch.linalg.qr(torch.randn(8, 4, 4))[0]
    weight = torch.randn(32, 6, 3, 3)
    expected = (torch.block_diag(*rotations).T @ weight.flatten(1)).reshape(weight.shape)
    assert_close(
        patched_weight(AdapterSpec("oft_diag", 5.0), {"oft_diag": rotations}, weight, 1.0), expected
    )
