"""Verification: what is changed in an export is noticed, in one sentence."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hpsearch
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.export import export
from hpsearch.export_schema import FILES, SUMS
from hpsearch.model_card import card
from hpsearch.models.build import build_model
from hpsearch.verify import verify
from tests.chain import SMALL, Chain, silent


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports") / "small"
    export(chain.database, chain.search, 1, place, chain.settings, silent)
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def again_summed(place: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file and its checksum, as somebody does who means to deceive, or a program of another version."""
    content = change((place / name).read_bytes())
    old = hashlib.sha256((place / name).read_bytes()).hexdigest()
    (place / name).write_bytes(content)
    sums = (place / SUMS).read_text().replace(old, hashlib.sha256(content).hexdigest())
    (place / SUMS).write_text(sums)


def edited(part: str = "", **changes: object) -> Callable[[bytes], bytes]:
    """Changes of the whole, or of a part of it."""

    def change(content: bytes) -> bytes:
        whole = json.loads(content)
        (whole[part] if part else whole).update(changes)
        return json.dumps(whole).encode()

    return change


@pytest.mark.parametrize("name", [*FILES])
def test_one_byte_changed_is_noticed(name: str, copy: Path, chain: Chain) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UsageError, match=name) as error:
        verify(copy, chain.settings)
    assert "SHA-256" in str(error.value)
    with pytest.raises(UsageError):
        hpsearch.load_export(copy)


@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_a_missing_file_is_named(name: str, copy: Path, chain: Chain) -> None:
    (copy / name).unlink()
    with pytest.raises(UsageError, match=name):
        verify(copy, chain.settings)


def test_a_newer_schema_is_named_as_such(copy: Path, chain: Chain) -> None:
    again_summed(copy, "metrics.json", edited(schema_version=2, something_new=1))
    with pytest.raises(UsageError, match="schema_version = 2 is newer"):
        verify(copy, chain.settings)


def test_claims_that_the_weights_do_not_keep(copy: Path, chain: Chain) -> None:
    stated = json.loads((copy / "metrics.json").read_text())["weights"]
    again_summed(copy, "metrics.json", edited(weights={**stated, "validation_accuracy": 0.123}))
    with pytest.raises(UsageError, match=r"0\.1230 is stated"):
        verify(copy, chain.settings)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("metrics.json", lambda _: b"[1, 2", "is no JSON"),
        ("metrics.json", edited(unheard_of=1), "unheard_of"),
        ("metrics.json", edited(label=3), "label"),
        ("metrics.json", edited("model", classes=["4", "3", "2", "1", "0"]), "model.classes are not those"),
        ("metrics.json", edited("preprocessing", mean=[0.9], std=[3.0]), "preprocessing.mean, preprocessing.std"),
        ("metrics.json", edited("data", num_train=10**6), "data.num_train"),
        ("metrics.json", edited("model", num_parameters=7), "model.num_parameters"),
        ("metrics.json", edited("weights", seed=123), "weights.seed are not those of config.toml"),
        ("metrics.json", edited("weights", epochs=30), "weights.epochs are not those of config.toml"),
        ("metrics.json", edited("weights", validation_loss=0.001), "validation loss of .* 0.0010 is stated"),
        ("metrics.json", edited(metric="validation_loss"), "metric are not those of config.toml"),
        ("metrics.json", edited("preprocessing", image_size=32), "different images, digits:0-4 at 16 .* at 32"),
        ("metrics.json", edited("data", name="digits"), "different images, digits:0-4 at 16 .* digits at 16"),
        ("metrics.json", edited("preprocessing", image_size=10**9), "preprocessing.image_size"),
        ("metrics.json", edited("configuration", hidden_width=10**13), "cannot be built in these sizes"),
        ("metrics.json", edited("configuration", hidden_width=10**18), "cannot be built in these sizes"),
        ("metrics.json", lambda _: b"[" * 10**6, "is no JSON"),
        ("config.toml", lambda content: content + b"\nx = " + b"[" * 10**5, "nested too deeply"),
        ("README.md", lambda content: content.replace(b"validation accuracy", b"test accuracy"), "README.md: says"),
        ("metrics.json", edited("configuration", cutmix=0.5), "cutmix, which this hpsearch does not know"),
        ("metrics.json", edited(configuration={"epochs": 3}), "configuration: .* 'model'"),
        ("config.toml", lambda _: SMALL.encode(), "another configuration"),
        ("model.safetensors", lambda content: content[:100], "cannot be read"),
        ("config.toml", lambda content: content + b"\n[", "not valid TOML"),
        ("config.toml", lambda content: content.replace(b'"lenet"', b'"os:system"'), "os:system"),
        ("config.toml", lambda content: content.replace(b"epochs = 3", b"epochs = 4"), "another configuration"),
        (
            "config.toml",
            lambda content: content.replace(b"stream_seed = ", b"stream_seed = 7 # "),
            "another configuration",
        ),
    ],
)
def test_other_content_with_right_sums(
    name: str, change: Callable[[bytes], bytes], named: str, copy: Path, chain: Chain
) -> None:
    again_summed(copy, name, change)
    with pytest.raises(HpsearchError, match=named) as error:
        verify(copy, chain.settings)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(copy: Path, chain: Chain) -> None:
    from safetensors.torch import save

    again_summed(copy, "model.safetensors", lambda _: save({"output.weight": torch.zeros(5, 84)}))
    with pytest.raises(UsageError, match="do not fit the model lenet"):
        verify(copy, chain.settings)


def test_sizes_that_the_files_state_fill_no_memory(copy: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def watched(*arguments: Any) -> torch.nn.Module:
        model = build_model(*arguments)
        built.extend({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr("hpsearch.export.build_model", watched)
    again_summed(copy, "config.toml", lambda content: content.replace(b"image_size = 16", b"image_size = 4096"))
    again_summed(copy, "metrics.json", edited("preprocessing", image_size=4096))  # the first layer would take 8 GB
    with pytest.raises(UsageError, match="do not fit the model lenet"):
        verify(copy, chain.settings)
    assert built == ["meta"]


@pytest.mark.parametrize("opened", [True, False, None])
def test_the_card_may_tell_of_an_opening_without_a_result(opened: bool | None, copy: Path, chain: Chain) -> None:
    """Which stands in the storage, and not in the export."""
    metrics = hpsearch.load_export(copy).metrics
    again_summed(copy, "README.md", lambda _: card(metrics, opened=opened).encode())
    assert len(verify(copy, chain.settings)) == 7


def test_the_card_of_another_version_is_not_compared(copy: Path, chain: Chain) -> None:
    again_summed(copy, "metrics.json", edited(hpsearch_version="0.0.1"))
    said = verify(copy, chain.settings)
    assert [sentence for sentence in said if "README.md" in sentence] == [
        "README.md: not compared with metrics.json, as hpsearch 0.0.1 is said to have written it; do not rely on it"
    ]


def test_other_images_are_noticed_before_any_is_decoded(
    copy: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.verify.dataset_of", None)
    again_summed(copy, "config.toml", lambda content: content.replace(b"image_size = 16", b"image_size = 4096"))
    with pytest.raises(UsageError, match="digits:0-4 at 4096 pixels and digits:0-4 at 16"):
        verify(copy, chain.settings)
