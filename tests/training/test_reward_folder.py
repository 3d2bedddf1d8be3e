"""The folder of a reward model, as people name the wrong one: every case is told, and no weights are read for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import RewardModelInvalid
from training.reward_folder import ADAPTER_FILES, CARD, RewardCard, check_base, read_card, write_card

HERE, ELSEWHERE = ("sha256:" + 64 * digit for digit in "01")


def whole(folder: Path) -> Path:
    for name in ADAPTER_FILES:
        (folder / name).touch()
    write_card(folder, RewardCard("tiny", HERE, "nf4", "adapter"))
    return folder


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    card = read_card(whole(tmp_path))
    assert card == RewardCard("tiny", HERE, "nf4", "adapter")
    assert card.quantization == "nf4"
    assert RewardCard("tiny", HERE, "none", "adapter").quantization is None


def test_another_base_is_refused(tmp_path: Path) -> None:
    card = read_card(whole(tmp_path))
    check_base(tmp_path, card, "tiny", HERE)
    with pytest.raises(RewardModelInvalid, match="Set base to tiny, or train a reward model on other"):
        check_base(tmp_path, card, "other", ELSEWHERE)


def no_card(folder: Path) -> None:
    (folder / CARD).unlink()


def model_without_card(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "config.json").touch()


def only_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def pickled_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_head(folder: Path) -> None:
    (folder / "score.safetensors").unlink()


def whole_model_without_weights(folder: Path) -> None:
    write_card(folder, RewardCard("tiny", HERE, "none", "model"))
    (folder / "config.json").touch()


def cut_off(folder: Path) -> None:
    (folder / CARD).write_text((folder / CARD).read_text()[:40])


def another_format(folder: Path) -> None:
    change(folder, "format", "rootstock-reward-0")


def odd_fingerprint(folder: Path) -> None:
    change(folder, "base_weights", "md5:0")


def odd_quantization(folder: Path) -> None:
    change(folder, "base_quantization", "int3")


def no_text(folder: Path) -> None:
    change(folder, "base", 7)


def change(folder: Path, key: str, value: object) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, key: value}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_card, "an adapter without a score head"),
        (model_without_card, "a model, but no reward.json"),
        (only_a_pickle, "pytorch_model.bin, a pickle.*can run code"),
        (pickled_weights, "adapter_model.bin, a pickle, in place of adapter_model.safetensors"),
        (no_head, "no score.safetensors. Copy the whole output folder"),
        (whole_model_without_weights, "no model.safetensors"),
        (cut_off, "damaged"),
        (another_format, "another format"),
        (odd_fingerprint, "damaged"),
        (odd_quantization, "damaged"),
        (no_text, "damaged"),
    ],
)
def test_a_wrong_folder_is_told(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    spoil(whole(tmp_path))
    with pytest.raises(RewardModelInvalid, match=said):
        read_card(tmp_path)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(RewardModelInvalid, match="no such folder. Name the output folder of `objective: reward`"):
        read_card(tmp_path / "nowhere")
