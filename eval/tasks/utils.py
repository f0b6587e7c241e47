"""The Scenes question sets as lmms-eval sees them: what is shown, what is asked, what is right.

lmms-eval loads this file by itself from the folder that `pack` writes, so it imports nothing of this repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NEAR = {"position": r"x(\d+)\s+y(\d+)", "when": r"^\s*t(\d+)\s*$"}  # numbers that may be off by one


def is_right(kind: str, reference: str, answer: str) -> bool:
    """Exact words, but: a position counts within one patch on both axes, a time within one step, a caption as an
    unordered list."""
    if kind in NEAR:
        wanted, said = (re.search(NEAR[kind], text) for text in (reference, answer))
        pairs = zip(wanted.groups(), said.groups(), strict=True) if said else []
        return said is not None and all(abs(int(a) - int(b)) <= 1 for a, b in pairs)
    if kind == "caption":
        return sorted(re.split(r"\s*,\s*", answer.strip())) == sorted(reference.split(" , "))
    return answer.split() == reference.split()


def visual(doc: dict[str, Any]) -> list[Any]:
    """The picture, or the path of the clip."""
    return [doc["image"].convert("RGB")] if "image" in doc else [str(FOLDER / doc["video"])]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return doc["question"]


def messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """One user turn of the chat protocol."""
    shown = {"type": "image" if "image" in doc else "video", "url": visual(doc)[0]}
    return [{"role": "user", "content": [shown, {"type": "text", "text": doc["question"]}]}]


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """The score over everything, and the one of this question's type."""
    right = float(is_right(doc["type"], doc["answer"], answers[0]))
    return {"score": right, doc["type"]: right}
