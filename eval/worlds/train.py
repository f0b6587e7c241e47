"""Train a bundled model: `python -m eval.worlds.train scenes --out runs/scenes`, or clips, or pages.

Two stages. `tower` teaches the vision encoder what each visual token shows, from labels per token and flags. `decoder`
freezes it and teaches projector and language model to answer, with a fading side loss that pulls each token towards the
words for what it shows. Both stages resume from their last checkpoint. With `--start FOLDER --skip N` they go on from a
model that is there, on batches that it has not seen; `--set muon_lr=0.003` and the like change the settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eval.worlds.base import Field, Settings, World
from eval.worlds.batches import Batch, Batches
from eval.worlds.packed import packed_hidden
from eval.worlds.registry import Named
from eval.worlds.stage import Stage, optimizers

BACKGROUND_WEIGHT = 0.1
TEMPERATURE = 0.1


class Heads(nn.Module):
    """Throw-away classifiers of the tower stage."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Linear(world.width, field.values + 1) for field in world.fields)
        self.flags = nn.Linear(world.width, world.flags)


def field_loss(field: Field, logits: Tensor, owner: Tensor) -> Tensor:
    """Cross-entropy of a field's logits [..., values + 1] against its values [...], the last class for background."""
    weight = torch.tensor([*(field.weights or [1.0] * field.values), BACKGROUND_WEIGHT], device=logits.device)
    labels = owner.masked_fill(owner < 0, field.values)
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight)


def train_tower(
    world: World, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Labels of every token on what the encoder gives for it, flags beside them."""
    tower, see, heads = world.tower(model), world.see(model), Heads(world).to(stage.device)
    check = [batch.to(stage.device) for batch in Batches(world, tokenizer, "validation", settings.tower_batch).check()]

    def scores(pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        seen = see(pixels.flatten(0, 1))
        logits = [*(head(seen.tokens) for head in heads.fields), heads.flags(seen.states)]
        *fields, flags = (x.float().unflatten(0, pixels.shape[:2]) for x in logits)
        return fields, flags

    def loss_of(batch: Batch, _: float) -> tuple[Tensor, dict]:
        shown = torch.arange(len(batch.shown), device=stage.device)[:, None], batch.shown
        fields, flags = scores(batch.pixels[shown])
        owner = batch.owner[shown]
        total = functional.binary_cross_entropy_with_logits(flags, batch.flags[shown].expand_as(flags))
        for i, (field, logits) in enumerate(zip(world.fields, fields, strict=True)):
            total = total + field_loss(field, logits, owner[..., i])
        return total, {"loss": round(total.item(), 4)}

    def validate() -> dict:
        found: dict[str, list[Tensor]] = {}
        for part in check:
            fields, flags = scores(part.pixels)
            for i, (field, logits) in enumerate(zip(world.fields, fields, strict=True)):
                right, inside = logits.argmax(-1) == part.owner[..., i], part.owner[..., i] >= 0
                if not inside.any():
                    continue
                found.setdefault(field.name, []).append(right[inside].float().mean())
                if field.unnamed and field.words:
                    rare = part.owner[..., i] >= field.unnamed
                    found.setdefault(f"rare {field.name}", []).append(right[rare].float().mean())
            found.setdefault(world.flag, []).append(((flags > 0) == part.flags.bool()).float().mean())
        return {name: round(torch.stack(values).mean().item(), 4) for name, values in found.items()}

    opts = optimizers([tower, heads], settings.muon_lr, settings.tower_lr)
    stage.run({"tower": tower, "heads": heads}, opts, loss_of, validate)


def align_loss(
    fields: Sequence[Field], features: Tensor, owner: Tensor, words: Tensor, ids: Sequence[Tensor]
) -> Tensor:
    """Cosine cross-entropy of each covered token against the words for its fields, where there are any; `ids` are
    those words' ids."""
    x = functional.normalize(features.float(), dim=-1)
    total = x.new_zeros(())
    for i, (field, own) in enumerate(zip(fields, ids, strict=True)):
        if not field.words:
            continue
        labels = owner[..., i] - field.unnamed
        named = labels >= 0
        if not named.any():
            continue
        table = functional.normalize(words[own].float(), dim=-1)
        total = total + functional.cross_entropy(x[named] @ table.T / TEMPERATURE, labels[named])
    return total


def join(steps: Tensor, gap: Tensor) -> Tensor:
    """Rows [B, T * n + (T - 1) * g, D] of steps [B, T, n, D] with a gap [B, g, D] between each and the next."""
    gaps = gap[:, None].expand(-1, steps.shape[1], -1, -1)
    joined = torch.cat([steps, gaps], dim=2).flatten(1, 2)
    return joined[:, : joined.shape[1] - gap.shape[1]]


def train_decoder(
    world: World, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Answers to packed questions; the encoder stays as the first stage left it."""
    projector, text = world.projector(model), model.model.language_model
    world.tower(model).requires_grad_(False)
    projector.requires_grad_(True)
    see = world.see(model)
    answer = torch.compile(packed_hidden, dynamic=False) if world.compiles else packed_hidden

    def ids_of(words: Sequence[str]) -> Tensor:
        return torch.tensor(tokenizer.convert_tokens_to_ids(list(words)), dtype=torch.long, device=stage.device)

    field_ids = [ids_of(field.words) for field in world.fields]
    head, tail = ids_of(world.head), ids_of(world.tail)
    check = [
        batch.to(stage.device) for batch in Batches(world, tokenizer, "validation", settings.decoder_batch).check()
    ]

    def read(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        count = len(batch.pixels)
        seen = see(batch.pixels.flatten(0, 1))
        features = world.project(model, seen.tokens).unflatten(0, (count, -1))
        between = ids_of(world.between(batch.shared))
        start, gap, end = (text.embed_tokens(ids).expand(count, -1, -1) for ids in (head, between, tail))
        prefix = torch.cat([start, join(features.to(start.dtype), gap), end], dim=1)
        planes = [functional.pad(plane, (0, 0, len(head), len(tail))) for plane in seen.planes]
        rope = world.rope(model, batch.pixels, batch.shared)
        return features.flatten(1, 2), answer(text, prefix, [pack.ids for pack in batch.packs], rope, planes)

    def losses(hidden: Tensor, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        asked = weight[..., 1:] > 0
        logits = model.lm_head(hidden[..., :-1, :][asked]).float()
        targets = ids[..., 1:][asked]
        wrong = torch.zeros_like(asked)
        wrong[asked] = logits.argmax(-1) != targets
        weights = weight[..., 1:][asked]
        each = functional.cross_entropy(logits, targets, reduction="none")
        return (each * weights).sum(), weights.sum(), ~wrong.any(-1)

    def loss_of(batch: Batch, progress: float) -> tuple[Tensor, dict]:
        features, hidden = read(batch)
        found = [losses(h, pack.ids, pack.weight) for h, pack in zip(hidden, batch.packs, strict=True)]
        answers = sum(loss for loss, _, _ in found) / sum(weight for _, weight, _ in found)
        align = align_loss(world.fields, features, batch.owner.flatten(1, 2), text.embed_tokens.weight, field_ids)
        share = settings.align_weight * max(0.0, 1 - progress / settings.align_until)
        return answers + share * align, {"loss": round(answers.item(), 4), "align": round(align.item(), 4)}

    def validate() -> dict:
        rights: dict[str, list[bool]] = {kind: [] for kind in world.types}
        for part in check:
            for hidden, pack in zip(read(part)[1], part.packs, strict=True):
                right = losses(hidden, pack.ids, pack.weight)[2]
                for i, kind in enumerate(world.types):
                    rights[kind] += right.cpu()[pack.types == i].tolist()
        return {kind: round(sum(r) / len(r), 4) for kind, r in rights.items()}

    opts = optimizers([projector, text, model.lm_head], settings.muon_lr, settings.adam_lr)
    parts = {"projector": projector, "text": text, "lm_head": model.lm_head}
    stage.run(parts, opts, loss_of, validate)


def change(settings: Settings, given: Sequence[str]) -> Settings:
    """Settings with those given as name=value; a name that is none, or a value that is no number, is refused."""
    found = asdict(settings)
    for one in given:
        name, _, value = one.partition("=")
        if name not in found:
            raise typer.BadParameter(f"There is no setting {name!r}; there are: {', '.join(found)}.")
        try:
            found[name] = type(found[name])(value)
        except ValueError:
            raise typer.BadParameter(f"{one!r}: {name} takes a number, as {name}={found[name]}.") from None
    return Settings(**found)


def main(
    world: Named,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished model.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as decoder_steps=600.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    start: Annotated[Path | None, typer.Option(help="Folder of a model to begin with instead of a random one.")] = None,
    skip: Annotated[int, typer.Option(help="Batches that it has learned from already.")] = 0,
) -> None:
    """Train both stages (or go on where a stopped run left off) and save the model in half precision."""
    settings = change(world.settings, set_ or [])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("a") as log:  # each start and resumption leaves its settings in the log
        log.write(json.dumps({"settings": asdict(settings), "pack": world.pack}) + "\n")
    torch.manual_seed(settings.seed)
    tokenizer = world.make_tokenizer()
    model = world.make_model(len(tokenizer))
    if start is not None:
        model.load_state_dict(type(model).from_pretrained(start, dtype=torch.float32).state_dict())
    model.to(device)

    def batches(size: int, first: int, lesson: Any = None) -> Batches:
        return Batches(world, tokenizer, "train", size, skip + first, lesson)

    tower = Stage(
        "tower", out, settings.tower_steps, partial(batches, settings.tower_batch, lesson=world.drill), device
    )
    train_tower(world, model, tokenizer, tower, settings)
    decoder = Stage("decoder", out, settings.decoder_steps, partial(batches, settings.decoder_batch), device)
    train_decoder(world, model, tokenizer, decoder, settings)
    world.save(model.cpu(), out / "model")


if __name__ == "__main__":
    typer.run(main)
