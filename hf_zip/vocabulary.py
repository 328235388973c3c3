"""Vocabularies of the same tokens in another order, and word embeddings put into one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.processors import prepares_texts, tokenizer
from hf_zip.sources import Source


def reordering(
    first: Mapping[str, int], other: Mapping[str, int], size: int
) -> Int64[Tensor, " size"]:
    """Returns for every id of the first vocabulary the other's id of the same token.

    Ids without a token, which some models have beyond their vocabulary, follow in their order.

    Args:
        first: Ids by token.
        other: Ids of the same tokens.
        size: Number of ids that the models embed.

    Raises:
        HfZipError: The tokens are not the same, or the ids are not distinct and below `size`.

    Example:
        >>> reordering({"a": 0, "b": 1}, {"b": 0, "a": 1}, 3)
        tensor([1, 0, 2])
    """
    if first.keys() != other.keys():
        raise HfZipError(
            f"the vocabularies have {len(first)} and {len(other)} tokens, and they are not the "
            "same; only vocabularies of the same tokens can be put in one order"
        )
    for vocabulary in (first, other):
        ids = sorted(vocabulary.values())
        if len(set(ids)) < len(ids) or (ids and not 0 <= ids[0] <= ids[-1] < size):
            raise HfZipError(
                f"the ids of the {len(ids)} tokens should be distinct and below {size}, the number "
                "of embedded ids, to be put in another order"
            )
    order = torch.full((size,), -1, dtype=torch.int64)
    for token, position in first.items():
        order[position] = other[token]
    taken = torch.zeros(size, dtype=torch.bool)
    taken[order[order >= 0]] = True
    order[order < 0] = torch.nonzero(~taken).flatten()
    return order


def word_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Returns the embeddings of a model's words; of one that takes images too, of its texts' part.

    Raises:
        HfZipError: There are none.
    """
    for part in (model, *model.children()):
        if isinstance(part, PreTrainedModel) and "image" not in part.input_modalities:
            found: nn.Embedding = part.get_input_embeddings()
            return found
    raise HfZipError(
        f"{type(model).__name__} has a tokenizer but takes no texts; give its image processor alone"
    )


def reorder_vocabulary(model: PreTrainedModel, order: Int64[Tensor, " size"]) -> None:
    """Puts the rows of a model's word embeddings, and of what decodes to words, into an order.

    The model then takes and gives the new ids; its config names the special ones anew.

    Args:
        model: The model; changed in place.
        order: For every new id the old one.
    """
    decoder = model.get_output_embeddings()
    modules = [word_embeddings(model), *([] if decoder is None else [decoder])]
    # Tied weights are one parameter under two names, and are touched once.
    distinct = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    with torch.no_grad():
        for parameter in distinct.values():
            parameter.copy_(parameter[order])
    new = torch.argsort(order).tolist()
    for module in modules:
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.padding_idx = new[module.padding_idx]
    for key, value in model.config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int) and 0 <= value < len(new):
            setattr(model.config, key, new[value])


def order_between(first: Source, other: Source) -> Int64[Tensor, " size"] | None:
    """Returns the order of the first's vocabulary in the other's ids; nothing if they agree.

    Nothing too where they have other tokens, or either has no tokenizer.

    Args:
        first: The one model.
        other: The other.

    Raises:
        HfZipError: The tokens are the same, but the models cannot be put in one order: ids are not
            distinct, or the other model counts positions from the id of its padding token or
            finds the end of a text by an id.
    """
    a, b = tokenizer(first.processor), tokenizer(other.processor)
    if not prepares_texts(a) or not prepares_texts(b):
        return None
    mine, theirs = a.get_vocab(), b.get_vocab()
    if mine == theirs or mine.keys() != theirs.keys():
        return None
    embeddings = word_embeddings(other.model)
    order = reordering(mine, theirs, embeddings.num_embeddings)
    for name, module in other.model.named_modules():
        end = getattr(module, "eos_token_id", None)
        # CLIP's text encoder takes the 2 of older configs for the largest id there is.
        if isinstance(end, int) and (end == 2 or int(order[end]) != end):
            raise HfZipError(
                f"{first.reference!r} and {other.reference!r} have the same tokens in another "
                f"order, but their type finds the end of a text by its id, which is {end} in the "
                "second only; give both one tokenizer and train again"
            )
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            start = module.padding_idx
            if start is not None and int(order[start]) != start:
                raise HfZipError(
                    f"{first.reference!r} and {other.reference!r} have the same tokens in another "
                    "order, but their type counts positions from the id of the padding token, "
                    f"which is {start} in the second only; give both one tokenizer and train again"
                )
    return order


def in_one_vocabulary(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Returns the sources, their words in the order of the first's, with the first's tokenizer.

    Args:
        sources: The models; those whose words are in another order are changed in place.

    Raises:
        HfZipError: See `order_between`.
    """
    first, found = sources[0], []
    for source in sources:
        order = order_between(first, source)
        if order is not None:
            reorder_vocabulary(source.model, order)
            source = replace(source, processor=first.processor)
        found.append(source)
    return tuple(found)
