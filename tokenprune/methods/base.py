"""What a method is: a frozen dataclass of documented options, the signals it needs, and `select`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, get_type_hints

from torch import Tensor

from tokenprune.core.budget import Keep, check_keep
from tokenprune.core.selection import Selection
from tokenprune.errors import BadInput, MissingSignal, unknown


@dataclass(frozen=True)
class Signal:
    """A signal's shape for one span, what it is, and which axis counts the tokens."""

    shape: str
    what: str
    token_axis: int = -1
    asks: bool = False  # depends on the question in the prompt

    @property
    def ndim(self) -> int:
        """Number of axes for one span."""
        return self.shape.count(",") + 1


SIGNALS = {
    "features": Signal("[n, d]", "projected visual embeddings, LLM width", token_axis=-2),
    "saliency": Signal("[n]", "attention of the vision encoder, head mean"),
    "attention_row": Signal(
        "[H, n]", "last prompt token to visual tokens, softmax over its causal row, layer k-1", asks=True
    ),
}


@dataclass(frozen=True)
class Need:
    """A signal that a method reads; `variant` picks between ways to compute it (`saliency`: cls or received)."""

    signal: str
    variant: str = ""


@dataclass(frozen=True)
class View:
    """What a method sees: spans of equal length stacked in front.

    count: n, tokens per span. grid: (t, h, w) of the whole span. Every signal has the shape of `SIGNALS` with [S] in
    front.
    """

    count: int
    spans: int
    grid: tuple[int, int, int] | None
    signals: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.signals:
            signal = SIGNALS[name]
            raise MissingSignal(f"The signal {name!r} ({signal.shape} {signal.what}) was not given.")
        return self.signals[name]


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """Dataclass field of a method: its default (the paper's) and the help text that every interface shows."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Method(ABC):
    """Base of every method. Subclasses set the class attributes, add options and write `select`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    kind: ClassVar[str]
    default_at: ClassVar[int] = 0
    first_at: ClassVar[int] = 0  # the earliest stage the method can stand at

    keep: Keep = option(0.1, "what survives: a float is a fraction of the tokens, an int is a number of tokens")

    def __post_init__(self) -> None:
        check_keep(self.keep)
        for f in options_of(type(self)):
            value = getattr(self, f.name)
            choices = f.metadata["choices"]
            if choices and value not in choices:
                raise unknown(f"{f.name} of {self.name}", value, choices)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Signals this method reads, given its options."""
        return ()

    @property
    def asks(self) -> bool:
        """Whether the choice depends on the question, so that the next question would choose otherwise."""
        return any(SIGNALS[need.signal].asks for need in self.needs)

    @abstractmethod
    def select(self, view: View) -> Selection:
        """Choose `n_keep(self.keep, view.count)` tokens of each span."""


def options_of(method: type[Method]) -> list[Field]:
    """The option fields of a method, `keep` first."""
    return [f for f in fields(method) if "help" in f.metadata]


def make_method(cls: type[Method], options: dict[str, Any]) -> Method:
    """Build a method from keyword options; an unknown option is an error that shows the nearest name."""
    known = {f.name: f for f in options_of(cls)}
    hints = get_type_hints(cls)
    for name, value in options.items():
        if name not in known:
            raise unknown(f"option of {cls.name}", name, known)
        if hints[name] is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise BadInput(f"{name}={value!r} of {cls.name} must be a whole number.")
    return cls(**options)
