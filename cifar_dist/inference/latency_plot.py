"""The picture of `latency`: latency and throughput over the batch size."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import LogLocator, NullFormatter

from cifar_dist.inference.latency import Cell
from cifar_dist.report.canvas import BLUE, VERMILLION, new_figure, save

WAYS = {False: ("eager", BLUE, "-", "o"), True: ("compiled", VERMILLION, "--", "s")}  # told apart without colours, too


def draw_latency(cells: Sequence[Cell], path: Path, title: str) -> Path:
    """Draw the median with the 90th and 99th percentile, and images/s, on logarithmic axes."""
    figure = new_figure(title, 10, 4.6)
    latency, throughput = figure.subplots(1, 2)
    for compiled, (name, colour, line, marker) in WAYS.items():
        chosen = sorted((cell for cell in cells if cell.compiled == compiled), key=lambda cell: cell.batch_size)
        if not chosen:
            continue
        sizes = [cell.batch_size for cell in chosen]
        p50, p90, p99 = ([cell.percentile_ms(percent) for cell in chosen] for percent in (50, 90, 99))
        latency.plot(sizes, p50, line, color=colour, marker=marker, label=f"{name}: median")
        latency.fill_between(
            sizes, p50, p90, color=colour, alpha=0.3, linewidth=0, label=f"{name}: to the 90th percentile"
        )
        latency.fill_between(
            sizes, p90, p99, color=colour, alpha=0.12, linewidth=0, label=f"{name}: to the 99th percentile"
        )
        throughput.plot(sizes, [cell.images_per_s for cell in chosen], line, color=colour, marker=marker, label=name)
    for axes, label in ((latency, "latency of a call in ms"), (throughput, "images/s")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        sizes = sorted({cell.batch_size for cell in cells})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("images a call")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return save(figure, path)
