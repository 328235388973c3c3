"""What follows from whether models share their initialisation: findings, and a suggestion."""

from collections.abc import Iterator, Sequence

from hf_zip.adapters import Adapter
from hf_zip.compatibility import Finding, refused
from hf_zip.methods import method_named
from hf_zip.similarity import Initialisation, PairSimilarity

_SUGGESTIONS: dict[Initialisation, str] = {
    "shared": (
        "iso_c, wudi or tsv, with the model that they were fine-tuned from (--base) and no data, "
        "or average without it: the models' weights are alike part by part; `hf-zip methods` lists "
        "the other methods for such models"
    ),
    "different": (
        "{name}: the models' weights are unrelated part by part, so their mean is noise; {name} "
        "{way} on calibration inputs"
    ),
    "unclear": (
        "compare {name} with average on evaluation data: the models' weights are neither clearly "
        "alike nor clearly unrelated"
    ),
}


_WITHOUT_TABLE = (
    "write a table of the family (`hf-zip inspect --propose MODEL` drafts one), which methods that "
    "match features need: the models' weights are not alike, so their mean keeps little"
)


def suggestion(verdict: Initialisation, adapter: Adapter | None) -> str:
    """Returns how to merge models that share their initialisation, or do not.

    Args:
        verdict: Whether they do.
        adapter: The table of their family, if there is one.
    """
    if adapter is None and verdict != "shared":
        return _WITHOUT_TABLE
    name, way = _for_unrelated(adapter)
    return _SUGGESTIONS[verdict].format(name=name, way=way)


def unlike_initialisations(
    pairs: Sequence[PairSimilarity], adapter: Adapter | None, method: str, force: bool
) -> Iterator[Finding]:
    """Yields what stands against a method for models of one initialisation.

    Args:
        pairs: How alike every two models are.
        adapter: The table of their family, if there is one.
        method: The method.
        force: Warn instead of refusing.
    """
    name, way = _for_unrelated(adapter)
    for pair in pairs:
        cosines = ", ".join(f"{role} {cosine:.2f}" for role, cosine in pair.cosines.items())
        problem = (
            f"{method} is for models that were fine-tuned from one initialisation, but the weights "
            f"of {pair.first!r} and {pair.second!r} are"
        )
        if pair.initialisation == "different":
            yield refused(
                "initialisation",
                f"{problem} unrelated (cosines: {cosines})",
                f"Use {name}, which {way}",
                f"{method} is used all the same",
                force,
            )
        if pair.initialisation == "unclear":
            yield Finding(
                "warning",
                "initialisation",
                f"{problem} only somewhat alike (cosines: {cosines}); compare the merge with them",
            )


def _for_unrelated(adapter: Adapter | None) -> tuple[str, str]:
    """The method for models whose weights are unrelated, and its way."""
    if adapter is None:
        return "a method that matches features", "needs a table of the family"
    if method_named("zipfit").requires.form_obstacle(adapter):
        return "permute", "first matches the features of the models"
    return "zipfit", "solves every layer again for what the models do"
