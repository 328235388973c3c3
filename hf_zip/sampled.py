"""A model with a masked-language-model head → texts that it draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, tqdm
from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_zip.checkout import checkout
from hf_zip.checkpoint import digest, load_as, load_processor, model_class, weight_files
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError, first_few
from hf_zip.generated import SAMPLED
from hf_zip.generated.masked import Sampling, draw_tokens
from hf_zip.processors import longest_text, tokenizer

# Texts that are always drawn together, whether all of them are asked for or not: what a batch holds
# beside a text may change the rounding of what a model predicts for it.
_BLOCK = 32
_SHORTEST, _LONGEST = 4, 64  # tokens of a text, special ones left out


def sampled_texts(
    reference: str,
    count: int,
    seed: int,
    length: int,
    *,
    progress: bool = True,
    allow_pickle: bool = False,
) -> tuple[list[str], dict[str, Any]]:
    """Returns texts that a masked language model draws, and for their description how.

    Their lengths are drawn evenly from 4 to 64 tokens, or to what the models take; special tokens
    come on top, and are never drawn. Seed and number decide a text, on one kind of device: neither
    the number of texts nor that of processes does.

    Args:
        reference: Folder or Hub id of the model.
        count: How many texts.
        seed: Decides them, with their numbers.
        length: Tokens of a text at most, special ones included.
        progress: Show a progress bar, on the main process.
        allow_pickle: Read weights in pickles where there are no others.

    Raises:
        HfZipError: The model is not in reach or cannot be loaded, it has no masked-language-model
            head, no tokenizer, or none with tokens for masks and padding.
    """
    folder, local = checkout(reference, allow_pickle=allow_pickle)
    files = weight_files(folder, reference, allow_pickle)
    model = _with_head(folder, files, reference)
    words = _words(folder, reference)
    room = min(length, words.model_max_length, longest_text(model) or length)
    longest = min(_LONGEST, max(1, room - words.num_special_tokens_to_add()))
    lengths = (min(_SHORTEST, longest), longest)
    sampling = Sampling()
    texts = _texts(model, words, count, seed, lengths, sampling, progress)
    version = {"model_sha256": digest(files)} if local else {"model_revision": folder.name}
    return texts, {**version, "seed": seed, "tokens": list(lengths), **asdict(sampling)}


def _with_head(folder: Path, files: Sequence[Path], reference: str) -> PreTrainedModel:
    known = model_class(folder / "config.json", reference)
    if known.config_class not in MODEL_FOR_MASKED_LM_MAPPING:
        raise HfZipError(
            f"{reference!r} is a {known.__name__}, of which there is none with a "
            f"masked-language-model head, so {SAMPLED} cannot draw texts with it; name a BERT or "
            "the like, or a corpus (recombined:FILE)"
        )
    cls = MODEL_FOR_MASKED_LM_MAPPING[known.config_class]
    return load_as(cls, folder, files, reference, torch.float32, _check_head)


def _check_head(info: Mapping[str, Any], cls: str, reference: str) -> None:
    """Refuses what would be drawn at random; weights may be left over, such as other heads."""
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if lacking:
        raise HfZipError(
            f"{reference!r} lacks {len(lacking)} weights of a {cls} "
            f"({first_few(sorted(lacking), 3, str)}), so {SAMPLED} cannot draw texts with it; name "
            "a model with its masked-language-model head, such as the pretrained base of a "
            "fine-tune, or a corpus (recombined:FILE)"
        )


def _words(folder: Path, reference: str) -> Any:
    found = tokenizer(load_processor(folder, reference, ("text",)))
    if not isinstance(found, PreTrainedTokenizerBase):
        raise HfZipError(
            f"{reference!r} has no tokenizer to draw texts with; save its own beside it"
        )
    for kind in ("mask_token", "pad_token"):
        if getattr(found, kind) is None:
            raise HfZipError(
                f"the tokenizer of {reference!r} has no {kind}, which texts are drawn with; set it "
                "and save the tokenizer again"
            )
    return found


def _texts(
    model: PreTrainedModel,
    words: Any,
    count: int,
    seed: int,
    lengths: tuple[int, int],
    sampling: Sampling,
    progress: bool,
) -> list[str]:
    """The first texts of a seed; each process draws its share of the blocks."""
    accelerator = make_accelerator()
    model.to(accelerator.device)
    starts = range(0, count, _BLOCK)[accelerator.process_index :: accelerator.num_processes]
    own = [
        (start, _block(model, words, range(start, start + _BLOCK), seed, lengths, sampling))
        for start in tqdm(starts, desc="drawing texts", disable=not progress, leave=False)
    ]
    blocks = dict(gather_object(own))
    return list(chain.from_iterable(blocks[start] for start in sorted(blocks)))[:count]


def _block(
    model: PreTrainedModel,
    words: Any,
    numbers: Sequence[int],
    seed: int,
    lengths: tuple[int, int],
    sampling: Sampling,
) -> list[str]:
    shortest, longest = lengths
    randoms = [np.random.default_rng([seed, number]) for number in numbers]
    masks = [words.mask_token * int(random.integers(shortest, longest + 1)) for random in randoms]
    batch = words(
        masks, padding=True, padding_side="right", return_attention_mask=True, return_tensors="pt"
    ).to(model.device)
    ids, padding = batch["input_ids"], batch["attention_mask"]
    free = ids == words.mask_token_id

    def predict(found: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=found, attention_mask=padding).logits
        return logits

    known = torch.arange(model.config.vocab_size, device=model.device)
    special = torch.tensor(words.all_special_ids, device=model.device)
    barred = (known >= len(words)) | torch.isin(known, special)
    found = draw_tokens(predict, ids, free, words.mask_token_id, barred, randoms, sampling)
    return [words.decode(own[kept]) for own, kept in zip(found, free, strict=True)]
