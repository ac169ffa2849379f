"""folder: any size, any mode; every unreadable file is named at once."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpsearch.data.folder import read_train, stamp
from hpsearch.data.images import Source
from hpsearch.data.load import at_hand, load
from hpsearch.errors import DataError
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.sealed.images import open_seal


def source(path: Path, image_size: int = 16) -> Source:
    return Source(f"folder:{path}", str(path), None, Path("unused"), image_size)


def picture(path: Path, colour: tuple[int, int, int] = (200, 100, 50), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40 + len(path.name), 20), colour).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twelve pictures."""
    for number in range(12):
        picture(tmp_path / "images/train/cat" / f"{number:02}.png", (number, 0, 0))
        picture(tmp_path / "images/train/ant" / f"{number:02}.png", (0, number, 0))
    return tmp_path / "images"


def test_classes_and_files_in_order_of_their_names(folder: Path) -> None:
    (folder / "train/cat/.DS_Store").write_bytes(b"no picture, and not meant as one")
    raw = read_train(source(folder))
    assert raw.classes == ("ant", "cat")
    assert raw.labels.tolist() == [0] * 12 + [1] * 12
    assert raw.images.shape == (24, 3, 16, 16)
    assert raw.images[:12, 1, 0, 0].tolist() == list(range(12)) == raw.images[12:, 0, 8, 8].tolist()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.png", "L"),
        ("a.png", "1"),
        ("a.jpg", "CMYK"),
        ("a.gif", "P"),
        ("a.png", "LA"),
    ],
)
def test_any_mode_becomes_rgb(folder: Path, name: str, mode: str) -> None:
    picture(folder / "train/ant" / name, (255, 255, 255), mode)
    pixels = read_train(source(folder)).images[12]
    assert pixels.shape == (3, 16, 16)
    assert pixels.min() >= 250


def test_sixteen_bit_grey_is_scaled_not_cut_off(folder: Path) -> None:
    Image.fromarray(np.full((30, 30), 0x8000, np.uint16)).save(folder / "train/ant/x.png")
    assert set(read_train(source(folder)).images[12].ravel().tolist()) == {0x80}


def test_a_transparent_palette_is_read_without_a_warning(folder: Path) -> None:
    image = Image.new("P", (30, 30), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(folder / "train/ant/x.png", transparency=b"\x00\x80")
    assert read_train(source(folder)).images[12, :, 5, 5].tolist() == [10, 20, 30]


def test_names_that_are_no_text(folder: Path) -> None:
    """Bytes of Latin-1, as old archives have them: fine for a file, not for a class, which is printed."""
    name = os.fsdecode(b"caf\xe9")
    picture(folder / "train/ant" / f"{name}.png")
    assert len(load(f"folder:{folder}", data_dir=None, cache_dir=folder / "cache").train_images) == 23
    (folder / "train/ant" / f"{name}.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"1 of 25 files"):
        load(f"folder:{folder}", data_dir=None, cache_dir=folder / "cache")
    (folder / "train/ant").rename(folder / "train" / name)
    with pytest.raises(DataError, match=r"the class folder 'caf\\udce9' is not UTF-8; rename it"):
        load(f"folder:{folder}", data_dir=None, cache_dir=folder / "cache")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/images", "x" * 5000])
def test_a_path_that_leads_nowhere(path: str, tmp_path: Path) -> None:
    for find in (load, at_hand):
        with pytest.raises(DataError, match=r"there is no folder|cannot be read"):
            find(f"folder:{path}", data_dir=None, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shrinking_averages(folder: Path) -> None:
    """Stripes one pixel wide turn grey; picking pixels would leave them black or white."""
    stripes = np.zeros((160, 160), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "train/ant/x.png")
    pixels = read_train(source(folder)).images[12].astype(int)
    assert abs(pixels - 127).max() < 20


def test_unreadable_files_are_named_ten_at_most(folder: Path) -> None:
    for number in range(12):
        path = folder / "train/cat" / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:40] if number % 2 else b"text")
    with pytest.raises(DataError) as caught:
        load(f"folder:{folder}", data_dir=None, cache_dir=folder / "cache")
    message = str(caught.value)
    assert "12 of 24 files" in message
    assert "and 2 more" in message
    assert "\n" not in message
    assert all(f"cat/{number:02}.png" in message for number in range(10))
    assert "cat/10.png" not in message


def test_ctrl_c_leaves_what_is_not_decoded_yet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, interruption = list[Path](), Interruption()

    def slow(_out: object, path: Path) -> str:
        decoded.append(path)
        if decoded[2:3] == [path]:  # all are in the queue
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        return ""

    monkeypatch.setattr("hpsearch.data.folder._decode_into", slow)
    monkeypatch.setattr("hpsearch.data.folder.ThreadPoolExecutor", lambda: ThreadPoolExecutor(2))

    def run() -> None:
        with interruption.listening(), interruption.breakable():
            read_train(source(folder))

    with pytest.raises(Interrupted):
        run()
    num = len(decoded)
    time.sleep(0.7)
    assert len(decoded) == num < 24  # nor does it go on unseen


def test_a_folder_that_is_no_data_set_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a colon and a path are missing"):
        read_train(Source("folder", "", None, tmp_path, 16))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere/train"):
        read_train(source(tmp_path / "nowhere"))
    (folder / "train/empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: a class needs two or more images .* found 0"):
        read_train(source(folder))
    picture(tmp_path / "single/train/cat/a.png")
    with pytest.raises(DataError, match="two or more class folders are needed, found only cat"):
        read_train(source(tmp_path / "single"))


def test_stamp_tells_every_change(folder: Path) -> None:
    stamps = [stamp(source(folder))]
    picture(folder / "train/cat/new.png")
    stamps.append(stamp(source(folder)))
    (folder / "train/cat/new.png").rename(folder / "train/ant/new.png")
    stamps.append(stamp(source(folder)))
    picture(folder / "train/ant/new.png", (1, 2, 3))
    stamps.append(stamp(source(folder)))
    assert len(set(stamps)) == 4
    assert stamp(source(folder)) == stamps[-1]
    picture(folder / "train/cat/new.png", (3, 2, 1))  # as large as the other, and as old
    cat, ant = folder / "train/cat/new.png", folder / "train/ant/new.png"
    for path in (cat, ant):
        os.utime(path, (1, 1))
    stamps.append(stamp(source(folder)))
    for old, new in ((cat, folder / "third"), (ant, cat), (folder / "third", ant)):
        old.rename(new)
    stamps.append(stamp(source(folder)))
    assert cat.stat().st_size == ant.stat().st_size
    assert len(set(stamps)) == 6
    picture(folder / "test/ant/new.png")
    assert stamp(source(folder)) == stamps[-1]


def test_a_folder_that_the_system_refuses_to_look_into_is_one_sentence(tmp_path: Path) -> None:
    """Somebody else's, or, as for root nothing is that, one whose name is too long."""
    name = f"folder:{tmp_path / ('x' * 300)}"
    for look in (load, at_hand):
        with pytest.raises(DataError, match="cannot be read"):
            look(name, data_dir=None, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="its test split cannot be read"):
        open_seal(Source(name, name.partition(":")[2], None, tmp_path, 8), ("a", "b"))


def test_what_is_no_file_is_named_and_a_pipe_is_not_waited_for(folder: Path) -> None:
    members = folder / "train/cat"
    stamps = [stamp(source(folder))]
    (members / "a.png").symlink_to(folder / "gone.png")
    stamps.append(stamp(source(folder)))
    (members / "b").mkdir()
    os.mkfifo(members / "c.png")
    (members / ".hidden").mkdir()
    with pytest.raises(DataError) as caught:
        read_train(source(folder))
    assert "3 of 27 files" in str(caught.value)
    for named in ("a.png (a broken link)", "cat/b (a folder)", "c.png (no file)"):
        assert named in str(caught.value)
    assert len(set(stamps)) == 2
    (members / "a.png").unlink()
    (members / "b").rmdir()
    (members / "c.png").unlink()
    (members / "linked.png").symlink_to(members / "00.png")
    assert len(read_train(source(folder)).images) == 25


@pytest.mark.parametrize(
    ("name", "kind", "value", "seen"),
    [
        ("x.tiff", np.int32, 200, 200),  # 8 bits in 32
        ("x.tiff", np.int32, 0x8000, 0x80),
        ("x.png", np.uint16, 200, 0),  # a dark image of 16 bits
        ("x.pgm", np.uint16, 200, 0),
        ("x.pgm", np.uint16, 0x8000, 0x80),
    ],
)
def test_grey_values_of_many_bits(folder: Path, name: str, kind: type, value: int, seen: int) -> None:
    Image.fromarray(np.full((30, 30), value, kind)).save(folder / "train/ant" / name)
    assert set(read_train(source(folder)).images[12].ravel().tolist()) == {seen}


def test_grey_values_as_floats_are_refused(folder: Path) -> None:
    Image.fromarray(np.full((30, 30), 0.5, np.float32)).save(folder / "train/ant/x.tiff")
    with pytest.raises(DataError, match=r"1 of 25 files .*x\.tiff \(grey values as floats"):
        read_train(source(folder))
