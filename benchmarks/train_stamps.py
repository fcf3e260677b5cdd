"""Training on real images and voices: Tux Paint's stamps, as a folder that `benchmarks/stamps.py` wrote.

    python benchmarks/stamps.py stamps --held-out recordings
    python benchmarks/train_stamps.py stamps

trains hybrid_plus-tiny on the recorded descriptions in all languages, without their texts, and measures recall on the
test split, in recordings that were never heard, beside chance. A folder of `--voices synthetic` has the English
captions in many synthetic voices instead, one of `--held-out images` tests on images that were never seen, which the
tiny CLIP, made for drawn scenes, cannot tell apart well.
"""

import argparse
import json
import tempfile
import time

import torch
from transformers import set_seed

from speechclip_plus import (
    SpeechClipPlusConfig,
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
    SpeechClipPlusTrainer,
    SpeechClipPlusTrainingArguments,
    SpeechImageCollator,
    load_speech_image_dataset,
)
from speechclip_plus.trainer.evaluation.evaluate import embed_split, evaluate
from speechclip_plus.trainer.feature_cache import cache_features
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

RECALLS = ("R@1", "R@5", "R@10")


def train(splits, steps, seed, folder):
    set_seed(seed)
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny", branch_config={"dropout": 0.0})
    config.cif_config.scale_until_step = steps // 4
    model = SpeechClipPlusModel.from_backbones(speech, clip, config=config)
    processor = SpeechClipPlusProcessor.from_backbones(speech, clip)
    features = {
        name: cache_features(model, processor, splits[name], f"{folder}/features") for name in ("train", "validation")
    }
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=SpeechClipPlusTrainingArguments.from_preset(
            "hybrid_plus-tiny",
            output_dir=folder,
            max_steps=steps,
            eval_strategy="steps",
            eval_steps=max(1, steps // 8),
            save_strategy="steps",
            save_steps=max(1, steps // 8),
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="mean_R@10",
            train_sampling_strategy="group_by_length",
            logging_steps=max(1, steps // 40),
            seed=seed,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=SpeechImageCollator(processor),
        train_dataset=features["train"],
        eval_dataset=features["validation"],
    )
    trainer.train()
    return model.eval(), processor, trainer.state.best_global_step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", metavar="DIR", help="folder of benchmarks/stamps.py, or any data set with three splits"
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", metavar="DIR", help="keep the model and its processor")
    options = parser.parse_args()
    torch.set_num_threads(2)
    started = time.perf_counter()
    splits = {name: load_speech_image_dataset(options.data, split=name) for name in ("train", "validation", "test")}
    for name, split in splits.items():
        print(f"{name}: {len(split):,} recordings of {len(set(split['image_id'])):,} images", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model, processor, best = train(splits, options.steps, options.seed, folder)
    print(f"{options.steps} steps, the best was {best}; {(time.perf_counter() - started) / 60:.1f} minutes")
    if options.save:
        model.save_pretrained(options.save)
        processor.save_pretrained(options.save)
    result = evaluate(embed_split(model, processor, splits["test"]), model, processor.tokenizer)
    for direction in ("speech_to_image", "image_to_speech"):
        for branch in ("parallel", "cascaded"):
            names = [f"{branch}_{direction}_{recall}" for recall in RECALLS]
            cells = [
                f"{result.metrics[name]:.1f} [{', '.join(f'{end:.1f}' for end in result.intervals[name])}]"
                for name in names
            ]
            print(f"{branch} {direction} {' | '.join(cells)}")
        chances = [f"{result.chance[f'{direction}_{recall}']:.1f}" for recall in RECALLS]
        print(f"chance {direction} {' | '.join(chances)}")
    print(json.dumps({name: round(value, 3) for name, value in result.metrics.items() if "R@" not in name}))
