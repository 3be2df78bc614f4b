"""tokenizer.model or tokenizer.json through tiktoken, and the chat format of the model that it belongs to."""

import base64
import re
from pathlib import Path

from ..files import read_json
from ..llama.config import CheckpointError
from .tokenizer_json import LLAMA3_PATTERN, SMOLLM2_PATTERN, Found, Unlike, read_tokenizer_json

LLAMA3_SPECIAL = (
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
    "<|finetune_right_pad_id|> <|step_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|> "
    "<|image|>"
).split() + [f"<|reserved_special_token_{i}|>" for i in range(2, 246)]
SMOLLM2_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output>"
).split()
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# What begins a message -> what ends one, and a generation with it.
CHATS = {
    "<|start_header_id|>": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "<|im_start|>": ("<|im_end|>", "<|endoftext|>"),
}
ROLES = ("system", "user", "assistant")
MESSAGE = f'{{"role": one of {", ".join(ROLES)}, "content": text}}'

# tiktoken panics on longer inputs, and overflows its stack on longer runs of one kind (tiktoken issue 195).
MAX_CHARS, MAX_RUN = 400_000, 25_000
RUNS = re.compile(rf"\s{{{MAX_RUN}}}(?=\s)|\S{{{MAX_RUN}}}(?=\S)")


def load_tokenizer(folder):
    """The Tokenizer of a folder of either format, None where it has none that can be read here (why_no_tokenizer).

    tokenizer.model comes first, then that of original/, then tokenizer.json; what ends a generation is
    generation_config.json's where there is one. Raises CheckpointError for a damaged file.
    """
    try:
        return _load(Path(folder))
    except Unlike:
        return None


def why_no_tokenizer(folder) -> str:
    """Why load_tokenizer gives None, and what helps."""
    try:
        _load(Path(folder))
    except Unlike as e:
        return f"{folder}: its tokenizer cannot be used, {e}: give token ids"
    return f"{folder} has no tokenizer.model: give token ids, or copy that file there"


def _load(folder):
    files = [folder / "tokenizer.model", folder / "original" / "tokenizer.model", folder / "tokenizer.json"]
    # Llama 2's tokenizer.model is a protocol buffer of SentencePiece, whose first byte is a line feed
    binary = lambda f: f.name == "tokenizer.model" and open(f, "rb").read(1) == b"\n"
    there = [f for f in files if f.is_file()]
    file = next((f for f in there if not binary(f)), None)
    if file is None:
        if there:
            raise Unlike("it is a SentencePiece model, as Llama 2's")
        return None
    fields = lambda name: read_json(folder / name) if (folder / name).is_file() else {}
    stop = fields("generation_config.json").get("eos_token_id")
    stop = tuple(stop) if isinstance(stop, list) else None if stop is None else (stop,)
    template = str(fields("tokenizer_config.json").get("chat_template") or "")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8", errors="replace")
    return Tokenizer(file, stop, template)


class Tokenizer:
    """Text to token ids and back, for the Llama 3 family, SmolLM2, and others with a tokenizer.json of their kind.

    special_tokens: name -> id; bos_id (None where the model has none); stop_tokens: ids that end a generation;
    n_words: the size of the vocabulary. stop_tokens and chat_template: a Hugging Face folder's, if it has them; the
    template alone says whose chat format is used, Llama 3's or ChatML. Raises CheckpointError when the file is not a
    tokenizer of either family, Unlike for a tokenizer.json of another kind.
    """

    def __init__(self, path, stop_tokens=None, chat_template=""):
        import tiktoken

        self._file = path = Path(path)
        found = read_tokenizer_json(path) if path.suffix == ".json" else _read_ranks(path)
        self._ranks, self.special_tokens, ranks = found.ranks, found.special, dict(found.ranks)
        self.n_words = len(ranks) + len(self.special_tokens)
        # tiktoken panics on a byte that has no rank: such bytes get ids past the vocabulary, which encode drops
        absent = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        ranks.update({b: self.n_words + i for i, b in enumerate(absent)})
        self.model = tiktoken.Encoding(
            path.parent.name, pat_str=found.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )
        self.bos_id = self.special_tokens.get(found.bos)
        marks = (m for m in CHATS if m in self.special_tokens and (m in chat_template or not chat_template))
        self.chat_mark = next(marks, None)
        self.is_llama3 = self.chat_mark == "<|start_header_id|>"
        ends = CHATS.get(self.chat_mark, ("<|end_of_text|>", "<|endoftext|>"))
        family = tuple(self.special_tokens[token] for token in ends if token in self.special_tokens)
        self.stop_tokens = family if stop_tokens is None else stop_tokens
        if wrong := [t for t in self.stop_tokens if type(t) is not int or not 0 <= t < self.n_words]:
            raise CheckpointError(
                f"{path.parent / 'generation_config.json'}: eos_token_id {wrong[0]!r:.80} is outside the vocabulary of "
                f"{self.n_words} in {path.name}. Copy both again."
            )

    def tokenizer_model(self) -> bytes:
        """The content of a tokenizer.model that gives these ids. Raises CheckpointError where it has no place for added
        tokens: it holds the ranks alone, and the special tokens are those of the family."""
        family = _of_family(self._ranks).special
        if self.special_tokens != family:
            raise CheckpointError(
                f"{self._file}: tokenizer.model has no place for other special tokens than its family's, found "
                f"{sorted(set(self.special_tokens) - set(family))[:5]} or other ids. Save the model without it: "
                "dataclasses.replace(model, tokenizer=None)"
            )
        return rank_lines(self._ranks)

    def encode(self, text: str, *, bos: bool | None = None, allowed_special=frozenset()) -> list[int]:
        """Token ids of text. bos=None puts the first token of the model's own convention in front (Llama 3 has one,
        SmolLM2 none). Special tokens in the text are plain text unless named in allowed_special, a set or "all"."""
        if bos and self.bos_id is None:
            raise ValueError("this model has no beginning-of-text token: leave bos out")
        ids = [self.bos_id] if bos or (bos is None and self.bos_id is not None) else []
        for i in range(0, len(text), MAX_CHARS):
            part = text[i : i + MAX_CHARS]
            cuts = [0, *(m.end() for m in RUNS.finditer(part)), len(part)]
            for a, b in zip(cuts, cuts[1:], strict=False):
                ids += self.model.encode(part[a:b], allowed_special=allowed_special, disallowed_special=())
        return [t for t in ids if t < self.n_words]

    def decode_bytes(self, tokens) -> bytes:
        """The bytes of a token id or of a sequence of them, which may end inside a UTF-8 character."""
        tokens = [tokens] if not hasattr(tokens, "__iter__") else [int(t) for t in tokens]
        outside = [t for t in tokens if not 0 <= t < self.n_words]
        if outside:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.n_words}")
        return self.model.decode_bytes(tokens)

    def decode(self, tokens) -> str:
        """The text of a token id or of a sequence of them; bytes that are no whole character become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def encode_dialog_prompt(self, messages) -> list[int]:
        """A conversation, ready for the assistant's answer, as the model was trained on it.

        messages: a string (one turn of the user) or dicts {"role": "system" | "user" | "assistant", "content": ...}
        with a string as content, or a list of parts {"type": "text", "text": str}, which are joined.
        Special tokens inside the contents are plain text: nobody can forge a turn. SmolLM2 gets its default system
        message when there is none. Raises ValueError for anything else.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        turns = [_turn(i, message) for i, message in enumerate(messages)] if isinstance(messages, list | tuple) else []
        if not turns:
            raise ValueError(f"expected a string or a list of {MESSAGE}, found {messages!r:.60}")
        if self.chat_mark is None:
            raise ValueError("this model's chat format is not known here, only those of Llama 3 and ChatML are")
        if "<repo_name>" in self.special_tokens and not self.is_llama3 and turns[0][0] != "system":
            turns = [("system", SMOLLM2_SYSTEM), *turns]
        ids = [] if self.bos_id is None else [self.bos_id]
        for role, content in [*turns, ("assistant", None)]:
            ids += self._encode_message(role, content)
        return ids

    def _encode_message(self, role, content):
        """One turn; without content, only its head."""
        plain = lambda text: self.encode(text, bos=False)
        special = self.special_tokens
        if self.is_llama3:
            ids = [special["<|start_header_id|>"], *plain(role), special["<|end_header_id|>"], *plain("\n\n")]
            return ids if content is None else [*ids, *plain(content), special["<|eot_id|>"]]
        if content is None:
            return [special["<|im_start|>"], *plain(f"{role}\n")]
        return [special["<|im_start|>"], *plain(f"{role}\n{content}"), special["<|im_end|>"], *plain("\n")]


def _read_ranks(path) -> Found:
    """tokenizer.model."""
    try:
        lines = [line.split() for line in path.read_text("ascii").splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (OSError, ValueError) as e:
        raise CheckpointError(
            f"{path}: expected lines of a base64 token and its rank, found {e}. Copy tokenizer.model again."
        ) from e
    first = min(ranks.values(), default=None)
    if first not in (0, len(SMOLLM2_SPECIAL)) or sorted(ranks.values()) != list(range(first, first + len(lines))):
        raise CheckpointError(
            f"{path}: expected ranks without gaps from 0 (Llama 3) or 17 (SmolLM2) on, found {len(ranks)} tokens "
            f"from rank {first} on. Copy tokenizer.model again."
        )
    return _of_family(ranks)


def rank_lines(ranks) -> bytes:
    """The way back: what tokenizer.model holds, of bytes -> rank."""
    lines = sorted((rank, base64.b64encode(token).decode()) for token, rank in ranks.items())
    return "".join(f"{token} {rank}\n" for rank, token in lines).encode()


def _of_family(ranks) -> Found:
    """The ranks of a tokenizer.model and what it leaves unsaid. The two families are told apart by the lowest rank:
    Llama 3 puts its special tokens behind the ranks, SmolLM2 in front of them."""
    if min(ranks.values()) == 0:
        special = {token: len(ranks) + i for i, token in enumerate(LLAMA3_SPECIAL)}
        return Found(ranks, LLAMA3_PATTERN, special, "<|begin_of_text|>")
    return Found(ranks, SMOLLM2_PATTERN, {token: i for i, token in enumerate(SMOLLM2_SPECIAL)}, None)


def _turn(i, message) -> tuple[str, str]:
    """(role, text) of the message at index i of a conversation."""
    where = f"messages[{i}]: expected {MESSAGE}, found "
    if not isinstance(message, dict):
        raise ValueError(f"{where}{message!r:.60}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}the role {role!r}")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise ValueError(f"{where}a part {kind!r:.60}: these models read text parts alone")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where}the content {content!r:.60}")
    return role, content
