"""Which layout to run, as an app: `marimo run notebooks/plan.py` (or `marimo edit`), with `pip install 'moecast[app]'`."""

import marimo

app = marimo.App(width="medium", app_title="moecast: which layout to run")


@app.cell
def _():
    import marimo as mo
    import plotly.graph_objects as go

    from moecast.errors import MoecastError
    from moecast.placement.layouts import ServingQuestion, Slo, find_serving
    from moecast.placement.layouts.launch import launches
    from moecast.placement.layouts.why import why_it_wins
    from moecast.sim import kernels_on, load_model
    from moecast.sim.engines import ENGINES
    from moecast.sim.made_routing import parse_law, routing_by_law
    from moecast.sim.models import PRESETS as MODEL_PRESETS
    from moecast.topology import list_presets, load_cluster

    return (
        ENGINES,
        MODEL_PRESETS,
        MoecastError,
        ServingQuestion,
        Slo,
        find_serving,
        go,
        kernels_on,
        launches,
        list_presets,
        load_cluster,
        load_model,
        mo,
        parse_law,
        routing_by_law,
        why_it_wins,
    )


@app.cell
def _(ENGINES, MODEL_PRESETS, list_presets, mo):
    fields = {
        "model": mo.ui.dropdown(sorted(MODEL_PRESETS), value="qwen3-30b-a3b", label="model"),
        "cluster": mo.ui.dropdown([preset.name for preset in list_presets()], value="dgx-h200", label="cluster"),
        "nodes": mo.ui.number(1, 512, value=1, label="nodes (or domains)"),
        "engine": mo.ui.dropdown([engine.name for engine in ENGINES], value="sglang", label="engine"),
        "routing": mo.ui.text(value="gamma:0.8", label="routing: uniform, zipf:S, gamma:V"),
        "scored": mo.ui.number(1, 1000, value=64, label="layouts to time"),
        "isl": mo.ui.number(1, 1_000_000, value=4096, label="tokens in"),
        "osl": mo.ui.number(1, 1_000_000, value=1024, label="tokens out"),
        "price": mo.ui.number(0, 1000, value=3, step=0.1, label="dollars per GPU and hour"),
        "ttft_ms": mo.ui.number(1, 600_000, value=2000, label="TTFT at most, ms"),
        "tpot_ms": mo.ui.number(1, 10_000, value=40, label="TPOT at most, ms"),
    }
    rows = ("{model} {cluster} {nodes}", "{engine} {routing} {scored}", "{isl} {osl} {price}", "{ttft_ms} {tpot_ms}")
    asked = mo.md("\n\n".join(rows)).batch(**fields).form(submit_button_label="search")
    mo.vstack([mo.md("# Which layout to run"), asked])
    return (asked,)


@app.cell
def _(
    MoecastError,
    ServingQuestion,
    Slo,
    asked,
    find_serving,
    kernels_on,
    load_cluster,
    load_model,
    mo,
    parse_law,
    routing_by_law,
):
    def search(wanted):
        cluster = kernels_on(load_cluster(wanted["cluster"], nodes=int(wanted["nodes"])), engine=wanted["engine"])
        model = load_model(wanted["model"])
        trace = routing_by_law(
            parse_law(wanted["routing"]), model, tokens=8192, sequence=64, phase="prefill", position=0, seed=0
        )
        question = ServingQuestion(
            cluster=cluster, model=model, trace=trace, isl=int(wanted["isl"]), osl=int(wanted["osl"])
        )
        slo = Slo(ttft_s=wanted["ttft_ms"] / 1e3, tpot_s=wanted["tpot_ms"] / 1e3)
        with mo.status.progress_bar(total=100, title="searching", remove_on_exit=True) as bar:
            at = 0

            def advance(what, done, of):
                nonlocal at
                now = 100 * done // max(of, 1)
                bar.update(increment=max(now - at, 0), subtitle=f"{what}: {done} of {of}")
                at = max(now, at)

            found = find_serving(
                question, cluster.n_gpus, slo, scored=int(wanted["scored"]), placed=3, progress=advance
            )
        return question, found

    # What stands in the form at first is answered at once.
    wanted = asked.value or {name: field.value for name, field in asked.element.elements.items()}
    try:
        question, found = search(wanted)
        refused = None
    except MoecastError as error:
        question, found, refused = None, None, str(error)
    mo.callout(mo.md(refused), kind="danger") if refused else None
    return found, question, wanted


@app.cell
def _(found, go, mo, question, wanted, why_it_wins):
    mo.stop(found is None)
    winner = found.winner
    dollars = wanted["price"] / 3600 / winner.tokens_per_s_per_gpu * 1e6
    facts = mo.hstack(
        [
            mo.stat(f"{winner.tokens_per_s_per_gpu:,.0f}", label="tokens/s per GPU"),
            mo.stat(f"{winner.tpot_s * 1e3:.1f} ms", label="TPOT"),
            mo.stat(f"{winner.ttft_s * 1e3:,.0f} ms", label="TTFT, no queue"),
            mo.stat(f"${dollars:.3g}", label="per million output tokens"),
            mo.stat(f"{100 * found.gap:.0f} %", label="no layout is better by more"),
        ]
    )
    timed = [*found.scored, *found.placed]
    figure = go.Figure(
        [
            go.Scatter(
                x=[1e3 * one.tpot_s for one in ones],
                y=[one.tokens_per_s_per_gpu for one in ones],
                mode=mode,
                name=name,
                text=[one.name() for one in ones],
                hovertemplate="%{text}<br>%{x:.1f} ms, %{y:,.0f} tokens/s<extra></extra>",
            )
            for name, mode, ones in (
                ("timed", "markers", timed),
                ("front", "lines+markers", found.front),
                ("winner", "markers", [winner]),
            )
        ]
    )
    figure.add_vline(x=wanted["tpot_ms"], line_dash="dot", annotation_text="limit")
    figure.update_layout(
        xaxis_title="time per output token, ms", yaxis_title="output tokens/s per GPU", template="plotly_white"
    )
    why = [f"- **{line['what']}**: {line['told']}" for line in why_it_wins(question, found)]
    mo.vstack([mo.md(f"## {winner.name()}"), facts, mo.ui.plotly(figure), mo.md("\n".join(["### Why", *why]))])
    return (winner,)


@app.cell
def _(found, launches, mo, question, winner):
    mo.stop(found is None)
    roles = (("decode", winner.decode), ("prefill", winner.prefill)) if winner.split else (("", winner.decode),)
    mo.accordion(
        {
            f"{one.engine} {role}": mo.md(f"```\n{one.command}\n{one.config}\n```\n{one.cannot or ''}")
            for role, layout in roles
            for one in launches(layout, experts=question.model.experts, role=role)
        }
    )
    return


if __name__ == "__main__":
    app.run()
