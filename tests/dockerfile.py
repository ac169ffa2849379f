"""The steps of the Dockerfile's first stage in a fresh folder, without a container engine: about 5 GB, some minutes.

Run: python -m tests.dockerfile FOLDER     FOLDER is new; it needs the network, as a build of the image does

What COPY names is copied, and RUN lines run as they stand, with VIRTUAL_ENV inside FOLDER. The second stage only makes
a user and copies the result.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def steps(text: str) -> list[tuple[str, str]]:
    """The instructions of the first stage, with lines that go on joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    first = joined.split("\nFROM ")[1]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in first.splitlines()[1:]) if word]


def main(folder: Path) -> None:
    """Run them, and then the image's command."""
    source = folder / "src"
    source.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HPSEARCH_", "PYTHON"))}
    for word, rest in steps((ROOT / "Dockerfile").read_text()):
        print(word, rest, flush=True)
        if word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in rest.split())
            environment["VIRTUAL_ENV"] = str(folder / "venv")
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, source / target)
        elif word == "RUN":
            subprocess.run(["sh", "-euc", rest], cwd=source, env=environment, check=True)
    empty = folder / "empty"
    empty.mkdir()
    hpsearch = [folder / "venv/bin/hpsearch"]
    for words in (["storage", "create"], ["create-study", "quickstart", "--set", "budget.trials=2"]):
        subprocess.run([*hpsearch, *words], cwd=empty, env=environment, check=True)
    subprocess.run([*hpsearch, "worker", "quickstart", "--device", "cpu"], cwd=empty, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
