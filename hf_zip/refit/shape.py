"""The sizes that a merged model may have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.groups import Block
from hf_zip.matching.selection import select_heads
from hf_zip.names import config_of

Heads = Literal["auto", "all", "select"]

# Selected heads that leave at most this share of all heads' energy unexplained lose nothing.
REDUNDANT = 1e-3


@dataclass(frozen=True)
class Shape:
    """Sizes of the merged model.

    Args:
        width: Features of the stream.
        units: Hidden units of each MLP.
        num_heads: Heads of each attention.
        head_width: Features of each head.
    """

    width: int
    units: int
    num_heads: int
    head_width: int

    def config(self) -> dict[str, int]:
        """Returns the entries of the config that these sizes decide."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.units,
            "num_attention_heads": self.num_heads,
        }


@dataclass(frozen=True)
class ZipShape(Shape):
    """Sizes of the merged model, and what becomes of the teachers' heads.

    Args:
        width: See `Shape`; so are the next three.
        units: See `width`.
        num_heads: See `width`.
        head_width: See `width`.
        select: Whether heads are selected at full rank, instead of all being kept at a lower one.
        teacher_heads: Heads of each attention of one teacher.
    """

    select: bool
    teacher_heads: int


def possible_shapes(
    model: PreTrainedModel, block: Block, num_models: int, size: float, heads: Heads
) -> tuple[ZipShape, ...]:
    """Returns the shapes to choose from, the one with selected heads first.

    Args:
        model: One of the teachers.
        block: Names of the modules of one of its blocks.
        num_models: Number of teachers.
        size: Width of the merged model relative to one teacher.
        heads: See `FitOptions`.

    Raises:
        HfZipError: Heads are to be selected at another size than 1, or all are to be kept but do
            not divide the width.
    """
    width: int = model.get_submodule(block.mlp_out).out_features
    num_heads: int = config_of(model, block.name).num_attention_heads
    all_heads = num_models * num_heads
    merged_width = round(size * width)
    # In the ratio of the widths, as some families have no other way to say it.
    units = max(1, round(model.get_submodule(block.mlp_out).in_features * merged_width / width))
    divides = merged_width > 0 and merged_width % all_heads == 0
    selected = ZipShape(width, units, num_heads, width // num_heads, True, num_heads)
    kept = ZipShape(merged_width, units, all_heads, merged_width // all_heads, False, num_heads)
    if heads == "select" and size != 1:
        raise HfZipError(f"heads can only be selected at size 1, not {size}; use heads: all")
    if heads == "select" or (heads == "auto" and size == 1 and not divides):
        return (selected,)
    if not divides:
        way_out = "use heads: select" if size == 1 else "use size 1 and heads: select"
        raise HfZipError(
            f"the {all_heads} heads of {num_models} models do not divide a stream of "
            f"{size} x {width} features; {way_out}, or a size that is a multiple of "
            f"{all_heads / width:.4g}"
        )
    # One model has no heads to choose from: keeping all of them is keeping them as they are.
    choose = heads == "auto" and size == 1 and num_models > 1
    return (selected, kept) if choose else (kept,)


def choose_shape(shapes: Sequence[ZipShape], contexts: Sequence[Float[Tensor, "n n"]]) -> ZipShape:
    """Returns the first shape if a selection of heads loses next to nothing, or else the last.

    Args:
        shapes: What `possible_shapes` returned.
        contexts: For every block the covariance of what all heads of all teachers attend to; left
            empty where there is no choice.

    Raises:
        HfZipError: There is a choice but nothing to base it on.
    """
    if len(shapes) == 1:
        return shapes[0]
    if not contexts:
        raise HfZipError("there are no contexts by which to choose between selected and all heads")
    selected, kept = shapes[0], shapes[-1]
    lost = [select_heads(c, kept.num_heads, selected.num_heads)[1] for c in contexts]
    return selected if max(lost) < REDUNDANT else kept
