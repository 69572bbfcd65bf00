"""`dali VERB [NAME=VALUE ...]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from dali.experiments.settings.compose import configuration, listing
from dali.experiments.verbs.table import VERBS
from dali.policies.core.jit import CACHE_FOLDER
from dali.policies.types import InputError

HELP = {"-h", "--help"}


def usage() -> str:
    """What `dali --help` prints."""
    verbs = "\n".join(f"  {name:12}{verb.help}" for name, verb in VERBS.items())
    return f"dali VERB [NAME=VALUE ...]\n\n{verbs}\n\ndali VERB --help shows what can be set, and its defaults."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb: 0 if it worked, 1 if a part of it failed, 2 with one line on standard error for bad input, 130 if
    interrupted.
    """
    verb, *overrides = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in HELP:
        print(usage())
        return 0
    return with_status(f"dali {verb}", lambda: _run(verb, overrides))


def _run(verb: str, overrides: list[str]) -> int | None:
    if verb not in VERBS:
        raise InputError(f"found verb {verb!r}, expected one of {', '.join(VERBS)}")
    if HELP & set(overrides):
        print(listing(verb, [override for override in overrides if override not in HELP]))
        return 0
    if not CACHE_FOLDER.exists():
        print("First run of this version: compiling kernels takes half a minute or so.", file=sys.stderr)
    module = importlib.import_module(VERBS[verb].module)
    status: int | None = module.run(configuration(verb, overrides), overrides)
    return status


def with_status(command: str, action: Callable[[], int | None]) -> int:
    """What an action returns (None = 0), or 2 with one line on standard error for bad input, 130 if interrupted."""
    try:
        return action() or 0
    except InputError as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{command}: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{command}: {str(error) or 'interrupted, nothing was written'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
