"""How deep in a model each parameter lies, told by its lists of blocks."""

from torch import nn
from transformers import PreTrainedModel

# Of a model's numbers, so many at least lie in a list of blocks that counts.
_LEAST = 0.1


def layer_depths(model: PreTrainedModel) -> dict[str, float]:
    """Returns for each parameter how deep it lies, from 0 in the first block to 1 in the last.

    Blocks are the entries of the outermost lists of modules that hold a tenth of the model, such as
    the layers of an encoder, or its stages. What is made before the first of them is at 0, as
    embeddings are; what follows is at 1. With several encoders each has depths of its own; where
    there are no such lists, as where all layers share their weights, all is at 1.

    Args:
        model: A model, with or without a task head.
    """
    lists = _lists_of_blocks(model)
    found, depth = {}, 0.0 if lists else 1.0
    for name, _ in model.named_parameters():
        inside = next((place for place in lists if name.startswith(f"{place}.")), None)
        if inside is not None:
            block = int(name.removeprefix(f"{inside}.").partition(".")[0])
            found[name] = block / (lists[inside] - 1)
            depth = 1.0
        else:
            # A second encoder begins anew where it differs from what came before.
            found[name] = 0.0 if _before_a_list(name, lists, found) else depth
    return found


def _lists_of_blocks(model: PreTrainedModel) -> dict[str, int]:
    """Lists of at least two modules, and how many those are; outer ones come before inner ones."""
    total, found = sum(p.numel() for p in model.parameters()), dict[str, int]()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        if sum(p.numel() for p in module.parameters()) >= _LEAST * total:
            found[name] = len(module)
    return found


def _before_a_list(name: str, lists: dict[str, int], seen: dict[str, float]) -> bool:
    """Whether a parameter belongs to the part of a list that has not begun yet."""
    for place in lists:
        begun = any(other.startswith(f"{place}.") for other in seen)
        part = place.partition(".")[0]
        if not begun and name.startswith(f"{part}.") and "." in place:
            return True
    return False
