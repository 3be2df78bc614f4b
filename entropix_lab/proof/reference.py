"""Meta's own PyTorch Transformer from PyPI `llama-models`, unedited, with taps under the names that model.py uses."""

import contextlib
import io
import re
import sys
import warnings
from collections import OrderedDict

import numpy as np

from ..checkpoints.find import find_checkpoint, read_tensors, reader_of
from ..checkpoints.sums import verify_checksums
from ..checkpoints.tensors import as_torch
from ..llama.config import dtype_name


def load_reference(path, dtype="float32", device=None, max_seq_len=2048, max_batch_size=4) -> "Reference":
    """Meta's Transformer with the weights of a checkpoint (a folder of either format, or a name), on one process.

    Meta's code fixes how RoPE is scaled, and the reference computes so. Where a Hugging Face folder says other numbers
    (Llama 3.2 1B and 3B), a warning names them.

    device: "cpu", "cuda" or None for a GPU where torch has one. max_seq_len and max_batch_size size its KV cache.
    Where the file holds dtype already, its parameters are the mapped file: loading then costs no memory of its own.
    Raises CheckpointError for whatever is wrong with the files. No global of torch is left changed.
    """
    import torch

    dtype = dtype_name(dtype)
    folder = find_checkpoint(path)
    config = reader_of(folder).read_config(folder)
    verify_checksums(folder)
    if config.unlike_metas_code:
        warnings.warn(f"{folder}: {config.unlike_metas_code}, and the reference is Meta's code", stacklevel=2)
        config = config.in_metas_code
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch_dtype = getattr(torch, dtype)
    merged = {name: as_torch(array) for name, array in read_tensors(folder, config)}
    with _default_dtype(torch_dtype), _single_rank():
        from llama_models.llama3.args import ModelArgs
        from llama_models.llama3.model import Transformer

        transformer = Transformer(ModelArgs(**config.params(), max_seq_len=max_seq_len, max_batch_size=max_batch_size))
    with _beside_jax():
        state = {name: tensor.to(device, torch_dtype) for name, tensor in merged.items()}
    transformer.load_state_dict(state, strict=True, assign=True)
    return Reference(transformer.eval(), config, dtype, device)


def get_local_llama_logits(tokens, path, dtype="float32") -> np.ndarray:
    """Meta's logits in one pass: token ids [T] or [B,T] -> [B,T,V] float32. path and errors as in load_reference."""
    tokens = np.atleast_2d(tokens)
    return load_reference(path, dtype, max_seq_len=tokens.shape[1], max_batch_size=tokens.shape[0]).logits(tokens)


class Reference:
    """Meta's Transformer behind NumPy arrays. It keeps its own KV cache: a pass at start_pos reads what earlier ones
    left in the slots below."""

    def __init__(self, transformer, config, dtype, device):
        self.transformer, self.config, self.dtype, self.device = transformer, config, dtype, device

    def logits(self, tokens, start_pos: int = 0) -> np.ndarray:
        """tokens [B,T] -> logits [B,T,V] float32. Raises ValueError for tokens that do not fit vocabulary or cache."""
        import torch

        tokens = np.atleast_2d(tokens)
        args = self.transformer.params
        if tokens.shape[0] > args.max_batch_size or start_pos + tokens.shape[1] > args.max_seq_len:
            raise ValueError(
                f"tokens {tokens.shape} at position {start_pos} do not fit the reference's cache of "
                f"{args.max_batch_size} rows and {args.max_seq_len} slots: load one with more"
            )
        if tokens.min() < 0 or tokens.max() >= args.vocab_size:
            raise ValueError(f"expected token ids below {args.vocab_size}, found {tokens.min()} to {tokens.max()}")
        with _beside_jax(), _single_rank():
            ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
            return self.transformer.forward(ids, start_pos).float().cpu().numpy()

    def greedy(self, tokens, max_new_tokens: int) -> np.ndarray:
        """Free-running greedy decoding of one prompt, [T] or [1,T], through Meta's own cache -> the new ids. Raises
        ValueError for several prompts."""
        tokens, new = np.atleast_2d(tokens), []
        if len(tokens) != 1:
            raise ValueError(f"expected one prompt [T] or [1,T], found token ids of {tokens.shape}")
        with _single_rank():
            logits = self.logits(tokens)
            for i in range(max_new_tokens):
                new.append(int(logits[0, -1].argmax()))
                if i + 1 < max_new_tokens:
                    logits = self.logits([new[-1:]], tokens.shape[1] + i)
        return np.array(new, np.int32)

    def taps(self, tokens, start_pos: int = 0, sink=None) -> "OrderedDict[str, np.ndarray]":
        """Every value of a pass, float32, in the order of execution, named as in model.xfmr_with_taps.

        sink(name, value) takes each value as it comes, in place of the dict: for a pass that does not fit into memory.
        Module outputs come from forward hooks; what has no module of its own from a pre-hook (h_attn) and from
        wrapping two functions that Meta's file calls (apply_rotary_emb, F.softmax) for the time of this call.
        """
        import torch
        from llama_models.llama3 import model as meta

        taps = OrderedDict()
        keep = taps.__setitem__ if sink is None else sink

        def record(name, x):
            keep(name, x.detach().float().cpu().numpy().copy())

        def rope(xq, xk, freqs_cis):
            out = meta_rope(xq, xk, freqs_cis)
            for name, x in zip(("xq_rope", "xk_rope"), out, strict=True):
                record(f"{layers[-1]}.attention.{name}", x)
            return out

        class Functional:
            __getattr__ = staticmethod(lambda name: getattr(meta_functional, name))

            @staticmethod
            def softmax(scores, dim):
                record(f"{layers[-1]}.attention.scores", scores)
                probs = meta_functional.softmax(scores, dim=dim)
                record(f"{layers[-1]}.attention.probs", probs.to(getattr(torch, self.dtype)))
                return probs

        meta_rope, meta_functional = meta.apply_rotary_emb, meta.F
        with module_taps(dict(self.transformer.named_modules()), record) as layers:
            try:
                meta.apply_rotary_emb, meta.F = rope, Functional()
                self.logits(tokens, start_pos)
            finally:
                meta.apply_rotary_emb, meta.F = meta_rope, meta_functional
        return taps


@contextlib.contextmanager
def module_taps(modules, record):
    """record(name, tensor) takes what torch modules give out, and what goes into each ffn_norm (h_attn), as they run.

    modules: Meta's name -> module. Yields a list whose last entry is the name of the layer that runs.
    """
    layers, handles = [], []
    try:
        for name, module in modules.items():
            if name.endswith("ffn_norm"):
                before = lambda m, args, n=name: record(n.replace("ffn_norm", "h_attn"), args[0])
                handles.append(module.register_forward_pre_hook(before))
            if re.fullmatch(r"layers\.\d+", name):
                handles.append(module.register_forward_pre_hook(lambda m, args, n=name: layers.append(n)))
            if re.fullmatch(r"tok_embeddings|norm|output|layers\.\d+(\.\w+norm|\.\w+\.w\w)?", name):
                handles.append(module.register_forward_hook(lambda m, args, out, n=name: record(n, out)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _beside_jax():
    """Where torch finds no memory on a GPU, its error names what JAX takes of it."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(
            "JAX computes on this GPU too, and takes three quarters of its memory at the start unless "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false is in the environment by then. entropix_lab sets it where it is "
            "unset: import it before anything is computed"
        )
        raise


@contextlib.contextmanager
def _default_dtype(dtype):
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _single_rank():
    """Meta's layers want a model-parallel group, even of one: a gloo group in memory, without ports or variables, that
    exists only while Meta's code runs (about 1 ms). A group that is there already is used and left alone."""
    import torch.distributed as dist
    from fairscale.nn.model_parallel import initialize as fs_init

    if fs_init.model_parallel_is_initialized():
        yield
        return
    ours, excepthook = not dist.is_initialized(), sys.excepthook
    if ours:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # fairscale prints three lines
            fs_init.initialize_model_parallel(1)
        yield
    finally:
        fs_init.destroy_model_parallel()
        if ours:
            dist.destroy_process_group()
            sys.excepthook = excepthook  # torch puts its own there
