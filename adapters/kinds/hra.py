"""HRA, Householder reflection adaptation (PEFT hra/layer.py, arXiv:2405.17484): W' = W H1 H2 ...,
Hj = I - 2 uj uj^T.
"""

from __future__ import annotations

from ...messages import message
from ..kind import DERIVED, InStock, Kind, Tensors, roles, shaped
from ..lazy import helpers, torch
from ..setting import BOOLEAN, Setting
from ..spec import AdapterError, AdapterSpec


class HRA(Kind):
    """hra_u [in * kernel, r], whose columns are the reflections' normals; with apply_GS they are
    made orthogonal first.
    """

    name, title = "hra", "HRA"
    needs = (roles("hra_u"),)
    precedence = 32
    settings = (Setting("apply_GS", BOOLEAN, False),)
    stock = InStock("HRA")
    bypass = DERIVED

    def patched(
        self, spec: AdapterSpec, tensors: Tensors, weight: torch.Tensor, strength: float
    ) -> torch.Tensor:
        normals = helpers.take_matrix(tensors, "hra_u")
        matrix = weight.flatten(1)
        if normals.shape[0] != matrix.shape[1]:
            raise AdapterError(
                message(
                    "adapters.does_not_fit_inputs",
                    tensor=shaped(hra_u=normals.shape),
                    inputs=matrix.shape[1],
                    weight=list(weight.shape),
                )
            )
        if spec.option("apply_GS", False):
            normals = torch.linalg.qr(normals).Q
            turned = matrix - 2 * (matrix @ normals) @ normals.T
        else:
            normals = normals / torch.linalg.vector_norm(normals, dim=0)
            # The product of all reflections is I - N T N^T, T the inverse of the upper triangle of
            # N^T N with its diagonal halved.
            gram = normals.T @ normals
            upper = gram.triu(1) + 0.5 * torch.eye(gram.shape[0], device=gram.device)
            turned = (
                matrix
                - torch.linalg.solve_triangular(upper.T, (matrix @ normals).T, upper=False).T
                @ normals.T
            )
        return helpers.toward(weight, turned.reshape(weight.shape), strength)


KINDS = (HRA(),)
