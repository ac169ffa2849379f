"""Wrong input to `hpsearch launch`: exit code 2, one sentence, nothing submitted and nothing made."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.launch.slurm import Array
from tests.cli.inside import hpsearch, one_line
from tests.cli.running import environment
from tests.studies import TINY, create_as

PRINTABLE = "no line of a batch script can hold such a name"
S3 = {"HPSEARCH_ARTIFACTS": "s3://bucket/prefix"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one study and an sbatch that leaves a trace."""
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    create_as("two\nlines", f"sqlite:///{tmp_path}/storage/hpsearch.db", tmp_path / "tiny.toml")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sbatch"
    program.write_text(
        "#!/bin/sh\necho \"$@\" > submitted\necho 'sbatch: error: invalid partition specified: nine' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    return tmp_path


SLURM = {
    "unknown study": (("tinny",), "'tinny' is not in this storage: did you mean 'tiny'?"),
    "no workers": (("tiny", "--workers", "0"), "--workers"),
    "not a number": (("tiny", "--workers", "many"), "'many'"),
    "fewer than no GPUs": (("tiny", "--gpus-per-worker", "-1"), "--gpus-per-worker"),
    "time": (("tiny", "--time", "1h"), "--time '1h': Slurm knows no such time"),
    "no time to train": (
        ("tiny", "--time", "1"),
        "two minutes before the end a worker is told to leave; give 5 minutes",
    ),
    "seconds": (("tiny", "--time", "4:59"), "--time 4:59: two minutes"),
    "hours and seconds": (("tiny", "--time", "0:04:00"), "--time 0:04:00: two minutes"),
    "days and minutes": (("tiny", "--time", "0-0:4"), "--time 0-0:4: two minutes"),
    "time with a line": (("tiny", "--time", "60\n#SBATCH --wrap=x"), "Slurm knows no such time"),
    "partition": (("tiny", "--partition", "a b"), "--partition 'a b'"),
    "name of two lines": (("two\nlines",), PRINTABLE),
    "no template": (("tiny", "--template", "absent.sh"), "--template absent.sh: No such file"),
    "placeholder": (("tiny", "--template", "placeholder.sh"), "$wrokers is unknown; it must be one of $study, $name"),
    "lonely $": (("tiny", "--template", "dollar.sh"), "the $ in line 2, col 6 is no placeholder"),
    "no text": (("tiny", "--template", "binary.sh"), "is no UTF-8 text"),
    "readable by others": (("tiny", "--env-file", "open.env"), "run `chmod 600 open.env`"),
    "no env file": (("tiny", "--env-file", "absent.env"), "absent.env"),
    "env file of two lines": (("tiny", "--env-file", "two\nlines.env"), PRINTABLE),
    "two storages": (("tiny", "--env-file", "my.env", "--storage", "sqlite:///x.db"), "--storage and --env-file"),
}


@pytest.mark.parametrize("kind", SLURM)
def test_slurm(kind: str, folder: Path) -> None:
    (folder / "placeholder.sh").write_text("#!/bin/sh\n$wrokers")
    (folder / "dollar.sh").write_text("#!/bin/sh\necho $(date)")
    (folder / "binary.sh").write_bytes(b"\xff\xfe")
    (folder / "open.env").write_text("HPSEARCH_STORAGE=x")
    (folder / "open.env").chmod(0o644)
    for name in ("my.env", "two\nlines.env"):
        (folder / name).touch(stat.S_IRUSR)
    before = sorted(folder.rglob("*"))
    arguments, named = SLURM[kind]
    for dry in ((), ("--dry-run",)):
        workers = () if "--workers" in arguments else ("--workers", "2")
        line = one_line(folder, "launch", "slurm", *arguments, *workers, *dry, PATH=f"{folder}/bin:/usr/bin:/bin")
        assert named in line
    assert sorted(folder.rglob("*")) == before


def test_without_slurm(folder: Path) -> None:
    (folder / "bin" / "sbatch").unlink()
    done = hpsearch(folder, "launch", "slurm", "tiny", "--workers", "2", code=2, PATH=f"{folder}/bin")
    warning, error = done.stderr.splitlines()
    assert "SQLite file, which works only if every worker runs on this very machine" in warning
    assert "sbatch is not on the PATH" in error
    for command in ("status", "cancel"):
        assert "squeue is not on the PATH" in one_line(folder, "launch", command, "tiny", PATH=f"{folder}/bin")
    assert not (folder / "storage" / "logs").exists()


def test_refused_by_slurm(folder: Path) -> None:
    arguments = ("launch", "slurm", "tiny", "--workers", "2", "--partition", "nine", "--time", "1:30:00")
    error = hpsearch(folder, *arguments, code=2, PATH=f"{folder}/bin:/usr/bin:/bin").stderr.splitlines()[-1]
    assert "nothing was submitted: invalid partition specified: nine" in error
    # By argument: SBATCH_PARTITION and SBATCH_TIMELIMIT of the environment are stronger than the script.
    assert (folder / "submitted").read_text().split()[-2:] == ["--time=1:30:00", "--partition=nine"]
    assert not (folder / "storage" / "logs").exists()
    (folder / "storage" / "logs" / "slurm").mkdir(parents=True)
    (folder / "bin" / "sbatch").write_text("#!/absent/interpreter\n")
    error = hpsearch(folder, *arguments, code=2, PATH=f"{folder}/bin:/usr/bin:/bin").stderr.splitlines()[-1]
    assert "bin/sbatch cannot be run: No such file" in error
    assert (folder / "storage" / "logs" / "slurm").is_dir()  # it was there before


@pytest.mark.parametrize("time", ["5", "5:00", "0:05:00", "0-0:5", "0-1", "1-0", "0", "0:00", "unlimited", "INFINITE"])
def test_times_that_leave_time_to_train(time: str) -> None:
    assert f"#SBATCH --time={time}\n" in Array("tiny", 1, 0, 1, time, None, Path("/here"), Path("/logs")).script()


def test_no_place_for_logs(folder: Path) -> None:
    (folder / "storage" / "logs").write_text("a file")
    arguments = ("launch", "slurm", "tiny", "--workers", "2")
    error = hpsearch(folder, *arguments, code=2, PATH=f"{folder}/bin:/usr/bin:/bin").stderr.splitlines()[-1]
    assert f"the folder of logs {folder}/storage/logs/slurm cannot be made: Not a directory" in error
    assert (folder / "storage" / "logs").read_text() == "a file"
    assert not (folder / "submitted").exists()


def test_a_current_folder_that_is_gone(folder: Path) -> None:
    gone = f'mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -m hpsearch "$@"'
    arguments = ["launch", "slurm", "tiny", "--workers", "2", "--storage", f"sqlite:///{folder}/storage/hpsearch.db"]
    done = subprocess.run(
        ["bash", "-c", gone, "bash", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("hpsearch: the current folder: No such file or directory")
    assert "Traceback" not in done.stderr


def test_an_env_file_without_the_storage_of_the_environment(folder: Path) -> None:
    file, url = folder / "my.env", f"sqlite:///{folder}/storage/hpsearch.db"
    arguments = ("launch", "slurm", "tiny", "--workers", "2", "--env-file", "my.env", "--dry-run")
    for text in ("", "HPSEARCH_HOME=here\n", "# HPSEARCH_STORAGE=x\n", "HPSEARCH_STORAGE_PASSWORD_FILE=x\n"):
        file.write_text(text)
        file.chmod(stat.S_IRUSR | stat.S_IWUSR)
        line = one_line(folder, *arguments, HPSEARCH_STORAGE=url)
        assert "--env-file my.env: sets no HPSEARCH_STORAGE, and that of your environment is not passed on" in line
    hpsearch(folder, *arguments)  # here it is the default, and there
    for text in ("A=1\nexport HPSEARCH_STORAGE=x", ". ~/site.env", "[ -f site ] && source site"):
        file.write_text(text)
        assert "#SBATCH" in hpsearch(folder, *arguments, HPSEARCH_STORAGE=url).stdout


def test_what_an_env_file_sets_does_not_pass_through_slurm(folder: Path) -> None:
    secret = folder / "my.env"
    secret.write_text("HPSEARCH_HOME='storage'\nexport SITE_TOKEN='s3cret'\n")
    secret.chmod(stat.S_IRUSR)
    (folder / "bin" / "sbatch").write_text("#!/bin/sh\nenv > passed\nexit 1\n")
    away = {"SITE_TOKEN": "s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret", "HPSEARCH_STORAGE_TO": "s3cret"}
    place = {"PATH": f"{folder}/bin:/usr/bin:/bin", "OTHER": "other"}
    hpsearch(folder, "launch", "slurm", "tiny", "--workers", "2", "--env-file", "my.env", code=2, **place, **away)
    passed = (folder / "passed").read_text()
    assert "OTHER=other" in passed
    assert "s3cret" not in passed


def test_a_dry_run_prints_and_does_nothing(folder: Path) -> None:
    secret = folder / "my.env"
    secret.write_text("HPSEARCH_STORAGE=x")
    secret.chmod(stat.S_IRUSR)
    done = hpsearch(
        folder, "launch", "slurm", "tiny", "--workers", "2", "--env-file", "my.env", "--dry-run", PATH=f"{folder}/bin"
    )
    assert "#SBATCH --array=1-2" in done.stdout
    assert f". {secret} || exit 2" in done.stdout
    assert not (folder / "storage" / "logs").exists()


def test_launching_imports_no_torch(folder: Path) -> None:
    arguments = ["launch", "slurm", "tiny", "--workers", "2", "--dry-run"]
    program = f"import sys\nfrom hpsearch.cli.main import main\ntry:\n main({arguments})\nexcept SystemExit: pass\n"
    run = [
        sys.executable,
        "-c",
        f"{program}assert 'hpsearch.launch.slurm' in sys.modules\nassert 'torch' not in sys.modules",
    ]
    subprocess.run(run, cwd=folder, env=environment(folder), check=True, capture_output=True)


KUBERNETES = {
    "unknown study": (("tinny",), S3, "'tinny' is not in this storage"),
    "SQLite": (("tiny",), S3, "pods do not reach a SQLite file"),
    "no workers": (("tiny", "--workers", "0"), S3, "--workers"),
    "no place for checkpoints": (("tiny",), {}, "HPSEARCH_ARTIFACTS=s3://BUCKET/PREFIX, or give --claim"),
    "a folder for checkpoints": (("tiny",), {"HPSEARCH_ARTIFACTS": "/tmp/x"}, "or give --claim"),
    "namespace": (("tiny", "--namespace", "My Lab"), S3, "--namespace 'My Lab'"),
    "image": (("tiny", "--image", "x\nprivileged: true"), S3, "--image"),
    "claim": (("tiny", "--claim", "a/b"), {}, "--claim 'a/b'"),
    "memory": (("tiny", "--memory", "4 GB"), S3, "--memory '4 GB'"),
    "public URL": (("tiny", "--public-url", "search.example.org"), S3, "--public-url search.example.org"),
    "no YAML": (("tiny", "--template", "broken.yaml"), S3, "--template broken.yaml, line 1: is no YAML"),
    "placeholder": (("tiny", "--template", "site.yaml"), S3, "$nmae is unknown"),
}


@pytest.mark.parametrize("kind", KUBERNETES)
def test_kubernetes(kind: str, folder: Path) -> None:
    (folder / "broken.yaml").write_text("kind: [")
    (folder / "site.yaml").write_text("kind: $nmae")
    before = sorted(folder.rglob("*"))
    arguments, variables, named = KUBERNETES[kind]
    workers = () if "--workers" in arguments else ("--workers", "2")
    assert named in one_line(folder, "launch", "kubernetes", *arguments, *workers, **variables)
    assert sorted(folder.rglob("*")) == before
