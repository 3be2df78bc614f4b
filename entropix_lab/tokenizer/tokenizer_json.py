"""tokenizer.json of a Hugging Face folder, turned into tiktoken's ranks where both cut every text alike."""

from typing import NamedTuple

from ..files import read_json

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# One pattern for "split off every digit, then GPT-2".
SMOLLM2_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
GPT2_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# GPT-2's printable spelling of bytes, by character.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [b for b in range(256) if b not in _PRINTABLE]
BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_REST)}


class Unlike(ValueError):
    """A tokenizer that tiktoken's ranks cannot express; says by what."""


class Found(NamedTuple):
    """ranks: bytes -> id; pattern: cuts a text into pieces; special: added tokens -> id; bos: the token in front of a
    text, or None."""

    ranks: dict[bytes, int]
    pattern: str
    special: dict[str, int]
    bos: str | None


def read_tokenizer_json(file) -> Found:
    """Raises CheckpointError for a file that is no JSON, Unlike for anything but byte-level BPE with a known pattern
    whose merges agree with the order of its ids."""
    found = read_json(file)
    try:
        model, added = found["model"], found.get("added_tokens") or []
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or found.get("normalizer"):
            raise Unlike("its model is not byte-level BPE (a SentencePiece model, as Llama 2's, perhaps)")
        odd = {k: model[k] for k in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(k)}
        odd |= {t["content"]: k for t in added for k in ("lstrip", "rstrip", "single_word") if t.get(k)}
        if odd:
            raise Unlike(f"it has {odd}")
        pattern = _pattern(found.get("pre_tokenizer") or {})
        special = {t["content"]: t["id"] for t in added}
        vocab = {token: i for token, i in model["vocab"].items() if token not in special}
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        _check_merges(vocab, merges, bool(model.get("ignore_merges")))
        ranks = {bytes(BYTES[c] for c in token): i for token, i in vocab.items()}
        ids = sorted([*ranks.values(), *special.values()])
        if ids != list(range(len(ids))):
            raise Unlike("its ids are not those from 0 on, each once")
        if model.get("unk_token") and any(bytes([b]) not in ranks for b in range(256)):
            raise Unlike("it lacks bytes and has an unk_token for them")
        return Found(ranks, pattern, special, _bos(found.get("post_processor") or {}))
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise Unlike(f"it lacks what a byte-level BPE has ({type(e).__name__}: {e})") from e


def _pattern(pre) -> str:
    """The one pattern that stands for a pre-tokenizer."""
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        own = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and own:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and own and steps[0].get("individual_digits"):
            return SMOLLM2_PATTERN
        plain = ("Isolated", False)
        if kinds == ["Split", "ByteLevel"] and not own and (steps[0]["behavior"], steps[0]["invert"]) == plain:
            if steps[0]["pattern"].get("Regex") == LLAMA3_PATTERN:
                return LLAMA3_PATTERN
    raise Unlike(f"it cuts texts in a way that is not known here ({kinds}): Llama 3's, SmolLM2's and GPT-2's are")


def _bos(post) -> str | None:
    for step in post["processors"] if post.get("type") == "Sequence" else [post]:
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            return step["single"][0]["SpecialToken"]["id"]
    return None


def _check_merges(vocab, merges, whole_first):
    """Raise Unlike unless merging the pair that makes the lowest id, as tiktoken does, is what the list of merges says.

    It is if the list is in the order of the ids that it makes, and every token either has all of its splits in the list
    or comes out of the list as itself: two neighbours that make a token in another way than the list's then never meet.
    whole_first: a piece that is a token is taken as it is (ignore_merges), as tiktoken always does.
    """
    made = [vocab[a + b] for a, b in merges]
    if made != sorted(made):
        raise Unlike("its merges are not in the order of its ids")
    order = {pair: i for i, pair in reversed(list(enumerate(merges)))}
    for token, i in vocab.items():
        splits = [(token[:k], token[k:]) for k in range(1, len(token))]
        all_listed = all(s in order for s in splits if s[0] in vocab and s[1] in vocab)
        if (all_listed and whole_first) or len(token) == 1:
            continue
        if not all_listed and any(s in order and max(vocab[s[0]], vocab[s[1]]) > i for s in splits):
            raise Unlike(f"{token!r} is made of a token of a higher id")
        parts = list(token)
        while len(parts) > 1:
            at = min(range(len(parts) - 1), key=lambda k: order.get((parts[k], parts[k + 1]), len(merges)))
            if (parts[at], parts[at + 1]) not in order:
                raise Unlike(f"its merges do not make its token {token!r}")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
