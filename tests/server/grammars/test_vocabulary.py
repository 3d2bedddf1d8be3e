"""Vocabularies as bases bring them: bytes as letters, pieces with a block for a space, and what spells nothing."""

import re
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from engine.constraint import Constraint
from server.errors import BadRequest
from server.grammars.compiler import Compiler
from server.grammars.vocabulary import vocabulary
from server.structure import Kind, Structure

SIZE = 320  # a few more than there are tokens, as embeddings are padded


def byte_level() -> Tokenizer:
    """GPT-2's kind, with a token of several letters and one of half a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a")]
    core = Tokenizer(BPE({piece: n for n, piece in enumerate([*alphabet, "ab", "abc", "Ġa"])}, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<other>", special=True)])
    return core


def pieces() -> Tokenizer:
    """Llama 2's kind: pieces, and bytes for what has none."""
    names = ["<unk>", "<end>", "<other>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "ab", "▁a"]
    merges = [("a", "b"), ("▁", "a")]
    core = Tokenizer(BPE({name: n for n, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<end>", "<other>")])
    return core


def id_of(core: Tokenizer, token: str) -> int:
    found = core.token_to_id(token)
    assert found is not None
    return found


def start(core: Tokenizer, kind: Kind, content: Any) -> Constraint:
    ends = [id_of(core, "<end>"), id_of(core, "<other>")]
    return Compiler(lambda: vocabulary(core, SIZE, ends)).compile_now(Structure("f", kind, content))()


def allowed(constraint: Constraint) -> set[int]:
    bits = int.from_bytes(constraint.allowed(), "little")
    return {token for token in range(8 * len(constraint.allowed())) if bits >> token & 1}


@pytest.mark.parametrize("core", [byte_level(), pieces()], ids=["bytes as letters", "pieces"])
def test_tokens_are_what_they_spell(core: Tokenizer) -> None:
    constraint, spelled = start(core, "regex", "(ab)?c? é"), b""
    named = {core.id_to_token(token) for token in allowed(constraint)}
    assert {"a", "ab", "c"} <= named and not named & {"b", "▁a", "Ġa", "<end>", "<other>", "<unk>"}
    assert max(allowed(constraint)) < core.get_vocab_size()
    for piece in ("ab", "c", " ", "é"):
        for token in core.encode_batch_fast([piece], add_special_tokens=False)[0].ids:
            if core.id_to_token(token) == "▁" and piece != " ":
                continue  # what the normalizer puts before a beginning
            if constraint.complete or token not in allowed(constraint):
                continue
            constraint.accept(token)
            spelled += piece.encode()
    assert constraint.complete and allowed(constraint) >= {id_of(core, "<end>"), id_of(core, "<other>")}


def test_every_end_of_the_base_ends_an_answer() -> None:
    core = byte_level()
    constraint = start(core, "regex", "a|ab")
    ends = {id_of(core, "<end>"), id_of(core, "<other>")}
    assert not ends & allowed(constraint)
    constraint.accept(id_of(core, "a"))
    assert allowed(constraint) == {id_of(core, "b")} | ends


def test_padding_is_left_as_it_was() -> None:
    core = byte_level()
    core.enable_padding(length=9)
    core.enable_truncation(5)
    vocabulary(core, SIZE, [id_of(core, "<end>")])
    assert core.padding is not None and core.truncation is not None


def test_a_base_whose_tokens_cannot_be_spelled_has_no_structured_output() -> None:
    core = Tokenizer(WordLevel({"yes": 0, "no": 1, "<end>": 2, "<other>": 3}, unk_token="no"))
    with pytest.raises(BadRequest, match=re.escape("is not supported with this base")) as refused:
        start(core, "regex", "yes")
    assert refused.value.code == "unsupported_field"


@pytest.mark.parametrize("core", [byte_level(), pieces()], ids=["byte level", "pieces"])
def test_added_tokens_that_are_text_are_text(core: Tokenizer) -> None:
    """As <think> and <tool_call> are in many vocabularies, of which some have tokens of space and letters too."""
    spelled = ["<think>", "</tool_call>", "[ARGS]", "<|x|>", "  ", "é<>"]
    core.add_tokens([AddedToken(text, special=False) for text in spelled])
    core.add_special_tokens([AddedToken("<|later|>", special=True)])
    ids = {text: id_of(core, text) for text in (*spelled, "<|later|>", "a")}
    constraint = start(core, "regex", "(?s:.*)")
    assert {ids[text] for text in (*spelled, "a")} <= allowed(constraint)
    assert ids["<|later|>"] not in allowed(constraint)
    for text in spelled:
        only = start(core, "choice", (text, "b"))
        assert ids[text] in allowed(only) and ids["a"] not in allowed(only)
        only.accept(ids[text])
        assert allowed(only) == {id_of(core, "<end>"), id_of(core, "<other>")}


def test_an_end_that_is_text_stays_an_end() -> None:
    core = byte_level()
    core.add_tokens([AddedToken("</s>", special=False)])
    end = id_of(core, "</s>")
    constraint = Compiler(lambda: vocabulary(core, SIZE, [end])).compile_now(Structure("f", "regex", "a"))()
    assert end not in allowed(constraint)
    constraint.accept(id_of(core, "a"))
    assert allowed(constraint) == {end}
