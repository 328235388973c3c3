"""Texts of a word chain: each word is one that follows the word before it in a corpus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_END = ""  # which no word is
_ATTEMPTS = 32


@dataclass(frozen=True)
class Chain:
    """What follows what in a corpus.

    Args:
        texts: The words of its texts; a text that is there twice is one.
        following: For each word all that follow it, as often as they do; of a text's last word the
            end, and of the end the first words.
        longest: Words of the longest text.
    """

    texts: frozenset[tuple[str, ...]]
    following: Mapping[str, Sequence[str]]
    longest: int


def chain_of(texts: Sequence[str]) -> Chain:
    """Returns what follows what in texts; words are what white space parts.

    Args:
        texts: The corpus, of which at least one text has words; those without are passed over.
    """
    split = [words for text in texts if (words := tuple(text.split()))]
    following: dict[str, list[str]] = {}
    for words in split:
        for one, two in zip((_END, *words), (*words, _END), strict=True):
            following.setdefault(one, []).append(two)
    return Chain(frozenset(split), following, max(map(len, split)))


def chained_text(chain: Chain, seed: int, number: int) -> tuple[str, bool]:
    """Returns one text of a chain, which nothing but the arguments decides, and if it is new.

    Texts that are in the corpus, or are longer than all that are, are drawn again; after 32
    attempts the last one is taken, and cut.

    Source: Shannon, A Mathematical Theory of Communication (1948), section 3, the second-order word
    approximation (https://doi.org/10.1002/j.1538-7305.1948.tb01338.x), with a start and an end.

    Args:
        chain: What follows what.
        seed: Decides all texts.
        number: Which of them, from 0.
    """
    random = np.random.default_rng([seed, number])
    for _ in range(_ATTEMPTS):
        words = _words(chain, random)
        if len(words) <= chain.longest and words not in chain.texts:
            break
    words = words[: chain.longest]
    return " ".join(words), words not in chain.texts


def _words(chain: Chain, random: np.random.Generator) -> tuple[str, ...]:
    """One walk from start to end, or to one word more than the longest text has."""
    words: list[str] = []
    last = _END
    while len(words) <= chain.longest:
        known = chain.following[last]
        last = known[int(random.integers(len(known)))]
        if last == _END:
            break
        words.append(last)
    return tuple(words)
