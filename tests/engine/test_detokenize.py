"""Text in pieces is the text as a whole: no half characters, and nothing of a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from engine.detokenize import TextStream

SPECIAL = 256


def byte_tokenizer() -> Tokenizer:
    """A real byte-level tokenizer: token i is the i-th symbol of the byte alphabet, and one special token."""
    core = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(ALPHABET)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|end|>"])
    return core


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZER = byte_tokenizer()


def decode(ids: Sequence[int]) -> str:
    text: str = TOKENIZER.decode(list(ids), skip_special_tokens=True)
    return text


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text).ids
    return ids


def stream(ids: Sequence[int], stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> tuple[list[str], str | None]:
    """The pieces that are shown, the last one included, and what stopped them."""
    text = TextStream(decode, prompt, stop)
    pieces = []
    for token in ids:
        piece = text.push(token)
        pieces.append(piece.text)
        if piece.stopped_by is not None:
            return [*pieces, text.finish().text], piece.stopped_by
    return [*pieces, text.finish().text], None


@pytest.mark.parametrize(
    "text", ["héllo", "日本語 text", "👩‍👩‍👧‍👦 family", "a\u0301", "\N{REPLACEMENT CHARACTER} itself"]
)
def test_e52_characters_of_many_bytes_are_never_split(text: str) -> None:
    pieces, _ = stream(encode(text))
    assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)


def test_each_character_is_shown_as_soon_as_it_is_whole() -> None:
    pieces, _ = stream(encode("aé€"))
    assert pieces == ["a", "", "é", "", "", "€", ""]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    pieces, _ = stream(encode("€")[:2])
    assert pieces == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_the_prompt_is_context_and_not_text() -> None:
    pieces, _ = stream(encode(" world"), prompt=encode("hello, this is a prompt"))
    assert "".join(pieces) == " world"


@pytest.mark.parametrize(
    ("stop", "shown", "by"),
    [
        (("lo w",), "hel", "lo w"),
        (("world", "lo"), "hel", "lo"),
        (("nothing", "d!"), "hello world", None),
        (("hello",), "", "hello"),
        (("d",), "hello worl", "d"),
    ],
)
def test_e52_stop_strings_across_tokens(stop: tuple[str, ...], shown: str, by: str | None) -> None:
    pieces, stopped_by = stream(encode("hello world"), stop)
    assert "".join(pieces) == shown and stopped_by == by


def test_what_may_become_a_stop_string_is_held_and_then_shown() -> None:
    pieces, _ = stream(encode("xababc"), ["abc"])
    assert pieces == ["x", "", "", "ab", "", "", ""]
    pieces, _ = stream(encode("xabab!"), ["abc"])
    assert pieces == ["x", "", "", "ab", "", "ab!", ""]


def test_nothing_follows_a_stop_string_not_even_the_rest_of_its_token() -> None:
    """Token 1 is a space and the first byte of a character."""
    text = TextStream(lambda ids: "".join("a" if id == 0 else " \N{REPLACEMENT CHARACTER}" for id in ids), (), (" ",))
    assert text.push(0).text == "a"
    piece = text.push(1)
    assert (piece.text, piece.stopped_by) == ("", " ")
    assert text.finish().text == ""


def test_e52_a_stop_string_of_many_bytes() -> None:
    pieces, stopped_by = stream(encode("price: 5€ or"), ["€"])
    assert "".join(pieces) == "price: 5" and stopped_by == "€"


def test_until_it_may_stop_everything_passes() -> None:
    text = TextStream(decode, (), ["ab"])
    assert [text.push(token, may_stop=False).text for token in encode("xab")] == ["x", "a", "b"]
    assert [text.push(token).stopped_by for token in encode("ab")] == [None, "ab"]


def test_bytes_that_never_become_characters_are_shown_and_cost_no_more_than_others() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode(ids)

    for token in (encode("€")[1], SPECIAL):
        text = TextStream(counting, (), ())
        shown = "".join(text.push(token).text for _ in range(500)) + text.finish().text
        assert shown == decode([token] * 500)
    assert max(decoded) <= 40


bits = st.one_of(
    st.sampled_from("ab cé€👍").map(encode),
    st.lists(st.integers(0, 255), min_size=1, max_size=3),
    st.just([SPECIAL]),
    st.lists(
        st.sampled_from([ALPHABET.index(c) for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) > 127]), max_size=12
    ),
)
tokens = st.lists(bits, max_size=25).map(lambda parts: [token for part in parts for token in part])


@settings(max_examples=120, deadline=None)
@given(ids=tokens, stop=st.text("ab cé€", min_size=1, max_size=3), prompt=st.text("ab é", max_size=8))
@example(ids=encode("€")[:1] * 70 + encode("a"), stop="b", prompt="")
def test_pieces_are_the_whole_text_up_to_the_first_stop_string(ids: list[int], stop: str, prompt: str) -> None:
    whole = decode(ids)
    pieces, stopped_by = stream(ids, [stop], encode(prompt))
    at = whole.find(stop)
    assert "".join(pieces) == (whole if at < 0 else whole[:at])
    assert (stopped_by is None) == (at < 0)


@settings(max_examples=60, deadline=None)
@given(ids=tokens)
def test_without_stop_strings_nothing_is_lost(ids: list[int]) -> None:
    pieces, _ = stream(ids)
    assert "".join(pieces) == decode(ids)


def test_a_special_token_that_is_to_appear() -> None:
    """Where it stands, with half a character before it, and for stop strings too; all others stay left out."""
    half = encode("é")[:1]
    ids = [*encode("hé"), SPECIAL, *encode("日"), *half, SPECIAL, *encode("ö.")]
    text = TextStream(decode, [], [], {SPECIAL: "<call>"})
    pieces = [text.push(token).text for token in ids] + [text.finish().text]
    assert "".join(pieces) == "hé<call>日\N{REPLACEMENT CHARACTER}<call>ö."
    assert pieces[3] == "<call>", "as soon as it comes"
    stopped = TextStream(decode, [], ["l><"], {SPECIAL: "<call>"})
    assert [stopped.push(SPECIAL).text, stopped.push(SPECIAL).text] == ["<cal", ""]
    hidden = TextStream(decode, [], [], {SPECIAL + 1: "<call>"})
    assert "".join(hidden.push(token).text for token in encode("a") + [SPECIAL] + encode("b")) == "ab"
