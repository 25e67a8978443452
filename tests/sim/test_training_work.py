"""A microbatch's training work as tasks: what goes forward comes back, split or not, again or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Exchange, Fluid, PlacedModel, find_rung
from moecast.sim.forward import ForwardPass
from moecast.sim.training import BF16, FP8, FULL, NONE, SELECTIVE, HostWait, Recompute
from moecast.sim.training.work import TrainingPass
from tests.sim.plan_cases import questions

MODES = ("per_choice", "per_rank", "per_domain", "nccl")


@st.composite
def training_passes(draw, **changes):
    """A microbatch of random tokens under a random plan."""
    question = draw(questions(modes=MODES, phases=("prefill",)))
    values = {"precision": draw(st.sampled_from((BF16, FP8)))} | changes
    model = values["precision"].of(question.model)
    step = ForwardPass.of(
        PlacedModel.of(question.cluster, model, question.plan, phase="prefill"), question.trace, question.step
    )
    return TrainingPass(step=step, **values)


def layers(work):
    return range(work.model.n_layers)


def microbatch(work):
    """Forward and backward through all layers, as one stage alone does."""
    yield from work.embedding()
    for layer in layers(work):
        yield from work.forward(layer)
    yield from work.head()
    yield from work.head_gradient(weights=True)
    for layer in reversed(layers(work)):
        yield from work.backward(layer, weights=True)
    yield from work.embedding_gradient()


def seconds(tasks):
    return np.sum([task.seconds_R for task in tasks if not isinstance(task, Exchange)], axis=0)


def moved(tasks, kind):
    return sum(float(task.fill().bytes_F.sum()) for task in tasks if isinstance(task, Exchange) and task.kind == kind)


@settings(max_examples=25, deadline=None)
@given(training_passes())
def test_gradients_travel_as_what_they_are_of(work):
    """Each byte that a layer dispatches is combined the other way round; counts of tokens are exchanged once."""
    for layer in layers(work):
        forward, backward = list(work.forward(layer)), list(work.backward(layer, weights=True))
        assert moved(backward, "combine") == moved(forward, "dispatch")
        assert moved(backward, "dispatch") == moved(forward, "combine")
        empty = [task for task in backward if isinstance(task, Exchange) and not task.fill().n]
        assert not empty or not moved(forward, "dispatch")


@settings(max_examples=25, deadline=None)
@given(training_passes())
def test_split_gradients_are_the_joint_ones(work):
    """B and W together compute what an undivided backward pass does; W sends nothing."""
    for layer in layers(work):
        joint, split = list(work.backward(layer, weights=True)), list(work.backward(layer, weights=False))
        weights = list(work.weights(layer))
        assert not any(isinstance(task, Exchange) for task in weights)
        assert seconds(split) + seconds(weights) == pytest.approx(seconds(joint))
        assert [task.kind for task in split] == [task.kind for task in joint]
    both = seconds(work.head_gradient(weights=False)) + seconds(work.head_weights())
    assert both == pytest.approx(seconds(work.head_gradient(weights=True)))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_is_computed_again_comes_on_top(data):
    plain = data.draw(training_passes(recompute=NONE))
    values = {"step": plain.step, "precision": plain.precision}
    full, selective = (TrainingPass(**values, recompute=choice) for choice in (FULL, SELECTIVE))
    experts = TrainingPass(**values, recompute=Recompute(modules=("moe", "moe_act")))
    for layer in layers(plain):
        lean = list(plain.backward(layer, weights=True))
        again = list(full.backward(layer, weights=True))
        assert seconds(again) == pytest.approx(seconds(lean) + seconds(plain.forward(layer)))
        assert len(again) == len(lean) + len(list(plain.forward(layer)))
        some = seconds(selective.backward(layer, weights=True))
        assert (some >= seconds(lean)).all()
        assert (some <= seconds(again) * (1 + 1e-12)).all()
        assert moved(experts.backward(layer, weights=True), "dispatch") >= moved(lean, "dispatch")


@settings(max_examples=15, deadline=None)
@given(training_passes())
def test_a_microbatch_runs_on_the_rungs(work):
    program = work.step.program(microbatch(work))
    bound, fluid = find_rung("bound").run(program), Fluid().run(program)
    assert bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)
    longest = max(seconds(program.tasks))
    assert bound.step_time_s >= longest * (1 - 1e-9)


def setups(tasks):
    return sum(task.setup_s for task in tasks if isinstance(task, Exchange))


@settings(max_examples=10, deadline=None)
@given(training_passes(), st.floats(1e-6, 1e-2))
def test_hosts_are_waited_for_once_in_each_direction(work, host_s):
    slow = TrainingPass(step=work.step, precision=work.precision, host=HostWait(fixed_s=host_s))
    moe = set(work.model.moe_layer_ids)
    for layer in layers(work):
        for lean, late in (
            (work.forward(layer), slow.forward(layer)),
            (work.backward(layer, weights=True), slow.backward(layer, weights=True)),
        ):
            lean_tasks, late_tasks = list(lean), list(late)
            sends = layer in moe and work.step.placed.plan.ep > 1
            assert setups(late_tasks) == pytest.approx(setups(lean_tasks) + host_s * sends)
            assert seconds(late_tasks) == pytest.approx(seconds(lean_tasks))


@settings(max_examples=5, deadline=None)
@given(questions(modes=("stay",), phases=("prefill",)))
def test_tokens_that_stay_are_not_trained(question):
    placed = PlacedModel.of(question.cluster, question.model, question.plan, phase="prefill")
    with pytest.raises(MoecastError, match="cannot be trained"):
        TrainingPass(step=ForwardPass.of(placed, question.trace, question.step))
