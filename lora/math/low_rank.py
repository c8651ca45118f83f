"""Exact low-rank algebra: an adapter's delta as its factors, with norms, singular values and inner
products that never build it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.kind import KroneckerProduct, Product
from ...adapters.registry import magnitudes, named
from ...adapters.spec import AdapterError, AdapterSpec
from ...adapters.tensors import Tensors, check_not_empty, describe, factor_of
from ...messages import message
from .apply import is_linear

__all__ = [
    "MAGNITUDES",
    "Delta",
    "Factors",
    "Kronecker",
    "add",
    "factors",
    "from_product",
    "low_rank_part",
    "to_product",
]

MAGNITUDES = magnitudes()  # the roles of decompositions: per output, and along either axis
# Entries of the strips of rows in which two deltas without common factors are multiplied.
STRIP = 2**22
# Below this share of |up| |down| a Gram matrix of the dtype has lost the product's digits: then the
# next better way is taken.
MIN_KEPT = {torch.float32: 0.1, torch.float64: 1e-4}
# Outside of these an fp32 Gram matrix may have left fp32's range.
RANGE = (1e-25, 1e30)
# Scales between which the scaled factors of a file stay well inside fp32's range.
MODEST = (1e-6, 1e6)


@dataclass(frozen=True, eq=False)
class Factors:
    """The delta up @ down as a matrix [out, columns], a convolution's columns being in * kernel and
    a vector's being one.

    up: [out, rank] with the scale in it, or None: the identity, so that down is the matrix itself
    (full differences).
    down: [rank, columns], of the same floating dtype. NaN and Inf go through: the numbers they
    touch come out as NaN or Inf.
    """

    up: Tensor | None
    down: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, columns)."""
        return (self.down if self.up is None else self.up).shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """The number of singular values: no more than the smaller side."""
        return min(*self.shape, self.down.shape[0])

    @property
    def core(self) -> int:
        """The side of the largest symmetric matrix whose eigenvalues `singular_values` needs; its
        time grows with the cube.
        """
        return self.rank

    def dense(self) -> Tensor:
        """The matrix [out, columns]."""
        return self.down if self.up is None else self.up @ self.down

    def rows(self, start: int, length: int) -> Factors:
        """The delta of these output rows alone."""
        _check_rows(self.shape[0], start, length)
        if self.up is None:
            return Factors(None, self.down.narrow(0, start, length))
        return Factors(self.up.narrow(0, start, length), self.down)

    def swap_halves(self) -> Factors:
        """The two halves of the output rows exchanged."""
        half = _half(self.shape[0])
        if self.up is None:
            return Factors(None, self.down.roll(half, 0))
        return Factors(self.up.roll(half, 0), self.down)

    def scaled(self, factor: float) -> Factors:
        """The delta times a number."""
        return (
            Factors(None, self.down * factor)
            if self.up is None
            else Factors(self.up * factor, self.down)
        )

    def times(self, matrix: Tensor) -> Tensor:
        """delta @ matrix: [columns, n] -> [out, n] in the matrix' dtype."""
        product = self.down.to(matrix.dtype) @ matrix
        return product if self.up is None else self.up.to(matrix.dtype) @ product

    def inner(self, other: Factors | Kronecker) -> float:
        """The Frobenius inner product of two deltas of one shape."""
        return _inner(self, other)

    def frobenius(self) -> float:
        """The Frobenius norm, from the factors' Gram matrices; as exact as `singular_values`."""
        if self.up is None:
            whole: Tensor = torch.linalg.vector_norm(self.down, dtype=torch.float64)
            return whole.item()
        if self.down.shape[0] > min(self.shape):
            return Factors(
                None, self.up.to(torch.float64) @ self.down.to(torch.float64)
            ).frobenius()
        outer, inner = _grams(self.up, self.down)
        norm = (outer * inner).sum().clamp(min=0).sqrt()
        return (
            norm.item()
            if self._keeps(norm, outer, inner)
            else torch.linalg.vector_norm(self.singular_values()).item()
        )

    def spectral(self) -> float:
        """The largest singular value."""
        return self.singular_values()[0].item()

    def singular_values(self) -> Tensor:
        """All `rank` singular values in fp64, largest first; NaN throughout where the factors hold
        NaN or Inf.

        From Gram matrices in the factors' dtype, several times faster than QR. Of fp64 factors what
        is above 1e-5 of the largest is right to 1e-5 relative and the largest to 1e-8; of fp32 ones
        the largest is right to 1e-5, and what is below 1e-3 of it is rounding. Where the product is
        much smaller than its factors: fp64 first, then QR of both.
        """
        if self.up is None or self.down.shape[0] > min(self.shape):
            matrix = Factors(
                None if self.up is None else self.up.to(torch.float64), self.down.to(torch.float64)
            ).dense()
            gram = matrix @ matrix.T if self.shape[0] <= self.shape[1] else matrix.T @ matrix
            return _roots(gram)
        outer, inner = _grams(self.up, self.down)
        root = _square_root(outer)
        values = _roots(root.T @ inner @ root)
        if self._keeps(values[0], outer, inner):
            return values
        if self.up.dtype != torch.float64:
            return Factors(self.up.to(torch.float64), self.down.to(torch.float64)).singular_values()
        return _by_qr(self.up, self.down) if values.isfinite().all() else values

    def _keeps(self, norm: Tensor, outer: Tensor, inner: Tensor) -> bool:
        """Whether a norm of the product is large enough beside the Gram matrices' own for these to
        tell it.
        """
        squares = [gram.abs().sum(0).max().item() for gram in (outer, inner)]
        up, _ = both(self)
        in_range = up.dtype == torch.float64 or all(
            RANGE[0] < square < RANGE[1] for square in squares
        )
        return in_range and norm.item() >= MIN_KEPT.get(up.dtype, 1.0) * math.sqrt(
            squares[0]
        ) * math.sqrt(squares[1])


@dataclass(frozen=True, eq=False)
class Kronecker:
    """The delta kron(first, second), the scale in first; shapes [a, c] and [b, d] make [a * b, c *
    d]. The methods are those of Factors.
    """

    first: Factors
    second: Factors

    @property
    def shape(self) -> tuple[int, int]:
        """(out, columns)."""
        (a, c), (b, d) = self.first.shape, self.second.shape
        return a * b, c * d

    @property
    def rank(self) -> int:
        """The number of singular values."""
        return self.first.rank * self.second.rank

    @property
    def core(self) -> int:
        """The side of the larger eigenvalue problem of the two halves."""
        return max(self.first.core, self.second.core)

    def dense(self) -> Tensor:
        """The matrix [out, columns]."""
        return _kron(self.first.dense(), self.second.dense())

    def rows(self, start: int, length: int) -> Factors | Kronecker:
        """The delta of these output rows alone: a Kronecker pair where they are whole blocks of it,
        else a matrix.
        """
        _check_rows(self.shape[0], start, length)
        block = self.second.shape[0]
        if start % block == 0 and length % block == 0:
            return Kronecker(self.first.rows(start // block, length // block), self.second)
        low, high = start // block, -(-(start + length) // block)
        whole = Kronecker(self.first.rows(low, high - low), self.second).dense()
        return Factors(None, whole.narrow(0, start - low * block, length))

    def swap_halves(self) -> Factors | Kronecker:
        """The two halves of the output rows exchanged."""
        half = _half(self.shape[0])
        if self.first.shape[0] % 2 == 0:
            return Kronecker(self.first.swap_halves(), self.second)
        return Factors(None, self.dense().roll(half, 0))

    def scaled(self, factor: float) -> Kronecker:
        """The delta times a number."""
        return Kronecker(self.first.scaled(factor), self.second)

    def times(self, matrix: Tensor) -> Tensor:
        """delta @ matrix: [columns, n] -> [out, n] in the matrix' dtype."""
        (a, c), (b, d) = self.first.shape, self.second.shape
        inner = matrix.reshape(c, d, -1).transpose(0, 1).reshape(d, -1)
        turned = self.second.times(inner).reshape(b, c, -1).transpose(0, 1).reshape(c, -1)
        return self.first.times(turned).reshape(a * b, -1)

    def inner(self, other: Factors | Kronecker) -> float:
        """The Frobenius inner product of two deltas of one shape."""
        return _inner(self, other)

    def frobenius(self) -> float:
        """The Frobenius norm: the product of the halves'."""
        return self.first.frobenius() * self.second.frobenius()

    def spectral(self) -> float:
        """The largest singular value: the product of the halves'."""
        return self.first.spectral() * self.second.spectral()

    def singular_values(self) -> Tensor:
        """All singular values in fp64, largest first: every product of one of each half."""
        products = torch.outer(self.first.singular_values(), self.second.singular_values())
        return products.flatten().sort(descending=True).values

    def as_factors(self) -> Factors:
        """The delta as one pair of factors, of `rank` columns: kron(a b, c d) = kron(a, c) kron(b,
        d).
        """
        (up, down), (other_up, other_down) = (
            both(_product(half)) for half in (self.first, self.second)
        )
        return Factors(_kron(up, other_up), _kron(down, other_down))


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """torch.kron, which refuses what a Tucker core leaves behind: tensors that do not lie together
    in memory, or have odd strides.
    """
    product = first[:, None, :, None] * second[None, :, None, :]
    return product.reshape(first.shape[0] * second.shape[0], -1)


def _product(half: Factors) -> Factors:
    """The half with both factors, of its rank; a matrix is a product with the identity of its
    smaller side.
    """
    if half.up is not None and half.down.shape[0] <= min(half.shape):
        return half
    matrix = half.dense()
    identity = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
    return (
        Factors(identity, matrix)
        if matrix.shape[0] <= matrix.shape[1]
        else Factors(matrix, identity)
    )


Delta = Factors | Kronecker


def both(delta: Delta | Tensor) -> tuple[Tensor, Tensor]:
    """up and down of a delta that is known to have both."""
    assert isinstance(delta, Factors) and delta.up is not None
    return delta.up, delta.down


def tensors_of(delta: Delta | Tensor) -> list[Tensor]:
    """All tensors that make up a delta."""
    if isinstance(delta, Tensor):
        return [delta]
    if isinstance(delta, Kronecker):
        return tensors_of(delta.first) + tensors_of(delta.second)
    return [delta.down] if delta.up is None else [delta.up, delta.down]


def add(deltas: Sequence[Delta]) -> Delta:
    """The exact sum of deltas of one shape, as factors side by side; a matrix where one of several
    is no low-rank product.

    Raises AdapterError for none, or for different shapes.
    """
    shapes = {delta.shape for delta in deltas}
    if len(shapes) != 1:
        raise AdapterError(message("lora.shapes_differ", shapes=sorted(shapes)))
    if len(deltas) == 1:
        return deltas[0]
    pairs = [
        (delta.up, delta.down)
        for delta in deltas
        if isinstance(delta, Factors) and delta.up is not None
    ]
    if len(pairs) == len(deltas):
        return Factors(
            torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])
        )
    total = deltas[0].dense().clone()
    for delta in deltas[1:]:
        total = total + delta.dense()
    return Factors(None, total)


def _check_rows(out: int, start: int, length: int) -> None:
    if not 0 <= start < start + length <= out:
        raise AdapterError(message("lora.rows_outside", first=start, last=start + length, rows=out))


def _half(out: int) -> int:
    if out % 2:
        raise AdapterError(message("lora.delta_has_odd_rows", rows=out))
    return out // 2


def _grams(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """up^T up and down down^T, [rank, rank] each, multiplied in the factors' dtype, in fp64."""
    return (up.T @ up).to(torch.float64), (down @ down.T).to(torch.float64)


def _square_root(gram: Tensor) -> Tensor:
    """A matrix L with L L^T = gram."""
    root: Tensor
    values: Tensor
    vectors: Tensor
    root, failed = torch.linalg.cholesky_ex(gram)
    if not failed or not gram.isfinite().all():
        return root
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def _roots(gram: Tensor) -> Tensor:
    """The square roots of a Gram matrix' eigenvalues, largest first."""
    # LAPACK refuses such input with an error of its own.
    if not gram.isfinite().all():
        return gram.new_full((gram.shape[0],), math.nan)
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().flip(0)


def _by_qr(up: Tensor, down: Tensor) -> Tensor:
    outer = torch.linalg.qr(up.to(torch.float64), mode="r").R
    inner = torch.linalg.qr(down.to(torch.float64).T, mode="r").R
    values: Tensor = torch.linalg.svdvals(outer @ inner.T)
    return values


def _inner(left: Delta, right: Delta) -> float:
    if left.shape != right.shape:
        raise AdapterError(
            message("lora.no_inner_product", one=list(left.shape), other=list(right.shape))
        )
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Factors) and one.up is not None:
            return (
                (one.up.to(torch.float64) * other.times(one.down.T.to(torch.float64))).sum().item()
            )
    if (
        isinstance(left, Kronecker)
        and isinstance(right, Kronecker)
        and left.first.shape == right.first.shape
    ):
        return left.first.inner(right.first) * left.second.inner(right.second)
    step = max(1, STRIP // left.shape[1])
    strips = [(start, min(step, left.shape[0] - start)) for start in range(0, left.shape[0], step)]
    return sum(
        (left.rows(*strip).dense().to(torch.float64) * right.rows(*strip).dense()).sum().item()
        for strip in strips
    )


def factors(spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype = torch.float64) -> Delta:
    """The delta of a linear adapter as factors, scale, rows and swap included; the tensors are not
    changed.

    tensors: role -> tensor, as for `patched_weight`. dtype: fp64 or fp32, of all factors (fp64 for
    a scale that fp32 might not hold); full differences stay in fp32. Raises AdapterError for a kind
    without a delta of its own (a DoRA's low-rank part: see `low_rank_part`) and for tensors that do
    not fit each other.
    """
    if not is_linear(spec, tensors):
        raise AdapterError(
            message("lora.no_delta_of_its_own", kind=spec.kind, tensors=describe(tensors))
        )
    check_not_empty(tensors)
    kind = named(spec.kind)
    if not MODEST[0] < abs(factor_of(kind, spec, tensors)) < MODEST[1]:
        dtype = torch.float64
    delta = from_product(kind.product(spec, tensors, dtype))
    if spec.rows is not None:
        delta = delta.rows(*spec.rows)
    return delta.swap_halves() if spec.swap else delta


def from_product(product: Product | KroneckerProduct) -> Delta:
    """The delta that a kind describes."""
    if isinstance(product, Product):
        return Factors(*product)
    return Kronecker(Factors(*product.first), Factors(*product.second))


def to_product(delta: Delta) -> Product | KroneckerProduct:
    """The delta as a kind describes it."""
    if isinstance(delta, Factors):
        return Product(delta.up, delta.down)
    first, second = (Product(half.up, half.down) for half in (delta.first, delta.second))
    return KroneckerProduct(first, second)


def low_rank_part(tensors: Tensors) -> Tensors:
    """An adapter's tensors without DoRA's magnitudes, which need the model's weight."""
    return {role: tensor for role, tensor in tensors.items() if role not in MAGNITUDES}
