"""RoAd (PEFT road/layer.py, arXiv:2409.00119): pairs of outputs turned and stretched, the bias with
them.
"""

from __future__ import annotations

from ...messages import message
from ..kind import TURNED, InStock, Kind, Misfit, ModuleShape, Shapes, Tensors, roles, shaped
from ..lazy import helpers, torch
from ..setting import INTEGER, MAX_RANK, Setting
from ..spec import AdapterError, AdapterSpec


class RoAd(Kind):
    """road_theta and road_alpha: out / 2 numbers (road_1), out (road_2) or 2 * out (road_4).

    In each group of outputs the first half is paired with the second: y -> c * y + s * (-y2, y1), c
    = alpha cos(theta), s = alpha sin(theta). The setting group_size is needed.
    """

    name, title = "road", "RoAd"
    needs = (roles("road_theta road_alpha"),)
    parameter = "both"
    linear = False
    settings = (Setting("group_size", INTEGER, None, 1, MAX_RANK, needed=True),)
    stock = InStock("RoAd")
    bypass = TURNED

    def shape(self, shapes: Shapes) -> ModuleShape:
        if shapes["road_theta"] != shapes["road_alpha"]:
            raise Misfit(
                message(
                    "adapters.do_not_belong_together",
                    tensors=shaped(
                        road_theta=shapes["road_theta"], road_alpha=shapes["road_alpha"]
                    ),
                )
            )
        return super().shape(shapes)

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        if spec.rows:
            raise AdapterError(
                message("adapters.rows_cannot_be_cut", kind=self.title, rows=list(spec.rows))
            )
        group = spec.option("group_size")
        if not isinstance(group, int) or group < 2 or group % 2 or weight.shape[0] % group:
            raise AdapterError(self.needs_settings("group_size"))
        cosine, sine = (
            column.reshape(-1, *[1] * (weight.dim() - 1))
            for column in _columns(tensors, weight.shape[0], group)
        )
        first, second = weight.reshape(-1, 2, group // 2, *weight.shape[1:]).unbind(1)
        rotated = torch.stack((-second, first), 1).reshape(weight.shape)
        return helpers.toward(weight, weight * cosine + rotated * sine, strength)


def _columns(tensors: Tensors, out: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """c and s, one number for each output."""
    theta, alpha = (helpers.take(tensors, role).flatten() for role in ("road_theta", "road_alpha"))
    if alpha.numel() != theta.numel():
        raise AdapterError(
            message(
                "adapters.do_not_belong_together",
                tensors=shaped(road_theta=theta.shape, road_alpha=alpha.shape),
            )
        )
    if theta.numel() * 2 == out:
        theta, alpha = (
            vector.reshape(-1, group // 2).repeat_interleave(2, 0).flatten()
            for vector in (theta, alpha)
        )
    elif theta.numel() == 2 * out:
        (theta, turned), (alpha, stretched) = (
            vector.reshape(-1, 2, group).unbind(1) for vector in (theta, alpha)
        )
        return (alpha * theta.cos()).flatten(), (stretched * turned.sin()).flatten()
    elif theta.numel() != out:
        raise AdapterError(
            message(
                "adapters.not_for_outputs", role="road_theta", numbers=theta.numel(), outputs=out
            )
        )
    return alpha * theta.cos(), alpha * theta.sin()


KINDS = (RoAd(),)
