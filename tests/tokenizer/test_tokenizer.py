import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

import entropix_lab as lab
from entropix_lab.tokenizer import Tokenizer

META = MetaTokenizer.get_instance()
META_FILE = Path(__import__("llama_models.llama3").llama3.__file__).parent / "tokenizer.model"
GOLDEN = json.loads(gzip.open(Path(__file__).parent.parent / "golden" / "tokenizer_smollm2.json.gz").read())
DIALOG = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "  Où est <|eot_id|> 北京?\n"},
    {"role": "assistant", "content": "In China."},
    {"role": "user", "content": ""},
]


@pytest.fixture(scope="module")
def llama3():
    return Tokenizer(META_FILE)


def same_as_meta(llama3, text):
    for special in (frozenset(), "all", {"<|eot_id|>"}):
        ours = llama3.encode(text, bos=True, allowed_special=special)
        assert ours == META.encode(text, bos=True, eos=False, allowed_special=special)
    assert llama3.decode(ours) == META.decode(ours)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_llama3_equals_metas_on_any_text(llama3, text):
    same_as_meta(llama3, text)


def test_llama3_equals_metas_on_the_golden_strings(llama3):
    for text, _ in GOLDEN[::8]:
        same_as_meta(llama3, text)


@pytest.mark.parametrize(
    "text", ["a" * 60_000, " " * 60_000, "ab " * 150_000, "x" * 25_000, "x" * 25_001 + "\n" * 25_001]
)
def test_llama3_cuts_long_runs_where_meta_does(llama3, text):
    same_as_meta(llama3, text)


def test_llama3_numbers(llama3):
    assert llama3.special_tokens == META.special_tokens
    assert (llama3.n_words, llama3.bos_id, set(llama3.stop_tokens)) == (
        META.n_words,
        META.bos_id,
        set(META.stop_tokens),
    )
    assert llama3.encode("hello")[0] == META.bos_id


@pytest.mark.parametrize("n", range(1, 5))
def test_llama3_dialog_equals_metas(llama3, n):
    theirs = ChatFormat(META).encode_dialog_prompt([RawMessage(**m) for m in DIALOG[:n]]).tokens
    assert llama3.encode_dialog_prompt(DIALOG[:n]) == theirs


def test_demo_equals_the_golden_strings(demo):
    wrong = [text for text, ids in GOLDEN if demo.tokenizer.encode(text, allowed_special="all") != ids]
    assert len(GOLDEN) == 3200 and not wrong


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_demo_round_trip(demo, text):
    ids = demo.tokenizer.encode(text)
    # the vocabulary lacks these bytes: a text without them comes back, any other loses just them
    absent = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])
    assert demo.tokenizer.decode_bytes(ids) == bytes(b for b in text.encode() if b not in absent)
    assert all(0 <= t < demo.config.vocab_size for t in ids)


def test_demo_chat_and_stop(demo):
    ids = demo.tokenizer.encode_dialog_prompt("Hi <|im_end|>")
    text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text += "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert demo.tokenizer.decode(ids) == text
    assert ids.count(2) == 2  # the one in the user's words is plain text
    assert demo.tokenizer.stop_tokens == (2, 0)


def test_content_in_parts(demo):
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
    encode = demo.tokenizer.encode_dialog_prompt
    assert encode([{"role": "user", "content": parts}]) == encode("Hi you")


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], r"list of {\"role\": one of system, user, assistant, \"content\": text}, found \[\]"),
        (None, "found None"),
        ({"role": "user", "content": "a"}, "expected a string or a list"),
        (["a", "b"], r"messages\[0\]: expected .*, found 'a'"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], r"messages\[1\]: .*the role 'tool'"),
        ([{"content": "a"}], "the role None"),
        ([{"role": "user"}], "the content None"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part 'image_url': .* text parts"),
        ([{"role": "user", "content": ["a"]}], "a part 'a'"),
    ],
)
def test_what_is_no_conversation(llama3, messages, found):
    with pytest.raises(ValueError, match=found):
        llama3.encode_dialog_prompt(messages)


def test_errors(demo, tmp_path):
    with pytest.raises(ValueError, match="token 49152 is outside the vocabulary of 49152"):
        demo.tokenizer.decode([1, 49152])
    with pytest.raises(ValueError, match="no beginning-of-text"):
        demo.tokenizer.encode("a", bos=True)
    for content, found in [
        ("not base64 at all\n", "found"),
        ("YQ== 5\n", "found 1 tokens from rank 5"),
        ("", "found 0"),
    ]:
        (tmp_path / "tokenizer.model").write_text(content)
        with pytest.raises(lab.CheckpointError, match=found):
            Tokenizer(tmp_path / "tokenizer.model")
