"""What came out: a table in Markdown, and a picture."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

from matplotlib.figure import Figure

from bench.load import Sample

# By workload, then by competitor, a sample for each round.
Samples = dict[str, dict[str, list[Sample]]]

_CPU = ("application CPU, µs", "÷ ours", "PostgreSQL CPU, µs")
_DRAWN = ("get one", "list 100", "create")
_BARS = {
    "reference": ("FastAPI, SQLModel, psycopg2", "#b8c4cc"),
    "ours": ("todo-service", "#2f6f9f"),
    "fast": ("Starlette, asyncpg: these routes only", "#e0a458"),
}


def machine() -> str:
    """What the figures depend on."""
    packages = ("flask", "gunicorn", "gevent", "psycopg", "fastapi", "sqlmodel", "psycopg2-binary")
    packages += ("starlette", "uvicorn", "uvloop", "asyncpg")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    system = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    return f"{system}, Python {platform.python_version()}, {versions}."


def factors(ours: list[Sample], theirs: list[Sample]) -> tuple[float, float, float]:
    """Their CPU divided by ours in the same round: lower quartile, median, upper quartile."""
    ratios = [their.app / our.app for our, their in zip(ours, theirs, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive") if ratios[1:] else ratios * 3
    return low, middle, high


def table(samples: Samples) -> str:
    rows = [("workload", "competitor", "requests/s", *_CPU), ("---", "---", *["---:"] * 4)]
    for workload, by_name in samples.items():
        for name, rounds in by_name.items():
            rate, app, database = map(median, zip(*rounds, strict=True))
            low, middle, high = factors(by_name["ours"], rounds)
            times = "1" if name == "ours" else f"{middle:.2f} ({low:.2f}-{high:.2f})"
            figures = (f"{rate:,.0f}", f"{app:,.0f}", times)
            rows.append((workload, name, *figures, f"{database:,.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(samples: Samples, file: Path) -> None:
    """The factors of three workloads, readable at a width of 830 pixels."""
    figure = Figure(figsize=(8.3, 3.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, (label, colour)) in enumerate(_BARS.items()):
        heights = [factors(samples[one]["ours"], samples[one][name])[1] for one in _DRAWN]
        left = [number + 0.27 * (place - 1) for number in range(len(_DRAWN))]
        bars = axes.bar(left, heights, 0.25, label=label, color=colour)
        axes.bar_label(bars, [f"{height:.2g}x" for height in heights], fontsize=12, padding=2)
    axes.set_xticks(range(len(_DRAWN)), _DRAWN, fontsize=12)
    title = "CPU of the application per request, as a multiple of todo-service's: less is better"
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_yticks([])
    axes.margins(y=0.12)
    axes.spines[["top", "left", "right"]].set_visible(False)
    figure.legend(fontsize=11, frameon=False, ncols=3, loc="outside lower center")
    figure.savefig(file, dpi=200)
