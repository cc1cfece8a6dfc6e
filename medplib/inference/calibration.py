"""The stored rule that turns presence logits into a probability and a decision; fitted by medplib.evaluation.presence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.special import expit

from medplib.errors import InputError
from medplib.paths import atomic_path


@dataclass(frozen=True)
class PresenceCalibration:
    """probability = sigmoid(weights . logits + bias); present when it is at least `threshold`. Says what it was fitted on.

    Args:
        names: what each logit is, in the order in which they are passed.
        weights: non-negative, so that more evidence never lowers the probability.
        bias: added to the weighted sum.
        threshold: on the probability.
        rule: how the threshold was chosen, in words.
        present: validation cases with the target present.
        absent: validation cases with it absent.
        weights_sha256: of the checkpoint it was fitted for; "" before it is stored with one.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    rule: str
    present: int
    absent: int
    weights_sha256: str = ""

    def probability(self, logits_NK: np.ndarray) -> np.ndarray:
        """(N, K) logits in the order of `names` -> (N,) probabilities."""
        return expit(np.asarray(logits_NK, np.float64) @ np.array(self.weights) + self.bias)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path, *, weights_sha256: str) -> PresenceCalibration:
        """Read what `save` wrote for the checkpoint with these weights.

        Raises:
            InputError: missing, not JSON, other fields, fitted for other weights, or numbers that are no calibration.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(where=path, expected="a presence calibration in JSON", found=type(error).__name__) from None
        expected = {f.name for f in fields(PresenceCalibration)}
        if not isinstance(stored, dict) or stored.keys() != expected:
            raise InputError(where=path, expected=f"the fields {sorted(expected)}", found=str(stored)[:80])
        try:
            loaded = PresenceCalibration(
                names=tuple(str(name) for name in stored["names"]),
                weights=tuple(float(weight) for weight in stored["weights"]),
                bias=float(stored["bias"]),
                threshold=float(stored["threshold"]),
                rule=str(stored["rule"]),
                present=int(stored["present"]),
                absent=int(stored["absent"]),
                weights_sha256=str(stored["weights_sha256"]),
            )
        except (TypeError, ValueError) as error:
            raise InputError(where=path, expected="numbers in the fields of a calibration", found=str(error)) from None
        if loaded.weights_sha256 != weights_sha256:
            raise InputError(where=path, expected=f"a calibration of the weights {weights_sha256[:12]}", found=loaded.weights_sha256[:12],
                             remedy="fit it again (python -m medplib.evaluate with `calibrate` in its suite), or remove it")  # fmt: skip
        numbers = np.array([*loaded.weights, loaded.bias, loaded.threshold])
        if not np.isfinite(numbers).all() or len(loaded.names) != len(loaded.weights) or not loaded.names or min(loaded.weights) < 0:
            raise InputError(where=path, expected="one finite weight >= 0 per name, finite bias and threshold", found=str(stored)[:120])
        return loaded
