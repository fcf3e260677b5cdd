"""Word alignments (Praat's TextGrid, NIST's CTM), and how well CIF's boundaries agree with them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

WORD_TIERS = ("words", "word")
# What aligners write where nobody speaks.
SILENCES = frozenset({"", "sil", "sp", "silence", "<sil>", "<eps>", "<p>", "[sil]"})
SUFFIXES = (".textgrid", ".ctm")
TOLERANCES_MS = (20, 50, 100)

# Seconds between words that are rounding (CTM often has two decimals, of the start and of the duration) and no pause.
_ROUNDING = 0.02
_AT_THE_TOLERANCE = 1e-6  # seconds: a boundary exactly at the tolerance is within it


@dataclass(frozen=True)
class AlignedWord:
    """A word with its beginning and end in seconds."""

    word: str
    start: float
    end: float


def read_textgrid(path: str | Path) -> list[AlignedWord]:
    """Read the words of a TextGrid, long or short, as UTF-8 or UTF-16; a ValueError names a file that is no such.

    They are on the interval tier called "words" or "word" (also behind a speaker's name, as in "Ann - words"), or on
    the only interval tier. Silences are left out.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    path = Path(path)
    try:
        # With empty intervals: Praat's intervals fill their tier, so the last one tells whether the file is whole.
        grid = textgrid.openTextgrid(str(path), True, reportingMode="silence", duplicateNamesMode="rename")
    except (PraatioException, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as a TextGrid: {error}") from error
    tiers = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    named = [name for name in tiers if name.strip().lower().rpartition(" - ")[2] in WORD_TIERS] or list(tiers)
    if len(named) != 1:
        listed = ", ".join(map(repr, tiers)) or "none"
        raise ValueError(
            f"{path}: expected one interval tier called 'words', or a single interval tier; it has {listed}."
        )
    tier = tiers[named[0]]
    if not tier.entries or tier.entries[-1].end < tier.maxTimestamp - _ROUNDING:
        raise ValueError(f"{path} was cut short: its tier {tier.name!r} should last {tier.maxTimestamp:g} s.")
    return _checked([AlignedWord(entry.label, entry.start, entry.end) for entry in tier.entries], path)


def read_ctm(path: str | Path) -> dict[str, list[AlignedWord]]:
    """Read a CTM file by utterance: lines of utterance, channel, start, duration, word, and perhaps a confidence."""
    path = Path(path)
    words: dict[str, list[AlignedWord]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        try:
            name, _, start, duration, text = line.split()[:5]
            word = AlignedWord(text, float(start), float(start) + float(duration))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected 'utterance channel start duration word', got {line.strip()!r}."
            ) from None
        words.setdefault(name, []).append(word)
    if not words:
        raise ValueError(f"{path} holds no words.")
    return {name: _checked(sorted(own, key=lambda word: word.start), path) for name, own in words.items()}


def read_alignments(folder: str | Path) -> dict[str, list[AlignedWord]]:
    """Read all alignments below a folder, by utterance: a TextGrid for each, named after it, or CTM files."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of alignments.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no alignment (*.TextGrid or *.ctm).")
    words: dict[str, list[AlignedWord]] = {}
    for file in files:
        read = {file.stem: read_textgrid(file)} if file.suffix.lower() == ".textgrid" else read_ctm(file)
        for name, found in read.items():
            if name in words:
                raise ValueError(f"{file}: utterance {name!r} has an alignment already in another file of {folder}.")
            words[name] = found
    return words


def match_alignments(
    alignments: Mapping[str, list[AlignedWord]], names: Sequence[Sequence[str]], seconds: Sequence[float]
) -> list[list[AlignedWord] | None]:
    """Find each utterance's alignment (or None) by any of its names: its caption id, its file's name."""
    matched = [next((alignments[name] for name in known if name in alignments), None) for known in names]
    if not any(matched):
        raise ValueError(
            f"None of the {len(names)} utterances has an alignment: the first is called {names[0][0]!r}, the "
            f"alignments {', '.join(map(repr, list(alignments)[:3]))}. Name each TextGrid (or the utterances of a CTM "
            "file) after the caption_id or the audio file."
        )
    for known, words, length in zip(names, matched, seconds, strict=True):
        if words and words[-1].end > length + 0.1:
            raise ValueError(
                f"The alignment of {known[0]!r} does not match its recording: a word ends at {words[-1].end:.2f} s, "
                f"but the recording at {length:.2f} s."
            )
    return matched


def word_boundaries(words: Sequence[AlignedWord]) -> list[float]:
    """Where one word ends and the next begins; once, if the next follows within 20 ms.

    Example:
        >>> word_boundaries([AlignedWord("a", 0.1, 0.2), AlignedWord("red", 0.2, 0.5), AlignedWord("cat", 0.6, 1.0)])
        [0.2, 0.5, 0.6]
    """
    times = []
    for word, following in pairwise(words):
        if following.start - word.end > _ROUNDING:
            times.append(word.end)
        times.append(following.start)
    return times


def boundary_agreement(
    found: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    tolerances_ms: Sequence[int] = TOLERANCES_MS,
) -> dict[str, float]:
    """Agreement of boundaries in time, as unsupervised word segmentation is scored.

    Boundaries, in seconds and by utterance (without its beginning and end), are matched one to one within the
    tolerance, and counted over all utterances together. docs/metrics.md has the names and formulas.

    Example:
        >>> scores = boundary_agreement([[0.50, 1.00]], [[0.52, 0.80, 1.30]], tolerances_ms=(50,))
        >>> round(scores["boundary_precision@50ms"], 1), round(scores["boundary_recall@50ms"], 1)
        (50.0, 33.3)
    """
    num_found, num_reference = sum(map(len, found)), sum(map(len, reference))
    if num_reference == 0:
        raise ValueError("The reference has no boundary inside any utterance, so there is nothing to compare with.")
    scores: dict[str, float] = {}
    for tolerance in tolerances_ms:
        hits = sum(
            _matched(sorted(one), sorted(other), tolerance / 1000) for one, other in zip(found, reference, strict=True)
        )
        precision = hits / num_found if num_found else 0.0
        recall = hits / num_reference
        over = num_found / num_reference - 1  # over-segmentation
        off_target = math.hypot(1 - recall, over)
        off_line = (recall - 1 - over) / math.sqrt(2)
        scores[f"boundary_precision@{tolerance}ms"] = 100.0 * precision
        scores[f"boundary_recall@{tolerance}ms"] = 100.0 * recall
        scores[f"boundary_f1@{tolerance}ms"] = 100.0 * (2 * hits / (num_found + num_reference))
        scores[f"boundary_r_value@{tolerance}ms"] = 100.0 * (1 - (off_target + abs(off_line)) / 2)
    return scores | {"boundaries_found": num_found, "boundaries_reference": num_reference}


def _matched(one: Sequence[float], other: Sequence[float], tolerance: float) -> int:
    """Most pairs of two sorted lists that lie within the tolerance, each boundary in one pair."""
    i = j = count = 0
    while i < len(one) and j < len(other):
        if abs(one[i] - other[j]) <= tolerance + _AT_THE_TOLERANCE:
            i, j, count = i + 1, j + 1, count + 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    return count


def even_spans(count: int, seconds: float) -> list[tuple[float, float]]:
    """Divide an utterance evenly: what CIF's spans should be better than.

    Example:
        >>> even_spans(4, 2.0)
        [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0)]
    """
    return list(pairwise(seconds * place / count for place in range(count + 1)))


def _checked(words: Sequence[AlignedWord], path: Path) -> list[AlignedWord]:
    kept = [word for word in words if word.word.lower() not in SILENCES]
    for word, next_start in zip(kept, [*(word.start for word in kept[1:]), math.inf], strict=True):
        if not 0 <= word.start <= word.end <= next_start + _ROUNDING:
            raise ValueError(
                f"{path}: the word {word.word!r} from {word.start:g} to {word.end:g} s ends before it begins, or "
                "overlaps the next."
            )
    return kept
