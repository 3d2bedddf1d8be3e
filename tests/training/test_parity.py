"""The gate's comparison: what passes, what fails, and what a failure blames."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from training.data.examples import Example
from training.parity import BOUNDS, LONGEST, SHARE_TOLERANCE, ReferenceLogprobs, bound, compare, effect_share, rows_of

ROWS = ((1, 2, 3), (4, 5))
BASE = [[-4.0, -5.0], [-6.0]]
REFERENCE = ReferenceLogprobs(ROWS, trained=[[-1.0, -2.0], [-3.0]], base=BASE)


@dataclass
class Serving:
    """Says what the trainer said, moved by `adapter_off` or, for the base alone, by `base_off`."""

    adapter_off: float = 0.0
    base_off: float = 0.0
    asked: list[Path | None] = field(default_factory=list)

    def logprobs(
        self, adapter: Path | None, rows: Sequence[Sequence[int]], *, dtype: str, quantization: str | None
    ) -> list[list[float]]:
        assert tuple(map(tuple, rows)) == ROWS
        self.asked.append(adapter)
        known, off = (BASE, self.base_off) if adapter is None else (REFERENCE.trained, self.adapter_off)
        return [[value + off for value in row] for row in known]


def test_what_agrees_passes_and_asks_once() -> None:
    serving = Serving(adapter_off=0.01)
    verdict = compare(REFERENCE, serving, Path("a"), dtype="bfloat16", quantization=None)
    parity = verdict.parity
    assert verdict.complaint is None and parity.passed
    assert (parity.positions, parity.effect, parity.bound) == (3, 3.0, bound("bfloat16", None))
    assert parity.mean == pytest.approx(0.01) and parity.largest == pytest.approx(0.01)
    assert serving.asked == [Path("a")], "the base is served again only to explain a failure"


def test_a_failure_with_an_agreeing_base_blames_the_adapter() -> None:
    verdict = compare(REFERENCE, Serving(adapter_off=-1.0), Path("a"), dtype="float32", quantization="nf4")
    assert not verdict.parity.passed
    for part in ("float32, nf4", "by 1 nats on average", "it is the adapter", "rootstock validate"):
        assert part in str(verdict.complaint)


def test_a_failure_with_a_base_that_differs_blames_the_base() -> None:
    verdict = compare(REFERENCE, Serving(1.0, 2.0), Path("a"), dtype="bfloat16", quantization=None)
    for part in ("differs as well, by 2 nats", "same weights"):
        assert part in str(verdict.complaint)


def test_numbers_that_are_none_fail() -> None:
    verdict = compare(REFERENCE, Serving(float("nan")), Path("a"), dtype="bfloat16", quantization=None)
    assert not verdict.parity.passed and verdict.complaint is not None


@pytest.mark.parametrize(("share", "passes"), [(0.0, False), (1.0, True), (2.0, False)])
def test_a_weak_effect_is_looked_for_by_itself(share: float, passes: bool) -> None:
    """A missing adapter, and one that counts twice, are within the bound of rounding and yet found."""
    count, effect = 200, 0.05
    changes = [effect * (-1) ** n for n in range(count)]
    told = ReferenceLogprobs((tuple(range(count + 1)),), [changes], [[0.0] * count], "bfloat16")

    class Weak:
        def logprobs(
            self, adapter: Path | None, rows: Sequence[Sequence[int]], *, dtype: str, quantization: str | None
        ) -> list[list[float]]:
            noise = [0.02 * math.sin(n * (3 if adapter else 5)) for n in range(count)]
            return [[n + (share * change if adapter else 0) for n, change in zip(noise, changes, strict=True)]]

    verdict = compare(told, Weak(), Path("a"), dtype="bfloat16", quantization=None)
    assert verdict.parity.mean < verdict.parity.bound
    assert verdict.parity.passed == passes
    assert verdict.parity.arrived == pytest.approx(share, abs=0.1)
    assert passes or f"{share:.0%}"[0] in str(verdict.complaint) and "arrives in the server" in str(verdict.complaint)


def test_an_effect_below_the_noise_is_left_open() -> None:
    assert effect_share([1e-4] * 50, [0.1 * (-1) ** n for n in range(50)]) is None
    assert effect_share([0.0] * 50, [0.0] * 50) is None
    assert effect_share([0.1] * 10, [0.1] * 10) is None, "too few positions"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_rounding_as_large_as_the_effect_is_not_taken_for_a_loss(share: float) -> None:
    """Least squares would find half of each share, and fail the adapter that arrives whole."""
    count, size = 4000, 0.04
    noise = random.Random(3)
    true = [noise.gauss(0, size) for _ in range(count)]
    there = [value + noise.gauss(0, size) for value in true]
    here = [share * value + noise.gauss(0, size) for value in true]
    found = effect_share(there, here)
    assert found is not None and found == pytest.approx(share, abs=0.2)
    assert sum(a * b for a, b in zip(there, here, strict=True)) / sum(a * a for a in there) < 0.6 * share + 0.05


def test_few_noisy_positions_are_not_judged() -> None:
    """Of 40 adapters that arrive whole, with two short examples each, none fails; at half strength some are caught."""
    noise = random.Random(5)

    def failing(share: float) -> int:
        true = [noise.gauss(0, 0.055) for _ in range(40)]
        there, here = ([part * value + noise.gauss(0, 0.02) for value in true] for part in (1, share))
        found = effect_share(there, here)
        return found is not None and abs(found - 1) > SHARE_TOLERANCE

    assert sum(failing(1.0) for _ in range(40)) == 0
    assert sum(failing(0.5) for _ in range(40)) > 10


def test_without_positions_nothing_was_shown() -> None:
    with pytest.raises(AssertionError):
        compare(ReferenceLogprobs((), [], []), Serving(), Path("a"), dtype="bfloat16", quantization=None)


def test_bounds_grow_with_coarser_precision() -> None:
    assert BOUNDS["float32"] < BOUNDS["float16"] < BOUNDS["bfloat16"]
    for dtype in BOUNDS:
        assert bound(dtype, None) <= bound(dtype, "nf4") <= bound(dtype, "nf4", trainer="bfloat16")


def test_rows_are_the_beginnings_of_what_has_something_to_compare() -> None:
    lengths = (1, 2, LONGEST + 5, 7)
    examples = [Example(tuple(range(n)), (True,) * n, 0, None) for n in lengths]
    assert [len(row) for row in rows_of(examples, 3)] == [2, LONGEST, 7]
