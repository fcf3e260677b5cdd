"""Keyword localization on spoken scenes: where a word is found in an utterance by its text.

Run as `python benchmarks/localization.py MODEL`. Every content word of a test utterance is looked for by its text.
*Pointing*: the share of words with the highest score inside the word. *In place*: the best span covers at least half
of the word. *F1*: of the best span's frames and the word's. Chance: the share of the utterance that the word takes up
(pointing), and a span as long as the best one in a random place.
"""

import argparse
import random
import statistics

import torch

from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor, load_speech_image_dataset
from speechclip_plus.modeling_speechclip_plus.embedding import embed_texts
from speechclip_plus.trainer.evaluation.keyword_metrics import stop_words


def overlap(one, other):
    """Seconds that two spans share."""
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def measures(span, peak, words):
    """Pointing, in place and F1 of a span and a peak, by whichever of the words fits best."""
    pointing = any(start <= peak <= end for start, end in words)
    in_place = any(overlap(span, word) >= (word[1] - word[0]) / 2 for word in words)
    f1 = max(2 * overlap(span, word) / (span[1] - span[0] + word[1] - word[0]) for word in words)
    return pointing, in_place, f1


def main() -> None:
    """Measure a model on the test split."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--branch", help="the model's retrieval branch if not given")
    args = parser.parse_args()
    model = SpeechClipPlusModel.from_pretrained(args.model)
    processor = SpeechClipPlusProcessor.from_pretrained(args.model)
    test = load_speech_image_dataset("spoken_scenes", split="test", num_scenes=args.scenes)
    spoken = [
        [
            (word["word"].lower(), word["start"], word["end"])
            for word in row
            if word["word"].lower() not in stop_words()
        ]
        for row in test["words"]
    ]
    texts = sorted({word for row in spoken for word, _, _ in row})
    embeds = dict(zip(texts, embed_texts(model, processor, texts), strict=True))
    frame_s, generator = model.speech_adapter.seconds_per_frame, random.Random(0)
    found, chance, by_word = [], [], {}
    for row, words in zip(test, spoken, strict=True):
        inputs = processor(audio=row["audio"], return_tensors="pt")
        with torch.no_grad():
            states, lengths = model.encode_speech_frames(**inputs)
        seconds = int(lengths) * frame_s
        for text in {word for word, _, _ in words}:
            spans = [(start, end) for word, start, end in words if word == text]
            given = {"speech_hidden_states": states, "frame_lengths": lengths}
            (result,) = model.localize(embeds[text][None], branch=args.branch, **given)
            peak = (int(result.scores.argmax()) + 0.5) * frame_s
            found.append(measures((result.start, result.end), peak, spans))
            by_word.setdefault(text, []).append(found[-1][0])
            start = generator.uniform(0, max(0.0, seconds - result.end + result.start))
            random_span = (start, start + result.end - result.start)
            chance.append(measures(random_span, generator.uniform(0, seconds), spans))
    for name, rows in (("found", found), ("chance", chance)):
        means = [100 * statistics.fmean(column) for column in zip(*rows, strict=True)]
        print(f"{name}: pointing {means[0]:.1f}, in place {means[1]:.1f}, F1 {means[2]:.1f} ({len(rows)} words)")
    for text, hits in sorted(by_word.items(), key=lambda item: -statistics.fmean(item[1])):
        print(f"  {text}: {100 * statistics.fmean(hits):.0f} of {len(hits)}")


if __name__ == "__main__":
    main()
