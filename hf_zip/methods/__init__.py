"""The merge methods that a recipe may name: one file with an `ENTRY` each."""

from hf_zip.errors import unknown
from hf_zip.method import MergeMethod
from hf_zip.registry import discover


def methods() -> dict[str, MergeMethod]:
    """Returns every known merge method by name."""
    return discover("hf_zip.methods")


def elementwise_methods() -> str:
    """Returns the names of the methods that merge models of any class, for messages."""
    return ", ".join(repr(name) for name, known in methods().items() if known.requires.elementwise)


def method_named(name: str) -> MergeMethod:
    """Returns one merge method.

    Raises:
        HfZipError: There is none of that name.
    """
    known = methods()
    if name not in known:
        raise unknown("merge method", name, known)
    return known[name]
