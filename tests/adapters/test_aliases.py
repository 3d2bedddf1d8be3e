"""Moves of an alias and the way back, and the canary that shares its traffic."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.aliases import HISTORY
from adapters.canary import Canary, Split, position
from adapters.errors import CanaryInvalid, NothingToRollBack, UnknownAdapter, UnknownVersion, VersionInUse
from adapters.evaluations import Score
from adapters.naming import parse_reference
from adapters.registry import Registry
from tests.adapters.test_registry import manifest, resolve, url


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Three versions of `a`, `prod` at the first."""
    opened = Registry(url(tmp_path))
    for content in (1, 2, 3):
        opened.add("a", manifest(content))
    opened.set_alias("a", "prod", 1)
    yield opened
    opened.close()


def moves(registry: Registry) -> list[tuple[int | None, int | None, bool]]:
    return [(move.from_number, move.to_number, move.undone is not None) for move in registry.alias("a", "prod").moves]


def test_moves_are_remembered_however_they_are_made(registry: Registry) -> None:
    registry.set_alias("a", "prod", 1)  # no move
    registry.add("a", manifest(4), alias="prod")
    registry.delete_alias("a", "prod")
    registry.set_alias("a", "prod", 2)
    assert moves(registry) == [(None, 2, False), (4, None, False), (1, 4, False), (None, 1, False)]


def test_rollback_goes_back_move_by_move(registry: Registry) -> None:
    registry.set_alias("a", "prod", 2)
    registry.set_alias("a", "prod", 3)
    assert [registry.roll_back("a", "prod").number for _ in range(2)] == [2, 1]
    with pytest.raises(NothingToRollBack):
        registry.roll_back("a", "prod")
    assert resolve(registry, "a@prod").number == 1
    assert moves(registry) == [(2, 3, True), (1, 2, True), (None, 1, False)]


def test_a_version_that_is_gone_was_gone_by(registry: Registry) -> None:
    for number in (2, 3, 2, 3):
        registry.set_alias("a", "prod", number)
    with pytest.raises(VersionInUse, match="'prod'"):
        registry.delete_version("a", 3)
    assert registry.delete_version("a", 2) == [manifest(2).id]
    assert moves(registry) == [(1, 3, False), (None, 1, False)]
    assert registry.roll_back("a", "prod").number == 1


def test_a_rollback_is_no_move_of_its_own(registry: Registry) -> None:
    registry.set_alias("a", "prod", 2)
    registry.roll_back("a", "prod")
    registry.set_alias("a", "prod", 3)
    assert registry.roll_back("a", "prod").number == 1


def test_a_deleted_alias_can_be_put_back(registry: Registry) -> None:
    registry.delete_alias("a", "prod")
    assert registry.roll_back("a", "prod").aliases == ("prod",)


def test_nothing_is_remembered_of_a_deleted_name(registry: Registry) -> None:
    registry.set_alias("a", "prod", 2, canary=Canary(3, 0.5))
    registry.delete("a")
    registry.add("a", manifest(5), alias="prod")
    assert moves(registry) == [(None, 4, False)]
    assert registry.splits() == []
    with pytest.raises(NothingToRollBack):
        registry.roll_back("a", "prod")


def test_history_is_bounded(registry: Registry) -> None:
    for turn in range(HISTORY + 5):
        registry.set_alias("a", "prod", 2 + turn % 2)
    assert len(moves(registry)) == HISTORY


def test_unknown_aliases(registry: Registry) -> None:
    with pytest.raises(UnknownAdapter):
        registry.alias("a", "beta")
    with pytest.raises(UnknownAdapter):
        registry.roll_back("nobody", "prod")


def test_a_canary_shares_the_traffic_of_its_alias_alone(registry: Registry) -> None:
    registry.set_alias("a", "beta", 1)
    version = registry.set_alias("a", "prod", 1, canary=Canary(3, 0.25))
    assert version.canaries == () and resolve(registry, "a@3").canaries == (("prod", 0.25),)
    assert registry.alias("a", "prod").canary == Canary(3, 0.25)
    (split,) = registry.splits()
    assert split == registry.split(parse_reference("a@prod"))
    assert {split.pick(str(key)).number for key in range(100)} == {1, 3}
    for ref in ("a@beta", "a@1", "a"):
        assert registry.split(parse_reference(ref)).canary is None
    assert resolve(registry, "a@prod").number == 1


def test_a_canary_ends_with_any_move_and_by_a_rollback(registry: Registry) -> None:
    registry.set_alias("a", "prod", 2)
    for end in (
        lambda: registry.set_alias("a", "prod", 2),
        lambda: registry.delete_alias("a", "prod"),
        lambda: registry.roll_back("a", "prod"),
    ):
        registry.set_alias("a", "prod", 2, canary=Canary(3, 0.5))
        end()
        assert registry.splits() == []
    assert resolve(registry, "a@prod").number == 2, "the rollback ended the canary and moved nothing"


def test_canaries_that_are_refused_change_nothing(registry: Registry) -> None:
    with pytest.raises(CanaryInvalid):
        registry.set_alias("a", "prod", 2, canary=Canary(2, 0.5))
    with pytest.raises(UnknownVersion):
        registry.set_alias("a", "prod", 2, canary=Canary(9, 0.5))
    assert resolve(registry, "a@prod").number == 1 and registry.splits() == []


KEYS = [f"user:{number}" for number in range(2000)]


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.text(max_size=20))
def test_the_share_is_kept_and_equal_keys_choose_alike(weight: float, salt: str) -> None:
    split = Split("stable", "canary", weight, salt)
    chosen = [split.pick(key) for key in KEYS]
    assert chosen == [split.pick(key) for key in KEYS]
    # Five standard deviations of a binomial share.
    assert abs(chosen.count("canary") / len(KEYS) - weight) < 5 * (weight * (1 - weight) / len(KEYS)) ** 0.5


def test_a_growing_weight_keeps_whom_it_has() -> None:
    few, many = (Split("stable", "canary", weight, "salt") for weight in (0.1, 0.4))
    assert {key for key in KEYS if few.pick(key) == "canary"} < {key for key in KEYS if many.pick(key) == "canary"}


def test_another_canary_is_tried_on_other_keys() -> None:
    first, second = ({key for key in KEYS if position(salt, key) < 0.1} for salt in ("one", "two"))
    assert len(first & second) < 60  # 20 are expected of 200


def test_the_hash_is_the_same_in_every_release() -> None:
    assert position("a@prod#sha256:00", "user:1") == 0.27454705994557327


def test_without_a_key_or_a_canary_the_version_is_stable() -> None:
    assert Split("stable", "canary", 0.99).pick(None) == "stable"
    assert Split("stable").pick("key") == "stable"


SCORE = Score("00", "base", -1.5, 0.5, 2, 10)


def test_an_eval_file_and_a_score_belong_to_a_version(registry: Registry) -> None:
    registry.attach_eval("a", 2, b"first")
    registry.attach_eval("a", 2, b"second")
    found = registry.eval_file("a", 2)
    assert found is not None and found.content == b"second"
    registry.remember_score("a", 2, SCORE)
    registry.remember_score("a", 2, replace(SCORE, exact=1.0))
    assert [version.score for version in registry.versions("a")] == [None, replace(SCORE, exact=1.0), None]
    with pytest.raises(UnknownVersion):
        registry.attach_eval("a", 9, b"")
    registry.delete("a")
    assert registry.eval_file("a", 2) is None
    with pytest.raises(UnknownAdapter):
        registry.remember_score("a", 2, SCORE)


def test_a_score_regresses_beyond_the_tolerance() -> None:
    worse = replace(SCORE, mean_logprob=-1.6)
    assert worse.regresses(SCORE, 0.09) and not worse.regresses(SCORE, 0.11)
    assert not SCORE.regresses(worse, 0) and not SCORE.regresses(SCORE, 0)
