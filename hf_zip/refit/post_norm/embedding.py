"""The embeddings of the merged model: tables whose normalised sums are what is wanted.

Every word is fitted, whether the calibration texts have it or not; they only say how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.collect import capture
from hf_zip.groups import Block, Tap, base_name
from hf_zip.refit.post_norm.gains import GainMoments, set_norm
from hf_zip.refit.post_norm.running import embedded
from hf_zip.refit.post_norm.work import PostNormWork, centred, normalised

ROUNDS = 4
# Of a word or place that was never seen, beside the weight 1 of one that was seen once.
UNSEEN = 1e-6
# Pairs of a word and a place that are looked at at once.
PAIRS = 2**18
# What `layer_norm` adds to a variance.
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Side:
    """Rows of one of a teacher's two tables.

    Args:
        teacher: Its own, centred.
        mapped: What its normalisation makes of them, but for a scale, mapped to the merged stream.
    """

    teacher: Float64[Tensor, "rows n"]
    mapped: Float64[Tensor, "rows width"]

    def rows(self, chosen: Int64[Tensor, " some"]) -> "Side":
        """Returns some of the rows."""
        return Side(self.teacher[chosen], self.mapped[chosen])


@dataclass(frozen=True)
class Sums:
    """Two tables of a teacher whose rows are added up and normalised.

    Args:
        words: One row for each word, centred.
        places: One row for each combination of the other tables' rows, centred.
        matrix: Maps what the normalisation makes of them to the merged stream.
        eps: That of the normalisation.
    """

    words: Float64[Tensor, "words n"]
    places: Float64[Tensor, "places n"]
    matrix: Float64[Tensor, "width n"]
    eps: float

    def scales(
        self, words: Float64[Tensor, "w n"], places: Float64[Tensor, "p n"]
    ) -> Float64[Tensor, "w p"]:
        """Returns what the normalisation divides the sums of rows by."""
        squares = words.square().mean(dim=1)[:, None] + places.square().mean(dim=1)
        return (squares + 2 * words @ places.T / words.shape[1] + self.eps).clamp(min=0).sqrt()


def fit_embeddings(work: PostNormWork, adapter: Adapter, first: Block, norm: str) -> None:
    """Sets all tables of the embeddings and the normalisation behind them.

    Args:
        work: The models; the teachers' streams are held.
        adapter: Their family's table.
        first: Names of the modules of the first block.
        norm: The normalisation.
    """
    student, device = work.student, work.accelerator.device
    tables = table_names(student, adapter)
    if work.basis.own:
        for name in (*tables, norm):
            own = student.get_submodule(name)
            own.load_state_dict(work.teachers[0].get_submodule(name).state_dict())
        return
    counts = count_rows(work, tables, first)
    fitted = fit_tables(_sums(work, tables, norm), counts)
    sizes = [student.get_submodule(name).num_embeddings for name in tables[1:]]
    others = split_places(fitted[1], counts[1], sizes)
    for name, table in zip(tables, (fitted[0], *others), strict=True):
        student.get_submodule(name).weight.copy_(table)
    own_norm, sums = student.get_submodule(norm), GainMoments(work.shape.width, device)
    for batch, given in enumerate(work.batches):
        stream = embedded([student], first, given)[0][given.real]
        target = work.basis.target(work.rows("teachers", batch), norm)
        sums.update(normalised(stream, own_norm.eps), target)
    set_norm(own_norm, *work.reduced(sums).fit())


def table_names(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """Returns the names of the embeddings that a model has; that of the words is the first."""
    modules = dict(model.named_modules())
    names = [base_name(model, adapter, name.removesuffix(".weight")) for name in adapter.embeddings]
    return [name for name in names if isinstance(modules.get(name), nn.Embedding)]


def count_rows(
    work: PostNormWork, tables: Sequence[str], first: Block
) -> tuple[Float64[Tensor, " words"], Float64[Tensor, " places"]]:
    """Returns how often each word, and each combination of the other tables' rows, is seen.

    Args:
        work: The models.
        tables: Names of the embeddings.
        first: Names of the modules of the first block.
    """
    sizes = [work.student.get_submodule(name).num_embeddings for name in tables]
    taps = [Tap(name, "input") for name in tables]
    words = torch.zeros(sizes[0], dtype=torch.float64)
    places = torch.zeros(sizes[1:], dtype=torch.float64).flatten()
    for given in work.batches:
        with capture(work.student, taps) as seen:
            embedded([work.student], first, given)
        # Positions are the same for all inputs of a batch, and may be given once.
        rows = [seen[tap].expand(given.real.shape)[given.real].cpu() for tap in taps]
        place = torch.zeros_like(rows[0])
        for row, size in zip(rows[1:], sizes[1:], strict=True):
            place = place * size + row
        words += torch.bincount(rows[0], minlength=len(words))
        places += torch.bincount(place, minlength=len(places))
    if work.accelerator.num_processes > 1:
        device = work.accelerator.device
        words, places = (
            work.accelerator.reduce(counts.to(device), reduction="sum").cpu()
            for counts in (words, places)
        )
    return words, places


def fit_tables(
    sums: Sequence[Sums], counts: tuple[Float64[Tensor, " words"], Float64[Tensor, " places"]]
) -> tuple[Float64[Tensor, "words width"], Float64[Tensor, "places width"]]:
    """Returns two tables whose normalised sums are what all teachers' sums make together.

    Each is the mean, over the rows of the other, of what is lacking: the wanted row, as large as
    the sum now is, minus that of the other table. Words and places count by how often they are
    seen, as if each word were seen at each place.

    Args:
        sums: The teachers' tables.
        counts: How often each row of both tables is seen.
    """
    seen = [count.nonzero().flatten() for count in counts]
    weights = [count[rows] / count.sum() for count, rows in zip(counts, seen, strict=True)]
    typical = [
        float(weights[0] @ part.scales(part.words[seen[0]], part.places[seen[1]]) @ weights[1])
        for part in sums
    ]
    sides = [
        [Side(own, centred(own @ part.matrix.T)) for own, part in zip(rows, sums, strict=True)]
        for rows in ([part.words for part in sums], [part.places for part in sums])
    ]
    found = [
        torch.stack([own.mapped / scale for own, scale in zip(side, typical, strict=True)]).sum(0)
        for side in sides
    ]
    for _ in range(ROUNDS):
        for own, other in ((0, 1), (1, 0)):
            fixed = [side.rows(seen[other]) for side in sides[other]]
            given = found[other][seen[other]]
            for chosen in torch.arange(len(found[own])).split(max(1, PAIRS // len(given))):
                mine = [side.rows(chosen) for side in sides[own]]
                scales = [
                    part.scales(left.teacher, right.teacher)
                    for part, left, right in zip(sums, mine, fixed, strict=True)
                ]
                found[own][chosen] = _lacking(
                    mine, fixed, scales, found[own][chosen], given, weights[other]
                )
    return found[0], found[1]


def _lacking(
    mine: Sequence[Side],
    others: Sequence[Side],
    scales: Sequence[Float64[Tensor, "n m"]],
    found: Float64[Tensor, "n width"],
    given: Float64[Tensor, "m width"],
    weights: Float64[Tensor, " m"],
) -> Float64[Tensor, "n width"]:
    """Rows of a table, of which only those of the other one that are seen count.

    What is wanted of a pair of rows is a sum of mapped rows, one of each teacher and table, so all
    that is asked of pairs follows from products of these rows: no pair has features of its own.

    Args:
        mine: Rows of each teacher's table.
        others: Rows of each teacher's other table.
        scales: What each teacher's normalisation divides the sums of both by.
        found: The merged table's rows so far.
        given: Those of the other table.
        weights: How much these count.
    """
    width, shares = found.shape[1], [1 / scale for scale in scales]
    energy, along = torch.zeros_like(shares[0]), torch.zeros_like(shares[0])
    for own, other, share in zip(mine, others, shares, strict=True):
        for own_b, other_b, share_b in zip(mine, others, shares, strict=True):
            products = _pairs(own.mapped, other.mapped, own_b.mapped, other_b.mapped)
            energy += share * share_b * products
        along += share * _pairs(own.mapped, other.mapped, found, given)
    # As large as the sum of the rows so far is along it, once it is normalised.
    size = weights * along / (energy / width + LAYER_NORM_EPS) / width
    rows = -(weights @ given).expand_as(found)
    for own, other, share in zip(mine, others, shares, strict=True):
        part = size * share
        rows = rows + part.sum(dim=1, keepdim=True) * own.mapped + part @ other.mapped
    return rows


def _pairs(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The products of `a_i + b_j` and `c_i + d_j`."""
    return (a * c).sum(dim=1)[:, None] + a @ d.T + c @ b.T + (b * d).sum(dim=1)


def split_places(
    places: Float64[Tensor, "places width"],
    counts: Float64[Tensor, " places"],
    sizes: Sequence[int],
) -> list[Float64[Tensor, "_ width"]]:
    """Returns one table for each part of a place, whose sums come closest to the rows of places.

    Args:
        places: One row for each combination of the tables' rows.
        counts: How often each is seen.
        sizes: Rows of each table.
    """
    left = places.unflatten(0, list(sizes))
    weights = (counts / counts.sum() + UNSEEN).view(*sizes, 1)
    tables = [places.new_zeros(size, places.shape[1]) for size in sizes]
    for _ in range(ROUNDS if len(sizes) > 1 else 1):
        for position, size in enumerate(sizes):
            wanted, shares = (
                part.movedim(position, 0).reshape(size, -1, part.shape[-1]).sum(dim=1)
                for part in (left * weights, weights)
            )
            mean = wanted / shares
            tables[position] += mean
            shape = [size if dim == position else 1 for dim in range(len(sizes))]
            left = left - mean.view(*shape, mean.shape[1])
    return tables


def _sums(work: PostNormWork, tables: Sequence[str], norm: str) -> list[Sums]:
    """The tables of all teachers."""
    found, start = [], 0
    for teacher in work.teachers:
        own = teacher.get_submodule(norm)
        parts = [teacher.get_submodule(name).weight.double().cpu() for name in tables]
        places = parts[1]
        for table in parts[2:]:
            places = (places[:, None] + table).flatten(0, 1)
        stop = start + parts[0].shape[1]
        # What the normalisation gives, to plain streams, to the merged one.
        gain = own.weight.double() / work.basis.plains[norm].gain[start:stop]
        matrix = (work.matrix[:, start:stop] * gain).double().cpu()
        found.append(Sums(centred(parts[0]), centred(places), matrix, own.eps))
        start = stop
    return found
