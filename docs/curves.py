"""Draws the learning curves of a study as a PNG, as in docs/results.md.

Run: python docs/curves.py STUDY docs/STUDY.png [--storage URL] [--chromium /usr/bin/chromium]

Needs a Chromium; the figure is a Plotly page, looked at from a headless browser.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from hpsearch.settings import Settings
from hpsearch.storage.ledger import epochs
from hpsearch.storage.open import Database, connect
from hpsearch.storage.studies import load_study, progress

WIDTH, HEIGHT = 1000, 420  # pixels
FAINT, BEST, OTHER = "rgba(130,130,130,0.45)", "#d62728", "#1f77b4"


def figure(database: Database, name: str) -> go.Figure:
    """Validation accuracy of every trial on the left, both losses of the best one on the right."""
    study = load_study(database, name)
    best = progress(database, study).best_number
    trials = study.optuna_study.get_trials(deepcopy=False)
    titles = [f"{name}: validation accuracy of {len(trials)} trials", f"losses of trial {best}"]
    drawn = make_subplots(rows=1, cols=2, subplot_titles=titles, column_widths=[0.62, 0.38])
    for trial in sorted(trials, key=lambda trial: trial.number == best):  # the best one on top
        colour = BEST if trial.number == best else FAINT if trial.state != TrialState.COMPLETE else OTHER
        drawn.add_trace(curve(trial, colour), row=1, col=1)
    if best is not None:
        rows = epochs(database, trials[best]._trial_id)
        for metric, colour in (("training_loss", OTHER), ("validation_loss", BEST)):
            x, y = [row["epoch"] for row in rows], [row[metric] for row in rows]
            line = go.Scatter(x=x, y=y, name=metric.replace("_", " "), mode="lines", line={"color": colour})
            drawn.add_trace(line, row=1, col=2)
    drawn.update_xaxes(title_text="epoch")
    drawn.update_yaxes(title_text="fraction correct", row=1, col=1)
    drawn.update_yaxes(title_text="cross-entropy, nats", row=1, col=2)
    legend = {"x": 0.99, "y": 0.99, "xanchor": "right"}
    return drawn.update_layout(
        template="plotly_white", width=WIDTH, height=HEIGHT, legend=legend, margin={"t": 40, "r": 20, "b": 50}
    )


def curve(trial: FrozenTrial, colour: str) -> go.Scatter:
    """One trial's line; a single epoch is a dot."""
    x, y = list(trial.intermediate_values), list(trial.intermediate_values.values())
    marker = {"color": colour, "size": 4}
    return go.Scatter(x=x, y=y, mode="lines+markers", line={"color": colour}, marker=marker, showlegend=False)


def save(drawn: go.Figure, path: Path, chromium: str) -> None:
    """Write the figure as a PNG; raises subprocess.CalledProcessError if the browser fails."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        drawn.write_html(page, include_plotlyjs=True, config={"staticPlot": True})
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        size = [f"--window-size={WIDTH + 16},{HEIGHT + 16}", "--hide-scrollbars", "--virtual-time-budget=8000"]
        command = [chromium, *quiet, *size, f"--user-data-dir={folder}/profile", f"--screenshot={path}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Read the command line, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("png", type=Path)
    parser.add_argument("--storage", default=Settings.from_environment().storage_url)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    with connect(given.storage) as database:
        save(figure(database, given.study), given.png.resolve(), given.chromium)
    print(f"wrote {given.png}")


if __name__ == "__main__":
    main()
