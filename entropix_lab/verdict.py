"""Lines that hold on another machine, the line that says on which machine they were made, and the same as JSON."""

import contextlib
import ctypes
import gc
import json
import platform
import re
import sys
import threading
from importlib.metadata import version
from pathlib import Path


def line(passed: bool, what: str, *claims: str) -> str:
    """ "PASS what: claim; claim". Claims are bounds and counts, not measured figures: those belong beside it.

    A notebook in which a printed line begins with FAIL has failed (see show): what fails on purpose is printed behind
    something else, or as a claim that it was found.
    """
    return f"{'PASS' if passed else 'FAIL'} {what}: {'; '.join(claims)}"


def show(notebook) -> None:
    """Print an executed notebook's verdicts, before them where it says that they were made; exit with 1 when one is
    FAIL, or none was printed."""
    outputs = [o for cell in json.loads(Path(notebook).read_text())["cells"] for o in cell.get("outputs", ())]
    printed = [text for o in outputs for text in "".join(o.get("text", "")).splitlines()]
    lines = [text for text in printed if text.startswith(("PASS ", "FAIL "))]
    for text in [text for text in printed if ", jaxlib " in text][:1] + lines:
        print(text)
    sys.exit(not lines or any(text.startswith("FAIL") for text in lines))


def listed(value) -> list:
    """A list parameter of a notebook, also as papermill's -p hands it over: "64 512" or "[64, 512]"."""
    if isinstance(value, str):
        return [int(x) if x.isdigit() else x for x in re.findall(r"[\w.+-]+", value)]
    return list(value) if isinstance(value, list | tuple) else [value]


def environment(**more) -> str:
    """The device, the versions and whatever flags are given, on one line (differs from machine to machine)."""
    import jax

    device = jax.devices()[0]
    processor = platform.machine() if device.platform == "cpu" else device.device_kind
    versions = [f"{p} {version(p)}" for p in ("jax", "jaxlib", "torch", "llama-models")]
    flags = [f"{k}={v}" for k, v in more.items()]
    return ", ".join([f"{device.platform} {processor}", f"Python {platform.python_version()}", *versions, *flags])


def outputs_dir() -> Path:
    """outputs/ of the checkout that the package is imported from; else of the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    folder = (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "outputs"
    folder.mkdir(exist_ok=True)
    return folder


def write_json(name: str | Path, data: dict) -> Path:
    """data as outputs/name, or at a path of its own, whole or not at all. What is infinite or NaN becomes null: JSON
    has neither."""
    file = outputs_dir() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    data = json.loads(json.dumps(data), parse_constant=lambda _: None)
    partial.write_text(json.dumps(data, indent=1, allow_nan=False))
    partial.replace(file)
    return file


@contextlib.contextmanager
def peak_memory(interval: float = 0.002):
    """How far the memory of the first device of this process rises meanwhile: yields a dict whose "bytes" is set at the
    end.

    An accelerator counts its own bytes. On a CPU they are the anonymous memory of this process (RssAnon: mapped file
    pages do not count), None where there is no /proc. Sampled every interval seconds; an accelerator's own peak, which
    misses nothing, goes back to the start of the process and is taken where it rose.
    """
    import jax

    device, status, result = jax.local_devices()[0], Path("/proc/self/status"), {"bytes": None}
    counted = bool(device.memory_stats())
    if not counted and not status.exists():
        yield result
        return
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would hide a rise
    of_host = lambda: int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1]) * 1024
    used = (lambda: device.memory_stats()["bytes_in_use"]) if counted else of_host
    highest = (lambda: device.memory_stats()["peak_bytes_in_use"]) if counted else lambda: 0
    before, highest_before, stop = used(), highest(), threading.Event()
    peak = before

    def watch():
        nonlocal peak
        while not stop.wait(interval):
            peak = max(peak, used())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        stop.set()
        thread.join()
        peak = max(peak, used(), highest() if highest() > highest_before else 0)
        result["bytes"] = peak - before


if __name__ == "__main__":  # as a file, for the Makefile: without JAX, which the package imports
    show(sys.argv[1])
