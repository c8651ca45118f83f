"""A part that some models of a family have and the connected one lacks."""

from __future__ import annotations

from ..key_maps.dialect import DENOISER
from ..key_maps.table import TableRow, flatten
from ..messages import joined, message
from ..planning.keys import parse_key
from ..planning.plan import SHAPE_CONFLICT, UNKNOWN_MODULE, Plan
from ..planning.resolve import peeled


def missing_branch(plan: Plan) -> str:
    """The sentence for a file all of whose lost modules are of parts that not every model of the
    connected one's family has; "" for any other.
    """
    denoiser = plan.target_model.networks.get(DENOISER)
    lost = {
        parse_key(key).module
        for key, outcome in plan.outcomes.items()
        if outcome.category in (UNKNOWN_MODULE, SHAPE_CONFLICT)
    }
    if not lost or not denoiser or not denoiser.family or not plan.adapters:
        return ""
    branches: dict[str, None] = {}
    for module in lost:
        row = _optional_row(plan, module)
        if row is None or not row.branch:
            return ""
        branches[row.branch] = None
    return message(
        "report.branch_missing",
        count=len(lost),
        branches=joined(sorted(branches)),
        family=denoiser.family.title,
    )


def _optional_row(plan: Plan, module: str) -> TableRow | None:
    """The row of a module that the model need not have; None for any other."""
    family = plan.target_model.networks[DENOISER].family
    for _, name in (("", module), *peeled(plan.target_model, module)):
        rows = [match.row for match in family.find(flatten(name))] if family else []
        if rows:
            return rows[0] if all(row.optional for row in rows) else None
    return None
