"""Captions for the tiny CLIP: its vocabulary, and the way captions are worn down to keywords in training.

The frozen CLIP will read *keywords*: subwords in spoken order, with function words partly missing and some subwords
doubled or wrong. A text tower that saw complete sentences only would not understand them.
"""

from collections import Counter

import numpy as np

from speechclip_plus.trainer.spoken_scenes.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_KEYWORDS = 20
STYLES = ("sentence", "telegram", "keywords")
# Words without which two scenes could no longer be told apart.
_PLACES = {
    word for table in (RELATIONS, BACKGROUNDS) for phrases in table.values() for p in phrases for word in p.split()
}
CONTENT_WORDS = frozenset(
    {*COLOURS, *SHAPES, *(word for words in SIZES.values() for word in words)}
    | (_PLACES - {"of", "to", "the", "on", "in", "at", "a", "background"})
)


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in the order CLIP lists them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Learn BPE merges, the most frequent pair first, until every word is one subword.

    Replaying the merges in their order takes every word to the same end, so each stays one subword.
    """
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(spelling) > 1 for spelling in spellings):
        pairs = Counter(pair for spelling in spellings for pair in zip(spelling, spelling[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for spelling in spellings:
            place = 0
            while place < len(spelling) - 1:
                if (spelling[place], spelling[place + 1]) == best:
                    spelling[place : place + 2] = ["".join(best)]
                place += 1
    return merges


def build_vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP-style (vocabulary, merges): bytes, bytes at a word's end, merges, start, end."""
    merges = learn_merges(words)
    symbols = byte_symbols()
    entries = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    return {entry: index for index, entry in enumerate(entries)}, merges


def worn_caption(scene: Scene, rng: np.random.Generator, style: str, vocabulary: dict[str, int]) -> list[int]:
    """Return subword ids, without start and end, of a new caption of a scene.

    Args:
        scene: what is described.
        rng: source of chance.
        style: "sentence" (complete), "telegram" (function words mostly dropped) or "keywords" (as telegram, with some
            subwords doubled, wrong, superfluous or missing).
        vocabulary: entry to id.
    """
    words = scene.caption(rng).split()
    if style == "sentence":
        return [vocabulary[word + "</w>"] for word in words]
    if style not in STYLES:
        raise ValueError(f"There is no caption style {style!r}: choose one of {', '.join(STYLES)}.")
    # The share of function words that survive differs from caption to caption.
    kept = rng.random()
    words = [word for word in words if word in CONTENT_WORDS or rng.random() < kept]
    ids = [vocabulary[word + "</w>"] for word in words]
    if style == "telegram":
        return ids
    noisy = []
    for subword in ids:
        chance = rng.random()
        if chance < 0.04:
            continue
        if chance < 0.07:
            noisy.append(_any_subword(rng, vocabulary))
            continue
        noisy.append(subword)
        while rng.random() < 0.12:
            noisy.append(subword)
        if rng.random() < 0.04:
            noisy.append(_any_subword(rng, vocabulary))
    return noisy[:MAX_KEYWORDS] or ids[:1]


def _any_subword(rng: np.random.Generator, vocabulary: dict[str, int]) -> int:
    """Any entry but start and end: a caption word half of the time."""
    if rng.random() < 0.5:
        return vocabulary[_FREQUENT[int(rng.integers(len(_FREQUENT)))]]
    return int(rng.integers(len(vocabulary) - 2))


_FREQUENT = tuple(sorted(f"{word}</w>" for word in _PLACES | CONTENT_WORDS))
