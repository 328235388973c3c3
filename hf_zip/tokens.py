"""Texts, or their words, → token ids, cut off at a length."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_zip.errors import HfZipError
from hf_zip.inputs import Part, Row

ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids")
Words = Sequence[int | None]


class Tokens(Part):
    """Token ids of texts.

    Args:
        rows: For each text the model's arguments, each one list of numbers.
        notes: See `Part`.
        words: For each text that was given as words the word that each token belongs to, nothing
            for special tokens; without any where the tokenizer cannot tell.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        notes: Mapping[str, Any] | None = None,
        words: Sequence[Words] = (),
    ) -> None:
        self._rows, self.notes, self.words = rows, notes or {}, words

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Row:
        return self._rows[position]


def tokenize(
    tokenizer: Any,
    texts: Sequence[Sequence[Any]],
    length: int,
    name: str,
    rows: Sequence[int],
) -> Tokens:
    """Returns the token ids of texts, each cut off at a length.

    Args:
        tokenizer: The models' tokenizer; left as it is.
        texts: For each input one text, or a pair; each a string, or everywhere a list of words.
        length: Tokens at most, special ones included.
        name: What the data are called, for messages.
        rows: Where the texts stand in the data, for messages.

    Returns:
        The ids; their notes say at what length texts were cut off, and how many were.

    Raises:
        HfZipError: There is no tokenizer, a value is no text or has no tokens, or the length leaves
            no room beside the special tokens.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise HfZipError(
            f"data {name!r} hold texts, but the models have "
            f"{'no' if tokenizer is None else 'an image processor and no'} tokenizer; save the one "
            "that they were trained with beside the first model"
        )
    split = isinstance(texts[0][0], list)
    check_texts(texts, name, rows)
    special = tokenizer.num_special_tokens_to_add(pair=len(texts[0]) > 1)
    if length <= special:
        raise HfZipError(
            f"texts are cut off at {length} tokens, of which {special} are special ones; allow "
            f"at least {special + 1} (max_length)"
        )
    # Cutting off is a state of fast tokenizers, and would be saved with the merge.
    own = copy.deepcopy(tokenizer)
    found = _encode(own, texts, split)
    long = [position for position, (ids, _) in enumerate(found) if len(ids["input_ids"]) > length]
    if long:
        cut = _encode(own, [texts[i] for i in long], split, truncation=True, max_length=length)
        for position, shorter in zip(long, cut, strict=True):
            found[position] = shorter
    for row, (ids, _) in zip(rows, found, strict=True):
        if not ids["input_ids"]:
            raise HfZipError(f"row {row} of data {name!r} has no tokens; leave the row out")
    notes = {"max_length": length, "truncated": len(long)}
    words = [words for _, words in found if words is not None]
    return Tokens([ids for ids, _ in found], notes, words)


def check_texts(texts: Sequence[Sequence[Any]], name: str, rows: Sequence[int]) -> None:
    """Checks that values are texts: strings, or everywhere lists of words.

    Args:
        texts: For each row what should be its texts.
        name: What the data are called, for messages.
        rows: Where they stand in the data, for messages.

    Raises:
        HfZipError: A value is something else.
    """
    split = isinstance(texts[0][0], list)
    for row, text in zip(rows, texts, strict=True):
        for value in text:
            if not _is_text(value, split):
                raise HfZipError(
                    f"row {row} of data {name!r} holds {value!r} for a "
                    f"{'list of words' if split else 'text'}; leave the row out, or name another "
                    "column"
                )


def _is_text(value: Any, split: bool) -> bool:
    if split:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    return isinstance(value, str)


def _encode(
    tokenizer: Any, texts: Sequence[Sequence[Any]], split: bool, **options: Any
) -> list[tuple[Row, Words | None]]:
    """Returns the ids of each text, and of words the one that each token belongs to."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    found = tokenizer(
        *columns, is_split_into_words=split, return_attention_mask=True, verbose=False, **options
    )
    return [
        (
            {name: found[name][position] for name in ARGUMENTS if name in found},
            found.word_ids(position) if split and tokenizer.is_fast else None,
        )
        for position in range(len(texts))
    ]
