"""tokenizer.json against the `tokenizers` library: the demo model's, and one in Llama 3's manner."""

import gzip
import json
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import entropix_lab as lab
from entropix_lab.tokenizer import Tokenizer, load_tokenizer, why_no_tokenizer
from entropix_lab.tokenizer.tokenizer_json import BYTES, LLAMA3_PATTERN

GOLDEN = json.loads(gzip.open(Path(__file__).parent.parent / "golden" / "tokenizer_smollm2.json.gz").read())
CHARS = {b: c for c, b in BYTES.items()}


def merges_of(ranks):
    """The pair that makes each token: what its bytes come to when only lower ranks are merged."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            made = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            at = made.index(min(made))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield tuple("".join(CHARS[b] for b in part) for part in parts)


@pytest.fixture(scope="module")
def smollm2(demo, tmp_path_factory):
    """A folder with the demo model's tokenizer as tokenizer.json."""
    ranks, special = demo.tokenizer._ranks, demo.tokenizer.special_tokens
    vocab = special | {"".join(CHARS[b] for b in token): i for token, i in ranks.items()}
    model = tokenizers.Tokenizer(models.BPE(vocab, list(merges_of(ranks))))
    model.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in special])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    model.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("smollm2")
    model.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """A folder with a small tokenizer.json in Llama 3's manner: every split of a token is a merge."""
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated", invert=False)
    before = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = before
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([t for t, _ in GOLDEN], trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet))
    vocab = trained.get_vocab()
    pairs = [(t[:k], t[k:]) for t in sorted(vocab, key=vocab.get) for k in range(1, len(t))]
    merges = [(a, b) for a, b in pairs if a in vocab and b in vocab]
    model = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    model.pre_tokenizer, model.decoder = before, decoders.ByteLevel()
    model.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"])
    model.add_special_tokens(["<|eot_id|>"])
    bos = model.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    model.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    folder = tmp_path_factory.mktemp("llama3")
    model.save(str(folder / "tokenizer.json"))
    return folder


def both(folder):
    return load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["smollm2", "llama3"])
def test_the_golden_strings(kind, request):
    ours, theirs = both(request.getfixturevalue(kind))
    # a byte that the vocabulary lacks is dropped by both, but `tokenizers` merges what then stands side by side; the
    # golden ids, llama.cpp's, are ours
    lacks = lambda text: any(bytes([b]) not in ours._ranks for b in text.encode())
    differ = [t for t, _ in GOLDEN if ours.encode(t, allowed_special="all") != theirs.encode(t).ids]
    assert all(map(lacks, differ)) and sum(lacks(t) for t, _ in GOLDEN) == {"smollm2": 679, "llama3": 0}[kind]


def test_smollm2_equals_its_tokenizer_model(demo, smollm2):
    ours = load_tokenizer(smollm2)
    assert all(ours.encode(t, allowed_special="all") == ids for t, ids in GOLDEN)
    assert (ours.special_tokens, ours.n_words) == (demo.tokenizer.special_tokens, demo.tokenizer.n_words)
    assert ours.stop_tokens == (2,) and demo.tokenizer.stop_tokens == (2, 0)
    assert ours.encode_dialog_prompt("Hi") == demo.tokenizer.encode_dialog_prompt("Hi")
    assert ours.tokenizer_model() == (demo.path / "tokenizer.model").read_bytes()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_as_llama3(llama3, text):
    ours, theirs = both(llama3)
    assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids


def test_llama3_numbers(llama3):
    ours, theirs = both(llama3)
    assert ours.bos_id == theirs.token_to_id("<|begin_of_text|>") and ours.is_llama3
    assert ours.stop_tokens == (theirs.token_to_id("<|end_of_text|>"), theirs.token_to_id("<|eot_id|>"))
    with pytest.raises(lab.CheckpointError, match="no place for other special tokens"):
        ours.tokenizer_model()


def changed(folder, tmp_path, change):
    found = json.loads((folder / "tokenizer.json").read_text())
    change(found)
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t["model"].update(byte_fallback=True), "not byte-level BPE"),
        (lambda t: t["model"].update(type="Unigram"), "not byte-level BPE"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "not byte-level BPE"),
        (lambda t: t["model"]["merges"].reverse(), "merges are not in the order of its ids"),
        (lambda t: t["model"]["merges"].pop(500), "merges do not make its token"),
        (lambda t: t["model"]["merges"].__setitem__(0, ["no", "such"]), "lacks what a byte-level BPE has"),
        (lambda t: t["pre_tokenizer"].update(pretokenizers=[{"type": "Whitespace"}]), r"not known here \(\['Whitesp"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "it has .*lstrip"),
        (lambda t: t["added_tokens"][0].update(id=77), "ids are not those from 0 on"),
        (lambda t: t.pop("model"), "lacks what"),
    ],
)
def test_what_is_not_alike_is_refused_by_name(smollm2, tmp_path, change, why):
    folder = changed(smollm2, tmp_path, change)
    assert load_tokenizer(folder) is None
    assert re.search(why, why_no_tokenizer(folder))


def test_without_digits_it_is_gpt2s_own_pattern(smollm2, tmp_path):
    folder = changed(smollm2, tmp_path, lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0))
    ours, theirs = both(folder)
    text = "In  1969 or  2026"  # the second space before a number belongs to it, or not
    ids = ours.encode(text, allowed_special="all")
    assert ids == theirs.encode(text).ids != load_tokenizer(smollm2).encode(text, allowed_special="all")


def test_sentencepiece_and_damage(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert load_tokenizer(tmp_path) is None and "SentencePiece" in why_no_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert load_tokenizer(tmp_path) is None and "no tokenizer.model" in why_no_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(lab.CheckpointError, match=r"tokenizer\.json: expected a JSON object"):
        load_tokenizer(tmp_path)


def test_template_and_stop_tokens(smollm2):
    file = smollm2 / "tokenizer.json"
    assert Tokenizer(file, (0, 2)).stop_tokens == (0, 2)
    with pytest.raises(ValueError, match="chat format is not known"):
        Tokenizer(file, chat_template="[INST] {{ x }} [/INST]").encode_dialog_prompt("Hi")
    with pytest.raises(lab.CheckpointError, match="eos_token_id 49152 is outside the vocabulary of 49152"):
        Tokenizer(file, (49152,))
