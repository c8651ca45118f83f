"""DoRA: a low-rank change whose outputs (or inputs) are given a trained length
(arXiv:2402.09353).
"""

from __future__ import annotations

from ...messages import message
from ..kind import Decomposition, InStock, Said, Shape, Tensors, roles, shaped
from ..lazy import helpers, torch
from ..spec import AdapterError, AdapterSpec

# What kinds take that DoRA applies to.
DECOMPOSED = roles("alpha dora_scale magnitude scalar")


class DoRA(Decomposition):
    """magnitude [out], or PEFT's [1, out, 1, 1], is per output; a dora_scale says by its shape
    which it is.

    That is LyCORIS' wd_on_out and OneTrainer's output axis: [out, 1, ...] per output, [1, in, 1,
    ...] per input. Where many of the latter are negative, which no length is, they are LyCORIS
    2.2.0's: the mean of a column in place of its length (lycoris-lora 2.2.0 and 2.2.0.post1
    modules/locon.py, loha.py, lokr.py apply_weight_decompose; post2 has the length).
    """

    title = "DoRA"
    roles = ("magnitude", "dora_scale")
    stock = InStock("DoRA", "adapters.stock_wrong_magnitudes")
    note = Said("adapters.measured_before_magnitudes")

    def per_output(self, role: str, shape: Shape) -> bool:
        return role == "magnitude" or len(shape) < 2 or shape[0] == _count(shape)

    def goes_by_rows(self, spec: AdapterSpec, tensors: Tensors) -> bool:
        by_columns = spec.option("dora_axis") == "columns"
        return not by_columns and super().goes_by_rows(spec, tensors)

    def vector(self, role: str, tensor: torch.Tensor, out: int) -> torch.Tensor | None:
        fits = tensor.numel() == out and (
            role == "magnitude" or tensor.dim() < 2 or tensor.shape[0] == out
        )
        return tensor.flatten() if fits else None

    def stored(self, role: str, vector: torch.Tensor, dimensions: int, flat: bool) -> torch.Tensor:
        if role == "dora_scale":
            return vector.reshape(-1, *[1] * (max(dimensions, 2) - 1))
        return vector if dimensions < 3 or flat else vector.reshape(1, -1, *[1] * (dimensions - 2))

    def stock_is_right(self, role: str, shape: Shape | None) -> bool:
        # Stock is right about magnitudes for each input, [1, in], as OneTrainer writes them.
        return role == "dora_scale" and (shape is None or (len(shape) > 1 and shape[0] == 1))

    def decomposed(
        self,
        spec: AdapterSpec,
        tensors: Tensors,
        weight: torch.Tensor,
        change: torch.Tensor,
        cut: bool,
    ) -> torch.Tensor:
        # LyCORIS and OneTrainer add fp32's epsilon to the norm of a dora_scale, PEFT and AI-Toolkit
        # add nothing to that of a magnitude.
        role, epsilon = (
            ("dora_scale", torch.finfo(torch.float32).eps)
            if "dora_scale" in tensors
            else ("magnitude", 0.0)
        )
        magnitude = self._magnitude(tensors, role, weight, spec, cut)
        changed = weight + change
        # Some magnitudes are made for the length of the base weight: see conventions/.
        measure = _mean if role == "dora_scale" and _are_means(magnitude) else _length
        return changed * (
            magnitude
            / measure(weight if spec.option("dora_norm") == "base" else changed, magnitude, epsilon)
        )

    def _magnitude(
        self, tensors: Tensors, role: str, weight: torch.Tensor, spec: AdapterSpec, cut: bool
    ) -> torch.Tensor:
        """The magnitudes, broadcastable against the weight: [out, 1, ...] or [1, in, 1, ...]."""
        tensor = helpers.take(tensors, role)
        if spec.option("dora_axis") == "columns":
            return self._columns(tensor, role, weight, cut)
        if self.per_output(role, tensor.shape):
            return helpers.output_vector(tensor, role, weight, spec.rows)
        _check_whole(tensor, role, weight, cut)
        return helpers.input_vector(tensor, role, weight)

    def _columns(
        self, tensor: torch.Tensor, role: str, weight: torch.Tensor, cut: bool
    ) -> torch.Tensor:
        """The magnitudes of the columns of the weight as a matrix, kernel included."""
        _check_whole(tensor, role, weight, cut)
        if tensor.numel() != weight[0].numel():
            raise AdapterError(
                message(
                    "adapters.does_not_fit_columns",
                    tensor=shaped(**{role: tensor.shape}),
                    weight=list(weight.shape),
                )
            )
        return tensor.reshape(1, *weight.shape[1:])


def _check_whole(tensor: torch.Tensor, role: str, weight: torch.Tensor, cut: bool) -> None:
    if cut:
        raise AdapterError(
            message(
                "adapters.magnitudes_need_all_rows",
                tensor=shaped(**{role: tensor.shape}),
                weight=list(weight.shape),
            )
        )


def _count(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# of the magnitudes are negative: about half of the means of a trained weight are, a length gets
# there by accident at most
MEANS = 0.2


def _are_means(magnitude: torch.Tensor) -> bool:
    """Whether magnitudes per input are means; tensors without values do not tell."""
    if magnitude.shape[0] != 1 or magnitude.is_meta:
        return False
    return (magnitude < 0).float().mean().item() > MEANS


def _mean(direction: torch.Tensor, magnitude: torch.Tensor, _epsilon: float) -> torch.Tensor:
    """The mean of each input's column, kept from 0."""
    mean = direction.mean(dim=_along(direction, magnitude), keepdim=True)
    return mean.masked_fill(mean == 0, torch.finfo(torch.float32).tiny)


def _along(direction: torch.Tensor, magnitude: torch.Tensor) -> list[int]:
    """The dimensions along which a magnitude is one number."""
    return [dimension for dimension in range(direction.dim()) if magnitude.shape[dimension] == 1]


def _length(direction: torch.Tensor, magnitude: torch.Tensor, epsilon: float) -> torch.Tensor:
    """|V|, taken over all the dimensions along which the magnitude is one number."""
    norm: torch.Tensor = torch.linalg.vector_norm(
        direction, dim=_along(direction, magnitude), keepdim=True
    )
    # A row of zeros has no direction; without the guard it would be 0 / 0.
    return norm + epsilon if epsilon else norm.clamp(min=torch.finfo(torch.float32).tiny)


DECOMPOSITIONS = (DoRA(),)
