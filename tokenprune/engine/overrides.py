"""What a run puts on modules for a time: wrapped methods, given back exactly, and hooks that cannot be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from tokenprune.errors import Unsupported


class Overrides:
    """Methods of one module that are wrapped until `undo`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._found: dict[str, Callable | None] = {}

    def wrap(self, name: str, wrapped: Callable[[Callable], Callable]) -> None:
        """Put `wrapped(method)` in the place of a method."""
        if not hasattr(self.module, name):
            raise Unsupported(f"This {type(self.module).__name__} has no {name}(), which its family is known to have.")
        own = wrapped(getattr(self.module, name))
        self._found[name] = self.module.__dict__.get(name)
        setattr(self.module, name, own)

    def undo(self) -> None:
        """Take the wrappers off, and put back what others had put there."""
        for name, found in self._found.items():
            del self.module.__dict__[name]
            if found is not None:
                self.module.__dict__[name] = found
        self._found.clear()


class Hook:
    """A hook that says what to do instead where somebody copies or pickles the module that it sits on: the copy would
    share this run with its original, and be pruned by what the original saw."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        """The hook itself."""
        return self.call(*arguments)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Unsupported(
            "A pruned model cannot be copied, pickled or saved whole: its hooks belong to this one. Call remove() "
            "first, or save its weights (save_pretrained, state_dict)."
        )

    def __deepcopy__(self, memo: dict) -> NoReturn:
        self.__reduce_ex__(None)
