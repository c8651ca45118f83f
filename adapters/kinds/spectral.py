"""FourierFT and WaveFT (PEFT fourierft/layer.py, arXiv:2405.03003; waveft/layer.py,
arXiv:2505.12532): few numbers of a spectrum.

Where in the spectrum they stand is drawn from a seed of the settings, for each weight anew.
"""

from __future__ import annotations

from functools import cache
from math import comb, sqrt

from ...messages import message
from ..draws import check_places, first_places
from ..kind import (
    ADDED,
    InStock,
    Kind,
    Misfit,
    ModuleShape,
    Product,
    Settings,
    Shape,
    Shapes,
    Tensors,
    ToldShapes,
    roles,
    shaped,
)
from ..lazy import helpers, products, torch
from ..setting import BOOLEAN, SCALING, SEED, WORD, Setting
from ..spec import AdapterError, AdapterSpec

# places that are drawn one by one; of more than these torch's own draw of all is faster
MAX_BY_ONE = 100_000
DAUBECHIES = {f"db{order}": order for order in range(1, 11)}


class Spectral(Kind):
    """`spectrum` [n], at the first n places of a permutation of the weight's
    numbers, row by row.
    """

    additive = needs_shape = True
    bypass = ADDED
    spectrum = ""

    def shape(self, shapes: Shapes) -> ModuleShape:
        if len(shapes[self.spectrum]) != 1:
            raise Misfit(
                message(
                    "adapters.needs_dimensions",
                    tensor=shaped(**{self.spectrum: shapes[self.spectrum]}),
                    count=1,
                )
            )
        return super().shape(shapes)

    def delta(self, spec: AdapterSpec, tensors: Tensors, shape: Shape) -> torch.Tensor:
        values, columns = (
            helpers.take(tensors, self.spectrum).flatten(),
            torch.Size(shape[1:]).numel(),
        )
        seed: int = helpers.needed_setting(self, spec, SEED.name)
        scaling: float = helpers.needed_setting(self, spec, SCALING.name)
        if len(shape) < 2:
            raise AdapterError(
                message("adapters.matrices_only", kind=self.title, weight=list(shape))
            )
        places = self._places(values, seed, shape[0] * columns)
        return (self._made(spec, values, places, (shape[0], columns)) * scaling).reshape(
            tuple(shape)
        )

    def _places(self, values: torch.Tensor, seed: int, total: int) -> torch.Tensor:
        count = values.numel()
        try:
            check_places(total, count)
        except ValueError as error:
            raise AdapterError(message("joints.about", subject=self.title, text=error)) from None
        if values.is_meta:
            return torch.zeros(count, dtype=torch.long, device=values.device)
        if count > MAX_BY_ONE:
            return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].to(
                values.device
            )
        return torch.tensor(
            first_places(seed, total, count), dtype=torch.long, device=values.device
        )

    def _made(
        self, spec: AdapterSpec, values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]
    ) -> torch.Tensor:
        """The change [out, in] before its scaling."""
        raise NotImplementedError

    def count_rows(self, tensors: Tensors) -> int:
        raise AdapterError(message("adapters.split_rows", kind=self.title))

    def product(self, spec: AdapterSpec, tensors: Tensors, dtype: torch.dtype) -> Product:
        return products.whole(self.delta(spec, tensors, helpers.module_shape(spec)))


class FourierFT(Spectral):
    """The real part of the inverse Fourier transform of the matrix that holds them."""

    name, title = "fourierft", "FourierFT"
    needs = (roles("fourier_spectrum"),)
    zeroed_by = needs[0]
    settings = (SEED, SCALING)
    stock = InStock("FourierFT")
    spectrum = "fourier_spectrum"

    def _made(
        self, spec: AdapterSpec, values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]
    ) -> torch.Tensor:
        dense = values.new_zeros(shape[0] * shape[1]).index_put((places,), values)
        made: torch.Tensor = torch.fft.ifft2(dense.reshape(shape)).real
        return made


class WaveFT(Spectral):
    """The inverse wavelet transform, of one level, of the matrix that holds them; that matrix
    itself where use_idwt is off.
    """

    name, title = "waveft", "WaveFT"
    needs = (roles("wave_spectrum"),)
    zeroed_by = needs[0]
    settings = (
        SEED,
        SCALING,
        Setting("use_idwt", BOOLEAN, None, needed=True),
        Setting("wavelet_family", WORD, None, words=tuple(DAUBECHIES), needed=True),
    )
    stock = InStock("WaveFT")
    spectrum = "wave_spectrum"

    def lacks(self, options: Settings, shapes: ToldShapes) -> str:
        # Without the transform it does not matter which wavelets it would be of.
        return super().lacks(
            {"wavelet_family": "", **options} if options.get("use_idwt") is False else options,
            shapes,
        )

    def _made(
        self, spec: AdapterSpec, values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]
    ) -> torch.Tensor:
        if not helpers.needed_setting(self, spec, "use_idwt"):
            return values.new_zeros(shape[0] * shape[1]).index_put((places,), values).reshape(shape)
        order = DAUBECHIES[helpers.needed_setting(self, spec, "wavelet_family")]
        padded = [_even(size + 2 * order - 2) for size in shape]
        top, left = ((wide - size) // 2 for wide, size in zip(padded, shape, strict=True))
        dense = values.new_zeros(padded).index_put(
            (places // shape[1] + top, places % shape[1] + left), values
        )
        return _cropped(_inverse(dense, order), shape)


def _even(size: int) -> int:
    return size + size % 2


def _cropped(matrix: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The middle of it."""
    top, left = ((have - size) // 2 for have, size in zip(matrix.shape, shape, strict=True))
    return matrix[top : top + shape[0], left : left + shape[1]]


def _inverse(dense: torch.Tensor, order: int) -> torch.Tensor:
    """One level back, of a matrix of four quarters: both low; to its right rows high, below it
    columns high, so PEFT has it; both high.
    """
    quarters = torch.stack([half for rows in dense.chunk(2) for half in rows.chunk(2, 1)])
    low, high = (dense.new_tensor(taps) for taps in _filters(order))
    filters = torch.stack(
        [
            torch.outer(rows, columns)
            for rows, columns in ((low, low), (high, low), (low, high), (high, high))
        ]
    )
    crop = (4 * order - 3) // 2
    return torch.nn.functional.conv_transpose2d(
        quarters[None], filters[:, None], stride=2, padding=crop
    )[0, 0]


@cache
def _filters(order: int) -> tuple[list[float], list[float]]:
    """The low and high pass of Daubechies' wavelet with so many vanishing moments, of 2 * order
    taps each.

    By spectral factorisation (Daubechies, Ten Lectures on Wavelets, 6.1): the zeros inside of the
    unit circle of the polynomial that makes the low pass orthogonal, and `order` zeros at -1.
    """
    double = torch.float64
    taps = torch.ones(1, dtype=torch.complex128)
    for zero in [*_zeros(order), *[-1.0] * order]:
        taps = torch.cat((taps, taps.new_zeros(1))) - zero * torch.cat((taps.new_zeros(1), taps))
    low = taps.real.to(double) * (sqrt(2) / taps.real.sum())
    high = low.flip(0) * torch.tensor([1.0, -1.0], dtype=double).repeat(order)
    return low.tolist(), high.tolist()


def _zeros(order: int) -> list[complex]:
    """The zeros z, |z| < 1, of sum of C(order - 1 + k, k) y^k for k < order, y = (2 - z - 1 / z) /
    4.
    """
    if order == 1:
        return []
    rising = [comb(order - 1 + power, power) for power in range(order)]
    companion = torch.diag(torch.ones(order - 2, dtype=torch.float64), -1)
    companion[:, -1] = torch.tensor(
        [-value / rising[-1] for value in rising[:-1]], dtype=torch.float64
    )
    inside = []
    for y in torch.linalg.eigvals(companion).tolist():
        middle = 1 - 2 * y
        root = (middle * middle - 1) ** 0.5
        inside.append(min(middle + root, middle - root, key=abs))
    return inside


KINDS = (FourierFT(), WaveFT())
