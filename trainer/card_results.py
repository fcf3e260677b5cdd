"""What a training run measured, for its model card: results of a split, and keywords of its first recordings."""

from dataclasses import replace
from typing import Any

import datasets

from ..hub_cards.model_card import KeywordExample
from ..hub_cards.results import Results
from ..modeling_speechclip_plus.audio_utils import load_audio
from .data_facts import dataset_name
from .evaluation.evaluate import SplitOutputs, evaluate, spoken_keywords
from .evaluation.retrieval_metrics import chance_recall

EXAMPLES = 5


def predicted_results(trainer: Any, output: Any, dataset: str, split: str, how: str = "") -> Results:
    """Return what `trainer.predict` measured, with intervals and chance.

    Args:
        trainer: the `SpeechClipPlusTrainer`.
        output: what its `predict(..., metric_key_prefix=split)` returned.
        dataset: the data set's name.
        split: the split's.
        how: by what it was measured, for the card.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    outputs = SplitOutputs.from_predictions(output.predictions, output.label_ids)
    results = evaluate(outputs, model, hit_rate_neighbours=trainer.args.hit_rate_neighbours)
    metrics = {name.removeprefix(f"{split}_"): value for name, value in output.metrics.items()}
    return replace(results, metrics=metrics | results.metrics, dataset=dataset, split=split, how=how)


def history_results(trainer: Any, dataset: str, steps: int | None) -> list[Results]:
    """Return what was evaluated during training of the weights that have seen so many steps; else the last of all."""
    results = []
    for split, (prefix, data) in named_splits(trainer).items():
        entries = [entry for entry in trainer.state.log_history if f"{prefix}utterances" in entry]
        entry = next((entry for entry in entries if entry["step"] == steps), entries[-1] if entries else None)
        if entry is None:
            continue
        ids = data["image_id"] if isinstance(data, datasets.Dataset) else getattr(data, "columns", {}).get("image_id")
        results.append(
            Results(
                metrics={name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)},
                chance={} if ids is None else chance_recall(list(ids), list(ids)),
                dataset=dataset_name(data) or dataset or "unnamed data",
                split=split,
                how=f"the training's evaluation at step {entry['step']}",
                retrieval_branch=trainer.accelerator.unwrap_model(trainer.model).config.retrieval_branch,
            )
        )
    return results


def keyword_examples(trainer: Any, data: Any, count: int = EXAMPLES) -> list[KeywordExample]:
    """Read the keywords out of a split's first recordings; none if the model has none, or is spread over devices."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not model.config.has_cascaded or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    processor = getattr(trainer.data_collator, "processor", None) or trainer.processing_class
    was_training = model.training
    model.eval()
    try:
        examples = []
        for row in data.select(range(min(count, len(data)))):
            waveform = load_audio(row["audio"], name=f"audio of {row.get('caption_id', 'a recording')}")
            keywords, _ = spoken_keywords(model, processor, waveform, None)
            said = [(keyword.text, keyword.start, keyword.end) for keyword in keywords]
            examples.append(KeywordExample(row.get("text") or "", said))
        return examples
    finally:
        model.train(was_training)


def named_splits(trainer: Any) -> dict[str, tuple[str, Any]]:
    """What a trainer evaluates on: by name, the prefix of its metrics in the log and the data."""
    data = trainer.eval_dataset
    if isinstance(data, dict):
        return {split: (f"eval_{split}_", part) for split, part in data.items()}
    return {"validation": ("eval_", data)}
