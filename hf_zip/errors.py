"""The one error class of hf_zip, and the words that its messages share."""

import difflib
from collections.abc import Callable, Iterable, Sequence


class HfZipError(ValueError):
    """Input that hf_zip refuses; the message says what it is, what it should be, what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> HfZipError:
    """Returns the error for a name that is not among the known ones, with a suggestion.

    Args:
        kind: What the name should have been, such as "merge method".
        name: The name as given.
        known: The names that exist.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return HfZipError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def first_few(names: Sequence[str], count: int, show: Callable[[str], str] = repr) -> str:
    """Returns the first of some names, and a sign that there are more.

    Args:
        names: The names, in order.
        count: How many to show at most.
        show: Makes text of a name.
    """
    shown = ", ".join(map(show, names[:count])) or "none"
    return shown + (", …" if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
