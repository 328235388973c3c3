"""A corpus of texts → texts of its words that are not in it."""

from collections.abc import Sequence
from typing import Any

from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.generated.chain import chain_of, chained_text
from hf_zip.tokens import check_texts

_FEWEST = 10


def recombined_texts(
    table: Table, columns: Sequence[str], count: int, seed: int
) -> tuple[list[str], dict[str, Any]]:
    """Returns texts of a word chain, and for their description how many are in the corpus.

    Args:
        table: The corpus, all of which is used.
        columns: Its columns of texts; each text of a pair is one of its own.
        count: How many texts.
        seed: Decides them, with their numbers.

    Raises:
        HfZipError: A value is no text, or there are fewer than ten different ones.
    """
    rows = list(zip(*(table.rows[column][:] for column in columns), strict=True))
    check_texts(rows, table.name, range(len(rows)))
    texts = [text if isinstance(text, str) else " ".join(text) for row in rows for text in row]
    different = {" ".join(text.split()) for text in texts} - {""}
    if len(different) < _FEWEST:
        raise HfZipError(
            f"data {table.name!r} have {len(different)} different texts, of which few new ones can "
            f"be made; give at least {_FEWEST}"
        )
    chain = chain_of(texts)
    found = [chained_text(chain, seed, number) for number in range(count)]
    copies = sum(not new for _, new in found)
    return [text for text, _ in found], {"seed": seed, "copies": copies}
