"""The Trainer: losses, optimiser, evaluation and resuming, on a tiny random model."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.trainer.collator import SpeechImageCollator
from speechclip_plus.trainer.frozen_features import compute_frozen_features
from speechclip_plus.trainer.metrics import keyword_hit_rate, retrieval_recall
from speechclip_plus.trainer.sampler import LengthGroupedBatches
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments, warmup_decay

GOLDEN = Path(__file__).parent / "golden"
NUM_ROWS = 11  # two captions of each picture but the last: no multiple of any batch size used here


def make_config(variant="hybrid_plus", vocabulary_size=518):
    return SpeechClipPlusConfig(
        variant=variant,
        speech_config={
            "model_type": "hubert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": [8, 8],
            "conv_kernel": [10, 8],
            "conv_stride": [20, 16],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
        clip_config={
            "projection_dim": 12,
            "text_config": {
                "vocab_size": vocabulary_size,
                "hidden_size": 12,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 77,
                "bos_token_id": vocabulary_size - 2,
                "eos_token_id": vocabulary_size - 1,
            },
            "vision_config": {
                "image_size": 32,
                "patch_size": 16,
                "hidden_size": 12,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
        branch_config={"num_attention_heads": 2},
        cif_config={"scale_until_step": 3} if variant.endswith("plus") else None,
    )


@pytest.fixture(scope="module")
def make_model(tiny_tokenizer):
    """Build the same random model anew."""

    def build(variant="hybrid_plus"):
        torch.manual_seed(0)
        return SpeechClipPlusModel(make_config(variant, len(tiny_tokenizer)))

    return build


@pytest.fixture(scope="module")
def dataset():
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range((NUM_ROWS + 1) // 2)
    ]
    rows = [
        {
            "audio": {"array": generator.uniform(-1, 1, 8000 + 640 * number).tolist(), "sampling_rate": 16_000},
            "image": pictures[number // 2],
            "image_id": 100 + number // 2,
            "text": ["red dog", "dog", "a red do"][number % 3],
            "caption_id": str(number),
        }
        for number in range(NUM_ROWS)
    ]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))


@pytest.fixture
def make_trainer(make_model, dataset, tiny_processor, tmp_path):
    def build(model=None, folder="run", **arguments):
        defaults = {
            "output_dir": str(tmp_path / folder),
            "max_steps": 5,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return SpeechClipPlusTrainer(
            model=model or make_model(),
            args=SpeechClipPlusTrainingArguments(**{**defaults, **arguments}),
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=tiny_processor,
        )

    return build


@pytest.fixture(scope="module")
def evaluated(make_model, dataset, tiny_processor, tmp_path_factory):
    """Metrics of the untrained model in batches of 4 (the last has 3), its model and its data in one batch."""
    model = make_model()
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=SpeechClipPlusTrainingArguments(
            output_dir=str(tmp_path_factory.mktemp("evaluated")),
            per_device_eval_batch_size=4,
            dataloader_drop_last=True,  # meant for training: evaluation must not lose its last batch to it
            report_to="none",
            use_cpu=True,
        ),
        eval_dataset=dataset,
        processing_class=tiny_processor,
    )
    batch = SpeechImageCollator(tiny_processor)(list(dataset))
    return trainer.evaluate(), model.eval(), batch


def training_logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_every_part_of_the_loss_is_logged_and_sums_to_it(make_trainer):
    trainer = make_trainer()
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 5
    weight = trainer.model.config.loss_config.quantity_weight
    for entry in logs:
        parts = entry["parallel_loss"] + entry["cascaded_loss"] + weight * entry["quantity_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)
        assert entry["keywords_per_utterance"] >= 1
        assert entry["cif_length_error"] == pytest.approx(entry["quantity_loss"], rel=1e-4)
        assert 1 <= entry["distinct_keywords"] <= 4 * 75
    assert logs[0]["temperature"] == pytest.approx(0.07, rel=0.01)


def test_cif_is_scaled_to_the_target_until_the_configured_global_step(make_trainer):
    seen = []
    trainer = make_trainer()
    forward = trainer.model.forward

    def watching(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if trainer.model.training:
            scaled = (outputs.alphas.sum(1) - outputs.target_lengths).abs().max() < 1e-3
            seen.append((kwargs["global_step"], bool(scaled)))
        return outputs

    trainer.model.forward = watching
    trainer.train()
    assert seen == [(0, True), (1, True), (2, True), (3, False), (4, False)]


@pytest.mark.parametrize("variant", ["parallel", "cascaded", "hybrid"])
def test_other_variants_train_and_log_only_their_own_parts(make_trainer, make_model, variant):
    trainer = make_trainer(model=make_model(variant), max_steps=1, learning_rate=1e-2)
    trainer.train()
    entry, evaluation = training_logs(trainer)[0], trainer.evaluate()
    has_parallel, has_cascaded = variant != "cascaded", variant != "parallel"
    assert ("parallel_loss" in entry, "cascaded_loss" in entry) == (has_parallel, has_cascaded)
    assert ("eval_parallel_mean_R@1" in evaluation, "eval_keyword_hit_rate@1" in evaluation) == (
        has_parallel,
        has_cascaded,
    )
    assert "quantity_loss" not in entry and "eval_cif_length_error" not in evaluation


def test_evaluation_counts_every_utterance_and_every_picture_once(evaluated):
    metrics, _, _ = evaluated
    assert metrics["eval_utterances"] == NUM_ROWS
    assert metrics["eval_images"] == (NUM_ROWS + 1) // 2


def test_evaluation_equals_the_metrics_of_the_whole_split_in_one_batch(evaluated):
    metrics, model, batch = evaluated
    with torch.no_grad():
        outputs = model(**{name: value for name, value in batch.items() if name != "gold_subwords"})
    for branch in ("parallel", "cascaded"):
        expected = retrieval_recall(
            outputs[f"{branch}_embeds"], outputs.image_embeds, batch["image_ids"], batch["image_ids"]
        )
        for name, value in expected.items():
            assert metrics[f"eval_{branch}_{name}"] == pytest.approx(value, abs=1e-6)
    special = {0, model.config.start_token_id, model.config.end_token_id}
    expected = keyword_hit_rate(outputs.keyword_ids, outputs.keyword_lengths, batch["gold_subwords"], special)
    assert metrics["eval_keyword_hit_rate@1"] == pytest.approx(expected["hit_rate"])
    assert metrics["eval_keywords_per_utterance"] == pytest.approx(outputs.keyword_lengths.float().mean().item())
    assert metrics["eval_distinct_keywords"] == len(outputs.keyword_ids[outputs.keyword_ids >= 0].unique())


def test_the_mean_recall_is_that_of_the_retrieval_branch(evaluated):
    metrics, model, _ = evaluated
    assert model.config.retrieval_branch == "parallel"
    for k in (1, 5, 10):
        assert metrics[f"eval_mean_R@{k}"] == metrics[f"eval_parallel_mean_R@{k}"]


def test_an_utterance_lost_in_evaluation_is_an_error(make_trainer, dataset, monkeypatch):
    trainer = make_trainer()
    loader = trainer.get_eval_dataloader()
    short = [batch for batch in loader][:-1]
    monkeypatch.setattr(type(loader), "__iter__", lambda self: iter(short))
    with pytest.raises(RuntimeError, match=f"8 utterances were scored, but the data set has {NUM_ROWS}"):
        trainer.evaluate()


def test_the_optimiser_is_adam_with_an_l2_term_on_every_trained_parameter(make_trainer):
    trainer = make_trainer(weight_decay=0.125)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    trained = {id(parameter) for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in group["params"]} == trained
    assert id(trainer.model.logit_scale) in trained
    assert not group["decoupled_weight_decay"] and group["weight_decay"] == 0.125
    frozen = [*trainer.model.speech_encoder.parameters(), *trainer.model.clip.parameters()]
    assert not any(id(parameter) in trained for parameter in frozen)


def test_other_optimisers_and_schedules_can_be_chosen(make_trainer):
    trainer = make_trainer(optimizer="trainer", optim="adamw_torch", schedule="trainer", lr_scheduler_type="cosine")
    trainer.create_optimizer_and_scheduler(10)
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert "cosine" in trainer.lr_scheduler.lr_lambdas[0].func.__name__


@pytest.mark.parametrize("curve", ["paper", "short"])
def test_the_learning_rate_follows_the_published_curve_and_never_goes_below_its_end(curve):
    golden = json.loads((GOLDEN / "scheduler.json").read_text())[curve]
    for step, expected in golden["lr_at_optimizer_step"].items():
        factor = warmup_decay(
            int(step), golden["warmup"], golden["max_step"], golden["final_lr"] / golden["base_lr"]
        )  # fmt: skip
        assert factor * golden["base_lr"] == pytest.approx(max(expected, golden["final_lr"]), rel=1e-6)


def test_the_trainer_uses_that_curve(make_trainer):
    trainer = make_trainer(learning_rate=1e-3, final_learning_rate=1e-4)
    trainer.train()
    rates = [entry["learning_rate"] for entry in training_logs(trainer)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.7e-3, 0.4e-3, 0.1e-3])


def test_only_the_branch_is_trained(make_trainer, make_model):
    before = make_model().state_dict()
    trainer = make_trainer()
    trainer.train()
    changed = {
        name.split(".")[0] for name, value in trainer.model.state_dict().items() if not value.equal(before[name])
    }
    assert {"branch", "cif", "keyword_projection", "keyword_norm", "parallel_projection", "layer_sum"} <= changed
    assert not changed & {"speech_encoder", "clip"}


def test_a_resumed_run_ends_with_the_same_weights_as_one_never_stopped(make_trainer, make_model):
    whole = make_trainer(folder="whole", max_steps=6, save_strategy="no", max_audio_samples=6000)
    whole.train()
    # Four steps are one epoch and one more: it resumes in the middle of an epoch, past the end of CIF's scaling.
    first = make_trainer(folder="parts", max_steps=6, save_steps=4, save_strategy="steps", max_audio_samples=6000)
    first.train()
    checkpoint = str(Path(first.args.output_dir) / "checkpoint-4")
    resumed = make_trainer(folder="resumed", max_steps=6, save_strategy="no", max_audio_samples=6000)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 6
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_leaves_the_configuration_as_it_was_and_saves_the_processor(make_trainer, tiny_processor):
    trainer = make_trainer(max_steps=1)
    before = trainer.model.config.to_dict()
    trainer.train()
    after = trainer.model.config.to_dict()
    saving_writes = {"architectures", "dtype", "transformers_version"}
    assert {name for name in after if after[name] != before.get(name)} <= saving_writes
    assert trainer.processing_class is tiny_processor
    saved = Path(trainer.args.output_dir) / "checkpoint-1"
    assert (saved / "processor_config.json").is_file() and (saved / "model.safetensors").is_file()


def test_the_best_checkpoint_is_chosen_by_mean_recall(make_trainer):
    trainer = make_trainer(
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "eval_mean_R@10" in entry}
    assert set(evaluations) == {2, 4}
    assert trainer.state.best_metric == max(entry["eval_mean_R@10"] for entry in evaluations.values())
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{trainer.state.best_global_step}")


def test_training_from_computed_features_equals_training_from_audio_and_pictures(
    make_trainer, make_model, dataset, tiny_processor
):
    features = compute_frozen_features(make_model(), dataset, tiny_processor, batch_size=3, dtype=torch.float32)
    from_files = make_trainer(folder="files", max_steps=3)
    from_files.train()
    from_features = make_trainer(folder="features", max_steps=3)  # sets the seed anew, so dropout is the same
    from_features.train_dataset = features
    from_features.train()
    for entry, other in zip(training_logs(from_files), training_logs(from_features), strict=True):
        assert other["loss"] == pytest.approx(entry["loss"], rel=1e-3)


@pytest.mark.parametrize("count", [64, 70])
def test_batches_grouped_by_length_hold_every_row_once_and_little_padding(count):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 1000, (count,), generator=generator).tolist()
    sampler = LengthGroupedBatches(lengths, batch_size=8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(count)) and len(sampler) == count
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, count - 7, 8)]
    padding = sum(max(batch) * 8 - sum(batch) for batch in batches)
    assert padding < 0.2 * sum(map(sum, batches))
    longest = [max(batch) for batch in batches]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))  # the batches themselves are shuffled
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_a_resumed_run_with_batches_grouped_by_length_meets_the_same_rows(
    make_trainer, make_model, dataset, tiny_processor
):
    features = compute_frozen_features(make_model(), dataset, tiny_processor, dtype=torch.float32)

    def trainer(folder, **arguments):
        built = make_trainer(folder=folder, max_steps=6, train_sampling_strategy="group_by_length", **arguments)
        built.train_dataset = built.eval_dataset = features
        return built

    whole = trainer("whole", save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer("resumed", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert resumed.evaluate()["eval_utterances"] == NUM_ROWS
    assert resumed.evaluate(dataset)["eval_utterances"] == NUM_ROWS  # recordings, which do not tell their lengths


def test_features_kept_in_a_file_are_those_kept_in_memory(make_model, dataset, tiny_processor, tmp_path):
    model, done = make_model(), []
    in_memory = compute_frozen_features(model, dataset, tiny_processor, batch_size=4)
    in_file = compute_frozen_features(
        model, dataset, tiny_processor, batch_size=4, folder=tmp_path, progress=lambda *counts: done.append(counts)
    )
    assert done[-1] == (NUM_ROWS, NUM_ROWS)
    assert len(in_memory.image_embeds) == (NUM_ROWS + 1) // 2
    assert len(in_file) == NUM_ROWS
    assert in_file.num_bytes == in_memory.num_bytes == sum(3 * len(state[0]) * 16 * 2 for state in in_memory.states)
    for mine, theirs in zip(in_file, in_memory, strict=True):
        assert torch.equal(mine["speech_hidden_states"], theirs["speech_hidden_states"])
        assert mine["caption_id"] == theirs["caption_id"]
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_features_that_can_change_are_not_computed_beforehand(make_model, dataset, tiny_processor):
    model = make_model()
    model.set_trainable(speech_encoder=True)
    with pytest.raises(ValueError, match="never change.*it has True"):
        compute_frozen_features(model, dataset, tiny_processor)


def test_a_preset_brings_its_published_hyper_parameters(tmp_path):
    arguments = SpeechClipPlusTrainingArguments.from_preset(
        "hybrid_plus-large-spokencoco", output_dir=str(tmp_path), warmup_steps=10
    )
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (128, 2)
    assert (arguments.learning_rate, arguments.final_learning_rate, arguments.max_grad_norm) == (1e-4, 1e-8, 4)
    assert (arguments.max_steps, arguments.weight_decay, arguments.optimizer) == (50_000, 1e-6, "adam")
    assert arguments.warmup_steps == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, trainer"),
        ({"schedule": "cosine"}, "lr_scheduler_type='cosine'"),
        ({"final_learning_rate": 1.0}, "between 0 and learning_rate"),
        ({"max_audio_samples": 100}, "at least 400"),
    ],
)
def test_impossible_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SpeechClipPlusTrainingArguments(output_dir=str(tmp_path), **arguments)


def test_plain_training_arguments_are_refused(make_model, tiny_processor, tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="must be SpeechClipPlusTrainingArguments"):
        SpeechClipPlusTrainer(
            model=make_model(), args=TrainingArguments(output_dir=str(tmp_path)), processing_class=tiny_processor
        )
