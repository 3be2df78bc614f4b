"""Are a folder's files those that were published? Meta's checklist.chk, Hugging Face's blob names, torch's CRC-32."""

import contextlib
import functools
import hashlib
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..llama.config import CheckpointError

READ = (".pth", ".safetensors", ".json", ".model")  # what the readers open
CHECKLIST = "checklist.chk"  # Meta's md5 sums


def verify_checksums(folder, unread=()) -> dict[str, str]:
    """Compare the files of a folder with every sum that is known for them; file name -> what it agrees with.

    unread: files that are left out, because another process reads them. Every file is read once in a process while it
    does not change. Raises CheckpointError that names the damaged or missing file: Meta's downloader appends to what an
    interrupted run left, so a file can be too long and "successfully downloaded".
    """
    sums = {file: known for file, known in known_sums(folder).items() if file not in unread}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock to others
        return dict(zip([f.name for f in sums], pool.map(lambda f: check_sum(f, *sums[f]), sums), strict=True))


def known_sums(folder) -> dict[Path, tuple[str, str]]:
    """file -> (kind, sum) of every file that has a sum, by the first of these that there is: "md5", a line of
    checklist.chk; "sha256" or "sha1" (git's), the name that a Hugging Face cache gives to the file; "crc32", which
    torch writes into a .pth file beside each tensor. Safetensors files that lie in no cache have none.

    Raises CheckpointError for a checklist that cannot be read."""
    folder = Path(folder)
    sums = {f: ("crc32", "") for f in sorted(folder.glob("consolidated.*.pth"))}
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and file.suffix in READ and (target := file.readlink()).parent.name == "blobs":
            if kind := {40: "sha1", 64: "sha256"}.get(len(target.name)):
                sums[file] = (kind, target.name)
    checklist = folder / CHECKLIST
    lines = checklist.read_text(errors="replace").split("\n") if checklist.is_file() else ()
    for line in filter(str.strip, lines):
        match = re.fullmatch(r"([0-9a-f]{32})\s+\*?(\S+)", line.strip())
        if match is None:
            raise CheckpointError(f"{checklist}: expected lines of an md5 and a name, found {line[:80]!r}")
        sums[folder / match[2]] = ("md5", match[1])
    return sums


def check_sum(file, kind, expected) -> str:
    """What the file agrees with, in words. Raises CheckpointError where it does not."""
    if not file.is_file():
        whose = "named in checklist.chk" if kind == "md5" else "a link of the Hugging Face cache"
        raise CheckpointError(f"{file}: {whose}, found nothing. Download it again, or copy the whole folder.")
    found = digest(file, kind)
    if found != expected:
        whose = "checklist.chk is another version's" if kind == "md5" else "the cache is"
        raise CheckpointError(
            f"{file}: expected {kind} {expected}, found {found} ({file.stat().st_size:,} bytes). The file is "
            f"damaged, or {whose}: delete it and download it again."
        )
    if kind == "crc32":
        return "CRC-32 of its records"
    return f"{kind} of {'checklist.chk' if kind == 'md5' else 'the Hugging Face cache'}"


def digest(file, kind="md5") -> str:
    """The sum of a file, in hexadecimal, computed once a process while the file does not change. "crc32": "", where the
    records of a .pth file agree with their sums. Raises CheckpointError where they do not."""
    stat = os.stat(file)
    return _digest(kind, str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@functools.lru_cache(None)
def _digest(kind, file, size, *state) -> str:
    from tqdm import tqdm

    if kind == "crc32":
        _check_records(file, size)
        return ""
    # git's sum of a file is that of a head and the file
    hasher = hashlib.new(kind, f"blob {size}\0".encode() if kind == "sha1" else b"", usedforsecurity=False)
    block = memoryview(bytearray(1 << 20))
    # a bar for what takes more than two seconds, and in a terminal alone
    shown = dict(unit="B", unit_scale=True, delay=2, disable=None, leave=False)
    with open(file, "rb", buffering=0) as f, tqdm(total=size, desc=f"{kind} {Path(file).name}", **shown) as bar:
        while n := f.readinto(block):
            hasher.update(block[:n])
            bar.update(n)
    return hasher.hexdigest()


def _check_records(file, size) -> None:
    """Raises CheckpointError unless every record of a .pth file has the CRC-32 that stands beside it."""
    damaged = f"{file}: expected a torch file of {size:,} bytes whose records have their CRC-32, found "
    again = ". Delete it and download it again."
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as f:
            bad = archive.testzip()
            first = min(record.header_offset for record in archive.infolist())
            f.seek(-22, os.SEEK_END)
            last = f.read(4)
    except Exception as e:  # zipfile lets through whatever a damaged field leads to, zlib.error and struct.error too
        raise CheckpointError(f"{damaged}{e or type(e).__name__}{again}") from e
    if bad is not None:
        raise CheckpointError(f"{damaged}another in the record {bad}{again}")
    if first or last != b"PK\5\6":
        raise CheckpointError(f"{damaged}bytes that belong to no record: a download was appended to another{again}")


@contextlib.contextmanager
def system_errors():
    """What the system refuses (no permission, a link that leads to itself) as a CheckpointError."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(f"{e.filename}: expected a file or folder to read, found: {e.strerror}.") from e
