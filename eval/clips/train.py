"""Train the bundled video model: `python -m eval.clips.train --out runs/clips`.

Two stages. `tower` teaches the vision encoder what each token shows: kind, colour, where it is going, whether it is
just appearing or changing, whether the step flashes. `decoder` freezes it and teaches the language model to answer,
with a fading side loss that pulls each token towards the words for what it shows. Both resume from their checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from eval.clips.data import LENGTH, PACK, Batch, Batches
from eval.clips.model import make_model, make_tokenizer, save
from eval.clips.packed import PREFIX, encode, rope_of
from eval.clips.questions import TYPES
from eval.clips.world import COLOURS, EVENTS, KINDS, WAYS
from eval.scenes.packed import packed_hidden
from eval.training import Stage, optimizers

FIELDS = (list(KINDS), list(COLOURS), list(WAYS), list(EVENTS))
ALIGNED = (*FIELDS[:3], ["appear", "change"])  # the words for what a token shows; nothing happening has none
BACKGROUND_WEIGHT = 0.1
EVENT_WEIGHTS = (0.3, 3.0, 3.0)  # appearing and changing are rare
TEMPERATURE = 0.1
CHECK = 64  # validation clips, a multiple of both batch sizes


@dataclass
class Settings:
    """Everything that decides the weights, written to the log."""

    seed: int = 7
    batch: int = 16
    tower_steps: int = 1100
    decoder_steps: int = 1000
    tower_lr: float = 1e-3
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    align_weight: float = 0.5
    align_until: float = 0.6  # part of the decoder stage after which the side loss is gone


class Heads(nn.Module):
    """Throw-away classifiers of the tower stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.ModuleList(nn.Linear(width, len(words) + 1) for words in FIELDS)
        self.flash = nn.Linear(width, 1)


def parts_of(check: Batch, size: int) -> list[Batch]:
    """A batch in pieces."""
    return [Batch(**{k: v[i : i + size] for k, v in vars(check).items()}) for i in range(0, CHECK, size)]


def train_tower(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Labels of every token on the features that the language model will read."""
    visual = model.model.visual
    heads = Heads(model.config.vision_config.out_hidden_size)
    see = torch.compile(encode, dynamic=False)
    check = parts_of(Batches(tokenizer, "validation", CHECK).batch(0), settings.batch)

    def scores(pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens = see(visual, pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return [head(tokens).float() for head in heads.token], heads.flash(tokens).squeeze(-1).float()

    def loss_of(batch: Batch, _: float) -> tuple[Tensor, dict]:
        clips = torch.arange(len(batch.shown))[:, None]
        fields, flash = scores(batch.pixels[clips, batch.shown])
        flashes = batch.flash[clips, batch.shown][..., None].expand_as(flash)
        total = functional.binary_cross_entropy_with_logits(flash, flashes)
        for i, logits in enumerate(fields):
            own = batch.owner[clips, batch.shown][..., i]
            background = logits.shape[-1] - 1
            weight = torch.ones(logits.shape[-1])
            if FIELDS[i] == list(EVENTS):
                weight[:background] = torch.tensor(EVENT_WEIGHTS)
            weight[background] = BACKGROUND_WEIGHT
            own = own.masked_fill(own < 0, background)
            total = total + functional.cross_entropy(logits.flatten(0, -2), own.flatten(), weight)
        return total, {"loss": round(total.item(), 4)}

    @torch.no_grad()
    def validate() -> dict:
        rights = []
        for small in check:
            with torch.autocast("cpu", torch.bfloat16):
                fields, flash = scores(small.pixels)
            inside = small.owner[..., 0] >= 0
            right = [(f.argmax(-1) == small.owner[..., i])[inside].float().mean() for i, f in enumerate(fields)]
            special = small.owner[..., 3] > 0
            right.append((fields[3].argmax(-1) == small.owner[..., 3])[special].float().mean())
            rights.append(torch.stack([*right, ((flash > 0) == small.flash[..., None].bool()).float().mean()]))
        names = ("kind", "colour", "way", "event", "rare event", "flash")
        return dict(zip(names, (round(v, 4) for v in torch.stack(rights).mean(0).tolist()), strict=True))

    opts = optimizers([visual, heads], settings.muon_lr, settings.tower_lr)
    stage.run({"visual": visual, "heads": heads}, opts, loss_of, validate)


def align_loss(features: Tensor, owner: Tensor, words: Tensor, ids: list[Tensor]) -> Tensor:
    """Cosine cross-entropy of each covered token against the words for its kind, colour, way and event."""
    labels = torch.cat([owner[..., :3], owner[..., 3:] - 1], dim=-1)
    total = features.new_zeros((), dtype=torch.float32)
    for i, field in enumerate(ids):
        shown = labels[..., i] >= 0
        x = functional.normalize(features[shown].float(), dim=-1)
        table = functional.normalize(words[field].float(), dim=-1)
        total = total + functional.cross_entropy(x @ table.T / TEMPERATURE, labels[..., i][shown])
    return total


def train_decoder(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Answers to packed questions; the vision encoder stays as the first stage left it, but for its merger."""
    visual, text = model.model.visual, model.model.language_model
    visual.requires_grad_(False)
    visual.merger.requires_grad_(True)
    see, answer = torch.compile(encode, dynamic=False), torch.compile(packed_hidden, dynamic=False)
    field_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(words)) for words in ALIGNED]
    head = torch.tensor(tokenizer.convert_tokens_to_ids(["<s>", "<user>", "<|vision_start|>"]))
    tail = torch.tensor(tokenizer.convert_tokens_to_ids(["<|vision_end|>"]))
    check = parts_of(Batches(tokenizer, "validation", CHECK).batch(0), settings.batch)

    def read(batch: Batch) -> tuple[Tensor, Tensor]:
        clips = len(batch.pixels)
        features = see(visual, batch.pixels.flatten(0, 1)).unflatten(0, (clips, -1)).flatten(1, 2)
        start, end = (text.embed_tokens(ids).expand(clips, -1, -1) for ids in (head, tail))
        prefix = torch.cat([start, features.to(start.dtype), end], dim=1)
        assert prefix.shape[1] == PREFIX
        return features, answer(text, prefix, [batch.ids], rope_of(text, len(PACK), LENGTH))[0]

    def losses(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        asked = batch.weight[..., 1:] > 0
        logits = model.lm_head(hidden[..., :-1, :][asked]).float()
        targets = batch.ids[..., 1:][asked]
        wrong = torch.zeros_like(asked)
        wrong[asked] = logits.argmax(-1) != targets
        return functional.cross_entropy(logits, targets), ~wrong.any(-1)

    def loss_of(batch: Batch, progress: float) -> tuple[Tensor, dict]:
        features, hidden = read(batch)
        answers, _ = losses(hidden, batch)
        align = align_loss(features, batch.owner.flatten(1, 2), text.embed_tokens.weight, field_ids)
        share = settings.align_weight * max(0.0, 1 - progress / settings.align_until)
        return answers + share * align, {"loss": round(answers.item(), 4), "align": round(align.item(), 4)}

    @torch.no_grad()
    def validate() -> dict:
        rights: dict[str, list[bool]] = {kind: [] for kind in TYPES}
        for small in check:
            with torch.autocast("cpu", torch.bfloat16):
                _, hidden = read(small)
            _, right = losses(hidden, small)
            for i, kind in enumerate(TYPES):
                rights[kind] += right[small.types == i].tolist()
        return {kind: round(sum(r) / len(r), 4) for kind, r in rights.items()}

    opts = optimizers([visual.merger, text, model.lm_head], settings.muon_lr, settings.adam_lr)
    parts = {"merger": visual.merger, "text": text, "lm_head": model.lm_head}
    stage.run(parts, opts, loss_of, validate)


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the finished model.")],
    tower_steps: Annotated[int, typer.Option(help="Steps of the tower stage.")] = Settings.tower_steps,
    decoder_steps: Annotated[int, typer.Option(help="Steps of the decoder stage.")] = Settings.decoder_steps,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = Settings.seed,
) -> None:
    """Train both stages (or go on where a stopped run left off) and save the model in half precision."""
    settings = Settings(seed=seed, tower_steps=tower_steps, decoder_steps=decoder_steps)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("a") as log:  # each start and resumption leaves its settings in the log
        log.write(json.dumps({"settings": asdict(settings), "pack": PACK}) + "\n")
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    batches = partial(Batches, tokenizer, "train", settings.batch)
    train_tower(model, tokenizer, Stage("tower", out, settings.tower_steps, batches), settings)
    train_decoder(model, tokenizer, Stage("decoder", out, settings.decoder_steps, batches), settings)
    save(model, out / "model")


if __name__ == "__main__":
    typer.run(main)
