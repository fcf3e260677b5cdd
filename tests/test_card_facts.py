"""What a training run tells for its card, at any time of the training."""

import importlib.util
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from speechclip_plus.hub_cards.cards import render_model_card, save_model_card
from speechclip_plus.trainer.card_data import predicted_results, trainer_card_facts

spec = importlib.util.spec_from_file_location("training_runs", Path(__file__).parent / "training_runs.py")
training_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_runs)


class Asking(TrainerCallback):
    """Asks for the facts at the beginning, after a step, and after an evaluation."""

    def __init__(self):
        self.trainer, self.facts = None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.facts["begin"] = trainer_card_facts(self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.facts["step"] = trainer_card_facts(self.trainer)

    def on_evaluate(self, args, state, control, **kwargs):
        self.facts.setdefault("evaluated", trainer_card_facts(self.trainer))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of four steps, and the facts gathered on its way."""
    folder = tmp_path_factory.mktemp("run")
    asking = Asking()
    trainer = training_runs.make_trainer(
        folder / "mine",
        callbacks=[asking],
        max_steps=4,
        warmup_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    asking.trainer = trainer
    asking.facts["before"] = trainer_card_facts(trainer)
    trainer.train()
    asking.facts["after"] = trainer_card_facts(trainer)
    return trainer, asking.facts


def test_every_moment_of_a_training_has_a_card(trained):
    for moment, facts in trained[1].items():
        card = render_model_card(facts)
        has_results = moment in ("evaluated", "after")
        assert ("## Results" in card) == has_results == bool(ModelCard(card).data.eval_results), moment
        assert "## Keywords" in card and "| train | 11 | 6 |" in card


def test_the_facts_are_those_of_the_run(trained):
    trainer, facts = trained[0], trained[1]["after"]
    assert facts.name == "mine"
    trained_count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert facts.parameters["trained"] == trained_count > 0 and facts.parameters["frozen"] > 0
    assert facts.hyperparameters["batch"] == "4 pairs, all negatives of each other"
    assert facts.hyperparameters["steps"] == "4" and facts.hyperparameters["seed"] == trainer.args.seed
    assert facts.hyperparameters["learning rate"].startswith("0.001, warm-up 1 steps")
    assert facts.hardware.startswith("CPU: ") and 0 < facts.seconds < 600
    seconds = sum(8000 + 640 * (number * 7 % 11) for number in range(11)) / 16_000
    assert facts.splits["train"].hours == pytest.approx(seconds / 3600)


def test_progress_results_and_curves_are_what_the_trainer_logged(trained):
    trainer, facts = trained[0], trained[1]["after"]
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "eval_loss" in entry}
    assert [row["step"] for row in facts.progress] == [2, 4]
    for row in facts.progress:
        assert row["validation loss"] == logged[row["step"]]["eval_loss"]
        assert row["parallel R@10"] == logged[row["step"]]["eval_parallel_mean_R@10"]
    assert facts.best_step == trainer.state.best_global_step == facts.steps  # the best was loaded at the end
    (results,) = facts.results
    assert results.metrics["parallel_mean_R@1"] == logged[facts.best_step]["eval_parallel_mean_R@1"]
    steps, losses = facts.curves["Loss"]["total"]
    assert steps == [1, 2, 3, 4] and losses == [e["loss"] for e in trainer.state.log_history if "loss" in e]


def test_an_evaluation_after_training_does_not_stand_for_its_last_step(trained):
    trainer, before = trained[0], trained[1]["after"]
    trainer.evaluate()
    again = trainer_card_facts(trainer)
    assert again.progress == before.progress and again.curves == before.curves
    trainer.state.log_history.pop()


def test_what_is_given_takes_the_place_of_what_was_gathered(trained):
    facts = trainer_card_facts(trained[0], name="me/mine", license="cc-by-4.0", languages=["ca"], results=[])
    assert (facts.name, facts.license, facts.languages, facts.results) == ("me/mine", "cc-by-4.0", ["ca"], [])
    with pytest.raises(TypeError, match="licence"):
        trainer_card_facts(trained[0], licence="mit")


def test_a_prediction_has_intervals_around_its_metrics(trained):
    trainer = trained[0]
    results = predicted_results(
        trainer, trainer.predict(trainer.eval_dataset, metric_key_prefix="test"), "pairs", "test"
    )
    assert results.metrics["utterances"] == 11 and results.metrics["images"] == 6
    names = [name for name in results.metrics if "_R@" in name or "keyword_hit_rate" in name]
    assert {name for name in names if name.startswith(("parallel", "cascaded", "keyword"))} <= set(results.intervals)
    for name, (low, high) in results.intervals.items():
        if name in results.metrics:
            assert low <= results.metrics[name] + 1e-6 and results.metrics[name] <= high + 1e-6, name
    assert 0 < results.chance["keyword_hit_rate@1"] <= results.chance["keyword_hit_rate_most_common@1"]


def test_several_splits_to_evaluate_have_results_each(tmp_path):
    data = training_runs.make_dataset()
    trainer = training_runs.make_trainer(
        tmp_path,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="easy_mean_R@10",
    )
    trainer.eval_dataset = {"easy": data, "hard": data.select(range(4))}
    trainer.train()
    facts = trainer_card_facts(trainer)
    assert [results.split for results in facts.results] == ["easy", "hard"]
    assert [results.metrics["utterances"] for results in facts.results] == [11, 4]
    assert list(facts.splits) == ["train", "easy", "hard"] and facts.progress[0]["step"] == 1


def test_a_stream_tells_neither_its_rows_nor_its_hours(tmp_path):
    trainer = training_runs.make_trainer(tmp_path, dataset=training_runs.make_dataset().to_iterable_dataset())
    facts = trainer_card_facts(trainer)
    assert facts.splits["train"].rows is None and "None" not in render_model_card(facts)


def test_a_resumed_run_goes_on_counting_its_hours(tmp_path):
    def logged(steps, **resume):
        trainer = training_runs.make_trainer(tmp_path / "run", max_steps=steps, save_strategy="steps", save_steps=1)
        trainer.train(**resume)
        return [entry["train_hours"] for entry in trainer.state.log_history if "train_hours" in entry], trainer

    before, _ = logged(2)
    after, trainer = logged(3, resume_from_checkpoint=True)
    assert len(after) == 3 and after[:2] == before and 0 < before[0] < before[1] < after[2]
    assert trainer_card_facts(trainer).seconds >= 3600 * after[2]


def test_the_card_is_written_beside_its_image(trained, tmp_path):
    save_model_card(tmp_path, trained[1]["after"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "training.png"]
