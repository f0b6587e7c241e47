"""The text that a chat template puts around frames, questions and answers, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenprune.errors import BadInput, Unsupported

QUESTION, ANSWER = "\x01question\x01", "\x01answer\x01"


@dataclass(frozen=True)
class Template:
    """A conversation is `head`, then in any order and number `open` frame `close`, and `lead` question `prompt` answer
    `end`: whole frames and whole turns can be taken out of it, and what is left is a conversation again.

    bare: stands for `lead` where no frame came since the last answer.
    """

    head: str
    open: str
    close: str
    lead: str
    bare: str
    prompt: str
    end: str

    @classmethod
    def of(cls, processor: Any) -> Template:
        """Read off the processor's chat template; raises `BadInput` or `Unsupported` where that cannot be done."""
        image = getattr(processor, "image_token", None)
        if not getattr(processor, "chat_template", None) or not image:
            raise BadInput("A stream needs a processor with a chat template and an image token.")
        answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}

        def render(*turns: dict) -> str:
            return processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)

        whole = render(_user("image", "image", QUESTION), answer, _user("image", QUESTION))
        plain = render(_user("image", QUESTION), answer, _user(QUESTION))
        pieces = whole.split(image)
        if len(pieces) != 4 or whole.count(QUESTION) != 2 or whole.count(ANSWER) != 1:
            raise Unsupported(
                "The chat template of this processor does not show images, questions and answers one by one."
            )
        start, between, middle, last = pieces
        ahead, rest = middle.split(QUESTION)
        again = rest.split(ANSWER)[1]
        bare = plain.split(ANSWER)[1].split(QUESTION)[0]
        for cut in range(len(between), -1, -1):
            close, opening = between[:cut], between[cut:]
            end = again.removesuffix(opening)
            if all(
                (start.endswith(opening), ahead.startswith(close), again.endswith(opening), bare.startswith(end)),
            ):
                return cls(
                    head=start.removesuffix(opening),
                    open=opening,
                    close=close,
                    lead=ahead.removeprefix(close),
                    bare=bare.removeprefix(end),
                    prompt=last.split(QUESTION)[1],
                    end=end,
                )
        raise Unsupported(
            f"The chat template of this processor writes {between!r} between two images, {ahead!r} before a question "
            f"and {again!r} after an answer, so a turn cannot be taken out between two frames."
        )


def _user(*parts: str) -> dict[str, Any]:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}
