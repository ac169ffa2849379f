"""cifar100: official files are checked before they are read, the test file is never opened, nothing is executed."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from hpsearch.data import cifar100
from hpsearch.data.images import Source
from hpsearch.data.load import load
from hpsearch.errors import DataError, DownloadError

NUM_CLASSES, PER_CLASS = 100, 3


def write_files(parent: Path, monkeypatch: pytest.MonkeyPatch, train: Any = None) -> np.ndarray[Any, Any]:
    """A small data set in the official form, without a test file; its checksums replace the published ones."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_CLASSES * PER_CLASS, 3072), dtype=np.uint8)
    labels = np.tile(np.arange(NUM_CLASSES), PER_CLASS).tolist()
    contents = {
        "train": train if train is not None else {"data": images, "fine_labels": labels},
        "meta": {"fine_label_names": [f"class{number}" for number in range(NUM_CLASSES)]},
    }
    folder = parent / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        data = pickle.dumps(content, protocol=3)
        (folder / name).write_bytes(data)
        monkeypatch.setattr(cifar100, f"{name.upper()}_MD5", hashlib.md5(data).hexdigest())
    return images.reshape(-1, 3, 32, 32)


def archive_of(folder: Path) -> bytes:
    """The folder as the official archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(folder / cifar100.FOLDER, cifar100.FOLDER)
    return content.getvalue()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, *pieces: bytes, between: Any = lambda: None) -> Iterator[list[str]]:
    """A server that answers with these bytes and calls `between` after each; cifar100 is fetched from there.

    Yields the requests as they come. torchvision asks twice for one download, first for where the file is.
    """
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with suppress(ConnectionError):  # who asked has left, which torchvision does after it has the address
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    between()

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(cifar100, "URL", f"http://127.0.0.1:{server.server_port}/{cifar100.ARCHIVE}")
        yield asked
        server.shutdown()


def head(content: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)


def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray[Any, Any], bytes]:
    """Images, and the archive that has the published MD5."""
    images = write_files(tmp_path / "made", monkeypatch)
    content = archive_of(tmp_path / "made")
    monkeypatch.setattr(cifar100, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    return images, content


def source(data_dir: Path | None, download_dir: Path, name: str = "cifar100", image_size: int = 32) -> Source:
    return Source(name, name.partition(":")[2], data_dir, download_dir, image_size)


def test_checksums_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100

    assert CIFAR100.train_list == [["train", cifar100.TRAIN_MD5]]
    assert CIFAR100.meta["md5"] == cifar100.META_MD5
    assert (CIFAR100.url, CIFAR100.tgz_md5) == (cifar100.URL, cifar100.ARCHIVE_MD5)
    assert (CIFAR100.base_folder, CIFAR100.filename) == (cifar100.FOLDER, cifar100.ARCHIVE)


@pytest.mark.parametrize("inside", [False, True])
def test_reads_the_folder_without_a_test_file(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files(tmp_path, monkeypatch)
    data_dir = tmp_path / cifar100.FOLDER if inside else tmp_path
    raw = cifar100.read_train(source(data_dir, tmp_path / "downloads"))
    np.testing.assert_array_equal(raw.images, images)
    assert raw.classes[99] == "class99"
    assert raw.labels[99] == 99


def test_reads_the_archive_without_unpacking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files(tmp_path / "made", monkeypatch)
    place = tmp_path / "downloads"
    place.mkdir()
    (place / cifar100.ARCHIVE).write_bytes(archive_of(tmp_path / "made"))
    np.testing.assert_array_equal(cifar100.read_train(source(None, place)).images, images)
    assert [path.name for path in place.iterdir()] == [cifar100.ARCHIVE]


def test_other_sizes_are_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch)
    raw = cifar100.read_train(source(tmp_path, tmp_path, image_size=8))
    assert raw.images.shape == (300, 3, 8, 8)
    assert raw.images.dtype == np.uint8


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch)
    with (tmp_path / cifar100.FOLDER / "train").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(DataError, match=r"train from .* has the MD5 sum"):
        cifar100.read_train(source(tmp_path, tmp_path))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_is_executed_even_with_the_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch, train={"data": Evil()})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"mkdir.*refused"):
        cifar100.read_train(source(tmp_path, tmp_path))
    assert not Path("executed").exists()


def test_without_files_and_network_one_sentence_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DownloadError) as caught:
        load("cifar100", data_dir=tmp_path / "mine", cache_dir=tmp_path / "cache")
    message = str(caught.value)
    for part in (str(tmp_path / "mine"), "no route to host", "--data-dir or HPSEARCH_DATA", "cifar-100-python"):
        assert part in message
    assert "\n" not in message


def test_what_an_interrupted_download_left_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, content = official(tmp_path, monkeypatch)
    place = tmp_path / "downloads"
    with (
        serving(monkeypatch, head(content), content[:1000]),
        pytest.raises(DownloadError, match="corrupted"),
    ):
        cifar100.read_train(source(None, place))
    assert [path.name for path in place.iterdir()] == [f"{cifar100.ARCHIVE}.lock"]
    killed = place / f"{cifar100.ARCHIVE}.killed.tmp"  # a process that was, in the middle
    killed.mkdir()
    (killed / cifar100.ARCHIVE).write_bytes(content[:1000])
    with serving(monkeypatch, head(content), content):
        np.testing.assert_array_equal(cifar100.read_train(source(None, place)).images, images)
    assert sorted(path.name for path in place.iterdir()) == [cifar100.ARCHIVE, f"{cifar100.ARCHIVE}.lock"]


def test_two_that_want_it_at_once_download_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, content = official(tmp_path, monkeypatch)
    begun = Event()

    def wait() -> None:
        if not begun.is_set():
            begun.set()
            time.sleep(0.5)  # a second download would begin here

    with (
        serving(monkeypatch, head(content), content[:1000], content[1000:], between=wait) as asked,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(cifar100.read_train, source(None, tmp_path))
        begun.wait(60)
        second = pool.submit(cifar100.read_train, source(None, tmp_path, image_size=8))
        np.testing.assert_array_equal(first.result().images, images)
        assert second.result().images.shape == (300, 3, 8, 8)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03 no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nhalf",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:port/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\n\r\n",
        b"",
    ],
)
def test_a_broken_server_or_proxy_is_one_sentence(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serving(monkeypatch, answer),
        pytest.raises(DownloadError, match=r"downloading http.* failed \(.+\); put") as caught,
    ):
        cifar100.read_train(source(None, tmp_path))
    assert "\n" not in str(caught.value)


def empty(_whole: bytes) -> bytes:
    """An archive whose `train` is a folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        folder = tarfile.TarInfo(f"{cifar100.FOLDER}/train")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return content.getvalue()


def broken(whole: bytes) -> bytes:
    """Damaged in the middle of `train`, where zlib finds no block."""
    deflate = zlib.compressobj(wbits=31)
    return deflate.compress(gzip.decompress(whole)[:600_000]) + deflate.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100


@pytest.mark.parametrize("harm", [empty, broken, lambda whole: whole[:1000], lambda _: b"no archive", lambda _: b""])
def test_a_damaged_archive_is_one_sentence(harm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = official(tmp_path, monkeypatch)
    place = tmp_path / cifar100.ARCHIVE
    place.write_bytes(harm(content))
    with pytest.raises(DataError, match=rf"cannot read train from {place} \(.+\); unpack .* or remove") as caught:
        cifar100.read_train(source(tmp_path, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_named_by_a_dot_is_found_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files(tmp_path, monkeypatch)
    with serving(monkeypatch, b""):
        monkeypatch.chdir(tmp_path / cifar100.FOLDER)
        np.testing.assert_array_equal(cifar100.read_train(source(Path(), tmp_path / "none")).images, images)
        monkeypatch.chdir(tmp_path.parent)
        with pytest.raises(DownloadError, match=f"in {tmp_path.parent} or {tmp_path}/none"):
            cifar100.read_train(source(Path(), tmp_path / "none"))


def test_takes_no_argument(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar100 takes nothing after the colon"):
        cifar100.read_train(source(None, tmp_path, "cifar100:coarse"))


@pytest.mark.skipif("HPSEARCH_DATA" not in os.environ, reason="HPSEARCH_DATA does not name the official files")
def test_official_files(tmp_path: Path) -> None:
    dataset = load("cifar100", data_dir=Path(os.environ["HPSEARCH_DATA"]), cache_dir=tmp_path)
    assert dataset.train_images.shape == (45000, 3, 32, 32)
    assert dataset.validation_images.shape == (5000, 3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [450] * 100
    np.testing.assert_allclose(dataset.mean, (0.5071, 0.4865, 0.4409), atol=1e-3)  # published for all 50,000
    np.testing.assert_allclose(dataset.std, (0.2673, 0.2564, 0.2762), atol=1e-3)


def test_pickles_of_both_numpy_generations_are_read() -> None:
    array = np.arange(4, dtype=np.uint8)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = pickle.dumps({"data": array}, protocol=3)
        content = content.replace(b"numpy._core.multiarray", module)
        assert cifar100._ArraysOnly(io.BytesIO(content), encoding="latin1").load()["data"].tolist() == [0, 1, 2, 3]
