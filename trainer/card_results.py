"""What a training run measured, for its model card: results of a split, and keywords of its first recordings."""

from typing import Any

import datasets

from ..hub_cards.measured_results import MeasuredResults
from ..hub_cards.model_card import KeywordExample
from ..modeling_speechclip_plus.audio_utils import load_audio
from .collator import GOLD_SUBWORDS
from .data_facts import dataset_name
from .evaluation.chance import chance_keyword_hit_rate, chance_recall
from .evaluation.evaluate import join_outputs, split_intervals
from .evaluation.spoken_keywords import spoken_keywords

EXAMPLES = 5


def predicted_results(trainer: Any, output: Any, dataset: str, split: str, how: str = "") -> MeasuredResults:
    """Return what `trainer.predict` measured, with intervals and what guessing gives.

    Args:
        trainer: the `SpeechClipPlusTrainer`.
        output: what its `predict(..., metric_key_prefix=split)` returned.
        dataset: the data set's name.
        split: the split's.
        how: by what it was measured, for the card.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    predictions, labels = join_outputs(output.predictions), join_outputs(output.label_ids)
    image_ids, gold = labels["image_ids"], labels.get(GOLD_SUBWORDS)
    chance = chance_recall(image_ids.tolist(), image_ids.tolist())
    if gold is not None and "keyword_ids" in predictions:
        captions = [[subword for subword in row if subword >= 0] for row in gold.tolist()]
        captions = [caption for caption in captions if caption]
        if captions:
            chance |= chance_keyword_hit_rate(captions, model.vocabulary_ids[model.is_keyword].tolist())
    return MeasuredResults(
        metrics={name.removeprefix(f"{split}_"): value for name, value in output.metrics.items()},
        intervals=split_intervals(
            predictions,
            image_ids,
            gold,
            model.config,
            model.get_input_embeddings().weight,
            trainer.args.hit_rate_neighbours,
        ),
        chance=chance,
        dataset=dataset,
        split=split,
        how=how,
        retrieval_branch=model.config.retrieval_branch,
    )


def history_results(trainer: Any, dataset: str, steps: int | None) -> list[MeasuredResults]:
    """Return what was evaluated during training of the weights that have seen so many steps; else the last of all."""
    results = []
    for split, (prefix, data) in named_splits(trainer).items():
        entries = [entry for entry in trainer.state.log_history if f"{prefix}utterances" in entry]
        entry = next((entry for entry in entries if entry["step"] == steps), entries[-1] if entries else None)
        if entry is None:
            continue
        ids = data["image_id"] if isinstance(data, datasets.Dataset) else getattr(data, "columns", {}).get("image_id")
        results.append(
            MeasuredResults(
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
