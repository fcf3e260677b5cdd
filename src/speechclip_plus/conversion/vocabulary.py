"""Vocabularies of CLIP: its tokenizer, and the ids of the tokens that a reduced embedding table holds."""

import gzip
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCABULARY_SIZE = 49_408
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2  # each byte alone and at a word's end, the start and the end


def openai_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer of all of OpenAI's CLIP models from open_clip's list of merges, without downloading it.

    Raises:
        OSError: If open_clip_torch is not installed, or does not carry the list.
    """
    # Found rather than imported: importing open_clip takes many seconds.
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("CLIP's tokenizer is made from open_clip's list of merges: `pip install open_clip_torch`.")
    file = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in map(str.split, lines[1 : _MERGES + 1])]
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def recover_vocabulary(reduced: Tensor, full: Tensor, given: list[int] | None = None) -> list[int]:
    """Find the ids of a reduced token table's rows in CLIP's full table.

    Args:
        reduced: `(V, E)` table in use.
        full: `(W, E)` table of CLIP.
        given: Ids that somebody says they are, which then are checked.

    Returns:
        The V ids.

    Raises:
        ValueError: If a row is not in the full table, or there more than once, or not where it is said to be.
    """
    if reduced.shape[1] != full.shape[1]:
        raise ValueError(
            f"The reduced token table is {reduced.shape[1]} wide and CLIP's own {full.shape[1]}: they are not of "
            "the same CLIP."
        )
    # Of a table in half precision and one in single, the coarser one has the values of both.
    dtype = min(reduced.dtype, full.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    rows, table = _rows(reduced, dtype), _rows(full, dtype)
    if given is not None:
        return _checked(given, rows, table)
    places: dict[bytes, list[int]] = {}
    for index, row in enumerate(table):
        places.setdefault(row.tobytes(), []).append(index)
    found = [places.get(row.tobytes(), []) for row in rows]
    if missing := [index for index, ids in enumerate(found) if not ids]:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} rows of the reduced token table, the first at {missing[0]}, are not "
            "in CLIP's full table: it was reduced from another CLIP, or trained."
        )
    if tied := [index for index, ids in enumerate(found) if len(ids) > 1]:
        raise ValueError(
            f"Row {tied[0]} of the reduced token table stands {len(found[tied[0]])} times in CLIP's full table, as "
            f"ids {', '.join(map(str, found[tied[0]][:5]))}. Pass the vocabulary file that tells which is meant."
        )
    return [ids[0] for ids in found]


def read_vocabulary(path: str | os.PathLike) -> list[int]:
    """Read CLIP token ids from a `.npy` file: one column of ids, or the original's, ids and their counts.

    Raises:
        ValueError: If it holds no ids.
        OSError: If it cannot be read.
    """
    try:
        ids = np.load(Path(path), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    ids = ids[:, 0] if ids.ndim == 2 else ids
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise ValueError(f"{path} must hold a column of token ids; it holds {ids.dtype} of the shape {ids.shape}.")
    return ids.tolist()


def _checked(given: list[int], rows: np.ndarray, table: np.ndarray) -> list[int]:
    if len(given) != len(rows):
        raise ValueError(f"The vocabulary has {len(given)} ids, but the checkpoint's token table {len(rows)} rows.")
    if outside := [i for i in given if not 0 <= i < len(table)]:
        raise ValueError(f"The vocabulary holds the id {outside[0]}, but CLIP has {len(table)} tokens.")
    wrong = np.flatnonzero((table[given] != rows).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"By the vocabulary, row {wrong[0]} of the checkpoint's token table is CLIP's id {given[wrong[0]]}, but "
            f"they differ, as do {len(wrong) - 1} more."
        )
    return given


def _rows(table: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Rows as bytes, `(V, E * itemsize)`."""
    return table.detach().to(dtype).contiguous().view(torch.uint8).numpy()
