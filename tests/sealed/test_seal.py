"""The seal: only the final test reads the test split. Shown by imports, and by watching which files are opened."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpsearch.data.digits import read_train
from hpsearch.data.images import Source
from hpsearch.data.load import load
from hpsearch.data.stl5 import CLASSES
from hpsearch.errors import DataError
from hpsearch.sealed import TESTS
from hpsearch.sealed.images import open_seal
from tests.cli.running import environment
from tests.test_layers import PACKAGE, imported, modules

OPENERS = {"final_test"}  # the only importer of the readers
USERS = {"cli.final_test"}  # the only importer of that one

# Runs commands in one process that notes every file it opens, and prints those in the folder of the test images.
WATCH = """
import os, sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from hpsearch.cli.main import main
for line in sys.argv[1].split("\\n"):
    try:
        main(line.split())
    except SystemExit as left:
        assert not left.code, line
print("OPENED", *sorted(path for path in opened if os.path.abspath(path).startswith(sys.argv[2])), sep="\\n")
"""


@cache
def graph() -> dict[str, set[str]]:
    """Every module and what it imports."""
    return {module: {name.removesuffix(".__init__") for name in imported(module)} for module in modules()}


def importers(target: str) -> set[str]:
    return {module for module, needs in graph().items() if target in needs}


def test_only_the_final_test_imports_the_readers() -> None:
    readers = {name.removesuffix(".__init__") for name in modules() if name.split(".")[0] == "sealed"}
    assert readers >= {"sealed", "sealed.images", *(f"sealed.{name}" for name in TESTS)}
    outside = {module for reader in readers for module in importers(reader) if not module.startswith("sealed")}
    assert outside == OPENERS
    assert importers("final_test") == USERS
    assert importers("cli.final_test") == set()  # the command table names it as text


def test_no_other_module_names_a_reader_or_a_test_file() -> None:
    """Readers are loaded by name from the table: nobody else may spell such a name, or that of a test file."""
    for module in modules():
        if module.split(".")[0] == "sealed" or module in OPENERS | USERS:
            continue
        tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
        docs = {id(node.body[0].value) for node in ast.walk(tree) if _has_doc(node)}
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        ]
        for text in texts:
            assert "hpsearch.sealed" not in text, module
            assert "test_X" not in text, module
            assert text != "test" or module in ("export_schema", "claims", "model_card"), (module, text)


def _has_doc(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return isinstance(node, kinds) and bool(node.body) and isinstance(node.body[0], ast.Expr)


def test_loading_everything_else_loads_no_reader() -> None:
    names = [m for m in modules() if m.split(".")[0] != "sealed" and m not in OPENERS | USERS | {"__main__"}]
    program = "\n".join(f"import hpsearch.{name.removesuffix('.__init__')}" for name in names)
    program += "\nimport sys; print([name for name in sys.modules if name.startswith('hpsearch.sealed')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes, by brightness."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, level in (("dark", 60), ("light", 180)):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for number in range(20):
                pixels = (generator.integers(0, 60, (8, 8, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "seen.toml").write_text(
        f"""
name = "seen"
[model]
name = "2lp"
[data]
name = "folder:{tmp_path / "pictures"}"
image_size = 8
[training]
epochs = 2
hidden_width = 8
[space]
learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
[budget]
trials = 3
[pruner]
name = "none"
"""
    )
    return tmp_path


def opened(folder: Path, *commands: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, "\n".join(commands), f"{folder / 'pictures' / 'test'}/"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.partition("OPENED\n")[2].splitlines() if line]


def test_no_file_of_the_test_split_is_opened_before_the_final_test(folder: Path) -> None:
    before = opened(
        folder,
        "create-study seen.toml",
        "worker seen --device cpu",
        "confirm seen --top 2 --seeds 2",
        "worker seen-confirm --device cpu",
        "confirm seen",
        "best seen",
        "export seen -o out",
        "verify out",
        f"transfer out --data folder:{folder / 'pictures'} --seeds 2 --epochs 1",
        "worker 2lp-to-pictures-8 --device cpu",
        "report seen seen-confirm 2lp-to-pictures-8 -o page.html",
    )
    assert before == []
    after = opened(folder, "final-test seen")
    assert len(after) == 40
    assert opened(folder, "final-test seen --show", "report seen -o again.html", "export seen -o tested") == []


def test_the_sealed_digits_are_none_of_the_others(tmp_path: Path) -> None:
    name = "digits"
    seen = read_train(Source(name, "", None, tmp_path, 8))
    sealed = open_seal(Source(name, "", None, tmp_path, 8), seen.classes)
    assert len(seen.labels) + len(sealed.labels) == 1797
    low = open_seal(Source("digits:0-4", "0-4", None, tmp_path, 8), ("0", "1", "2", "3", "4"))
    np.testing.assert_array_equal(low.images, sealed.images[sealed.labels < 5])
    dataset = load(name, data_dir=None, cache_dir=tmp_path, image_size=8)
    assert len(dataset.train_labels) + len(dataset.validation_labels) == len(seen.labels)


def test_a_data_set_without_a_test_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows no test split"):
        open_seal(Source("stripes", "", None, tmp_path, 8), ("a", "b"))


def test_other_classes_than_in_training_are_refused(folder: Path) -> None:
    place = folder / "pictures"
    (place / "test" / "light").rename(place / "test" / "bright")
    with pytest.raises(DataError, match="bright, light"):
        open_seal(Source(f"folder:{place}", str(place), None, folder, 8), ("dark", "light"))


def test_one_test_image_of_a_class_is_enough_and_none_is_not(folder: Path) -> None:
    place = folder / "pictures"
    first, *others = sorted((place / "test" / "light").iterdir())
    for path in others:
        path.unlink()
    source = Source(f"folder:{place}", str(place), None, folder, 8)
    assert open_seal(source, ("dark", "light")).labels.tolist().count(1) == 1
    first.unlink()
    with pytest.raises(DataError, match=r"test/light: a class needs an image, found 0; add images"):
        open_seal(source, ("dark", "light"))


def test_one_test_image_of_a_class_of_stl5_is_enough(tmp_path: Path) -> None:
    source = Source("stl5", "", tmp_path, tmp_path, 8)
    (tmp_path / "stl5").mkdir()
    with pytest.raises(DataError, match=r"there is no folder .*car"):
        open_seal(source, CLASSES)
    for number, name in enumerate(CLASSES):
        (tmp_path / "stl5" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "stl5" / "test" / name / "0.png")
    assert open_seal(source, CLASSES).labels.tolist() == [0, 1, 2, 3, 4]


def test_a_folder_of_a_user_who_is_not_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        open_seal(Source("folder:~nobody-of-that-name", "~nobody-of-that-name", None, tmp_path, 8), ("a", "b"))


def test_test_images_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final test takes back an opening that ends so: nobody has seen an image."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hpsearch.sealed.digits.read_test", full)
    with pytest.raises(DataError, match=r"'digits': its test images, 16 pixels .* than there is; open it on a machine"):
        open_seal(Source("digits", "", None, tmp_path, 16), ("a", "b"))
