"""doctor: what would go wrong in a long run, found before it; each check is a sentence that says what to do.

hpsearch doctor ─▶ examine ─▶ storage, database, studies' data, checkpoints, space, GPU ─▶ Check, one after another
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from hpsearch import catalogue
from hpsearch.artifacts import Checkpoints, FolderCheckpoints
from hpsearch.data.load import at_hand
from hpsearch.errors import StorageEmpty, StorageError, UsageError
from hpsearch.mounts import mount_of, nearest
from hpsearch.processes import num_cores
from hpsearch.settings import Settings, redact
from hpsearch.storage import health
from hpsearch.storage.checkpoints import open_checkpoints
from hpsearch.storage.open import FAULTS, connect, explain, file_of, is_read_only, reach
from hpsearch.storage.s3 import SCHEME
from hpsearch.storage.studies import load_study, study_names

OK, WARNING, FAILURE = "ok", "warning", "failure"

SLOW_SECONDS = 0.05  # of one transaction; an epoch of a trial costs a few
TOO_SLOW_SECONDS = 2.0  # then every epoch waits longer than many take to train
CLOCK_SECONDS = 5.0  # between this machine and the database
S3_CLOCK_SECONDS = 900.0  # S3 refuses requests that are signed further away
LITTLE_BYTES, NO_BYTES = 2**30, 100 * 2**20  # of free space
GPU_BYTES = 2**30  # of free GPU memory: one small trial
OLDEST_POSTGRESQL = (14,)  # older ones are not maintained any more
OLDEST_SQLITE = (3, 35)  # the first one with RETURNING
GPU_SECONDS = 120  # that PyTorch may take to find GPUs; a broken driver can hang for ever

_ASK_TORCH = """
import json, torch
gpus = [[torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torch.version.cuda, gpus]))
"""


@dataclass(frozen=True)
class Check:
    """The outcome of one check: OK, WARNING or FAILURE, and a sentence."""

    name: str
    state: str
    text: str


def examine(settings: Settings, num_workers: int) -> Iterator[Check]:
    """Every check, for so many workers with these settings; changes nothing that stays."""
    try:
        file = file_of(settings.storage_url)
    except StorageError as error:
        yield Check("storage", FAILURE, str(error))
        file = None
    else:
        if file is not None:
            yield check_file_system(file)
            yield check_writable(file)
        yield from check_database(settings.storage_url, file, num_workers, s3=settings.checkpoints.startswith(SCHEME))
        yield from check_data(settings)
    yield check_checkpoints(settings.checkpoints)
    yield from check_space(settings, file)
    yield from check_gpu(settings.device)


def check_file_system(file: Path, table: str | None = None) -> Check:
    """SQLite's file lies on a disk of this machine."""
    mount = mount_of(file, table)
    if mount is None:
        return Check("file system", WARNING, f"nothing tells on what {file} lies; it must be a disk of this machine")
    where = f"{file} lies on {mount.point} ({mount.kind})"
    if mount.network:
        return Check("file system", FAILURE, f"{where}, a network file system, where SQLite loses data: use PostgreSQL")
    if mount.doubtful:
        advice = "if other machines use it too, use PostgreSQL"
        return Check("file system", WARNING, f"{where}, which may be shared: {advice}")
    if mount.in_memory:
        return Check("file system", WARNING, f"{where}, in memory: all is lost when this machine restarts; use a disk")
    return Check("file system", OK, where)


def check_writable(file: Path) -> Check:
    """SQLite's file and its folder can be written by this user."""
    place = nearest(file.parent)
    if os.path.isfile(file) and not os.access(file, os.W_OK):
        return Check("folder", FAILURE, f"{file} cannot be written by this user: make it writable")
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written by this user, which SQLite needs for its journal" if place.is_dir() else "is no folder"
        return Check("folder", FAILURE, f"{place} {why}: name another storage, or make it a writable folder")
    return Check("folder", OK, f"{place} can be written")


def check_database(url: str, file: Path | None, num_workers: int, *, s3: bool = False) -> Iterator[Check]:
    """The database answers, fast enough, is new enough and has room for the workers."""
    if file is not None and not os.path.isfile(file):
        yield Check("database", WARNING, f"{file} does not exist yet: `hpsearch create-study` makes it")
        return
    try:
        with reach(url) as engine:
            yield from _check_engine(engine, url, num_workers, s3)
    except StorageError as error:
        yield Check("database", FAILURE, f"{error}; start it, or mend --storage or HPSEARCH_STORAGE")
    except FAULTS as error:
        yield Check("database", FAILURE, f"{redact(url)} fails: {explain(error)}")


def _check_engine(engine: Engine, url: str, num_workers: int, s3: bool) -> Iterator[Check]:
    with engine.connect() as connection:
        name, version = health.version(connection)
        offset = health.clock_offset_seconds(connection)
        slots = health.slots(connection) if name == "PostgreSQL" else None
        pooled = slots is not None and health.is_pooled(connection)
        refusal = health.refuses_writing(connection) if name == "PostgreSQL" else is_read_only(engine.url)
    yield _check_version(name, version)
    if refusal:
        yield Check("database", FAILURE, f"{redact(url)} {refusal}" if slots else refusal)
        return
    yield _check_speed(health.round_trip_seconds(engine))
    if slots is not None:
        yield _check_pooler(num_workers) if pooled else _check_slots(slots, num_workers)
        yield _check_clock(offset, s3)


def _check_version(name: str, version: tuple[int, ...]) -> Check:
    number = ".".join(map(str, version))
    if name == "SQLite" and version < OLDEST_SQLITE:
        return Check("version", FAILURE, f"SQLite {number} is too old: use a Python with 3.35 or newer")
    if name == "PostgreSQL" and version < OLDEST_POSTGRESQL:
        return Check("version", WARNING, f"PostgreSQL {number} is not maintained any more: use a newer one")
    return Check("version", OK, f"{name} {number}")


def _check_speed(seconds: float) -> Check:
    text = f"a small transaction takes {1000 * seconds:.1f} ms"
    if seconds < SLOW_SECONDS:
        return Check("speed", OK, text)
    advice = f"more than {1000 * SLOW_SECONDS:.0f} ms: bring the database nearer, or onto a faster disk"
    return Check("speed", FAILURE if seconds >= TOO_SLOW_SECONDS else WARNING, f"{text}, {advice}")


def _check_slots(slots: health.Slots, num_workers: int) -> Check:
    needed = num_workers * health.CONNECTIONS_PER_WORKER
    who = f"{num_workers} workers need" if num_workers > 1 else "1 worker needs"
    text = f"{who} up to {needed} connections; {slots.free} of the {slots.limit} that {slots.owner} allows are free"
    if slots.free >= needed:
        return Check("connections", OK, text)
    fitting = max(0, slots.free // health.CONNECTIONS_PER_WORKER)
    return Check("connections", FAILURE, f"{text}: raise that limit, or start fewer workers, {fitting} at most")


def _check_pooler(num_workers: int) -> Check:
    text = f"{num_workers} workers share the connections of a pooler; it must admit {num_workers + 1} clients or more"
    return Check("connections", OK, f"{text} (PgBouncer: max_client_conn)")


def _check_clock(offset: float, s3: bool) -> Check:
    text = f"this machine's clock is {abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the database's"
    if abs(offset) < CLOCK_SECONDS:
        return Check("clock", OK, text)
    if s3 and abs(offset) >= S3_CLOCK_SECONDS:
        return Check("clock", FAILURE, f"{text}, and S3 refuses whoever is so far off: set it, best by NTP")
    note = "leases go by the database's alone, but the times of trials will be wrong"
    return Check("clock", WARNING, f"{text}: {note}; set it, best by NTP")


def check_data(settings: Settings) -> Iterator[Check]:
    """What the studies of the storage train on can be had without a network, and is known here."""
    try:
        with connect(settings.storage_url) as database:
            specs = {}
            for name in study_names(database):
                try:
                    specs[name] = load_study(database, name).spec
                except UsageError as error:
                    yield Check("study", WARNING, str(error))
    except StorageEmpty:
        yield Check("data", OK, "no study was created yet")
        return
    except (StorageError, *FAULTS):
        return  # said already
    for name, spec in specs.items():
        if mistakes := catalogue.check_names(spec):
            yield Check("study", FAILURE, f"study {name}: {'; '.join(mistakes)}: install the package that has it")
    for data, size in sorted({(spec.data.name, spec.data.image_size) for spec in specs.values()}):
        yield _check_data_set(data, size, settings)


def _check_data_set(name: str, image_size: int, settings: Settings) -> Check:
    cache = settings.datasets
    try:
        found = at_hand(name, data_dir=settings.data_dir, cache_dir=cache, image_size=image_size)
    except (UsageError, OSError) as error:
        return Check("data", FAILURE, str(error))
    if found:
        return Check("data", OK, f"{name}: {found}")
    advice = "put it there, and name the folder with --data-dir or HPSEARCH_DATA, if workers have no network"
    looked = " and ".join(str(place.absolute()) for place in (settings.data_dir, cache / "downloads") if place)
    return Check("data", WARNING, f"{name} is not in {looked}: the first worker will download it; {advice}")


def check_checkpoints(place: str) -> Check:
    """Checkpoints can be written where the settings want them; a small one is, and is removed again."""
    try:
        checkpoints = open_checkpoints(place)
        if isinstance(checkpoints, FolderCheckpoints):
            with tempfile.NamedTemporaryFile(dir=nearest(checkpoints.folder)) as file:
                file.write(b"0" * 65_536)
                file.flush()
        else:
            _save_and_load(checkpoints)
    except (OSError, UsageError) as error:
        advice = "mend that, or name another place with HPSEARCH_ARTIFACTS; without it a killed trial begins again"
        return Check("checkpoints", FAILURE, f"{place} cannot be used: {error}; {advice}")
    return Check("checkpoints", OK, f"{place} can be written")


def _save_and_load(checkpoints: Checkpoints) -> None:
    key, content = f"doctor-{os.getpid()}", b"doctor"
    checkpoints.save(key, 1, content)
    back = list(checkpoints.load(key, 1))
    checkpoints.forget(key)
    if back != [(1, content)]:
        raise OSError("what was written is not what is read back")


def check_space(settings: Settings, file: Path | None) -> Iterator[Check]:
    """There is room in the home folder, for checkpoints and for the database."""
    places = {"home": settings.home}
    if not settings.checkpoints.startswith(SCHEME):
        places["checkpoints"] = Path(settings.checkpoints)
    if file is not None:
        places["database"] = file.parent
    for name, place in places.items():
        free = shutil.disk_usage(nearest(place)).free
        text = f"{place} ({name}) has {_size(free)} free"
        if free >= LITTLE_BYTES:
            yield Check("space", OK, text)
        else:
            advice = f"less than {_size(LITTLE_BYTES if free >= NO_BYTES else NO_BYTES)}: make room, or move it"
            yield Check("space", WARNING if free >= NO_BYTES else FAILURE, f"{text}, {advice}")


def check_gpu(device: str) -> Iterator[Check]:
    """PyTorch sees the GPUs that there are, and they have memory; asked in another process, as drivers may hang."""
    try:
        asked = [sys.executable, "-P", "-c", _ASK_TORCH]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=GPU_SECONDS)
        version, cuda, gpus = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        text = (
            f"PyTorch looks for GPUs since {GPU_SECONDS} s: the driver hangs; restart the machine, or use --device cpu"
        )
        yield Check("gpu", FAILURE, text)
        return
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Check("gpu", FAILURE, f"PyTorch cannot be used ({reason}): install it anew")
        return
    wanted, signs = device != "cpu", gpu_signs()
    if not gpus and signs and wanted:
        built = f"built for CUDA {cuda}" if cuda else "built without CUDA"
        advice = "install one that suits the driver, look at CUDA_VISIBLE_DEVICES, or choose --device cpu"
        yield Check("gpu", FAILURE, f"there is a GPU ({signs}), but PyTorch {version}, {built}, sees none: {advice}")
    elif not gpus and device not in ("auto", "cpu"):
        yield Check("gpu", FAILURE, f"HPSEARCH_DEVICE={device}, but PyTorch {version} sees no GPU: choose cpu or auto")
    elif gpus and wanted and device not in ("auto", "all", "cuda", *(f"cuda:{index}" for index in range(len(gpus)))):
        yield Check("gpu", FAILURE, f"HPSEARCH_DEVICE={device}: must be auto, all, cpu or cuda:0 to {len(gpus) - 1}")
    elif not gpus or not wanted:
        yield Check("gpu", OK, f"training on the CPU, with {num_cores()} cores")
    for index, (name, free, total) in enumerate(gpus if wanted else ()):
        text = f"cuda:{index} is {name} with {_size(free)} of {_size(total)} free"
        full = free < GPU_BYTES
        yield Check("gpu", WARNING if full else OK, f"{text}: something else uses it" if full else text)


def gpu_signs() -> str:
    """What shows, past PyTorch, that this machine has an NVIDIA GPU; empty if nothing does."""
    if program := shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=GPU_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return "nvidia-smi does not answer"
        if listed.returncode == 0 and listed.stdout.startswith("GPU "):
            return f"nvidia-smi lists {listed.stdout.splitlines()[0].partition(' (')[0]}"
    found = [path for path in ("/proc/driver/nvidia/version", "/dev/nvidia0") if Path(path).exists()]
    return f"{found[0]} exists" if found else ""


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
