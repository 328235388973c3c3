"""Frozen models and learnt maps between their features → the parameters of one model."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_zip.align import State
from hf_zip.folding.correction import Correction
from hf_zip.groups import Axis, MergeGroup

_Mapped = tuple[Axis, Correction]  # a dimension, and the correction of the map it receives


class SuperNet(nn.Module):
    """All models with their parameters as they are, and maps that fold them into one.

    Of every parameter the folded model has the sum of `M_k W_k U_k` over the models, with a merge
    map `M_k` where it writes features and an unmerge map `U_k` where it reads some. `U_k` is the
    identity plus a correction, `M_k` the model's share times the identity plus a correction. Every
    layer has corrections of its own; a layer's weight and bias, which write the same, have one.

    Nothing but the corrections is a parameter; the models' are held as they are given.

    Args:
        states: Parameters of each model by name, all models' features brought together.
        groups: The merge groups of the architecture.
        heads: Names of the linear layers whose rows stay each model's own.
        shares: Share of each model in the folded one at the start; their sum is 1.
        rank: Of the corrections, see `Correction`.
        generator: Draws where corrections begin.

    Source: FS-Merge (https://arxiv.org/abs/2410.01483), where M and U of linear layers are a
    diagonal plus a low rank.
    """

    def __init__(
        self,
        states: Sequence[State],
        groups: Sequence[MergeGroup],
        heads: Sequence[str],
        shares: Sequence[float],
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._states, self._shares = tuple(states), tuple(shares)
        self._heads = tuple(f"{head}." for head in heads)
        self._writers: dict[str, list[_Mapped]] = defaultdict(list)
        self._readers: dict[str, list[_Mapped]] = defaultdict(list)
        found: dict[str, Correction] = {}
        for group in groups:
            size = (len(states), group.size, group.num_heads)
            for mapped, axes in ((self._writers, group.writers), (self._readers, group.readers)):
                kind = "merge" if mapped is self._writers else "unmerge"
                for axis in axes:
                    if axis.per_head:  # heads stay in place, only their features are mapped
                        continue
                    name = f"{kind} {group.name} {_layer(axis)}"
                    if name not in found:
                        found[name] = Correction(*size, rank, generator)
                    mapped[axis.parameter].append((axis, found[name]))
        # Names of modules must not have dots.
        self.maps = nn.ModuleDict({name.replace(".", "/"): own for name, own in found.items()})

    def folded(self) -> dict[str, Tensor]:
        """Returns the parameters of the one model by name, heads left out."""
        names = [name for name in self._states[0] if not name.startswith(self._heads)]
        return {name: self._folded(name) for name in names}

    def head(self, model: int) -> dict[str, Tensor]:
        """Returns the parameters of one model's head by name, which read the folded features.

        Args:
            model: Position of the model.
        """
        names = [name for name in self._states[model] if name.startswith(self._heads)]
        return {name: self._read(name, model) for name in names}

    def _folded(self, name: str) -> Tensor:
        parts = []
        for model, share in enumerate(self._shares):
            own = self._read(name, model)
            if share:
                parts.append(share * own)
            for axis, correction in self._writers[name]:
                parts.append(_placed(own, axis, correction, model, transposed=False))
        return torch.stack(parts).sum(dim=0)

    def _read(self, name: str, model: int) -> Tensor:
        """A parameter of one model, reading folded features."""
        found = self._states[model][name]
        for axis, correction in self._readers[name]:
            found = found + _placed(found, axis, correction, model, transposed=True)
        return found


def _layer(axis: Axis) -> str:
    """The module whose parameter it is, so that weight and bias of a layer go together."""
    return axis.parameter.rpartition(".")[0] or axis.parameter


def _placed(
    tensor: Tensor, axis: Axis, correction: Correction, model: int, transposed: bool
) -> Tensor:
    """What a correction adds to a parameter; nothing outside the part that carries the features."""
    product = correction.transposed_times if transposed else correction.times
    parts = tensor.chunk(axis.parts, axis.dim)
    moved = product(model, parts[axis.part].movedim(axis.dim, -1)).movedim(-1, axis.dim)
    if axis.parts == 1:
        return moved
    zeros = [torch.zeros_like(part) for part in parts]
    return torch.cat([*zeros[: axis.part], moved, *zeros[axis.part + 1 :]], axis.dim)
