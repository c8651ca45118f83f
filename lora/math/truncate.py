"""The best approximation of a delta at a smaller rank, from its factors where it has any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.spec import AdapterError
from ...messages import message
from .low_rank import Delta, Factors, Kronecker, both

__all__ = ["Truncation", "energy_of", "truncated"]

# A sketch is deep enough when one more power of the matrix adds less than this share of what is
# left out.
SETTLED = 1e-5
# ... or than this share of the whole, which is what fp32 products can tell.
TELLABLE = 1e-10
# Columns a sketch has more than singular vectors are wanted.
OVERSAMPLED = 16
# A sketch of more columns than this share of the matrix' smaller side costs more than all its
# eigenvalues.
LARGEST_SKETCH = 1 / 4
# Matrices up to this side are decomposed whole.
SMALL_SIDE = 256
# Singular values looked for first where an energy is asked.
FIRST_RANK = 32
# Entries of the strips of rows in which a matrix is compared with what is kept of it.
STRIP = 2**22
# Entries that are turned into fp64 at a time.
CACHED = 2**18
# What rounding adds to a share of the energy.
ROUNDING = 1e-14


class Truncation(NamedTuple):
    """The best approximation of a delta by one of smaller rank (Eckart, Young 1936).

    delta: factors with the singular values shared evenly between up and down, in the dtype of those
    truncated.
    kept_energy: the share of the squared Frobenius norm that is kept. error: |delta - kept| /
    |delta|; 1 and 0 for a delta of zero.
    rank: of the factors kept, at least 1.
    """

    delta: Delta
    kept_energy: float
    error: float
    rank: int


class _Way(NamedTuple):
    """How far Gram matrices in a dtype can be trusted.

    tail: energy left out, as a share of the two matrices' own norms, below which their rounding
    shows. condition: of the root, which is inverted. range: of the norms.
    """

    dtype: torch.dtype
    tail: float
    condition: float
    range: tuple[float, float]


# The cheapest first; where none tells, QR of both factors.
WAYS = (
    _Way(torch.float32, 1e-2, 30, (1e-25, 1e30)),
    _Way(torch.float64, 1e-9, 1e5, (1e-290, 1e290)),
)


class _Spectrum(NamedTuple):
    """values: squared singular values in fp64, largest first, maybe only the first ones; total: the
    sum of all of them.

    cut: k -> up [out, k] and down [k, columns] of the best rank k. floor: left out energy below
    this cannot be told.
    """

    values: Tensor
    total: float
    cut: Callable[[int], tuple[Tensor, Tensor]]
    floor: float = 0.0

    def lost(self, rank: int) -> float:
        """The energy left out at a rank."""
        rest = max(0.0, self.total - self.values.sum().item())
        return self.values[rank:].sum().item() + rest


def truncated(
    delta: Delta, rank: int | None = None, energy: float | None = None, error: float | None = None
) -> Truncation:
    """The delta at the smallest rank that keeps the share `energy` of its squared norm and is
    within `error` of it, never above `rank`.

    rank: at least 1. energy: above 0, up to 1. error: relative to the delta's Frobenius norm, from
    0, below 1. None: not asked for; a delta that `rank` alone does not cut comes back as it is.
    Factors are never multiplied out: Gram matrices of both and the eigenvalues of a matrix of the
    rank's side, QR where these cannot tell; a Kronecker product is decomposed by its halves. A
    delta without factors is sketched (block Krylov, Musco and Musco 2015) until the result is the
    optimum, or decomposed whole. Raises AdapterError for NaN and Inf, ValueError for what cannot be
    asked.
    """
    _check(rank, energy, error)
    lost = (
        None
        if energy is None and error is None
        else min(1 - (energy or 0.0), 1.0 if error is None else error * error)
    )
    written = (
        delta.down.shape[0] if isinstance(delta, Factors) and delta.up is not None else delta.rank
    )
    if lost is None and (rank is None or rank >= written):
        return Truncation(delta, 1.0, 0.0, written)
    if isinstance(delta, Factors) and (delta.up is None or written > min(delta.shape)):
        return _of_matrix(delta.dense(), rank, lost)
    spectrum = _by_halves(delta) if isinstance(delta, Kronecker) else _by_factors(delta, rank, lost)
    chosen = _rank(spectrum, rank, lost)
    share = spectrum.lost(chosen) / spectrum.total if spectrum.total else 0.0
    return _made(spectrum.cut(chosen), delta, share, chosen)


def _check(rank: int | None, energy: float | None, error: float | None) -> None:
    if rank is not None and rank < 1:
        raise ValueError(message("lora.rank_range", rank=rank))
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(message("lora.energy_range", energy=energy))
    if error is not None and not 0 <= error < 1:
        raise ValueError(message("lora.error_range", error=error))


def _rank(spectrum: _Spectrum, rank: int | None, lost: float | None) -> int:
    """The smallest rank that loses no more than the share `lost`, at most `rank`."""
    most = min(len(spectrum.values), rank or len(spectrum.values))
    if lost is None:
        return most
    rest = max(0.0, spectrum.total - spectrum.values.sum().item())
    tails = spectrum.values.flip(0).cumsum(0).flip(0) + rest
    allowed = (lost + ROUNDING) * spectrum.total
    return min(most, max(1, int((tails > allowed).sum())))


def _made(cut: tuple[Tensor, Tensor], like: Delta, lost: float, rank: int) -> Truncation:
    dtype = (like.first if isinstance(like, Kronecker) else like).down.dtype
    return Truncation(Factors(cut[0].to(dtype), cut[1].to(dtype)), 1 - lost, math.sqrt(lost), rank)


def _finite(matrix: Tensor) -> Tensor:
    if not matrix.isfinite().all():
        raise AdapterError(message("lora.no_singular_values"))
    return matrix


def _shared(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of squared singular values: the square roots of the singular values, and one over these, 0
    for 0.
    """
    roots = values.clamp(min=0).sqrt().sqrt()
    return roots, torch.where(roots > 0, 1 / roots, 0.0)


def _by_factors(delta: Factors, rank: int | None, lost: float | None) -> _Spectrum:
    up, down = both(delta)
    for way in WAYS:
        found = _by_grams(up, down, way) if way.dtype.itemsize >= up.dtype.itemsize else None
        if found is not None and found.lost(_rank(found, rank, lost)) >= found.floor:
            return found
    return _by_qr(up.to(torch.float64), down.to(torch.float64))


def _by_grams(up: Tensor, down: Tensor, way: _Way) -> _Spectrum | None:
    """up = Q R with R^T R = up^T up, so that up @ down has the singular values of R @ down; None
    where the dtype cannot tell R.
    """
    if way.dtype != up.dtype:
        up, down = up.to(way.dtype), down.to(way.dtype)
    outer, inner = (up.T @ up).to(torch.float64), (down @ down.T).to(torch.float64)
    sizes = [torch.linalg.vector_norm(gram).item() for gram in (outer, inner)]
    if not all(way.range[0] < size < way.range[1] for size in sizes):
        return None
    root, failed = torch.linalg.cholesky_ex(outer, upper=True)
    diagonal = root.diagonal()
    if failed or diagonal.max() > way.condition * diagonal.min():
        return None
    values, vectors = torch.linalg.eigh(root @ inner @ root.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)

    def cut(rank: int) -> tuple[Tensor, Tensor]:
        roots, inverses = _shared(values[:rank])
        left = torch.linalg.solve_triangular(root, vectors[:, :rank], upper=True) * roots
        right = (vectors[:, :rank] * inverses).T @ root
        return up @ left.to(way.dtype), right.to(way.dtype) @ down

    return _Spectrum(values, values.sum().item(), cut, way.tail * sizes[0] * sizes[1])


def _by_qr(up: Tensor, down: Tensor) -> _Spectrum:
    left, outer = torch.linalg.qr(_finite(up))
    right, inner = torch.linalg.qr(_finite(down).T)
    first, values, second = torch.linalg.svd(_finite(outer @ inner.T))

    def cut(rank: int) -> tuple[Tensor, Tensor]:
        roots = values[:rank].sqrt()
        return left @ (first[:, :rank] * roots), (roots[:, None] * second[:rank]) @ right.T

    squares = values.square()
    return _Spectrum(squares, squares.sum().item(), cut)


def _by_halves(delta: Kronecker) -> _Spectrum:
    """The singular vectors of a Kronecker product are the Kronecker products of its halves'."""
    first, second = _of_half(delta.first), _of_half(delta.second)
    products = torch.outer(first.values, second.values).flatten()
    values, order = products.sort(descending=True)

    def cut(rank: int) -> tuple[Tensor, Tensor]:
        one, other = order[:rank] // len(second.values), order[:rank] % len(second.values)
        (up, down), (inner_up, inner_down) = (
            half.cut(int(index.max()) + 1) for half, index in ((first, one), (second, other))
        )
        return (
            _columns(up[:, one], inner_up[:, other]),
            _columns(down[one].T, inner_down[other].T).T,
        )

    return _Spectrum(values, values.sum().item(), cut)


def _of_half(half: Factors) -> _Spectrum:
    if half.up is None or half.down.shape[0] > min(half.shape):
        return _by_eigenvectors(half.dense())
    return _by_factors(half, None, None)


def _columns(left: Tensor, right: Tensor) -> Tensor:
    """Column by column the Kronecker product: [a, k], [b, k] -> [a * b, k]."""
    return torch.einsum("ak,bk->abk", left, right).flatten(0, 1)


def _by_eigenvectors(matrix: Tensor) -> _Spectrum:
    """All singular values of a matrix, from the fp64 Gram matrix of its smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        return _turned(_by_eigenvectors(matrix.T))
    matrix = _finite(matrix).to(torch.float64)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)

    def cut(rank: int) -> tuple[Tensor, Tensor]:
        roots, inverses = _shared(values[:rank])
        return vectors[:, :rank] * roots, (vectors[:, :rank] * inverses).T @ matrix

    return _Spectrum(values, values.sum().item(), cut)


def _turned(spectrum: _Spectrum) -> _Spectrum:
    def cut(rank: int) -> tuple[Tensor, Tensor]:
        up, down = spectrum.cut(rank)
        return down.T, up.T

    return spectrum._replace(cut=cut)


def _of_matrix(matrix: Tensor, rank: int | None, lost: float | None) -> Truncation:
    total = energy_of(matrix)
    if not math.isfinite(total):
        _finite(matrix)
    spectrum = _sketched(matrix, total, rank, lost) or _by_eigenvectors(matrix)
    chosen = _rank(spectrum, rank, lost)
    up, down = (factor.to(matrix.dtype) for factor in spectrum.cut(chosen))
    share = min(1.0, _residual(matrix, up, down) / total) if total else 0.0
    return _made((up, down), Factors(None, matrix), share, chosen)


def energy_of(matrix: Tensor) -> float:
    """The squared Frobenius norm, summed in fp64; NaN or Inf where the matrix holds any."""
    total = 0.0
    # torch's own fp64 norm of an fp32 tensor takes several times as long as strips that stay in the
    # processor's cache.
    for strip in matrix.reshape(-1).split(CACHED):
        strip = strip.to(torch.float64)
        total += torch.dot(strip, strip).item()
    return total


def _residual(matrix: Tensor, up: Tensor, down: Tensor) -> float:
    """|matrix - up @ down|^2, a strip of rows at a time."""
    step = max(1, STRIP // matrix.shape[1])
    pairs = zip(matrix.split(step), up.split(step), strict=True)
    return sum(energy_of(torch.addmm(rows, left, down, alpha=-1)) for rows, left in pairs)


def _sketched(
    matrix: Tensor, total: float, rank: int | None, lost: float | None
) -> _Spectrum | None:
    """The first singular values by sketches of growing width; None where decomposing the whole is
    the cheaper way.
    """
    side = min(matrix.shape)
    wanted = rank if lost is None and rank else min(rank or side, FIRST_RANK)
    while side > SMALL_SIDE and 2 * (wanted + OVERSAMPLED) <= side * LARGEST_SKETCH:
        spectrum = _by_sketch(matrix, total, wanted)
        if spectrum is None:
            return None
        if lost is None or wanted == rank or spectrum.lost(wanted) <= lost * total:
            return spectrum
        wanted = min(2 * wanted, rank or side)
    return None


def _by_sketch(matrix: Tensor, total: float, wanted: int) -> _Spectrum | None:
    """The `wanted` first singular values from a block Krylov space, grown until they do not grow
    any more; None if it grows too large.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = _by_sketch(matrix.T, total, wanted)
        return turned and _turned(turned)
    generator = torch.Generator(matrix.device).manual_seed(0)
    start = torch.randn(
        matrix.shape[1],
        wanted + OVERSAMPLED,
        generator=generator,
        dtype=matrix.dtype,
        device=matrix.device,
    )
    basis, kept = torch.linalg.qr(matrix @ start).Q, -math.inf
    block, images = basis, matrix.new_empty(0, matrix.shape[1])
    while True:
        images = torch.cat((images, block.T @ matrix))
        values = _eigenvalues(images)
        before, kept = kept, values[:wanted].sum().item()
        if kept - before <= max(SETTLED * (total - kept), TELLABLE * total):
            return _ritz(basis, images, total, wanted)
        if basis.shape[1] + block.shape[1] > matrix.shape[0] * LARGEST_SKETCH:
            return None
        block = _beside(matrix @ images[-block.shape[1] :].T, basis)
        basis = torch.cat((basis, block), 1)


def _eigenvalues(images: Tensor) -> Tensor:
    images = images.to(torch.float64)
    values: Tensor = torch.linalg.eigvalsh(images @ images.T)
    return values.flip(0)


def _beside(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what the block adds to a space."""
    # Twice, as the first pass leaves the rounding of what it takes away, which may be most of a
    # small rest.
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _ritz(basis: Tensor, images: Tensor, total: float, wanted: int) -> _Spectrum:
    """The best ranks within a space: basis [rows, n] and images = basis^T @ matrix [n, columns]."""
    found = _by_eigenvectors(images)

    def cut(rank: int) -> tuple[Tensor, Tensor]:
        up, down = found.cut(rank)
        return basis.to(torch.float64) @ up, down

    return _Spectrum(found.values[:wanted], total, cut)
