"""Confusion matrices of trials: counted, kept as artifacts of the best trials, and never in a trial's way."""

import io
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from hpsearch.confusion import MATRIX_FILE, MATRIX_PICTURE, SAMPLES_PICTURE, Confusion, confusion, pictures
from hpsearch.pictures import Folder, Pictures
from tests.cli.running import hpsearch
from tests.studies import TINY


def made_up(channels: int = 3) -> tuple[Confusion, dict[str, bytes]]:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 7, 500), random.integers(0, 7, 500)
    images = random.integers(0, 256, (500, channels, 8, 8), dtype=np.uint8)
    found = confusion([f"class {index}" for index in range(7)], labels, predicted)
    assert np.array_equal(found.counts, confusion_matrix(labels, predicted))
    return found, pictures(found, labels, predicted, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_counts_and_pictures(channels: int) -> None:
    found, files = made_up(channels)
    assert Confusion.from_json(found.to_json()) == found
    best = found.pairs(3)
    assert [count for _, _, count in best] == sorted(
        (count for i, row in enumerate(found.counts) for j, count in enumerate(row) if i != j), reverse=True
    )[:3]
    for content in files.values():
        Image.open(io.BytesIO(content)).verify()


def test_a_class_without_images_and_nothing_confused() -> None:
    labels = np.array([0, 0, 2])
    found = confusion(["a", "b", "c"], labels, labels)
    assert found.accuracies == [1.0, None, 1.0]
    assert found.pairs() == []
    assert set(pictures(found, labels, labels, np.zeros((3, 1, 4, 4), np.uint8))) == {MATRIX_PICTURE, SAMPLES_PICTURE}


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"classes": ["a"], "counts": [[1, 2]]}', b'{"classes":1,"counts":2}']
)
def test_what_is_no_matrix(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Confusion.from_json(text)


@pytest.mark.parametrize("name", ["", "../s.db", "/etc/passwd", "x" * 36])
def test_ids_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.db").write_text("secret")
    assert Pictures(Folder(tmp_path / "artifacts")).load(name) is None


def test_each_best_trial_gets_its_pictures_before_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml", "--set", "pruner.name=none")
    hpsearch(tmp_path, "worker", "tiny")
    storage = f"sqlite:///{tmp_path}/storage/hpsearch.db"
    study = optuna.load_study(study_name="tiny", storage=storage)
    best, files = float("-inf"), Pictures(Folder(tmp_path / "storage" / "artifacts"))
    for trial in study.trials:
        known = [json.loads(text) for key, text in trial._system_attrs.items() if key.startswith("artifacts:")]
        assert trial.value is not None
        if trial.value > best:
            best = trial.value
            ids = {one["filename"]: one["artifact_id"] for one in known}
            assert set(ids) == {MATRIX_FILE, MATRIX_PICTURE, SAMPLES_PICTURE}
            content = files.load(ids[MATRIX_FILE])
            assert content is not None
            found = Confusion.from_json(content)
            right = sum(row[index] for index, row in enumerate(found.counts))
            assert right / sum(map(sum, found.counts)) == pytest.approx(trial.value)
        else:
            assert known == []


def test_a_full_disk_costs_the_pictures_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml", "--trials", "1")
    (tmp_path / "storage" / "artifacts").write_text("in the way")
    output = hpsearch(tmp_path, "worker", "tiny").stdout
    assert "1 of 1 trials ended" in output
    assert "complete" in output
