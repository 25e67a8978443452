"""The page of a run of requests: what users see, what limits, and how it went over time."""

from __future__ import annotations

from pathlib import Path

from moecast.files import write_text
from moecast.report import serve_figures as figures
from moecast.report.html import Picture, render_page
from moecast.sim.serving import Served
from moecast.units import format_count, format_percent, format_s


def write_serve_page(served: Served, path: str | Path) -> None:
    """Write a run as one self-contained HTML file, whole or not at all."""
    write_text(path, render(served))


def render(served: Served) -> str:
    """The page as text."""
    return render_page(
        "serve.html.j2",
        title=served.model,
        lead=served.table_title,
        limited=dict(served.table_rows())["limited by"],
        cards=_cards(served),
        rows=served.table_rows(),
        notes=served.table_notes(),
        sections=(
            ("What users see", _seen(served)),
            ("Promises", _kept(served)),
            ("Over time", _over_time(served)),
            ("Why", _why(served)),
        ),
    )


def _cards(served: Served) -> list[tuple[str, str]]:
    ttft, tpot = served.latency["ttft"], served.latency["tpot"]
    rate = served.between("output_tokens_per_s_per_gpu", format_count)
    cards = [
        (format_s(ttft.mean_s), f"TTFT, {_of_mean(served, 'ttft')}"),
        (format_s(tpot.mean_s), f"TPOT, {_of_mean(served, 'tpot')}"),
        (format_count(served.output_tokens_per_s_per_gpu), f"output tokens/s of a GPU{rate}, {served.gpus} GPUs"),
    ]
    if served.kept is not None:
        promised = ", ".join(f"{name.upper()} ≤ {format_s(time_s)}" for name, time_s in served.promised_s.items())
        cards.append((format_percent(served.kept), f"of requests keep {promised}"))
    else:
        cards.append((f"{served.concurrency:,.4g}", "requests in the system, mean"))
    return cards


def _of_mean(served: Served, name: str) -> str:
    found = served.latency[name]
    between = served.between(f"{name}_mean_s", format_s)
    return f"mean{between}; median {format_s(found.p50_s)}, p99 {format_s(found.p99_s)}"


def _seen(served: Served) -> list[Picture]:
    counted = f"Of {served.counted:,} requests that count."
    return [
        Picture(
            title="First token, whole answer",
            caption=f"{counted} A step to the right is a longer wait.",
            figure=figures.latencies(served, ("ttft", "e2e")),
            wide=False,
        ),
        Picture(
            title="Token by token",
            caption="Means over a request's answer, and single gaps between tokens.",
            figure=figures.latencies(served, ("tpot", "itl")),
            wide=False,
        ),
    ]


def _kept(served: Served) -> list[Picture]:
    caption = "The part of requests that keep both times." + (" Dotted: what is promised." if served.promised_s else "")
    return [Picture(title="Goodput of any promise", caption=caption, figure=figures.goodput(served))]


def _over_time(served: Served) -> list[Picture]:
    pictures = []
    instances = {pool.name: pool.instances for pool in served.pools}
    several = len(served.over_time) > 1
    for name, over in served.over_time.items():
        of = f", {name} pool" if several else ""
        count = instances.get(name, served.instances)
        pictures += [
            Picture(
                title=f"Requests{of}",
                wide=True,
                figure=figures.requests_over_time(over),
                caption=f"Means over {format_s(over.bin_s)}, over all its ranks.",
            ),
            Picture(
                title=f"What iterations hold{of}",
                wide=False,
                figure=figures.doing_over_time(over, count, served.duration_s),
                caption="An iteration counts as one with prompts if any rank of its instance has some.",
            ),
        ]
    caption = "Blocks that requests hold; what is only kept to be found again is free."
    pictures.append(
        Picture(title="KV cache", caption=caption, figure=figures.kv_over_time(served.over_time), wide=several)
    )
    return pictures


def _why(served: Served) -> list[Picture]:
    several = len(served.step_times) > 1
    pictures = [
        Picture(
            title="Iteration against batch" + (f", {name} pool" if several else ""),
            wide=not several,
            caption="Mean of iterations with about as many requests; bars: shortest to longest.",
            figure=figures.step_times(served, name),
        )
        for name in served.step_times
    ]
    shares = Picture(
        title="Where the time goes",
        caption="Several may hold at once.",
        figure=figures.shares(served.limits),
        wide=several,
    )
    return [*pictures, shares]
