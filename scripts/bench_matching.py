"""Times the greedy zip and the covariance against their peers and limits, in the same run.

    python scripts/bench_matching.py          # minutes
    python scripts/bench_matching.py --quick  # seconds

Every ratio is the median over paired repeats: both sides are timed one after the other, repeatedly.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zip.matching.correlation import correlation
from hf_zip.matching.zip import zip_features
from hf_zip.statistics.covariance import Covariance
from hf_zip.statistics.sums import CHUNK_ROWS


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--repeats", type=int, default=3, help="paired repeats (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), medians of {args.repeats} repeats")
    bench_zip([384, 768, 1536] if args.quick else [1536, 3072, 6144, 8192], args.repeats)
    bench_naive([192, 384] if args.quick else [384, 768], 1536 if args.quick else 6144)
    bench_covariance([384, 768] if args.quick else [1536, 6144], args.repeats)


def bench_zip(sizes: Sequence[int], repeats: int) -> None:
    """Prints the time of the zip of two models beside an assignment and a product of its size."""
    print(
        "\nGreedy zip of two models, features of both → half as many, in float64 and float32."
        "\nLAP: scipy's assignment of the features of one model to those of the other."
        f"\nGEMM: float32 x.T @ x of {CHUNK_ROWS} rows."
    )
    columns = ("zip64 s", "zip32 s", "LAP s", "GEMM s", "zip64/LAP", "zip64/GEMM", "growth")
    print(row("data", "features", *columns))
    for name, make in (("matched", matched), ("noise", noise)):
        previous: tuple[int, float] | None = None
        for size in sizes:
            similarity = make(size)
            single = similarity.float()
            across = similarity[: size // 2, size // 2 :].numpy()
            x = torch.randn(CHUNK_ROWS, size)
            zip64, zip32, lap, gemm = paired(
                repeats,
                partial(zip_features, similarity, 2, size // 2),
                partial(zip_features, single, 2, size // 2),
                partial(linear_sum_assignment, across, maximize=True),
                partial(torch.matmul, x.T, x),
            )
            print(
                row(
                    name,
                    size,
                    *map(median, (zip64, zip32, lap, gemm)),
                    ratio(zip64, lap),
                    ratio(zip64, gemm),
                    exponent(previous, (size, median(zip64))),
                )
            )
            previous = size, median(zip64)


def bench_naive(sizes: Sequence[int], target: int) -> None:
    """Prints the time of a zip that searches all pairs for every merge, and what it would be."""
    print("\nThe same zip with a search of all pairs for every merge (same clusters, float64).")
    print(row("data", "features", "naive s", "zip64 s", "growth", f"at {target} s"))
    previous: tuple[int, float] | None = None
    for size in sizes:
        similarity = matched(size)
        start = time.perf_counter()
        naive = naive_zip(similarity, size // 2)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        found = zip_features(similarity, 2, size // 2)
        fast = time.perf_counter() - start
        if not torch.equal(naive, found):
            raise SystemExit("the two zips disagree")
        growth = exponent(previous, (size, seconds))
        # Quadratic work for each of a linear number of merges.
        estimate = f"~{seconds * (target / size) ** 3:.0f}"
        print(row("matched", size, seconds, fast, growth, estimate))
        previous = size, seconds


def bench_covariance(sizes: Sequence[int], repeats: int) -> None:
    """Prints the time of one update of the covariance beside a product of its size."""
    print(
        f"\nCovariance.update with {CHUNK_ROWS} float32 rows, float64 sums included."
        "\nGEMM: float32 x.T @ x of the same x. float64: x.double().T @ x.double(), added up."
    )
    print(row("", "features", "update s", "GEMM s", "float64 s", "update/GEMM", "float64/GEMM"))
    for size in sizes:
        x = torch.randn(CHUNK_ROWS, size)
        update, gemm, double = paired(
            repeats,
            partial(Covariance(size).update, x),
            partial(torch.matmul, x.T, x),
            partial(float64_update, torch.zeros(size, size, dtype=torch.float64), x),
        )
        seconds = map(median, (update, gemm, double))
        print(row("", size, *seconds, ratio(update, gemm), ratio(double, gemm)))


def float64_update(total: Float64[Tensor, "n n"], x: Tensor) -> None:
    """Adds the second moment of rows the plain way."""
    total += x.double().T @ x.double()


def matched(size: int, rows: int = 1024, factors: int = 64) -> Float64[Tensor, "n n"]:
    """Correlations of two models whose features are the same up to order and noise."""
    generator = torch.Generator().manual_seed(size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    half = size // 2
    common = normal(rows, factors) @ normal(factors, half) / math.sqrt(factors)
    common += 0.5 * normal(rows, half)
    first = common + 0.7 * normal(rows, half)
    second = (common + 0.7 * normal(rows, half))[:, torch.randperm(half, generator=generator)]
    return correlation(torch.cov(torch.cat([first, second], dim=1).T))


def noise(size: int, rows: int = 1024) -> Float64[Tensor, "n n"]:
    """Correlations of features that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(size)
    return correlation(torch.cov(torch.randn(rows, size, generator=generator).T))


def naive_zip(similarity: Float64[Tensor, "n n"], merged: int) -> Tensor:
    """The greedy zip at alpha = beta = 1, with no memory of earlier searches."""
    size = len(similarity)
    similarity = similarity.triu(1) + similarity.triu(1).T
    similarity.fill_diagonal_(-torch.inf)
    labels = torch.arange(size)
    for _ in range(size - merged):
        first, second = divmod(int(similarity.argmax()), size)
        lower = torch.minimum(similarity[first], similarity[second])
        similarity[first], similarity[:, first] = lower, lower
        similarity[second], similarity[:, second] = -torch.inf, -torch.inf
        labels[labels == second] = first
    return labels.unique(return_inverse=True)[1]


def paired(repeats: int, *functions: Callable[[], object]) -> list[list[float]]:
    """The seconds of each function in each repeat, after one call that does not count."""
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return seconds


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """The median of the ratios of paired repeats."""
    return median(a / b for a, b in zip(left, right, strict=True))


def exponent(previous: tuple[int, float] | None, current: tuple[int, float]) -> str:
    """The power of the size by which the time grew since the previous size."""
    if previous is None:
        return ""
    return f"{math.log(current[1] / previous[1]) / math.log(current[0] / previous[0]):.2f}"


def row(*cells: str | int | float) -> str:
    """One line of a table."""
    texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return "".join(f"{text:>13}" for text in texts)


if __name__ == "__main__":
    main()
