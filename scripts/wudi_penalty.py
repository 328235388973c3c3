"""Which ridge of `wudi` is nearest to the steps of Adam that its authors take.

Task vectors are random matrices whose singular values fall as a power of their rank. For each
setting, prints the penalty whose closed form is nearest to 300 steps at their learning rate, and
how far off it and the default are, relative to the norm.

python scripts/wudi_penalty.py
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.combining.interference import least_interference
from hf_zip.methods.wudi import WudiOptions

SIZE, STEPS, RATE = 192, 300, 1e-5
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    default = WudiOptions().penalty
    print(f"models  power  deviation  nearest penalty  distance  distance at {default:g}")
    for count in (2, 4, 8):
        for power in (0.5, 1.0, 1.5):
            for deviation in (1e-4, 3e-4, 1e-3):
                vectors = random_vectors(count, power, deviation)
                stepped = by_steps(vectors)
                distances = {
                    penalty: float(
                        (least_interference(vectors, penalty) - stepped).norm() / stepped.norm()
                    )
                    for penalty in (*PENALTIES, default)
                }
                best = min(PENALTIES, key=lambda penalty: distances[penalty])
                print(
                    f"{count:6}  {power:5}  {deviation:9g}  {best:15g}  {distances[best]:8.3f}  "
                    f"{distances[default]:8.3f}"
                )


def random_vectors(count: int, power: float, deviation: float) -> Float[Tensor, "models m n"]:
    """Returns matrices with falling singular values and a standard deviation of their numbers."""
    values = torch.arange(1, SIZE + 1.0) ** -power
    made = []
    for _ in range(count):
        left, right = (torch.linalg.qr(torch.randn(SIZE, SIZE)).Q for _ in range(2))
        matrix = (left * values) @ right
        made.append(matrix * deviation / matrix.std())
    return torch.stack(made)


def by_steps(vectors: Float[Tensor, "models m n"]) -> Float[Tensor, "m n"]:
    """Returns what Adam reaches from the sum of task vectors."""
    norms = vectors.square().sum(dim=(1, 2), keepdim=True)
    merged = vectors.sum(dim=0).clone().requires_grad_()
    optimiser = torch.optim.Adam([merged], lr=RATE)
    for _ in range(STEPS):
        loss = (((merged - vectors) @ vectors.mT).square() / norms).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return merged.detach()


if __name__ == "__main__":
    main()
