"""The metrics' cards: true, complete, and valid for the Spaces that `evaluate` loads metrics from."""

import ast
import re

import pytest
from huggingface_hub import SpaceCard

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # those that Spaces know
METRICS = ("retrieval_recall", "keyword_hit_rate")


@pytest.mark.parametrize("name", METRICS)
def test_the_metadata_are_those_of_a_space_with_a_metric(repository_root, name):
    folder = repository_root / "hub_cards" / "metrics" / name
    data = SpaceCard.load(folder / "README.md").data.to_dict()
    assert data["sdk"] == "static" and (folder / data["app_file"]).is_file()
    assert {data["colorFrom"], data["colorTo"]} <= COLOURS and len(data["short_description"]) <= 60
    assert data["tags"] == ["evaluate", "metric"] and data["license"] == "mit"
    assert (folder / f"{folder.name}.py").is_file()  # what `evaluate.load("OWNER/NAME")` looks for
    assert f'evaluate.load("OWNER/{name}")' in (folder / "index.html").read_text()


@pytest.mark.parametrize("name", METRICS)
def test_the_cards_code_prints_what_it_says(repository_root, name, monkeypatch, capsys):
    monkeypatch.chdir(repository_root)
    card = (repository_root / "hub_cards" / "metrics" / name / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(code, {})
    assert capsys.readouterr().out.split() == [code.rstrip().rpartition("# ")[2]]


@pytest.mark.parametrize("name", METRICS)
def test_every_input_of_the_metric_is_in_its_card(repository_root, name):
    folder = repository_root / "hub_cards" / "metrics" / name
    tree = ast.parse((folder / f"{name}.py").read_text())
    compute = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_compute")
    inputs = (folder / "README.md").read_text().split("### Inputs")[1].split("### Output")[0]
    assert re.findall(r"^- \*\*(\w+)\*\*", inputs, re.MULTILINE) == [a.arg for a in compute.args.args[1:]]
