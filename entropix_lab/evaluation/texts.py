"""Prompts to continue, and text that is on every machine, to measure a model on."""

import ast
import hashlib
import importlib.metadata
import sysconfig
from pathlib import Path

import numpy as np

# What the notebooks let a model continue: facts, stories, lists, code, letters, dialogue.
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a",
    "def fibonacci(n):\n    ",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at 100 degrees Celsius because",
    "1, 2, 3, 4, 5, 6,",
    "To make a cup of tea, first",
    "The most important thing about science is that",
    "Monday, Tuesday, Wednesday,",
    "In 1969, the first man on the moon",
    "import numpy as np\n\n# compute the mean of a list\n",
    "Question: What is the largest planet in the solar system?\nAnswer:",
    "She opened the door and saw",
    "The difference between a frog and a toad is",
    "Photosynthesis is the process by which plants",
    "Roses are red,\nviolets are blue,\n",
    "A good friend is someone who",
    "SELECT name, age FROM people WHERE",
    "The best way to learn a language is",
)


def real_texts() -> list[str]:
    """Documentation strings of Python's standard library and licences of this package's dependencies.

    Each differs from the others, and they come in an order that mixes them and does not change; which there are
    depends on the versions of Python and of the dependencies.
    """
    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text("utf-8", errors="replace")))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    for package in ("numpy", "jax", "matplotlib", "torch", "tiktoken", "tqdm", "filelock", "gguf", "fairscale"):
        licences = [f for f in importlib.metadata.files(package) or () if f.name.upper().startswith("LICEN")]
        texts += [f.read_text("utf-8") for f in licences[:1]]
    digest = lambda text: hashlib.md5(text.encode()).hexdigest()
    return sorted({text[:200]: text for text in texts if len(text) > 400}.values(), key=digest)


def windows(tokenizer, n_tokens: int, length: int = 256) -> np.ndarray:
    """The starts of real texts as token ids [n, length + 1], as many as predict n_tokens tokens (one to a text).

    Raises ValueError when the texts are too few for n_tokens.
    """
    wanted, rows = -(-n_tokens // length), []
    for text in real_texts():
        tokens = tokenizer.encode(text)[: length + 1]
        if len(tokens) == length + 1:
            rows.append(tokens)
        if len(rows) == wanted:
            return np.array(rows, np.int32)
    raise ValueError(f"{n_tokens} tokens need {wanted} texts longer than {length} tokens, found {len(rows)}")
