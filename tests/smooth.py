"""`python -m medplib.fit` whose mask decoder has an activation without an edge.

Runs whose sums are rounded differently (other processors, other numbers of ranks) part for good where that carries one activation across
its edge: the slope there is 0.01 or 1. Nothing that is compared between such runs hangs on which activation it is.
"""

from torch.nn import functional as F

from medplib.errors import run_command
from medplib.fit import _command

F.leaky_relu_ = F.silu
if __name__ == "__main__":
    run_command(_command)
