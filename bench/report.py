"""What came out: a Markdown table, JSON with every sample, a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import matplotlib
import psycopg

from bench.compare import Sample, Samples, say

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("flask", "gunicorn", "gevent", "psycopg", "fastapi", "sqlmodel", "psycopg2-binary")
_HEADINGS = (
    *("workload", "competitor", "requests/s", "÷ reference", "p50 ms", "p99 ms"),
    *("application CPU", "reference ÷", "÷ floor", "PostgreSQL CPU"),
)
_NOTE = (
    "CPU in milliseconds per 1,000 requests, of all processes of the application and of PostgreSQL."
    ' A request of "create 100" is counted as 100.'
    " Medians over the rounds; ratios are taken within a round, then their median."
)


def machine(url: str) -> dict[str, str]:
    """What the figures depend on."""
    with psycopg.connect(url) as connection:
        postgresql = connection.info.parameter_status("server_version") or "-"
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cpu": f"{os.cpu_count()} cores, {', '.join(sorted(models)) or platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": postgresql,
    } | {name: version(name) for name in _PACKAGES}


def comparison(samples: Samples) -> list[str]:
    """Every competitor: a table, and how to read it."""
    rows: list[list[str]] = []
    for workload, by_name in samples.items():
        reference, floor = by_name.get("reference"), by_name.get("floor")
        for name, mine in by_name.items():
            rows.append(
                [
                    workload,
                    name,
                    show(middle(mine, _rate), 0),
                    show(ratio(mine, reference, _rate), 2),
                    show(middle(mine, lambda sample: sample.p50_ms), 1),
                    show(middle(mine, lambda sample: sample.p99_ms), 1),
                    show(middle(mine, _app_cpu), 0),
                    show(ratio(reference, mine, _app_cpu), 2),
                    show(ratio(mine, floor, _app_cpu), 2),
                    show(middle(mine, _database_cpu), 0),
                ]
            )
    return [table(_HEADINGS, rows), _NOTE]


def against(samples: Samples, base: str) -> list[str]:
    """Today's tree beside the one of that name: a table, and how to read it."""
    figures = {"application CPU": _app_cpu, "PostgreSQL CPU": _database_cpu, "requests/s": _rate}
    headings = [f"ours ÷ {base}", *figures]
    for name in figures:
        headings += [f"{name}: ours", base]
    rows: list[list[str]] = []
    for workload, by_name in samples.items():
        today, before = by_name["ours"], by_name.get(base, [])
        row = [workload, *(show_ratios(ratios(today, before, of)) for of in figures.values())]
        for of in figures.values():
            row += [show(middle(today, of), 0), show(middle(before, of), 0)]
        rows.append(row)
    return [table(headings, rows), f"{_NOTE} In brackets: the middle half of the rounds."]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---" if place == 0 else "---:" for place in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _rate(sample: Sample) -> float | None:
    return sample.requests_per_second


def _app_cpu(sample: Sample) -> float | None:
    return sample.app_cpu


def _database_cpu(sample: Sample) -> float | None:
    return sample.database_cpu


def middle(rounds: Sequence[Sample], figure: Callable[[Sample], float | None]) -> float | None:
    known = [value for sample in rounds if (value := figure(sample)) is not None]
    return median(known) if known else None


def ratios(
    over: Sequence[Sample] | None,
    under: Sequence[Sample] | None,
    figure: Callable[[Sample], float | None],
) -> list[float]:
    """The ratios of two figures that were measured in the same round."""
    pairs = [
        (figure(first), figure(second))
        for first, second in zip(over or (), under or (), strict=False)
    ]
    return [first / second for first, second in pairs if first is not None and second]


def ratio(
    over: Sequence[Sample] | None,
    under: Sequence[Sample] | None,
    figure: Callable[[Sample], float | None],
) -> float | None:
    known = ratios(over, under, figure)
    return median(known) if known else None


def show(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def show_ratios(known: Sequence[float]) -> str:
    """Their median, and the ends of their middle half."""
    if len(known) < 2:
        return show(known[0], 2) if known else "-"
    low, middle, high = quantiles(known, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def write(name: str, text: str, figures: dict[str, object]) -> None:
    """Print the text, and keep it and the figures in bench/results/."""
    say("")  # takes the place of the last progress line
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"{text}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def plot(name: str, samples: Samples) -> None:
    """CPU per request: a panel for each workload, a bar for each competitor."""
    figure, axes = plt.subplots(1, len(samples), figsize=(2.2 * len(samples), 3.4), squeeze=False)
    for panel, (workload, by_name) in zip(axes[0], samples.items(), strict=True):
        names = list(by_name)
        app = [middle(by_name[name], _app_cpu) or 0.0 for name in names]
        database = [middle(by_name[name], _database_cpu) or 0.0 for name in names]
        panel.bar(names, app, color="#2f6f9f", label="application")
        panel.bar(names, database, bottom=app, color="#b8c4cc", label="PostgreSQL")
        panel.set_title(workload, fontsize=10)
        panel.tick_params(axis="x", rotation=90, labelsize=9)
        panel.tick_params(axis="y", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("CPU per request, µs")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(RESULTS / f"{name}.png", dpi=150)
    plt.close(figure)


def as_json(samples: Samples) -> dict[str, object]:
    return {
        workload: {name: [asdict(sample) for sample in rounds] for name, rounds in by_name.items()}
        for workload, by_name in samples.items()
    }
