"""tokenizer.model (base64 tokens with their ranks) through tiktoken, and the chat format of the model it belongs to."""

import base64
import re
from pathlib import Path

from ..llama.config import CheckpointError

# The two families are told apart by the first rank in the file: Llama 3 puts its special tokens behind the ranks,
# SmolLM2 in front of them.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
] + [f"<|reserved_special_token_{i}|>" for i in range(2, 246)]
# One pattern for "split off every digit, then GPT-2".
SMOLLM2_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
SMOLLM2_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output>"
).split()
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

ROLES = ("system", "user", "assistant")
MESSAGE = f'{{"role": one of {", ".join(ROLES)}, "content": text}}'

# tiktoken panics on longer inputs, and overflows its stack on longer runs of one kind (tiktoken issue 195).
MAX_CHARS, MAX_RUN = 400_000, 25_000
RUNS = re.compile(rf"\s{{{MAX_RUN}}}(?=\s)|\S{{{MAX_RUN}}}(?=\S)")


class Tokenizer:
    """Text to token ids and back, for the Llama 3 family and for SmolLM2.

    special_tokens: name -> id; bos_id (None where the model has none); stop_tokens: ids that end a generation;
    n_words: the size of the vocabulary. Raises CheckpointError when the file is not a tokenizer of either family.
    """

    def __init__(self, path):
        import tiktoken

        path = Path(path)
        try:
            lines = [line.split() for line in path.read_text("ascii").splitlines() if line.strip()]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except (OSError, ValueError) as e:
            raise CheckpointError(
                f"{path}: expected lines of a base64 token and its rank, found {e}. Copy tokenizer.model again."
            ) from e
        first = min(ranks.values(), default=None)
        self.is_llama3 = first == 0
        if first not in (0, len(SMOLLM2_SPECIAL)) or sorted(ranks.values()) != list(range(first, first + len(lines))):
            raise CheckpointError(
                f"{path}: expected ranks without gaps from 0 (Llama 3) or 17 (SmolLM2) on, found {len(ranks)} tokens "
                f"from rank {first} on. Copy tokenizer.model again."
            )
        special = LLAMA3_SPECIAL if self.is_llama3 else SMOLLM2_SPECIAL
        offset = len(ranks) if self.is_llama3 else 0
        self.special_tokens = {token: offset + i for i, token in enumerate(special)}
        self.n_words = len(ranks) + len(special)
        # tiktoken panics on a byte that has no rank: such bytes get ids past the vocabulary, which encode drops
        absent = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        ranks.update({b: self.n_words + i for i, b in enumerate(absent)})
        self.model = tiktoken.Encoding(
            path.parent.name,
            pat_str=LLAMA3_PATTERN if self.is_llama3 else SMOLLM2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )
        self.bos_id = self.special_tokens["<|begin_of_text|>"] if self.is_llama3 else None
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>") if self.is_llama3 else ("<|im_end|>", "<|endoftext|>")
        self.stop_tokens = tuple(self.special_tokens[token] for token in ends)

    def encode(
        self, text: str, *, bos: bool | None = None, eos: bool = False, allowed_special=frozenset()
    ) -> list[int]:
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
        ids = [t for t in ids if t < self.n_words]
        return ids + [self.stop_tokens[0]] if eos else ids

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
        if not self.is_llama3 and turns[0][0] != "system":
            turns = [("system", SMOLLM2_SYSTEM), *turns]
        ids = [self.bos_id] if self.is_llama3 else []
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
