"""Two processes train as one does with their batches joined, with DDP."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechclip_plus import SpeechClipPlusModel
from speechclip_plus.trainer.trainer_speechclip_plus import last_complete_checkpoint

SCRIPT = Path(__file__).parent / "training_runs.py"
spec = importlib.util.spec_from_file_location("training_runs", SCRIPT)
training_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_runs)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return training_runs.distributed_runs(tmp_path_factory.mktemp("one"), batch_size=4)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, repository_root):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository_root / "src")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return torch.load(folder / "runs.pt", weights_only=False) | {"folder": folder}


RUNS = ["random", "grouped", "cached"]


@pytest.fixture
def expected(one_process, run):
    return one_process[run]


@pytest.mark.parametrize("run", RUNS)
def test_gradients_of_every_step_are_those_of_one_process(expected, two_processes, run):
    found = two_processes[run]["gradients"]
    assert len(found) == len(expected["gradients"]) >= 3
    for step, (mine, theirs) in enumerate(zip(expected["gradients"], found, strict=True)):
        assert mine.keys() == theirs.keys()
        norm = torch.stack([value.norm() for value in mine.values()]).norm()
        for name, value in mine.items():
            assert (theirs[name] - value).norm() < 1e-5 * norm, (step, name)


@pytest.mark.parametrize("run", RUNS)
def test_weights_and_running_statistics_are_those_of_one_process(expected, two_processes, run):
    start = training_runs.make_model("cascaded" if run == "grouped" else "hybrid_plus").state_dict()
    apart, moved = [], []
    for name, value in expected["weights"].items():
        difference = two_processes[run]["weights"][name].double() - value.double()
        assert difference.abs().max() < 1e-5, name
        apart.append(difference.norm())
        moved.append((value.double() - start[name].double()).norm())
    assert torch.stack(apart).norm() < 3e-4 * torch.stack(moved).norm()


@pytest.mark.parametrize("run", RUNS)
def test_logged_losses_and_metrics_are_those_of_one_process(expected, two_processes, run):
    for mine, theirs in zip(expected["logs"], two_processes[run]["logs"], strict=True):
        for name in ("loss", "parallel_loss", "cascaded_loss", "quantity_loss", "distinct_keywords", "grad_norm"):
            assert (name in theirs) == (name in mine)
            assert theirs.get(name, 0) == pytest.approx(mine.get(name, 0), rel=1e-4), name
    mine, theirs = expected["metrics"], two_processes[run]["metrics"]
    timings = ("runtime", "per_second", "loss", "epoch")  # eval_loss is of each batch, and the batches differ
    for name in mine:
        if not name.endswith(timings):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    assert theirs["eval_utterances"] == training_runs.NUM_ROWS


def test_batches_of_unequal_size_were_among_them(one_process):
    assert training_runs.NUM_ROWS % 4 == 3  # the last batch of an epoch: two rows for one process, one for the other


def test_each_process_streams_rows_of_its_own(two_processes):
    first, second = (set(seen) for seen in two_processes["streamed"])
    assert not first & second
    assert first | second == set(range(12))
    assert [len(seen) for seen in two_processes["streamed"]] == [12, 12]  # two passes over its six rows


def test_the_command_trains_and_resumes_with_two_processes(two_processes):
    assert two_processes["command"] == [0, 0]
    run = two_processes["folder"] / "command"
    results = json.loads((run / "results.json").read_text())
    assert max(entry["step"] for entry in results["history"]) == 4
    assert results["metrics"]["utterances"] == 4
    assert (run / "model" / "README.md").is_file()
    model = SpeechClipPlusModel.from_pretrained(run / "model")
    assert model.config.architectures == ["SpeechClipPlusModel"]
    newest = last_complete_checkpoint(run)
    assert Path(newest).name == "checkpoint-4"
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {path.name for path in Path(newest).iterdir()}


def test_one_of_two_processes_embeds_the_images_for_both(two_processes):
    assert two_processes["embedded"] == [12, 0]  # of both splits, and none when the run goes on


def test_sharded_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fsdp .* DDP"):
        training_runs.make_trainer(tmp_path, fsdp=True)
