"""What a method is: a frozen dataclass of documented options, the signals it needs, and `select`."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tokenprune.core.budget import ROUNDINGS, Keep, check_keep, n_keep
from tokenprune.core.frames import Frames
from tokenprune.core.selection import Selection, to_device, top_k
from tokenprune.errors import BadInput, MissingSignal, Unsupported, unknown
from tokenprune.methods.origin import Difference, Origin
from tokenprune.methods.place import Layer, Pixels, Place, Vision, place_of
from tokenprune.methods.renamed import as_now
from tokenprune.signals.need import Need
from tokenprune.signals.table import BEFORE, SIGNALS, UNROTATED, taps_for

Grid = tuple[int, int, int]
SCOPES = ("part", "item")


@dataclass(frozen=True)
class View:
    """What a method sees: spans of equal length and grids, stacked in front.

    count: n, tokens of a span that are left. spans: S. grids: (t, h, w) of the whole span, or of each of its parts
    (base image, tiles) one after the other where a method sees a picture at once; empty where nobody knows. signals:
    each of the shape in `SIGNALS` with [S] in front. tokens: int64 [S, n], which tokens of the whole span are left,
    ascending; None for all of them. total: tokens of the whole span, before any stage. layers: decoder layers of the
    model, 0 without one. layers_before: tokens of the span that each layer before this stage processed.
    """

    count: int
    spans: int
    grids: tuple[Grid, ...]
    signals: dict[str, Tensor]
    tokens: Tensor | None = None
    total: int = 0
    layers: int = 0
    layers_before: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.signals:
            signal = SIGNALS[name]
            mend = " No model gives it: bring it with run.give() after prune()." if signal.given else ""
            raise MissingSignal(f"The signal {name!r} ({signal.shape} {signal.what}) was not given.{mend}")
        return self.signals[name]

    @property
    def grid(self) -> Grid | None:
        """The grid of a span that is one rectangle; None where its grid is not known or it has several parts."""
        return self.grids[0] if len(self.grids) == 1 else None

    @property
    def device(self) -> torch.device | None:
        """Where the signals are; None without any."""
        return next((s.device for s in self.signals.values()), None if self.tokens is None else self.tokens.device)

    def mean_over_heads(self, name: str) -> Tensor:
        """A signal of attention, [S, heads, ...], as float32 [S, ...], the mean over its heads."""
        return self[name].float().mean(1)

    def pictures(self, name: str, who: str) -> list[Tensor]:
        """A signal [S, n, ...] as [S, t, h, w, ...] of each part of the span, which must not have lost a token."""
        sizes = [t * h * w for t, h, w in self.grids]
        if not self.grids or self.tokens is not None or sum(sizes) != self.count:
            raise BadInput(f"{who} compares neighbours, so it needs the grid and all tokens. Make it the first stage.")
        return [x.unflatten(1, grid) for x, grid in zip(self[name].split(sizes, 1), self.grids, strict=True)]

    def first(self, k: int) -> Selection:
        """The first k tokens of every span: what keeping none of them, or all, comes to."""
        return Selection(torch.arange(k, device=self.device).expand(self.spans, -1))

    def cells(self, who: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """int64 [S, n] each: the part, frame, row and column in which every token lies."""
        wanted = f"{who} needs the grid (t, h, w) of the span"
        if not self.grids:
            raise BadInput(f"{wanted}.")
        total = sum(t * h * w for t, h, w in self.grids)
        if self.tokens is None and total != self.count:
            grids = ", ".join(" x ".join(map(str, grid)) for grid in self.grids)
            raise BadInput(f"{wanted}: a grid of {grids} has {total} tokens, but there are {self.count}.")
        tables = []
        for part, (t, h, w) in enumerate(self.grids):
            axes = torch.meshgrid(*(torch.arange(size) for size in (t, h, w)), indexing="ij")
            tables.append(torch.stack([torch.full((t * h * w,), part), *(a.flatten() for a in axes)]))
        table = torch.cat(tables, dim=1).to(self.device, non_blocking=True)
        tokens = torch.arange(self.count, device=table.device)[None] if self.tokens is None else self.tokens
        return tuple(table[:, tokens].expand(4, self.spans, -1))

    def frames(self, who: str) -> Frames:
        """The tokens as frames x patches. Parts of a picture, and pictures, are frames of their own."""
        part, frame, row, column = self.cells(who)
        times, _, widths = (to_device(sizes, part.device) for sizes in zip(*self.grids, strict=True))
        first = times.cumsum(0) - times
        count, size = sum(t for t, _, _ in self.grids), max(h * w for _, h, w in self.grids)
        return Frames.of(first[part] + frame, row * widths[part] + column, count, size)


def option(
    default: Any, help: str, choices: tuple[str, ...] = (), *, low: float | None = None, high: float | None = None
) -> Any:
    """Dataclass field of a method: its default (the paper's), the help text that every interface shows, and what it may
    be: one of `choices`, or a number (each number of a list) from `low` to `high`; None for no such limit."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def limits(option: Field[Any]) -> str:
    """What an option may be, in words; empty where anything of its type."""
    choices, low, high = (option.metadata[name] for name in ("choices", "low", "high"))
    if choices:
        return f"one of {', '.join(choices)}"
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""


def source_option(default: str, help: str = "whose attention counts") -> Any:
    """The field `source` of methods that rank by what the encoder's CLS token attends to, or by attention received."""
    return option(default, help, ("cls", "received"))


def fill_option(default: str, help: str = "how the budget is met exactly") -> Any:
    """The field `fill` of methods whose published rounding leaves a remainder: what it goes to, or none."""
    return option(default, help, (default, "none"))


def rounding_option(default: str) -> Any:
    """The field `rounding` with the paper's own default."""
    return option(default, "how a fraction becomes a number of tokens", ROUNDINGS)


def merge_option() -> Any:
    """The field `merge_in` of methods whose papers merge before the projector."""
    text = "what is mixed: projected tokens, or encoder features which are then projected (as published)"
    return option("projected", text, ("projected", "encoder"))


def keep_option(default: Keep | None, help: str = "") -> Any:
    """The field `keep` of a method with the paper's own default."""
    return option(default, help or "what survives: a float is a fraction of the tokens, an int is a number of tokens")


class MethodType(ABCMeta):
    """Methods are made with options of earlier releases, too."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        meant, options = as_now(cls, options)
        return super(MethodType, meant).__call__(*args, **options)


@dataclass(frozen=True)
class Method(metaclass=MethodType):
    """Base of every method. Subclasses set the class attributes, add options and write `select`.

    Where that is a score and the k highest of it, `ScoreMethod` is the base to take; where k = 0 and k = n need no
    thought, `BudgetMethod`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    kind: ClassVar[str]
    origin: ClassVar[Origin] = Origin("unstated")  # what it is held to; methods of this package state it
    differences: ClassVar[tuple[Difference, ...]] = ()  # where it departs from that on purpose
    default_at: ClassVar[int] = 0
    default_start: ClassVar[int] = 3  # the same of one that works at every decoding step: `Decode(3)`
    adaptive: ClassVar[bool] = False  # whether keep=None lets the method find the number of tokens itself
    decodes: ClassVar[bool] = False  # whether it works at every decoding step, as a `DecodingMethod`
    stage_of: ClassVar[type[Method] | None] = None  # the method whose later stage it is, where no method of its own
    stages: ClassVar[dict[str, type[Method]]] = {}  # its later stages that are no methods of their own, by name
    waits: ClassVar[str] = ""  # why choosing makes the host wait for the device; empty where it does not
    returns: ClassVar[bool] = False  # whether inside the encoder what goes comes back behind it (`neighbours`)
    over_frames: ClassVar[bool] = False  # whether before or inside the encoder it sees a video at once, not each frame
    scope: ClassVar[str] = "part"  # part: every base image, tile grid or video by itself; item: a whole picture

    keep: Keep | None = keep_option(0.1)
    rounding: str = rounding_option("nearest")
    of: str = option(
        "current", "what a fraction counts from: tokens that the stage sees, or before any", ("current", "original")
    )

    def __init_subclass__(cls, stage_of: type[Method] | None = None, **more: Any) -> None:
        """stage_of: the method whose schedule has it. It has a name, so that recipes can place it, but paper, origin
        and differences are that method's, and lists and tables show that method alone."""
        super().__init_subclass__(**more)
        cls.stage_of, cls.stages = stage_of, {}
        if stage_of is not None:
            stage_of.stages[cls.name] = cls
            for fact in ("paper", "year", "kind", "origin", "differences"):
                setattr(cls, fact, getattr(stage_of, fact))

    def __post_init__(self) -> None:
        if not (self.keep is None and self.adaptive):
            check_keep(self.keep)
        for f in options_of(type(self)):
            value = getattr(self, f.name)
            choices, low, high = (f.metadata[name] for name in ("choices", "low", "high"))
            if choices and value not in choices:
                raise unknown(f"{f.name} of {self.name}", value, choices)
            for one in value if isinstance(value, tuple) else (value,):
                if not ((low is None or one >= low) and (high is None or one <= high)):
                    raise BadInput(f"{f.name}={one!r} of {self.name} must be {limits(f)}.")

    @property
    def needs(self) -> tuple[Need, ...]:
        """Signals this method reads, given its options. A class attribute will do where they do not depend on any."""
        return ()

    @property
    def asks(self) -> bool:
        """Whether the choice depends on the question, so that the next question would choose otherwise."""
        return any(SIGNALS[need.signal].asks for need in self.needs)

    @property
    def reads_grid(self) -> bool:
        """Whether it asks where tokens lie (the view's cells, frames or pictures), given its options. A class attribute
        will do where that does not depend on any."""
        return False

    @property
    def first_at(self) -> int:
        """The earliest stage the method can stand at: 1 where it reads attention of the layer before."""
        return int(any(taps_for(self.needs, where) for where in (BEFORE, UNROTATED)))

    def lacks_at(self, place: Place) -> str:
        """Why it cannot stand at a place of the prefill, with the mend; empty where it can."""
        signals = {need.signal: SIGNALS[need.signal] for need in self.needs}
        if isinstance(place, Layer):
            early = [name for name, signal in signals.items() if signal.encoder_only]
            return f"it reads {', '.join(early)}, which only the vision encoder has. Give at='pixels'." * bool(early)
        late = [name for name, signal in signals.items() if signal.inside is None]
        if late:
            return f"it reads {', '.join(late)}, which there is not yet. Give it a layer of the LLM."
        states = [name for name, signal in signals.items() if not signal.of_pixels]
        if isinstance(place, Pixels) and states:
            return f"it reads {', '.join(states)} of the encoder. Give at='vision:1', say."
        behind = [name for name, signal in signals.items() if signal.of_block]
        if isinstance(place, Vision) and place.block == 0 and behind:
            return f"it reads {', '.join(behind)} of the block before. Give at='vision:1', say."
        if self.decodes or self.sets_aside or self.recalls:
            return "only the LLM's layers can look at a choice, or bring tokens back. Give it a layer of the LLM."
        return ""

    @property
    def together(self) -> bool:
        """Whether the spans of one picture bear on each other, so that no other picture may be stacked with them."""
        return False

    @property
    def merges_in(self) -> str:
        """Where weights mix tokens: `projected`, the rows of the LLM, or `encoder`, features before the projector."""
        return "projected"

    @property
    def weighs_sizes(self) -> bool:
        """Whether later encoder blocks attend to a mean as to all the groups that it stands for."""
        return False

    @property
    def whole_blocks(self) -> int:
        """Where it `returns` what goes: in how many blocks from its own on attention still sees all rows."""
        return 0

    @property
    def sets_aside(self) -> bool:
        """Whether what is not chosen waits beside the layers until a later stage `recalls` it."""
        return False

    @property
    def recalls(self) -> bool:
        """Whether tokens that the stage before set aside come back before this one chooses."""
        return False

    def with_attention_share(self, share: float) -> Method:
        """The same method with this share of its budget chosen by attention, for methods that have two parts."""
        raise Unsupported(
            f"{self.name} does not choose one part of its tokens by attention and the other for diversity. "
            "vispruner, visionzip and efficientvla do."
        )

    def schedule(self, layers: int) -> Schedule:
        """Where the paper puts it in a model of so many decoder layers: (place, method) for each stage. A number k is
        `Layer(k)`."""
        return [(Layer(self.default_at), self)]

    def derive(self, stage: type[Method], **options: Any) -> Method:
        """A stage of this method's schedule: `options`, and this method's values of all others that both have."""
        common = {f.name for f in options_of(type(self))} & {f.name for f in options_of(stage)}
        return stage(**{name: getattr(self, name) for name in common} | options)

    def budget(self, view: View) -> int:
        """Tokens to keep of each span."""
        if self.of == "current":
            return n_keep(self.keep, view.count, self.rounding)
        return min(n_keep(self.keep, view.total or view.count, self.rounding), view.count)

    def fraction(self, view: View) -> float:
        """The budget as a fraction of the tokens that are left: `keep` itself, not yet rounded to tokens, or its k."""
        if isinstance(self.keep, float) and self.of == "current":
            return self.keep
        return self.budget(view) / view.count

    @property
    def slack(self) -> float:
        """How far off a whole number k / n may come out; 0 where `keep` is a fraction, which rounds as given."""
        return 0.0 if isinstance(self.keep, float) and self.of == "current" else 1e-9

    @abstractmethod
    def select(self, view: View) -> Selection:
        """Choose `budget(view)` tokens of each span."""


Schedule = Sequence[tuple[Place | int, Method]]  # (place, method) for each stage


@dataclass(frozen=True)
class ScoreMethod(Method):
    """Base of methods that keep the tokens of the highest score, of equal ones the first. Subclasses write `score`."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """[S, n], of any dtype: how much each token is worth keeping."""

    def select(self, view: View) -> Selection:
        return Selection(top_k(self.score(view), self.budget(view)))


@dataclass(frozen=True)
class BudgetMethod(Method):
    """Base of methods that share or merge, which takes some tokens that stay and some that go. Subclasses write
    `choose`; all and none are settled here."""

    @abstractmethod
    def choose(self, view: View) -> Selection:
        """Choose 0 < `budget(view)` < n tokens of each span, or, with keep=None, as many as the method finds."""

    def select(self, view: View) -> Selection:
        k = None if self.keep is None else self.budget(view)
        return view.first(k) if k is not None and k in (0, view.count) else self.choose(view)


def options_of(method: type[Method]) -> list[Field[Any]]:
    """The option fields of a method, `keep` first."""
    return [f for f in fields(method) if "help" in f.metadata]


def places(method: type[Method], layers: int = 32) -> list[Place]:
    """Where a method's stages stand by name, in a model of so many layers."""
    return [place_of(at) for at, _ in method().schedule(layers)]


def signals_of(method: type[Method]) -> list[str]:
    """Names of the signals that a method reads at any of its stages."""
    return list(dict.fromkeys(need.signal for _, stage in method().schedule(32) for need in stage.needs))


def make_method(cls: type[Method], options: dict[str, Any]) -> Method:
    """Build a method from keyword options; an unknown option is an error that shows the nearest name."""
    cls, options = as_now(cls, options)
    known = {f.name: f for f in options_of(cls)}
    hints = get_type_hints(cls)
    for name, value in options.items():
        if name not in known:
            raise unknown(f"option of {cls.name}", name, known)
        listed = get_origin(hints[name]) is tuple
        if listed and not isinstance(value, tuple):
            raise BadInput(f"{name}={value!r} of {cls.name} must be a list of values.")
        kind = get_args(hints[name])[0] if listed else hints[name]
        for one in value if listed else (value,):
            number = isinstance(one, (int, float)) and not isinstance(one, bool)
            if kind is int and not (number and isinstance(one, int)):
                raise BadInput(f"{name}={one!r} of {cls.name} must be a whole number.")
            if kind is float and not number:
                raise BadInput(f"{name}={one!r} of {cls.name} must be a number.")
            if kind is bool and not isinstance(one, bool):
                raise BadInput(f"{name}={one!r} of {cls.name} must be true or false.")
            if kind is str and not isinstance(one, str):
                raise BadInput(f"{name}={one!r} of {cls.name} must be a name.")
    return cls(**options)


def scale_shares(keep: float, shares: tuple[float, ...]) -> list[float]:
    """A published schedule of shares at another budget: `keep` for the first stage, the later ones in proportion.

    keep=1.0 keeps everything at every stage.
    """
    return [1.0 if keep == 1.0 else keep * share / shares[0] for share in shares]
