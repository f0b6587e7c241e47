"""Train the bundled model: `python -m eval.scenes.train --out runs/scenes`.

Two stages. `tower` teaches the vision tower what and where the things are, from labels per patch and a presence label
on the CLS token. `decoder` freezes the tower and teaches projector and language model to answer, with a fading side
loss that pulls each patch towards the word embeddings of its thing. Both stages resume from their last checkpoint.
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
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from eval.scenes.data import PACK, Batch, Batches
from eval.scenes.model import PREFIX, make_model, make_processor
from eval.scenes.packed import packed_hidden
from eval.scenes.questions import TYPES
from eval.scenes.world import COLOURS, GRID, KINDS
from eval.training import Stage, optimizers

FIELDS = (list(KINDS), list(COLOURS), [f"x{i}" for i in range(GRID)], [f"y{i}" for i in range(GRID)])
BACKGROUND_WEIGHT = 0.1
TEMPERATURE = 0.1
CHECK = 160  # validation pictures, a multiple of both batch sizes


@dataclass
class Settings:
    """Everything that decides the weights, written to the log."""

    seed: int = 7
    tower_batch: int = 32
    decoder_batch: int = 20
    tower_steps: int = 1600
    decoder_steps: int = 2900
    tower_lr: float = 1e-3
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    align_weight: float = 0.5
    align_until: float = 0.7  # part of the decoder stage after which the side loss is gone


class Heads(nn.Module):
    """Throw-away classifiers of the tower stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.ModuleList(nn.Linear(width, len(words) + 1) for words in FIELDS)
        self.present = nn.Linear(width, len(KINDS) + len(COLOURS))


def train_tower(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Dense labels on the features that the decoder will read, presence labels on the CLS token."""
    tower = model.model.vision_tower
    heads = Heads(model.config.vision_config.hidden_size)
    forward = torch.compile(tower, dynamic=False)
    check = Batches(tokenizer, "validation", CHECK).batch(0)

    def scores(batch: Batch) -> tuple[list[Tensor], Tensor]:
        out = forward(batch.pixels, output_hidden_states=True)
        patches = out.hidden_states[-2][:, 1:]
        return [head(patches).float() for head in heads.patch], heads.present(out.pooler_output).float()

    def loss_of(batch: Batch, _: float) -> tuple[Tensor, dict]:
        fields, present = scores(batch)
        total = functional.binary_cross_entropy_with_logits(present, batch.present)
        for i, logits in enumerate(fields):
            labels = batch.owner[..., i]
            background = logits.shape[-1] - 1
            weight = torch.ones(logits.shape[-1])
            weight[background] = BACKGROUND_WEIGHT
            labels = labels.masked_fill(labels < 0, background)
            total = total + functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
        return total, {"loss": round(total.item(), 4)}

    @torch.no_grad()
    def validate() -> dict:
        rights = []
        for part in range(0, CHECK, settings.tower_batch):
            rows = slice(part, part + settings.tower_batch)
            small = Batch(**{k: v[rows] for k, v in vars(check).items()})
            fields, present = scores(small)
            inside = small.owner[..., 0] >= 0
            right = [(f.argmax(-1) == small.owner[..., i])[inside].float().mean() for i, f in enumerate(fields)]
            rights.append(torch.stack([*right, ((present > 0) == small.present.bool()).float().mean()]))
        names = ("kind", "colour", "x", "y", "present")
        return dict(zip(names, (round(v, 4) for v in torch.stack(rights).mean(0).tolist()), strict=True))

    opts = optimizers([tower, heads], settings.muon_lr, settings.tower_lr)
    stage.run({"tower": tower, "heads": heads}, opts, loss_of, validate)


def align_loss(features: Tensor, owner: Tensor, words: Tensor, ids: list[Tensor]) -> Tensor:
    """Cosine cross-entropy of each covered patch against the words for its kind, colour, x and y."""
    inside = owner[..., 0] >= 0
    x = functional.normalize(features[inside].float(), dim=-1)
    total = x.new_zeros(())
    for i, field in enumerate(ids):
        table = functional.normalize(words[field].float(), dim=-1)
        total = total + functional.cross_entropy(x @ table.T / TEMPERATURE, owner[..., i][inside])
    return total


def train_decoder(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stage: Stage, settings: Settings
) -> None:
    """Answers to packed questions; the tower stays as the first stage left it."""
    tower, projector, llama = model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model
    tower.requires_grad_(False)
    see, answer = torch.compile(tower, dynamic=False), torch.compile(packed_hidden, dynamic=False)
    field_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(words)) for words in FIELDS]
    head = torch.tensor(tokenizer.convert_tokens_to_ids(["<s>", "<user>"]))
    check = Batches(tokenizer, "validation", CHECK).batch(0)

    def read(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            patches = see(batch.pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = projector(patches)
        start = llama.embed_tokens(head).expand(len(features), -1, -1)
        prefix = torch.cat([start, features.to(start.dtype)], dim=1)
        assert prefix.shape[1] == PREFIX
        return features, answer(llama, prefix, [batch.short, batch.caption])

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
        features, (short, caption) = read(batch)
        a, wa, _ = losses(short, batch.short, batch.short_weight)
        b, wb, _ = losses(caption, batch.caption, batch.caption_weight)
        text = (a + b) / (wa + wb)
        align = align_loss(features, batch.owner, llama.embed_tokens.weight, field_ids)
        share = settings.align_weight * max(0.0, 1 - progress / settings.align_until)
        return text + share * align, {"loss": round(text.item(), 4), "align": round(align.item(), 4)}

    @torch.no_grad()
    def validate() -> dict:
        rights = {kind: [] for kind in TYPES}
        for part in range(0, CHECK, settings.decoder_batch):
            rows = slice(part, part + settings.decoder_batch)
            small = Batch(**{k: v[rows] for k, v in vars(check).items()})
            with torch.autocast("cpu", torch.bfloat16):
                _, (short, caption) = read(small)
            _, _, right = losses(short, small.short, small.short_weight)
            for i, kind in enumerate(TYPES[:-1]):
                rights[kind] += right[small.types == i].tolist()
            rights["caption"] += losses(caption, small.caption, small.caption_weight)[2].flatten().tolist()
        return {kind: round(sum(r) / len(r), 4) for kind, r in rights.items()}

    opts = optimizers([projector, llama, model.lm_head], settings.muon_lr, settings.adam_lr)
    parts = {"projector": projector, "llama": llama, "lm_head": model.lm_head}
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
    processor = make_processor()
    model = make_model(len(processor.tokenizer))
    tokenizer = processor.tokenizer
    tower = partial(Batches, tokenizer, "train", settings.tower_batch)
    train_tower(model, tokenizer, Stage("tower", out, settings.tower_steps, tower), settings)
    decoder = partial(Batches, tokenizer, "train", settings.decoder_batch)
    train_decoder(model, tokenizer, Stage("decoder", out, settings.decoder_steps, decoder), settings)
    model.to(torch.float16).save_pretrained(out / "model")
    processor.save_pretrained(out / "model")


if __name__ == "__main__":
    typer.run(main)
