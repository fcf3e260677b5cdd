"""The paper's two claims on spoken scenes: CIF's keywords against a fixed number, and the hybrid's parallel branch.

Run as `python benchmarks/paper_claims.py`: trains all five variants with the published objective, three seeds each, on
the same data, with the same steps, batches and learning rate, and compares them on the same test utterances. A run
that is finished stays in `--output-dir`, so that an interrupted benchmark goes on. Writes `claims.md` there.

A difference is the mean over the seeds of what one variant scores more than another on each query; its interval comes
from drawing queries with replacement, the same for both. A claim is reproduced where the interval and every seed lie
above zero, contradicted where they lie below, and undecided otherwise.
"""

import argparse
import json
from collections import Counter
from itertools import chain
from pathlib import Path

import torch

from speechclip_plus import (
    SpeechClipPlusConfig,
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
    SpeechClipPlusTrainer,
    SpeechClipPlusTrainingArguments,
    load_speech_image_dataset,
)
from speechclip_plus.atomic_files import write_json
from speechclip_plus.trainer.evaluation.evaluate import embed_split, evaluate
from speechclip_plus.trainer.evaluation.keyword_metrics import Spelling, caption_agreement, hit_rate_shares
from speechclip_plus.trainer.evaluation.retrieval_metrics import interval, resampled_means
from speechclip_plus.trainer.feature_cache import cache_features
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

VARIANTS = ("parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus")
SCALED_SHARE, WARMUP_SHARE = 0.3, 0.06  # of the steps: with CIF scaled to its target; with a rising learning rate
CLAIMS = {  # what is claimed, the variant that should be better, the other one, and the measures that say so
    "CIF's keywords are better than a fixed number of them": [
        ("cascaded_plus", "cascaded", ("cascaded_R@1", "cascaded_R@10", "hit_rate", "content_f1")),
        ("hybrid_plus", "hybrid", ("cascaded_R@1", "cascaded_R@10", "hit_rate", "content_f1")),
    ],
    "The cascaded task lifts the parallel branch": [
        ("hybrid", "parallel", ("parallel_R@1", "parallel_R@10")),
        ("hybrid_plus", "parallel", ("parallel_R@1", "parallel_R@10")),
    ],
}
TABLE = ("parallel_mean_R@1", "parallel_mean_R@10", "cascaded_mean_R@1", "cascaded_mean_R@10")
TABLE += ("keyword_hit_rate@1", "content_subword_f1", "keyword_duplicates", "boundary_f1@50ms")


def main() -> None:
    """Train what is not trained yet, and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/paper_claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and order; data stay")
    parser.add_argument("--steps", type=int, default=300, help="training steps of every run (default: 300)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-scenes", type=int, default=8000)
    parser.add_argument("--test-scenes", type=int, default=500)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train = load_speech_image_dataset("spoken_scenes", split="train", num_scenes=args.train_scenes)
    test = load_speech_image_dataset("spoken_scenes", split="test", num_scenes=args.test_scenes)
    runs = {}
    for seed in args.seeds:
        for variant in VARIANTS:
            file = args.output_dir / f"{variant}-{seed}.json"
            if not file.is_file():
                write_json(file, train_and_measure(variant, seed, args, train, test))
            runs[variant, seed] = json.loads(file.read_text(encoding="utf-8"))
            print(variant, seed, {name: round(runs[variant, seed]["metrics"].get(name, 0), 1) for name in TABLE})
    text = markdown(runs, args)
    (args.output_dir / "claims.md").write_text(text, encoding="utf-8")
    print(text)


def train_and_measure(variant, seed, args, train, test):
    """Train a variant and return its metrics, and what it scores on each query of the test split."""
    torch.manual_seed(seed)
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    processor = SpeechClipPlusProcessor.from_backbones(speech, clip)
    config = SpeechClipPlusConfig.from_preset(f"{variant}-tiny", branch_config={"dropout": 0.0})
    if config.has_cascaded:
        tokens = processor.tokenizer(list(train["text"]), add_special_tokens=False)["input_ids"]
        config.keyword_config.vocabulary_ids = [token for token, _ in Counter(chain(*tokens)).most_common()]
    if config.has_cif:
        config.cif_config.scale_until_step = round(SCALED_SHARE * args.steps)
    model = SpeechClipPlusModel.from_backbones(speech, clip, config=config)
    features = cache_features(model, processor, train, args.output_dir / "features")
    arguments = SpeechClipPlusTrainingArguments.from_preset(
        f"{variant}-tiny",
        output_dir=str(args.output_dir / "training"),
        max_steps=args.steps,
        warmup_steps=round(WARMUP_SHARE * args.steps),
        per_device_train_batch_size=args.batch_size,
        train_sampling_strategy="group_by_length",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SpeechClipPlusTrainer(model=model, args=arguments, train_dataset=features, processing_class=processor)
    seconds = trainer.train().metrics["train_runtime"]
    model.eval()
    split = embed_split(model, processor, test)
    results = evaluate(split, model, processor.tokenizer, resamples=0)
    per_query = {}
    for branch in ("parallel", "cascaded"):
        if f"{branch}_embeds" in split.outputs:
            for k in (1, 10):
                ways = [results.ranks[f"{branch}_{way}"] <= k for way in ("speech_to_image", "image_to_speech")]
                # Each image has one caption: the mean of both directions belongs to the pair.
                per_query[f"{branch}_R@{k}"] = (100.0 * torch.stack(ways).double().mean(0)).tolist()
    if config.has_cascaded:
        ids, lengths = split.outputs["keyword_ids"], split.outputs["keyword_lengths"]
        table = model.get_input_embeddings().weight
        shares = hit_rate_shares(ids, lengths, split.gold_subwords, model.config, table, [1])
        per_query["hit_rate"] = shares["keyword_hit_rate@1"].tolist()
        keywords = [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
        agreement = caption_agreement(keywords, split.gold_subwords, Spelling(processor.tokenizer))
        per_query["content_f1"] = agreement["content_subword_f1"]
    return {"metrics": results.metrics, "chance": results.chance, "per_query": per_query, "seconds": seconds}


def markdown(runs, args):
    """Tables of all runs and of the differences that the claims are about."""
    lines = [f"{args.steps} steps of {args.batch_size} pairs, {args.train_scenes:,} training and {args.test_scenes} "]
    lines[0] += f"test scenes, seeds {', '.join(map(str, args.seeds))}. Percent: mean over the seeds (each of them)."
    lines += ["", f"| variant | {' | '.join(TABLE)} |", f"|---{'|---' * len(TABLE)}|"]
    for variant in VARIANTS:
        cells = []
        for name in TABLE:
            values = [runs[variant, seed]["metrics"].get(name) for seed in args.seeds]
            known = None not in values
            cells.append(f"{sum(values) / len(values):.1f} ({', '.join(f'{v:.1f}' for v in values)})" if known else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    even = runs["hybrid_plus", args.seeds[0]]["chance"].get("boundary_f1@50ms")
    lines += ["", f"Evenly spaced boundaries: {even:.1f}." if even else "", ""]
    lines += ["| claim | compared | measure | difference (each seed) | 95 % interval | |", "|---|---|---|---|---|---|"]
    for claim, comparisons in CLAIMS.items():
        for better, other, measures in comparisons:
            for measure in measures:
                lines.append(
                    f"| {claim} | {better} - {other} | {measure} | {difference(runs, args, better, other, measure)} |"
                )
    return "\n".join(lines) + "\n"


def difference(runs, args, better, other, measure):
    """Cells of a comparison: the difference, its interval, and what it says of the claim."""
    values = [
        torch.tensor(runs[better, seed]["per_query"][measure]) - torch.tensor(runs[other, seed]["per_query"][measure])
        for seed in args.seeds
    ]
    by_seed = [value.mean().item() for value in values]
    mean = torch.stack(values).mean(0)  # (Q,)
    low, high = interval(resampled_means(mean[:, None])[:, 0])
    verdict = "undecided"
    if low > 0 and min(by_seed) > 0:
        verdict = "reproduced"
    elif high < 0 and max(by_seed) < 0:
        verdict = "contradicted"
    each = ", ".join(f"{value:+.1f}" for value in by_seed)
    return f"{mean.mean().item():+.1f} ({each}) | {low:+.1f} to {high:+.1f} | {verdict}"


if __name__ == "__main__":
    main()
