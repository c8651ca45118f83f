"""The orthogonal adapters: OFT and BOFT as LyCORIS, sd-scripts, PEFT and OneTrainer define them.

All but LyCORIS' BOFT scale their effect linearly: W + strength * (W' - W), W' being the fully rotated weight. For a rotation
without `rescale` this is what LyCORIS and sd-scripts do themselves (they move R towards the identity); PEFT and OneTrainer
have no multiplier. LyCORIS leaves `rescale` at full force at every strength; here it fades with the rest, so that strength 0
is the untouched model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import AdapterError, AdapterSpec, patches
from .tensors import Tensors, describe, output_vector, take, toward


def cayley(skew: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1 of skew-symmetric blocks [..., b, b]."""
    identity = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype).expand_as(skew)
    return torch.linalg.solve(identity - skew, identity + skew)


def _square_blocks(tensors: Tensors, role: str, dimensions: int) -> Tensor:
    blocks = take(tensors, role)
    if blocks.dim() != dimensions or blocks.shape[-1] != blocks.shape[-2]:
        raise AdapterError(f"{role} has the shape {list(blocks.shape)}, but {dimensions} dimensions with square blocks are needed")
    return blocks


def _skew(blocks: Tensor) -> Tensor:
    return blocks - blocks.transpose(-1, -2)


def _lycoris_rotations(blocks: Tensor, alpha: float | None) -> Tensor:
    """LyCORIS: the norm of all of Q together is limited to alpha * out, when there is an alpha (functional/diag_oft.py, get_r)."""
    skew = _skew(blocks)
    if alpha:
        limit = alpha * blocks.shape[-3] * blocks.shape[-1]
        norm = torch.linalg.vector_norm(skew) + 1e-8
        skew = torch.where(norm > limit, skew * (limit / norm), skew)
    return cayley(skew)


def _kohya_rotations(blocks: Tensor, alpha: float | None) -> Tensor:
    """sd-scripts: the same limit, but 0 is a limit too, and the epsilon stands on both sides (networks/oft.py, get_weight)."""
    skew = _skew(blocks)
    if alpha is not None:
        norm = torch.linalg.vector_norm(skew)
        limited = norm.clamp(max=alpha * blocks.shape[0] * blocks.shape[-1])
        skew = skew * ((limited + 1e-8) / (norm + 1e-8))
    return cayley(skew)


def _cut_blocks(groups: Sequence[Tensor], rows: tuple[int, int] | None, weight: Tensor) -> list[Tensor]:
    """The rotations [n, b, b] of the given output rows; each group covers n * b rows, one after the other."""
    total = sum(group.shape[0] * group.shape[1] for group in groups)
    start, length = rows or (0, total)
    if length != weight.shape[0] or start + length > total:
        raise AdapterError(f"the rotations cover {total} rows, the weight {list(weight.shape)} is rows {start} to {start + length}")
    pieces, offset = [], 0
    for group in groups:
        block, span = group.shape[1], group.shape[0] * group.shape[1]
        low, high = max(start - offset, 0), min(start + length - offset, span)
        if high > low:
            if low % block or high % block:
                raise AdapterError(f"rows {start} to {start + length} cut through a rotation's block of {block} rows")
            pieces.append(group[low // block : high // block])
        offset += span
    return pieces


def _rotate_outputs(weight: Tensor, rotations: Sequence[Tensor]) -> Tensor:
    """Each block of output rows multiplied with R transposed, as LyCORIS and sd-scripts do: 'k n m, k n p -> k m p'."""
    pieces = weight.flatten(1).split([rotation.shape[0] * rotation.shape[1] for rotation in rotations])
    turned = [
        torch.einsum("knm,knp->kmp", rotation, piece.reshape(*rotation.shape[:2], -1)).flatten(0, 1)
        for rotation, piece in zip(rotations, pieces, strict=True)
    ]
    return torch.cat(turned).reshape(weight.shape)


def _turn_outputs(spec: AdapterSpec, tensors: Tensors, weight: Tensor, rotations: Tensor, strength: float) -> Tensor:
    turned = _rotate_outputs(weight, _cut_blocks([rotations], spec.rows, weight))
    if "rescale" in tensors:
        turned = turned * output_vector(take(tensors, "rescale"), "rescale", weight, spec.rows)
    return toward(weight, turned, strength)


@patches("oft")
def diag_oft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """LyCORIS diag-OFT on the outputs (modules/diag_oft.py): oft_blocks [n, b, b], rescale [out, 1, ...], alpha = constraint."""
    return _turn_outputs(spec, tensors, weight, _lycoris_rotations(_square_blocks(tensors, "oft_blocks", 3), spec.alpha), strength)


@patches("oft_diag")
def old_diag_oft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """LyCORIS diag-OFT before oft_blocks: oft_diag [n, b, b] are the rotations themselves, alpha says nothing.

    Source: A1111's reader of both (extensions-builtin/Lora/network_oft.py, is_R); the library no longer writes it.
    """
    return _turn_outputs(spec, tensors, weight, _square_blocks(tensors, "oft_diag", 3), strength)


@patches("oft_kohya")
def kohya_oft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """sd-scripts OFT on the outputs (networks/oft.py, oft_flux.py): oft_blocks, or oft_blocks.0 ... one [n, b, b] per fused part.

    alpha times the rows of the part limits the norm of its Q.
    """
    numbered = sorted((role for role in tensors if role.startswith("oft_blocks.")), key=lambda role: int(role.rpartition(".")[2]))
    groups = [_kohya_rotations(_square_blocks(tensors, role, 3), spec.alpha) for role in numbered or ("oft_blocks",)]
    return toward(weight, _rotate_outputs(weight, _cut_blocks(groups, spec.rows, weight)), strength)


@patches("boft")
def lycoris_boft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """LyCORIS BOFT on the outputs (functional/boft.py): oft_blocks [m, n, b, b], rescale, alpha = constraint.

    Stage i turns pairs of rows that lie 2^i * b / 2 apart. The strength moves every stage's rotation towards the identity,
    as LyCORIS does, and `rescale` towards one.
    """
    blocks = _square_blocks(tensors, "oft_blocks", 4)
    stages, count, size, _ = blocks.shape
    if count * size != weight.shape[0] or size % 2:
        cut = f"; rows {spec.rows} cannot be cut out of a BOFT" if spec.rows else ""
        raise AdapterError(f"oft_blocks {list(blocks.shape)} cannot turn a weight {list(weight.shape)}{cut}")
    rotations = _lycoris_rotations(blocks, spec.alpha)
    identity = torch.eye(size, device=rotations.device)
    turned = weight.flatten(1)
    for stage in range(stages):
        rotation = toward(identity, rotations[stage], strength)
        turned = _butterfly(turned, rotation, 2**stage * (size // 2))
    turned = turned.reshape(weight.shape)
    if "rescale" in tensors:
        turned = turned * (1 + strength * (output_vector(take(tensors, "rescale"), "rescale", weight, spec.rows) - 1))
    return turned


def _butterfly(matrix: Tensor, rotation: Tensor, distance: int) -> Tensor:
    """Rows i and i + distance side by side, turned block by block with [n, b, b], and put back."""
    columns = matrix.shape[1]
    if matrix.shape[0] % (2 * distance):
        raise AdapterError(f"a butterfly stage over {2 * distance} rows does not divide {matrix.shape[0]} rows")
    paired = matrix.reshape(-1, 2, distance, columns).transpose(1, 2).reshape(*rotation.shape[:2], columns)
    return (rotation @ paired).reshape(-1, distance, 2, columns).transpose(1, 2).reshape(matrix.shape)


def _unpack_skew(vectors: Tensor) -> Tensor:
    """[n, b(b-1)/2] upper triangles, row by row -> skew-symmetric [n, b, b]."""
    elements = vectors.shape[-1] if vectors.dim() == 2 else -1
    size = (1 + math.isqrt(1 + 8 * max(elements, 0))) // 2
    if size * (size - 1) // 2 != elements:
        raise AdapterError(f"oft_R has the shape {list(vectors.shape)}, which is no [blocks, b(b-1)/2] of packed rotations")
    row, column = torch.triu_indices(size, size, 1, device=vectors.device).unbind(0)
    upper = vectors.new_zeros(vectors.shape[0], size * size).index_copy(1, row * size + column, vectors)
    return _skew(upper.reshape(-1, size, size))


def _cayley_neumann(skew: Tensor, terms: int) -> Tensor:
    """I + 2Q + 2Q^2 + ... with the last power once, in exactly as many terms as PEFT takes (oft/layer.py, _cayley_batch)."""
    result = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew)
    if terms < 2:
        return result
    result = result + 2 * skew
    if terms < 3:
        return result
    power = skew @ skew
    result = result + 2 * power
    for _ in range(3, terms - 1):
        power = power @ skew
        result = result + 2 * power
    return result + power @ skew


def _project(skew: Tensor, eps: float) -> Tensor:
    """COFT: the norm of each block's Q is limited to eps / sqrt(blocks) (PEFT oft/layer.py, _project_batch)."""
    limit = eps / math.sqrt(skew.shape[0])
    norm = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
    return torch.where(norm <= limit, skew, skew * (limit / norm))


def _rotate_inputs(weight: Tensor, rotations: Tensor, transpose: bool) -> Tensor:
    """Each block of input columns (kernel included) multiplied with R, or R transposed; one block serves all when it is alone."""
    size, columns = rotations.shape[-1], weight[0].numel()
    if columns % size or rotations.shape[0] not in (1, columns // size):
        raise AdapterError(f"oft_R makes {rotations.shape[0]} blocks of {size}, the weight {list(weight.shape)} has {columns} inputs")
    blocks = weight.reshape(weight.shape[0], -1, size)
    equation = "onc,nkc->onk" if transpose else "onk,nkc->onc"
    return torch.einsum(equation, blocks, rotations.expand(columns // size, size, size)).reshape(weight.shape)


@patches("oft_peft")
def peft_oft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """PEFT OFT on the inputs (oft/layer.py, merge): W' = W R^T block by block, a convolution as [out, in * kernel].

    oft_R [blocks, b(b-1)/2], or [1, ...] shared by all blocks. Options as in OFTConfig: use_cayley_neumann (default True, the
    config's own), num_cayley_neumann_terms (5), coft (False), eps (6e-5). The exact form is (I - Q)(I + Q)^-1, the inverse of
    what the series approximates: PEFT's own definition.
    """
    skew = _unpack_skew(take(tensors, "oft_R"))
    if spec.option("coft", False):
        skew = _project(skew, spec.option("eps", 6e-5))
    if spec.option("use_cayley_neumann", True):
        rotations = _cayley_neumann(skew, spec.option("num_cayley_neumann_terms", 5))
    else:
        rotations = cayley(-skew)
    return toward(weight, _rotate_inputs(weight, rotations, transpose=True), strength)


@patches("oft_onetrainer")
def onetrainer_oft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """OneTrainer OFT on the inputs (modules/module/LoRAModule.py OFTModule, oft_utils.py): always five Cayley-Neumann terms.

    As PEFT's, but a convolution is turned with R and not with its transpose, and with `scaled_oft` among the tensors the
    packed values are divided by 2 * sqrt(b - 1) first.
    """
    skew = _unpack_skew(take(tensors, "oft_R"))
    if "scaled_oft" in tensors:
        skew = skew / (2 * math.sqrt(skew.shape[-1] - 1))
    rotations = _cayley_neumann(skew, 5)
    return toward(weight, _rotate_inputs(weight, rotations, transpose=weight.dim() == 2), strength)


@patches("boft_peft")
def peft_boft(spec: AdapterSpec, tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """PEFT BOFT on the inputs (boft/layer.py, get_delta_weight and merge): W' = boft_s * W M^T, M the product of the stages.

    boft_R [stages, n, b, b] with Q = (boft_R - boft_R^T) / 2 and R = (I - Q)(I + Q)^-1; boft_s per output, [out, 1] or [1, out].
    """
    blocks = _square_blocks(tensors, "boft_R", 4)
    stages, count, size, _ = blocks.shape
    if count * size != weight[0].numel() or (stages > 1 and size % 2):
        raise AdapterError(f"boft_R {list(blocks.shape)} cannot turn the inputs of a weight {list(weight.shape)} ({describe(tensors)})")
    rotations = cayley(-0.5 * _skew(blocks))
    turned = weight.flatten(1).T
    for stage in range(stages):
        turned = _even_odd(turned, rotations[stage], 2**stage * size, size // 2)
    turned = turned.T.reshape(weight.shape)
    if "boft_s" in tensors:
        turned = turned * output_vector(take(tensors, "boft_s"), "boft_s", weight, spec.rows)
    return toward(weight, turned, strength)


def _even_odd(matrix: Tensor, rotation: Tensor, chunk: int, piece: int) -> Tensor:
    """P R P^T of [n * b, columns], where PEFT's P puts the even pieces of each chunk of rows before the odd ones."""
    columns = matrix.shape[1]
    if chunk == rotation.shape[-1]:
        return (rotation @ matrix.reshape(*rotation.shape[:2], columns)).reshape(matrix.shape)
    if matrix.shape[0] % chunk:
        raise AdapterError(f"a butterfly stage over {chunk} inputs does not divide {matrix.shape[0]} inputs")
    split = matrix.reshape(-1, 2, chunk // (2 * piece), piece, columns).transpose(1, 2)
    turned = rotation @ split.reshape(*rotation.shape[:2], columns)
    return turned.reshape(-1, chunk // (2 * piece), 2, piece, columns).transpose(1, 2).reshape(matrix.shape)
