"""Whether a file is for the connected model: for another, for another size of it, or for this one
but for a branch that only some of its kind have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from ..identify.lora_family import FamilyMatch, short_title, stripped_names
from ..key_maps.dialect import DENOISER
from ..key_maps.table import Branch, Match, flatten, generalise
from ..messages import Message, joined, message
from ..planning.keys import parse_key
from ..planning.plan import NO_FAULT, SHAPE_CONFLICT, UNKNOWN_MODULE, Outcome
from ..planning.target_model import Network, Shape, TargetModel

MOST = 0.75  # share of a file's modules that load where it can be for this size of the model
HALF = 0.5  # the same where no table knows the model
NEARLY = 0.9  # the same where names and shapes say that it is for another model
# What a table calls a branch (@branch) -> the id of that.
BRANCHES = {
    "VACE": "report.branch_vace",
    "attention": "report.branch_attention",
    "audio": "report.branch_audio",
    "control": "report.branch_control",
    "guidance": "report.branch_guidance",
    "image": "report.branch_image",
    "music": "report.branch_music",
    "pose": "report.branch_pose",
}


class Fitting(NamedTuple):
    """What is to be said of a file and the connected model, as clauses; all "" where it fits, and
    where nothing can be said.

    wrong: that the file is for another model. lacking: which part of it has no place in this one.
    better: the model that has a place for all of it.
    """

    wrong: str = ""
    lacking: str = ""
    better: str = ""


def fitting(
    target_model: TargetModel,
    outcomes: Mapping[str, Outcome],
    placed: Set[str],
    guess: FamilyMatch,
    model_title: str,
) -> Fitting:
    """Hold a file against the connected model. placed: its modules that load; model_title: of the
    connected model, "" where no table knows it.
    """
    denoiser = target_model.networks.get(DENOISER)
    guess = guess._replace(title=short_title(target_model, guess))
    lost = _lost_modules(outcomes, placed | set(guess.encoder_modules))
    if denoiser is None or denoiser.is_reference or not lost or not guess.title:
        return Fitting()
    here = len(placed - set(guess.encoder_modules))
    share = here / (here + len(lost))
    family = denoiser.family
    if family is None:
        return _wrong(guess, "", share) if share < HALF else Fitting()
    if family.name not in (guess.name, *guess.ties):
        if share < NEARLY:
            return _wrong(guess, model_title, share)
        return Fitting("", _made_for(guess, model_title), guess.title)
    if share < MOST and guess.title != model_title:
        return _wrong(guess, model_title, share)
    whole = all(
        outcome.category in NO_FAULT or key_is_lost(outcome) for outcome in outcomes.values()
    )
    return _Lacking(target_model, denoiser, guess, lost).told(model_title, whole=whole)


def key_is_lost(outcome: Outcome) -> bool:
    """Whether a key has no place for its module's name or size."""
    return outcome.category in (UNKNOWN_MODULE, SHAPE_CONFLICT)


def _lost_modules(outcomes: Mapping[str, Outcome], others: Set[str]) -> list[str]:
    """The modules without a place for their names or sizes, in the file's order."""
    lost = {parse_key(key).module: None for key, one in outcomes.items() if key_is_lost(one)}
    return [module for module in lost if module not in others]


def _wrong(guess: FamilyMatch, model_title: str, share: float) -> Fitting:
    """That the file is for another model."""
    left = (
        message("report.without_counterpart", percent=min(99, round(100 * (1 - share))))
        if share
        else message("report.nothing_loads")
    )
    clause = message("joints.about", subject=_made_for(guess, model_title), text=left)
    return Fitting(clause, "", guess.title)


def _made_for(guess: FamilyMatch, model_title: str) -> Message:
    if not model_title:
        return message("report.made_for_another", made_for=guess.title)
    return message("report.made_for_this_is", made_for=guess.title, model=model_title)


class _Lost(NamedTuple):
    """A module without a place: its row in the table of the model's family (None: it has none), and
    whether the model has no module of that row.
    """

    module: str
    match: Match | None
    absent: bool


class _Lacking:
    """What of a file that is for this kind of model has no place in this very one."""

    def __init__(
        self, target_model: TargetModel, denoiser: Network, guess: FamilyMatch, lost: list[str]
    ):
        self.target_model, self.denoiser, self.guess = target_model, denoiser, guess
        self.kinds = {generalise(flat)[0] for flat in denoiser.flat}
        self.lost = [self._looked_up(module) for module in lost]

    def told(self, model_title: str, *, whole: bool) -> Fitting:
        """Branches, other sizes and inputs in words, nothing where it is neither. whole: all else
        of the file loads.
        """
        branches: Counter[Branch] = Counter()
        inputs: dict[str, Message] = {}
        rest = 0
        missing = {branch for one in self.lost if one.absent and (branch := self._branch(one))}
        for one in self.lost:
            branch = self._branch(one)
            if branch in missing:
                branches[branch] += 1
            elif sentence := self._other_inputs(one):
                inputs[one.module] = sentence
            else:
                rest += 1
        clauses = [*self._other_size(model_title), *_of_branches(branches), *inputs.values()]
        if not clauses:
            return Fitting()
        if rest:
            clauses.append(message("report.others_lost", count=rest))
        elif whole:
            clauses.append(message("report.rest_loads"))
        owners = dict.fromkeys(branch.owner for branch in branches)
        better = next(iter(owners)) if len(owners) == 1 else ""
        return Fitting("", joined(clauses, "semicolon"), better or self._better(model_title))

    def _looked_up(self, module: str) -> _Lost:
        names = stripped_names(self.target_model, module)
        family = self.denoiser.family
        match = next((match for name in names if family for match in family.find(name)), None)
        kind = generalise(flatten(_template(match).replace("{}", "0")))[0] if match else ""
        return _Lost(module, match, bool(match) and kind not in self.kinds)

    def _branch(self, lost: _Lost) -> Branch | None:
        branches = self.denoiser.family.branches if self.denoiser.family and lost.match else ()
        return next((one for one in branches if one.holds(_template(lost.match))), None)

    def _other_inputs(self, lost: _Lost) -> Message | None:
        """That a layer has as many outputs in the file as in the model and other inputs."""
        name = lost.match.native[0] if lost.match else ""
        weight = self.denoiser.modules.get(name)
        here, there = self.denoiser.weights.get(weight or "", ()), self._shape(lost.module)
        if len(here) < 2 or not there or there[0] != here[0] or there[1] == here[1]:
            return None
        return message("report.other_inputs", module=name, count=there[1], here=here[1])

    def _shape(self, module: str) -> Shape | None:
        return next((one.shape for one in self.guess.samples if module in one.members), None)

    def _other_size(self, model_title: str) -> Iterator[Message]:
        if self._better(model_title):
            yield _made_for(self.guess, model_title)

    def _better(self, model_title: str) -> str:
        """The published size that the file is for, where the model is another one; "" where that
        cannot be told.
        """
        family, title = self.denoiser.family, self.guess.title
        sized = family is not None and ("" in family.sizes or family.title != model_title)
        told = family is not None and ("" in family.sizes or family.title != title)
        return title if sized and told and title != model_title else ""


def _template(match: Match | None) -> str:
    return match.row.native[0] if match else ""


def _of_branches(branches: Mapping[Branch, int]) -> Iterator[Message]:
    """Each branch with its modules, and that the model has none."""
    for branch, count in branches.items():
        what = (
            message(BRANCHES[branch.what])
            if branch.what in BRANCHES
            else message("report.branch", what=branch.what)
        )
        yield message("report.of_branch", count=count, branch=what, owner=branch.owner)
    if branches:
        yield message("report.has_no_branch", count=len(branches))
