"""Feed the readers with mutated ``.npy`` and NIfTI files: ``python tests/fuzz_readers.py --seconds 300``.

Every input must either be read or be refused with a `UserError`. Ends with exit code 1 and the offending file at the
first other exception, any call that could run code, or more than 2 GiB of memory.
"""

import argparse
import gzip
import io
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.batches.slices import read_slice
from data.files.volumes import read_header, read_volume
from utils.errors import UserError

MAX_RSS_KIB = 2 * 2**20
# Audit events of the interpreter that stand for code from a file being run.
CODE_EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
EXTREMES = [0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, -1, -128, -32768, 2**31 - 1, -(2**31), 2**62]
SHAPES = ["()", "(0,)", "(3,)", "(1,2,3,4,5)", "(-1,5,4)", "(10**9,5,4)", "(4611686018427387904,4,4)", "(2.5,3,4)",
          "('a',)", "(1,6,5,4", "((1,),6,5)", "(True,6,5,4)", "(1,6,5,40000000)"]  # fmt: skip
DTYPES = ["'|O'", "'<f8'", "'>f4'", "'<c8'", "'|V9'", "'<M8[s]'", "'|S1000000000'", "'<f3'", "[('a','<f4')]", "'|b1'",
          "__import__('os').system('true')", "(" * 2000, "'<U4'", "'|u1'"]  # fmt: skip


def valid_files() -> dict[str, bytes]:
    """A small sound file of each kind, by extension."""
    array = np.random.default_rng(0).random((1, 6, 5, 4), np.float32)
    npy = io.BytesIO()
    np.save(npy, array)
    nifti = nib.Nifti1Image(array[0], np.diag([1, 2, 3, 1])).to_bytes()
    scaled = nib.Nifti1Image((array[0] * 100).astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    return {
        ".npy": npy.getvalue(),
        ".nii": nifti,
        ".nii.gz": scaled.to_bytes(),
        "2.nii": nib.Nifti2Image(array[0], np.eye(4)).to_bytes(),
    }


def mutate(content: bytes, ext: str, rng: np.random.Generator) -> bytes:
    """A file with one to four things wrong in its header, its length or its compression."""
    header = 128 if ext == ".npy" else 560
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(6)
        at = int(rng.integers(min(header, len(changed)) or 1))
        if kind == 0:
            changed[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            changed[at : at + rng.integers(1, 9)] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 2:
            del changed[int(rng.integers(len(changed) + 1)) :]
        elif kind == 3 and ext != ".npy":
            at = 40 + 2 * int(rng.integers(8)) if rng.random() < 0.6 else at  # dim[] of NIfTI-1
            value, size = int(rng.choice(EXTREMES)), int(rng.choice([2, 4, 8]))
            changed[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 4 and ext != ".npy":
            at = int(rng.choice([70, 72, 76, 80, 108, 112, 280, 296, 344]))  # datatype, pixdim, offset, scale, affine
            changed[at : at + 4] = np.float32(rng.choice([np.nan, np.inf, 0, -1, 1e38])).tobytes()
        elif ext == ".npy":
            changed = bytearray(_forge_npy(rng))
    return bytes(changed)


def edit_byte(content: bytes, rng: np.random.Generator) -> bytes:
    """A file of which one byte is another."""
    changed, at = bytearray(content), int(rng.integers(len(content)))
    changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _forge_npy(rng: np.random.Generator) -> bytes:
    text = f"{{'descr': {rng.choice([*DTYPES, repr('<f4')])}, 'fortran_order': {rng.choice(['True', 'False', '7'])}, "
    text += f"'shape': {rng.choice([*SHAPES, '(1, 6, 5, 4)'])}, }}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(480)


def try_readers(path: Path) -> str:
    """How the readers took a file: "read" or "refused"; anything else they raise is passed on."""
    outcome = "refused"
    for reader in (read_header, read_volume, *([read_slice] if path.suffix == ".npy" else [])):
        try:
            found = reader(path)
        except UserError as error:
            if str(path) not in str(error) or "\n" in str(error):
                raise AssertionError(f"the message does not name the file in one line: {error}") from error
            continue
        if reader is read_volume:
            assert found.array.ndim == 4 and found.array.dtype == np.float32
            outcome = "read"
    return outcome


def forbid_code(event: str, _) -> None:
    if event in CODE_EVENTS:
        raise AssertionError(f"a file made the reader call {event}")


def write_mutated(files: dict[str, bytes], rng: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write a mutated file; its kind and path."""
    kind = str(rng.choice(list(files)))
    ext = ".nii" if kind == "2.nii" else kind
    content = mutate(files[kind], ext, rng)
    if ext == ".nii.gz":
        content = gzip.compress(content, 1)
        content = mutate(content, ".npz", rng) if rng.random() < 0.2 else content  # breaks the compression
    return kind, write_anew(folder / f"input{ext}", content)


def write_edited(stored: dict[str, bytes], rng: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write one of `stored`, sound files as they are on disk, with one byte changed; its kind and path."""
    kind = str(rng.choice(list(stored)))
    return kind, write_anew(folder / f"input{'.nii' if kind == '2.nii' else kind}", edit_byte(stored[kind], rng))


def write_anew(path: Path, content: bytes) -> Path:
    """Write a file in place of an earlier one; to write into it would cost ext4 2 ms for the disk each time."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def fuzz(seconds: float, seed: int, folder: Path) -> Counter:
    """Feed mutated files for a while and count how they were taken."""
    rng, files, outcomes = np.random.default_rng(seed), valid_files(), Counter()
    stored = {kind: gzip.compress(content, 1) if kind == ".nii.gz" else content for kind, content in files.items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        edited = rng.random() < 0.5
        kind, path = write_edited(stored, rng, folder) if edited else write_mutated(files, rng, folder)
        outcomes[kind, try_readers(path)] += 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MAX_RSS_KIB:
            raise AssertionError("the readers took more than 2 GiB")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    sys.addaudithook(forbid_code)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        outcomes = fuzz(args.seconds, args.seed, folder)
    except BaseException:
        print(f"the offending file is in {folder}")
        raise
    for (kind, outcome), n in sorted(outcomes.items()):
        print(f"{kind:8} {outcome:8} {n:8}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{sum(outcomes.values())} files in {args.seconds:g} s, at most {peak} MiB")


if __name__ == "__main__":
    main()
