"""Values of a model's configuration, which go by several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dali.policies.types import InputError

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")


class Fields:
    """The language model's part of a configuration (the content of a config.json).

    values  plain dictionary; of a model for images or sound, with the language model's own under text_config or alike
    source  for messages
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        own = dict(values)
        for name in _NESTED:
            if isinstance(own.get(name), Mapping):
                own |= own[name]
        self.values, self.source = own, source

    def get(self, *names: str) -> Any:
        """The first of several names that has a value; None if none has.  Of a list with a value a layer, the list."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def number(self, *names: str) -> int:
        """A whole number above 0 by the first of its names; InputError, with the names, where there is none."""
        found = self.whole(*names)
        if not found:
            raise InputError(f"{self.source}: found no {' or '.join(names)}, expected a positive whole number")
        return found

    def whole(self, *names: str, default: int = 0) -> int:
        """A whole number of at least 0, or `default`; of a list with the same value for every layer, that value."""
        found = self.get(*names)
        if isinstance(found, list) and found and len(set(found)) == 1:
            found = found[0]
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or found != int(found) or found < 0:
            raise InputError(f"{self.source}: found {found!r} as {names[0]}, expected a whole number of at least 0")
        return int(found)

    def share(self, name: str, default: float) -> float:
        """A number by its name, or `default`."""
        found = self.values.get(name)
        return default if found is None else float(found)

    def flag(self, *names: str) -> bool:
        """Whether a value is there and true."""
        return bool(self.get(*names))

    def text(self, *names: str) -> str:
        """A string, or an empty one."""
        found = self.get(*names)
        return found if isinstance(found, str) else ""

    def layered(self, *names: str) -> list[Any] | None:
        """A list with a value a layer, or None."""
        found = self.get(*names)
        return list(found) if isinstance(found, list | tuple) else None
