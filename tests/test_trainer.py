"""The Trainer: losses, optimiser, evaluation and resuming, on a tiny random model."""

import copy
import io
import json
import os
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.trainer.card_data import split_size
from speechclip_plus.trainer.collator import SpeechImageCollator
from speechclip_plus.trainer.evaluation.keyword_metrics import keyword_hit_rate
from speechclip_plus.trainer.evaluation.retrieval_metrics import retrieval_recall
from speechclip_plus.trainer.feature_cache import cache_features, cache_image_embeddings
from speechclip_plus.trainer.gradient_cache import backward_in_chunks
from speechclip_plus.trainer.sampler import SharedBatches, epoch_order, stored_column, utterance_lengths
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments, warmup_decay

GOLDEN = Path(__file__).parent / "golden"
NUM_ROWS = 11  # two captions of each image but the last: no multiple of any batch size used here


def make_config(variant="hybrid_plus", vocabulary_size=518):
    return SpeechClipPlusConfig(
        model_variant=variant,
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
    images = [
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range((NUM_ROWS + 1) // 2)
    ]
    rows = [
        {
            "audio": {"array": generator.uniform(-1, 1, 8000 + 640 * number).tolist(), "sampling_rate": 16_000},
            "image": images[number // 2],
            "image_id": 100 + number // 2,
            "text": ["red dog", "dog", "a red do"][number % 3],
            "caption_id": str(number),
        }
        for number in range(NUM_ROWS)
    ]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))


@pytest.fixture
def make_trainer(make_model, dataset, tiny_processor, tmp_path):
    def build(model=None, folder="run", dataset=dataset, **arguments):
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
            model=make_model() if model is None else model,
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
    batch = SpeechImageCollator(tiny_processor).for_evaluation()(list(dataset))
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
        assert 1 <= entry["code_perplexity"] <= entry["distinct_keywords"] + 1e-3 <= 4 * 75 + 1e-3
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


@pytest.mark.parametrize("loaded", [False, True])
def test_only_the_branch_is_trained(loaded, make_trainer, make_model, tmp_path):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    if loaded:
        model.save_pretrained(tmp_path / "saved")
        model = SpeechClipPlusModel.from_pretrained(tmp_path / "saved")
    trainer = make_trainer(model)
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
        metric_for_best_model="mean_R@1",
    )
    trainer.train()
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "eval_mean_R@10" in entry}
    assert set(evaluations) == {2, 4}
    assert trainer.state.best_metric == max(entry["eval_mean_R@1"] for entry in evaluations.values())
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{trainer.state.best_global_step}")


@pytest.mark.parametrize(
    ("metric", "higher_is_better"),
    [
        (None, True),
        ("eval_mean_R@10", True),
        ("parallel_speech_to_image_R@1", True),
        ("loss", False),
        ("eval_loss", False),
        ("eval_parallel_speech_to_image_median_rank", False),
        ("cascaded_image_to_speech_mean_rank", False),
        ("eval_cif_length_error", False),
        ("keyword_duplicates", False),
    ],
)
def test_the_best_checkpoint_follows_what_is_better_in_its_metric(metric, higher_is_better, tmp_path):
    chosen = {} if metric is None else {"metric_for_best_model": metric}
    arguments = SpeechClipPlusTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **chosen)
    assert arguments.greater_is_better is higher_is_better
    reverse = SpeechClipPlusTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, greater_is_better=not higher_is_better, **chosen
    )
    assert reverse.greater_is_better is not higher_is_better


def test_a_part_of_a_backbone_that_requires_gradients_is_trained(make_trainer):
    trainer = make_trainer(max_steps=2)
    layer = trainer.model.speech_encoder.encoder.layers[-1].requires_grad_(True)
    before = copy.deepcopy(layer.state_dict())
    trainer.train()
    assert not any(
        value.equal(before[name]) for name, value in layer.state_dict().items() if "k_proj.bias" not in name
    )


def test_training_from_cached_features_equals_training_from_audio_and_images(
    make_trainer, make_model, dataset, tiny_processor, tmp_path
):
    features = cache_features(make_model(), tiny_processor, dataset, tmp_path, batch_size=3, dtype=torch.float32)
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
    order = epoch_order(count, seed=3, lengths=lengths, batch_size=8)
    assert sorted(order) == list(range(count))
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, count - 7, 8)]
    padding = sum(max(batch) * 8 - sum(batch) for batch in batches)
    assert padding < 0.2 * sum(map(sum, batches))
    longest = [max(batch) for batch in batches]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))  # the batches themselves are shuffled
    assert epoch_order(count, seed=3, lengths=lengths, batch_size=8) == order
    assert epoch_order(count, 1, seed=3, lengths=lengths, batch_size=8) != order


def test_a_resumed_run_with_batches_grouped_by_length_meets_the_same_rows(
    make_trainer, make_model, dataset, tiny_processor, tmp_path
):
    features = cache_features(make_model(), tiny_processor, dataset, tmp_path, dtype=torch.float32)

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


def counting_calls(module):
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_cached_features_are_what_the_encoders_give_and_are_computed_once(
    make_model, dataset, tiny_processor, tmp_path
):
    model, done = make_model(), []
    features = cache_features(model, tiny_processor, dataset, tmp_path, batch_size=4, progress=done.append)
    assert sum(done) == NUM_ROWS
    batch = SpeechImageCollator(tiny_processor)([dataset[3]])
    with torch.no_grad():
        hidden, lengths = model.eval().encode_speech_frames(batch["input_values"], batch["attention_mask"])
        embeds = model.get_image_features(batch["pixel_values"]).pooler_output
    row = features[3]
    assert row["caption_id"] == "3" and row["length"] == int(lengths) == row["speech_hidden_states"].shape[1]
    assert row["speech_hidden_states"].dtype == torch.float16
    torch.testing.assert_close(row["speech_hidden_states"].float(), hidden[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(row["image_embeds"], embeds[0], rtol=1e-5, atol=1e-6)
    seen = counting_calls(model.speech_encoder), counting_calls(model.clip.vision_model)
    again = cache_features(model, tiny_processor, dataset.select([5, 3]), tmp_path)
    assert seen == ([], []) and torch.equal(again[1]["speech_hidden_states"], row["speech_hidden_states"])
    assert again.select([1])[0]["caption_id"] == "3" and again.info.dataset_name == dataset.info.dataset_name


def test_columns_of_a_cached_data_set_are_read_without_its_tensors(make_model, dataset, tiny_processor, tmp_path):
    features = cache_features(make_model(), tiny_processor, dataset, tmp_path)
    for file in tmp_path.rglob("values.bin"):
        file.unlink()
    assert stored_column(features, "image_id") == list(dataset["image_id"])
    assert split_size(features).images == (NUM_ROWS + 1) // 2
    with pytest.raises(FileNotFoundError):
        features[0]


def test_a_cache_that_was_being_written_is_written_anew(make_model, dataset, tiny_processor, tmp_path):
    def broken_off(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_features(make_model(), tiny_processor, dataset, tmp_path, batch_size=4, progress=broken_off)
    features = cache_features(make_model(), tiny_processor, dataset, tmp_path, batch_size=4)
    assert all(row["speech_hidden_states"].shape[1] == row["length"] for row in features)


def test_a_transform_is_not_lost_in_a_cache(make_model, dataset, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match="has a format or transform"):
        cache_image_embeddings(make_model(), tiny_processor, dataset.with_transform(lambda batch: batch), tmp_path)


def test_features_that_can_change_are_not_computed_beforehand(make_model, dataset, tiny_processor, tmp_path):
    model = make_model()
    model.set_trainable(speech_encoder=True)
    with pytest.raises(ValueError, match="only if the speech encoder is frozen.*frozen is False"):
        cache_features(model, tiny_processor, dataset, tmp_path)


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.branch.layers:
        layer.attention.dropout = 0.0
    return model.train()


@pytest.mark.parametrize("variant", ["parallel", "cascaded", "cascaded_plus", "hybrid_plus"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_gradients_of_chunks_are_those_of_the_whole_batch(make_model, dataset, tiny_processor, variant, chunk):
    batch = SpeechImageCollator(tiny_processor)(list(dataset))
    del batch["return_loss"]
    whole, chunked = (without_dropout(make_model(variant)) for _ in range(2))
    expected = whole(**batch, return_loss=True, global_step=0)
    expected.loss.backward()
    found = backward_in_chunks(chunked, batch, chunk)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    mine, theirs = gradients(whole), gradients(chunked)
    assert mine.keys() == theirs.keys()
    norm = torch.stack([value.norm() for value in mine.values()]).norm()
    for name in mine:
        assert (mine[name] - theirs[name]).norm() < 1e-5 * norm, name
    for (name, value), other in zip(whole.named_buffers(), chunked.buffers(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6, msg=name)  # batch norm's running statistics


def test_dropout_is_the_same_in_both_passes_over_a_chunk(make_model, dataset, tiny_processor):
    batch = SpeechImageCollator(tiny_processor)(list(dataset))
    del batch["return_loss"]
    whole, chunked = make_model().train(), make_model().train()
    torch.manual_seed(1)
    whole(**batch, return_loss=True).loss.backward()
    torch.manual_seed(1)
    backward_in_chunks(chunked, batch, len(dataset))  # one chunk draws what the whole batch draws
    theirs = gradients(chunked)
    for name, value in gradients(whole).items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_chunks_need_utterances_that_do_not_depend_on_their_batch(make_model, make_trainer):
    model = make_model()
    model.config.padding = "original"
    with pytest.raises(ValueError, match="padding='invariant'"):
        make_trainer(model=model, gradient_cache_chunk=2)


def test_training_in_chunks_logs_the_same_losses(make_trainer, make_model):
    whole = make_trainer(folder="whole", model=without_dropout(make_model()), max_steps=3)
    chunked = make_trainer(folder="chunked", model=without_dropout(make_model()), max_steps=3, gradient_cache_chunk=2)
    whole.train()
    chunked.train()
    for entry, other in zip(training_logs(whole), training_logs(chunked), strict=True):
        for name in ("loss", "cascaded_loss", "quantity_loss", "grad_norm", "code_perplexity"):
            assert other[name] == pytest.approx(entry[name], rel=1e-3), name


def counting_images(model):
    """Count the images that go through CLIP's image tower."""
    seen = []
    tower = model.clip.vision_model
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else ()))),
        with_kwargs=True,
    )
    return seen


def test_each_image_is_embedded_once_for_all_epochs_and_runs(
    make_trainer, make_model, dataset, tiny_processor, tmp_path
):
    losses, counts = [], []
    for folder, cached in (("plain", False), ("first", True), ("second", True)):
        model = without_dropout(make_model())
        seen = counting_images(model)
        data = cache_image_embeddings(model, tiny_processor, dataset, tmp_path / "cache") if cached else dataset
        trainer = make_trainer(model=model, folder=folder, dataset=data)
        trainer.train()
        metrics = trainer.evaluate()
        counts.append(sum(seen))
        losses.append([entry["loss"] for entry in training_logs(trainer)] + [metrics["eval_loss"]])
    # Five steps of 4 pairs, of which one is an epoch's last with 3, and an evaluation; six images; none.
    assert counts == [5 * 4 - 1 + NUM_ROWS, (NUM_ROWS + 1) // 2, 0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == losses[1]


def test_other_weights_or_images_are_embedded_anew(make_model, dataset, tiny_processor, tmp_path):
    model = make_model()
    seen = counting_images(model)

    def embed(data=dataset, processor=tiny_processor):
        seen.clear()
        rows = cache_image_embeddings(model, processor, data, tmp_path).__getitems__([0, len(data) - 1])
        return sum(seen), torch.stack([row["image_embeds"] for row in rows])

    count, first = embed()
    assert (count, embed()[0]) == (6, 0)
    with torch.no_grad():
        expected = model.get_image_features(
            SpeechImageCollator(tiny_processor)([dataset[0], dataset[NUM_ROWS - 1]])["pixel_values"]
        ).pooler_output
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    assert embed(dataset.select([0, 3]))[0] == 0
    black = io.BytesIO()
    Image.new("RGB", (32, 32)).save(black, format="PNG")
    changed = {"bytes": black.getvalue(), "path": None}
    changed = datasets.Dataset.from_list(
        [{**row, "image": changed if row["image_id"] == 100 else row["image"]} for row in dataset]
    )
    assert embed(changed)[0] == 1  # the one image that changed
    other = copy.deepcopy(tiny_processor)
    other.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert embed(processor=other)[0] == 6
    with torch.no_grad():
        model.clip.visual_projection.weight.mul_(1.5)
    assert embed()[0] == 6
    model.set_trainable(clip=True)
    with pytest.raises(ValueError, match="cannot be kept"):
        embed()


def test_an_image_is_known_by_what_the_processor_sees_of_it(make_model, tiny_processor, tmp_path):
    indices = Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 4, mode="P")
    red, blue = indices.copy(), indices.copy()
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    rows = datasets.Dataset.from_dict(
        {"image_id": [0, 1], "image": [red, blue]},
        features=datasets.Features({"image_id": datasets.Value("int64"), "image": datasets.Image()}),
    )
    assert np.array_equal(np.asarray(rows[0]["image"]), np.asarray(rows[1]["image"]))  # equal but for the palette
    first, second = cache_image_embeddings(make_model(), tiny_processor, rows, tmp_path)
    assert not torch.equal(first["image_embeds"], second["image_embeds"])


def test_an_image_file_that_changed_is_another_image(make_model, tiny_processor, tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(file)
    rows = datasets.Dataset.from_list([{"image": {"bytes": None, "path": str(file)}, "image_id": 0}])
    model = make_model()
    seen = counting_images(model)
    for change in (None, None, (1, 1)):
        if change:
            os.utime(file, ns=change)
        cache_image_embeddings(model, tiny_processor, rows, tmp_path / "cache")
    assert sum(seen) == 2


def test_bfloat16_trains_and_keeps_its_weights_in_float32(make_trainer):
    trainer = make_trainer(bf16=True, max_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in training_logs(trainer))
    after = trainer.model.state_dict()
    assert all(value.dtype != torch.bfloat16 for value in after.values())
    assert not after["cif.weight_projection.weight"].equal(before["cif.weight_projection.weight"])


def test_bfloat16_in_chunks_is_bfloat16_as_a_whole(make_trainer, make_model):
    whole = make_trainer(folder="whole", model=without_dropout(make_model()), max_steps=1, bf16=True)
    chunked = make_trainer(
        folder="chunked", model=without_dropout(make_model()), max_steps=1, bf16=True, gradient_cache_chunk=2
    )
    whole.train()
    chunked.train()
    assert training_logs(chunked)[0]["loss"] == pytest.approx(training_logs(whole)[0]["loss"], rel=1e-2)


def test_an_unfrozen_speech_encoder_trains_with_checkpointed_activations(make_trainer, make_model):
    logs = []
    for checkpointed in (False, True):
        model = make_model()
        model.config.speech_config.layerdrop = model.speech_encoder.config.layerdrop = 0.0
        model.config.speech_config.mask_time_prob = model.speech_encoder.config.mask_time_prob = 0.0
        model.set_trainable(speech_encoder=True)
        trainer = make_trainer(
            model=without_dropout(model),
            folder=f"run{checkpointed}",
            max_steps=2,
            activation_checkpointing=checkpointed,
        )
        trainer.train()
        logs.append(training_logs(trainer))
    for plain, checkpointed in zip(*logs, strict=True):
        assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert checkpointed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_recordings_are_grouped_by_the_lengths_that_their_headers_tell(make_trainer, dataset, tmp_path):
    expected = [8000 + 640 * number for number in range(NUM_ROWS)]
    assert utterance_lengths(dataset["audio"]) == expected
    soundfile.write(tmp_path / "a.flac", np.zeros(4410), 44_100)
    by_path, by_bytes = {"bytes": None, "path": str(tmp_path / "a.flac")}, {"bytes": None, "path": None}
    by_bytes["bytes"] = (tmp_path / "a.flac").read_bytes()
    assert utterance_lengths([by_path, by_bytes]) == [1600, 1600]
    with pytest.raises(ValueError, match="audio of row 0.*cannot be read"):
        utterance_lengths([{"bytes": b"no sound", "path": None}])
    trainer = make_trainer(train_sampling_strategy="group_by_length", max_audio_samples=10_000)
    order = trainer.get_train_dataloader().batch_sampler.order
    assert order.keywords["lengths"] == [min(length, 10_000) for length in expected]


def test_a_stream_needs_max_steps_and_cannot_be_grouped(make_trainer, dataset):
    stream = dataset.to_iterable_dataset(num_shards=2)
    trainer = make_trainer(max_steps=-1, num_train_epochs=1, train_sampling_strategy="random")
    trainer.train_dataset = stream
    with pytest.raises(ValueError, match="give max_steps"):
        trainer.train()
    trainer = make_trainer(train_sampling_strategy="group_by_length")
    trainer.train_dataset = stream
    with pytest.raises(ValueError, match="cannot be grouped by length"):
        trainer.train()


def test_a_resumed_stream_goes_on_where_it_was(make_trainer, dataset):
    def trainer(folder, **arguments):
        built = make_trainer(folder=folder, max_steps=6, **arguments)
        built.train_dataset = dataset.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=4)
        return built

    whole = trainer("whole", save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer("resumed", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_worker_processes_crop_as_the_main_process_does(make_trainer):
    runs = []
    for workers in (0, 1):
        trainer = make_trainer(
            folder=f"run{workers}",
            max_steps=4,
            max_audio_samples=6000,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=bool(workers),
        )
        trainer.train()
        runs.append([entry["quantity_loss"] for entry in training_logs(trainer)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)  # dropout too: loaders draw from generators of their own


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_processes_shares_make_up_the_batches_of_one(processes, drop_last):
    order = partial(epoch_order, 22, seed=5)
    whole = list(SharedBatches(22, order, 6, drop_last=drop_last))
    shares = [SharedBatches(22, order, 6, rank, processes, drop_last) for rank in range(processes)]
    assert [len(batch) for batch in whole] == ([6, 6, 6] if drop_last else [6, 6, 6, 4])
    joined = [[row for batch in batches for row in batch] for batches in zip(*shares, strict=True)]
    assert [sorted(batch) for batch in joined] == [sorted(batch) for batch in whole]
    assert {len(share) for share in shares} == {len(whole)}


def test_a_checkpoint_half_written_is_not_resumed_from(make_trainer):
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    newest = Path(trainer.args.output_dir) / "checkpoint-4"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    resumed = make_trainer(max_steps=4, logging_steps=1, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in training_logs(resumed)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer(folder="empty").train(resume_from_checkpoint=True)


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
        ({"optimizer": "sgd"}, "choose adam, or trainer with optim"),
        ({"schedule": "cosine"}, "lr_scheduler_type='cosine'"),
        ({"max_audio_samples": 100}, "at least 400"),
        ({"train_sampling_strategy": "sequential"}, "use 'group_by_length'"),
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


def test_recall_at_k_does_not_choose_a_model_where_chance_reaches_it(make_trainer, caplog):
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(max_steps=4, load_best_model_at_end=True, **arguments)
    assert "6 images" in caplog.text and "100 % of all cases" in caplog.text
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.args.metric_for_best_model == "loss" and trainer.state.best_metric == min(losses)


def test_a_run_that_ends_within_its_warm_up_is_warned_of(make_trainer, caplog):
    make_trainer(max_steps=5, warmup_steps=5000)
    assert "All 5 steps lie in the warm-up of 5,000" in caplog.text


def test_a_checkpoint_of_the_model_alone_is_not_resumed_from(make_trainer):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="no optimiser and schedule"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=True)


def test_a_batch_size_that_does_not_fit_is_lowered(make_trainer):
    trainer = make_trainer(max_steps=2, auto_find_batch_size=True, per_device_train_batch_size=8)
    sizes, forward = [], trainer.model.forward

    def with_little_memory(**inputs):
        sizes.append(len(inputs["image_ids"]))
        if sizes[-1] > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    trainer.model.forward = with_little_memory
    trainer.train()
    assert sizes[0] == 8 and max(sizes[-2:]) <= 4 and trainer.state.global_step == 2


def test_the_logit_scale_stays_below_100_as_in_clip(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.model.logit_scale.data.fill_(4.6)  # log(100) is 4.605
    trainer.create_optimizer()
    trainer.optimizer.step = lambda *args, **kwargs: trainer.model.logit_scale.data.fill_(7.0)
    trainer.train()
    assert trainer.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_last_batch_of_a_single_row_is_left_out_by_any_number_of_processes(processes):
    shares = [SharedBatches(9, lambda epoch: range(9), 4, rank, processes) for rank in range(processes)]
    assert [sum(map(len, batches)) for batches in zip(*shares, strict=True)] == [4, 4]


class Holder(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.base, self.config = inner, inner.config

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)


def test_a_compiled_model_is_found_and_gets_its_optimiser(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(model=torch.compile(model, backend="eager"))  # compiles when it first runs
    assert trainer.speech_clip is model
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert len(trainer.create_optimizer().param_groups[0]["params"]) == trained


def test_a_wrapped_model_is_trained_as_one_alone(make_trainer, make_model):
    alone = make_trainer(folder="alone")
    alone.train()
    wrapped = make_trainer(folder="wrapped", model=Holder(make_model()))  # which sets the seed anew
    wrapped.train()
    for entry, other in zip(training_logs(alone), training_logs(wrapped), strict=True):
        assert other["loss"] == pytest.approx(entry["loss"], rel=1e-5)
    assert wrapped.evaluate()["eval_utterances"] == NUM_ROWS


def test_a_model_of_another_kind_is_refused(make_trainer):
    with pytest.raises(TypeError, match="Linear is no SpeechClipPlusModel and holds none"):
        make_trainer(model=torch.nn.Linear(2, 2))


def test_metrics_of_single_batches_are_refused_when_the_trainer_is_made(make_trainer):
    with pytest.raises(ValueError, match="batch_eval_metrics"):
        make_trainer(batch_eval_metrics=True)


def test_rows_with_a_torch_format_are_trained_on(make_trainer, dataset):
    columns = ["image_id", "text"]
    trainer = make_trainer(max_steps=1, dataset=dataset.with_format("torch", columns=columns, output_all_columns=True))
    trainer.train()
    assert len(training_logs(trainer)) == 1


def test_the_collator_serves_transformers_own_trainer(make_model, dataset, tiny_processor, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, remove_unused_columns=False, report_to="none", use_cpu=True
    )
    trainer = Trainer(make_model(), arguments, SpeechImageCollator(tiny_processor), train_dataset=dataset)
    assert trainer.train().global_step == 2
