"""What an adapter's file says of the base it was trained on, and the base that it is to be served on.

Owns that record, its spelling in the metadata of a safetensors file, and the verdict on a base: the shapes must fit,
the weights must be the ones it was trained on, and so must their quantization unless the operator allows another.
Files without a record, which other trainers write, are judged by their shapes alone.
"""

import threading
from collections.abc import Callable, Mapping

from adapters.errors import BaseMismatch, quoted
from adapters.manifest import AdapterId, Manifest, TrainedOn
from loader.digests import is_digest
from loader.shape import BaseShape

WEIGHTS, QUANTIZATION = "base_weights", "base_quantization"
QUANTIZATIONS = ("none", "nf4", "fp4")


def trained_on(metadata: Mapping[str, str]) -> TrainedOn | None:
    """The record in a file's metadata; None if there is none. Raises ValueError for half a record or an odd one."""
    weights, quantization = metadata.get(WEIGHTS), metadata.get(QUANTIZATION)
    if weights is None and quantization is None:
        return None
    if not is_digest(weights):
        raise ValueError(f"{WEIGHTS} is {quoted(weights, 90)}, expected sha256: and 64 hexadecimal digits")
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"{QUANTIZATION} is {quoted(quantization, 40)}, expected {', '.join(QUANTIZATIONS)}")
    assert weights is not None
    return TrainedOn(weights, quantization)


class ServedBase:
    """What adapters are held against. `weights` computes the base's fingerprint; it is asked once, and only when
    an adapter has a record. `quantization` is None, "nf4" or "fp4". Safe to use from many threads.
    """

    def __init__(
        self,
        shape: BaseShape,
        weights: Callable[[], str],
        quantization: str | None = None,
        allow_other_quantization: bool = False,
    ) -> None:
        self.shape, self.quantization, self.allows_other_quantization = shape, quantization, allow_other_quantization
        self._compute, self._known = weights, ""
        self._lock = threading.Lock()
        self._fitting: set[AdapterId] = set()

    @property
    def weights(self) -> str:
        """The fingerprint; the first call may take seconds."""
        with self._lock:
            self._known = self._known or self._compute()
            return self._known

    def check(self, manifest: Manifest) -> None:
        """Raises BaseMismatch, which names both sides and the fix. Quick for an adapter that was seen before."""
        if manifest.id not in self._fitting:
            self._check_shapes(manifest)
            self._fitting.add(manifest.id)
        if manifest.trained_on is not None:
            self._check_record(manifest.trained_on)

    def misfit(self, manifest: Manifest) -> str | None:
        """What `check` raises, as text, or None."""
        try:
            self.check(manifest)
        except BaseMismatch as error:
            return str(error)
        return None

    def _check_shapes(self, manifest: Manifest) -> None:
        """Uploads were compared tensor by tensor; this is for adapters that an earlier base had taken."""
        for graft in manifest.grafts:
            linear = self.shape.linears.get(graft.path)
            if linear is None or (linear.in_features, linear.out_features) != (graft.in_features, graft.out_features):
                here = "has no such layer" if linear is None else f"has {linear.in_features} x {linear.out_features}"
                raise BaseMismatch(
                    f"This adapter was made for another base: it adapts {graft.path} of {graft.in_features} x "
                    f"{graft.out_features}, and {self.shape.base_id} {here}.",
                    "Start the server with the adapter's own base (--base), or delete the adapter.",
                )

    def _check_record(self, record: TrainedOn) -> None:
        weights, quantization, base = self.weights, self.quantization or "none", self.shape.base_id
        if record.weights != weights:
            raise BaseMismatch(
                f"This adapter was trained on other weights than are served. Trained on: {record.weights}, "
                f"quantization {record.quantization}. Served: {weights}, quantization {quantization} ({base}).",
                "Serve the base that it was trained on (--base), or train it again on this one.",
            )
        if record.quantization != quantization and not self.allows_other_quantization:
            plain = record.quantization == "none"
            same = "without --quantization" if plain else f"with --quantization {record.quantization}"
            raise BaseMismatch(
                f"This adapter was trained on the same weights in another quantization. Trained on: quantization "
                f"{record.quantization}. Served: quantization {quantization} ({base}).",
                f"Serve {same}, or add --allow-quantization-mismatch if a loss of accuracy is acceptable.",
            )
