"""`check`: pruning against its reference, on the user's own model and prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from tokenprune.checking.compare import TOLERANCES, Comparison, Parting, Recorder, outcome_of
from tokenprune.engine.run import Run
from tokenprune.engine.setup import Policies
from tokenprune.errors import BadInput
from tokenprune.methods.place import place_of
from tokenprune.methods.stage import Stage
from tokenprune.plan import Plan, Planned
from tokenprune.version import VERSION


@dataclass(frozen=True)
class Check:
    """What `check` found.

    stages: for each stage its place, its method, and the visual tokens of all rows before and after it.
    new_tokens: decoding steps that were compared.
    tolerance: what rounding may explain, as a share of the largest value.
    keep_all: largest difference of the logits between keep=1.0 and the unpruned model.
    parted_at_all: where these two part; None where they agree.
    pruned: largest difference of the logits between the pruned run and its reference.
    parted: where these two part; None where they agree.
    setting: what it ran on, by name.
    """

    stages: list[tuple[str, str, int, int]]
    positions: str
    new_tokens: int
    tolerance: float
    keep_all: float
    parted_at_all: Parting | None
    pruned: float
    parted: Parting | None
    setting: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether both comparisons hold."""
        return self.parted is None and self.parted_at_all is None

    def __str__(self) -> str:
        setting = ", ".join(f"{name} {value}" for name, value in self.setting.items())
        lines = [f"{'holds' if self.ok else 'DOES NOT HOLD'}: {setting}"]
        for number, (place, method, before, after) in enumerate(self.stages):
            lines.append(f"  stage {number} {place}: {method}, {before} -> {after} visual tokens")
        compared = f"prompt and {self.new_tokens} decoding steps, positions {self.positions}"
        for name, figure, parted in (
            ("keep=1.0 against the unpruned model", self.keep_all, self.parted_at_all),
            ("pruned against the full-length model with the dropped tokens masked", self.pruned, self.parted),
        ):
            lines.append(f"  {name}: logits differ by {figure:.2g} at most ({compared})")
            if parted is not None:
                lines.append(f"    they part {parted}")
        return "\n".join(lines)


@torch.no_grad()
def check(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    method: Planned,
    *,
    new_tokens: int = 3,
    tolerance: float | None = None,
    give: Mapping[str, Sequence[Tensor]] | None = None,
    turns: str | None = None,
    images: str | None = None,
    **asked: Any,
) -> Check:
    """Does pruning hold on this model, with this prompt? Compares four greedy runs of the same `new_tokens` tokens.

    keep=1.0 has to equal the unpruned model. The pruned prompt and every decoding step have to equal the full-length,
    unpruned model in which the dropped tokens are masked from their stage on (and mixed where the method merges). Of
    stages before and inside the vision encoder keep=1.0 is compared; below it, both sides get the pruned features.

    model: in eval mode and not pruned; float32 finds the smallest mistakes.
    inputs: of the model, for one prompt or a padded batch, as its processor gives them.
    method, turns, images, asked: as for `prune`, its at=, positions=, scope= and options included.
    tolerance: what rounding may explain, as a share of the largest value at that place; default: by dtype.
    give: signals as for `Run.give`.

    Raises `BadInput` for what cannot be compared, and what `prune` raises.
    """
    if model.training:
        raise BadInput("check() compares runs with each other, and dropout makes them differ. Call model.eval() first.")
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise BadInput(f"new_tokens={new_tokens!r} is not a number of decoding steps. Give a whole number from 1 on.")
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    if not isinstance(inputs.get("input_ids"), Tensor):
        raise BadInput("check() needs the inputs of the model with input_ids, as its processor gives them.")
    plan = Plan.of(method, turns=turns, images=images, **asked)
    stages = plan.stages(model)
    if any(stage.method.merges_in == "encoder" for stage in stages):
        raise BadInput("Features merged before the projector have no masked reference. Check merge_in='projected'.")
    everything = [replace(stage, method=replace(stage.method, keep=1.0)) for stage in stages]
    trial = _Trial(model, inputs, new_tokens, plan.policies, give or {})
    tolerance = TOLERANCES.get(model.dtype, max(TOLERANCES.values())) if tolerance is None else tolerance
    run, pruned = trial.run_beside(stages, tolerance, plain=False)
    _, whole = trial.run_beside(everything, tolerance, plain=True)
    return Check(
        stages=_stages_of(run),
        positions=plan.positions,
        new_tokens=new_tokens,
        tolerance=tolerance,
        keep_all=whole.largest,
        parted_at_all=whole.parted,
        pruned=pruned.largest,
        parted=pruned.parted,
        setting={
            "model": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": run.text_model.config._attn_implementation,
            "device": model.device.type,
            "transformers": version("transformers"),
            "torch": torch.__version__,
            "tokenprune": VERSION,
        },
    )


@dataclass
class _Trial:
    """A prompt that is answered again and again with the words that were found the first time."""

    model: PreTrainedModel
    inputs: dict[str, Any]
    new_tokens: int
    policies: Policies
    give: Mapping[str, Sequence[Tensor]]
    words: Tensor | None = None  # int64 [B, new tokens + 1]

    def run_beside(self, stages: Sequence[Stage], tolerance: float, plain: bool) -> tuple[Run, Comparison]:
        """A pruned answer beside that of its reference; plain: beside that of the model as it is."""
        with Run(self.model, stages, self.policies) as run:
            run.give(**self.give)
            recorded = Recorder(run.text_model)
            with recorded.listening():
                pruned = self._answer(run)
            ids = self.inputs["input_ids"]
            length = ids.shape[1]
            comparison = Comparison(run, recorded, length, tolerance)
            outcome = None if plain else outcome_of(run, ids, self.inputs.get("attention_mask"))
            with run.lift(encoder=not plain), comparison.against(outcome):
                reference = self._answer(run)
        for call, (found, expected) in enumerate(zip(pruned, reference, strict=True)):
            columns = torch.full((len(found), 1), length + call - 1)
            comparison.logits(call, found[:, None], expected[:, None], columns.to(expected.device))
        return run, comparison

    def _answer(self, run: Run) -> tuple[Tensor, ...]:
        """Logits [B, V] of each new token."""
        processors = LogitsProcessorList([] if self.words is None else [_Spoken(self.words)])
        generate: Any = self.model.generate
        out = generate(
            **self.inputs,
            max_new_tokens=self.new_tokens + 1,
            min_new_tokens=self.new_tokens + 1,
            do_sample=False,
            num_beams=1,
            suppress_tokens=list(run.family.placeholders(self.model).values()),
            logits_processor=processors,
            output_logits=True,
            return_dict_in_generate=True,
        )
        if self.words is None:
            self.words = out.sequences[:, self.inputs["input_ids"].shape[1] :]
        return out.logits


class _Spoken(LogitsProcessor):
    """Leaves only the next of the words, int64 [B, n], that were said before."""

    def __init__(self, words: Tensor) -> None:
        self.words, self.said = words, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with all but one token of each row at minus infinity."""
        word, self.said = self.words[:, self.said, None], self.said + 1
        return torch.full_like(scores, -torch.inf).scatter(1, word, 0.0)


def _stages_of(run: Run) -> list[tuple[str, str, int, int]]:
    found = []
    report = run.report()
    for stage in report.stages:
        found.append((str(place_of(stage.at)), stage.method, sum(stage.before), sum(stage.after)))
    if run.decoding is not None and report.decoding is not None:
        looked = report.decoding
        for decoding in run.decoding.stages:
            found.append((str(decoding.place), decoding.method.name, round(looked.visual), round(looked.looked_at)))
    return found
