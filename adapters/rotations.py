"""Rotations of a weight's outputs or inputs, as OFT and BOFT have them.

All but LyCORIS' BOFT scale their effect linearly: W + strength * (W' - W), W' being the fully
rotated weight. For a rotation without `rescale` this is what LyCORIS and sd-scripts do themselves
(they move R towards the identity); PEFT and OneTrainer have no multiplier. LyCORIS leaves `rescale`
at full force at every strength; here it fades with the rest, so that strength 0 is the untouched
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..messages import message
from .kind import shaped
from .rotation import Rotation
from .rows import Rows, laid
from .spec import AdapterError, AdapterSpec
from .tensors import Tensors, check_not_empty, output_vector, take, toward


def cayley(skew: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1 of skew-symmetric blocks [..., b, b]."""
    identity = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype).expand_as(skew)
    turning: Tensor = torch.linalg.solve(identity - skew, identity + skew)
    return turning


def square_blocks(tensors: Tensors, role: str, dimensions: int) -> Tensor:
    """The tensor of `role`, [..., b, b] with this number of dimensions."""
    blocks = take(tensors, role)
    if blocks.dim() != dimensions or blocks.shape[-1] != blocks.shape[-2]:
        raise AdapterError(
            message(
                "adapters.needs_dimensions_of_blocks",
                tensor=shaped(**{role: blocks.shape}),
                dimensions=dimensions,
            )
        )
    return blocks


def skewed(blocks: Tensor) -> Tensor:
    """B - B^T of blocks [..., b, b]."""
    return blocks - blocks.transpose(-1, -2)


def limited_rotations(blocks: Tensor, spec: AdapterSpec) -> Tensor:
    """LyCORIS: the norm of all of Q together is limited to alpha * out, when there is an alpha
    (functional/diag_oft.py, get_r).

    With the option norm_limit = alpha the limit is alpha itself (ComfyUI
    comfy/weight_adapter/oft.py, OftDiff.get_r).
    """
    skew = skewed(blocks)
    if spec.alpha:
        outputs = blocks.shape[-3] * blocks.shape[-1]
        limit = spec.alpha * (1 if spec.option("norm_limit") == "alpha" else outputs)
        norm = torch.linalg.vector_norm(skew) + 1e-8
        skew = torch.where(norm > limit, skew * (limit / norm), skew)
    return cayley(skew)


def always_limited_rotations(blocks: Tensor, alpha: float | None) -> Tensor:
    """sd-scripts: the same limit, but 0 is a limit too, and the epsilon stands on both sides
    (networks/oft.py, get_weight).
    """
    skew = skewed(blocks)
    if alpha is not None:
        norm = torch.linalg.vector_norm(skew)
        limited = norm.clamp(max=alpha * blocks.shape[0] * blocks.shape[-1])
        skew = skew * ((limited + 1e-8) / (norm + 1e-8))
    return cayley(skew)


def cut_blocks(groups: Sequence[Tensor], rows: Rows | None, weight: Tensor) -> list[Tensor]:
    """The rotations [n, b, b] of the given output rows; each group covers n * b rows, one after the
    other.
    """
    sizes = [group.shape[0] * group.shape[1] for group in groups]
    total = sum(sizes)
    rows = rows or Rows(0, total)
    if rows.length != weight.shape[0] or rows.end > total:
        raise AdapterError(
            message(
                "adapters.rotations_cover",
                rows=total,
                weight=list(weight.shape),
                start=rows.start,
                end=rows.end,
            )
        )
    pieces = []
    for group, whole in zip(groups, laid(sizes), strict=True):
        block, common = group.shape[1], rows.intersect(whole)
        if common:
            first, last = common.start - whole.start, common.end - whole.start
            if first % block or last % block:
                raise AdapterError(
                    message("adapters.rows_cut_a_block", start=rows.start, end=rows.end, size=block)
                )
            pieces.append(group[first // block : last // block])
    return pieces


def rotate_outputs(weight: Tensor, rotations: Sequence[Tensor]) -> Tensor:
    """Each block of output rows multiplied with R transposed, as LyCORIS and sd-scripts do: 'k n m,
    k n p -> k m p'.
    """
    pieces = weight.flatten(1).split(
        [rotation.shape[0] * rotation.shape[1] for rotation in rotations]
    )
    turned = [
        torch.einsum("knm,knp->kmp", rotation, piece.reshape(*rotation.shape[:2], -1)).flatten(0, 1)
        for rotation, piece in zip(rotations, pieces, strict=True)
    ]
    return torch.cat(turned).reshape(weight.shape)


def turn_outputs(
    spec: AdapterSpec, tensors: Tensors, weight: Tensor, rotations: Tensor, strength: float
) -> Tensor:
    """LyCORIS' rotations [n, b, b] on the output rows of a weight, then its `rescale`."""
    turned = rotate_outputs(weight, cut_blocks([rotations], spec.rows, weight))
    if "rescale" in tensors:
        turned = turned * output_vector(take(tensors, "rescale"), "rescale", weight, spec.rows)
    return toward(weight, turned, strength)


def butterfly(matrix: Tensor, rotation: Tensor, distance: int) -> Tensor:
    """Rows i and i + distance side by side, turned block by block with [n, b, b], and put back."""
    columns = matrix.shape[1]
    if matrix.shape[0] % (2 * distance):
        raise AdapterError(
            message("adapters.stage_does_not_divide_rows", size=2 * distance, rows=matrix.shape[0])
        )
    paired = (
        matrix.reshape(-1, 2, distance, columns)
        .transpose(1, 2)
        .reshape(*rotation.shape[:2], columns)
    )
    return (
        (rotation @ paired).reshape(-1, distance, 2, columns).transpose(1, 2).reshape(matrix.shape)
    )


def unpack_skew(vectors: Tensor) -> Tensor:
    """[n, b(b-1)/2] upper triangles, row by row -> skew-symmetric [n, b, b]."""
    elements = vectors.shape[-1] if vectors.dim() == 2 else -1
    size = (1 + math.isqrt(1 + 8 * max(elements, 0))) // 2
    if size * (size - 1) // 2 != elements:
        raise AdapterError(message("adapters.not_packed", tensor=shaped(oft_R=vectors.shape)))
    row, column = torch.triu_indices(size, size, 1, device=vectors.device).unbind(0)
    upper = vectors.new_zeros(vectors.shape[0], size * size).index_copy(
        1, row * size + column, vectors
    )
    return skewed(upper.reshape(-1, size, size))


def cayley_neumann(skew: Tensor, terms: int) -> Tensor:
    """I + 2Q + 2Q^2 + ... with the last power once, in exactly as many terms as PEFT takes
    (oft/layer.py, _cayley_batch).
    """
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


def project(skew: Tensor, eps: float) -> Tensor:
    """COFT: the norm of each block's Q is limited to eps / sqrt(blocks) (PEFT oft/layer.py,
    _project_batch).
    """
    limit = eps / math.sqrt(skew.shape[0])
    norm = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
    return torch.where(norm <= limit, skew, skew * (limit / norm))


def rotate_inputs(weight: Tensor, rotations: Tensor, transpose: bool) -> Tensor:
    """Each block of input columns (kernel included) multiplied with R, or R transposed; one block
    serves all when it is alone.
    """
    size, columns = rotations.shape[-1], weight[0].numel()
    if columns % size or rotations.shape[0] not in (1, columns // size):
        raise AdapterError(
            message(
                "adapters.blocks_and_inputs",
                role="oft_R",
                blocks=rotations.shape[0],
                size=size,
                weight=list(weight.shape),
                inputs=columns,
            )
        )
    blocks = weight.reshape(weight.shape[0], -1, size)
    equation = "onc,nkc->onk" if transpose else "onk,nkc->onc"
    return torch.einsum(equation, blocks, rotations.expand(columns // size, size, size)).reshape(
        weight.shape
    )


def even_odd(matrix: Tensor, rotation: Tensor, chunk: int, piece: int) -> Tensor:
    """P R P^T of [n * b, columns], where PEFT's P puts the even pieces of each chunk of rows before
    the odd ones.
    """
    columns = matrix.shape[1]
    if chunk == rotation.shape[-1]:
        return (rotation @ matrix.reshape(*rotation.shape[:2], columns)).reshape(matrix.shape)
    if matrix.shape[0] % chunk:
        raise AdapterError(
            message("adapters.stage_does_not_divide_inputs", size=chunk, inputs=matrix.shape[0])
        )
    split = matrix.reshape(-1, 2, chunk // (2 * piece), piece, columns).transpose(1, 2)
    turned = rotation @ split.reshape(*rotation.shape[:2], columns)
    return (
        turned.reshape(-1, chunk // (2 * piece), 2, piece, columns)
        .transpose(1, 2)
        .reshape(matrix.shape)
    )


LARGEST_BUTTERFLY = 4096  # rows of a butterfly rotation that is built to be measured


def departure(kind: Rotation, spec: AdapterSpec, tensors: Tensors, side: int) -> float | None:
    """|R - I|: the effect on a stack of identities, one for each block, which is as small as the
    blocks are.

    side: rows, or columns, that are turned. None for a butterfly too large to be built.
    """
    blocks = {role: tensors[role] for role in kind.block_roles(tensors)}
    if kind.butterfly:
        if side > LARGEST_BUTTERFLY:
            return None
        stack = torch.eye(side)
    else:
        sizes = kind.block_sizes(blocks, side)
        largest = max(size for size, _ in sizes)
        stack = torch.cat([torch.eye(size, largest).repeat(count, 1) for size, count in sizes])
    stack = stack.T.contiguous() if kind.on_inputs else stack
    check_not_empty(blocks)
    turned = kind.patched(spec._replace(swap=False, rows=None), blocks, stack, 1.0)
    norm: Tensor = torch.linalg.vector_norm(turned - stack, dtype=torch.float64)
    return norm.item()
