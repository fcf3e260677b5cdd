"""OpenAI's CLIP tokenizer, from the list of merges that open_clip carries."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

from transformers import CLIPTokenizer

VOCABULARY_SIZE = 49_408
_PLACES = 77
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2  # each byte alone and at a word's end, the start and the end


def openai_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer of all of OpenAI's CLIP models without downloading it.

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
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_PLACES)
