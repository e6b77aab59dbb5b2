"""Two members in two threads: what must be one decision is one."""

import copy
import math
import threading
from dataclasses import replace
from queue import Queue

import pytest
import torch
from torch import nn

from segsweep.config.schema import OptimConfig, TrainConfig
from segsweep.data import batches as data
from segsweep.data.geometry import Canvas
from segsweep.engine import losses
from segsweep.engine.execution import PLAIN
from segsweep.engine.scorer import Evaluation, Scorer
from segsweep.engine.step import TrainStep
from segsweep.errors import NonFiniteError
from segsweep.training import loop, optim
from segsweep.training.loop import fit
from segsweep.training.state import TrainState
from segsweep.world import SINGLE, World


class Member(World):
    """One of two threads; a call ends when both have made it."""

    size = 2

    def __init__(self, rank, barrier, table):
        self.rank, self._barrier, self._table = rank, barrier, table

    def _all(self, value):
        self._table[self.rank] = value
        self._barrier.wait(20)
        found = list(self._table)
        self._barrier.wait(20)
        return found

    def agreed(self, value):
        return self._all(value)[0]

    def any(self, flag):
        return any(self._all(flag))

    def summed(self, tensor):
        return sum(self._all(tensor))

    def gathered(self, value):
        found = self._all(value)
        return found if self.rank == 0 else []


def together(work):
    """What `work(member)` gives, or raises, in each of two threads."""
    barrier, table, found = threading.Barrier(2), [None, None], Queue()

    def run(rank):
        try:
            found.put((rank, work(Member(rank, barrier, table))))
        except Exception as error:
            found.put((rank, error))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [result for _, result in sorted((found.get_nowait() for _ in threads), key=lambda pair: pair[0])]


class Steps:
    """A training split of one pixel an image; a member's own."""

    def __init__(self, value=1.0):
        self.value = value

    def __len__(self):
        return 3

    def epoch(self, number):
        for _ in range(3):
            image = torch.full((1, 1, 1, 1), self.value)
            yield iter([Batch(image)])


class Batch:
    def __init__(self, image):
        self.image, self.mask, self.indices = image, torch.ones(1, 1, 1, dtype=torch.int64), (0,)


def training(member, train, value=1.0, score=lambda: 0.5):
    model = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.0)
    optimizer = optim.build(OptimConfig(name="sgd", lr=0.1, encoder_lr_scale=1.0, weight_decay=0.0), model)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    step = TrainStep(PLAIN, losses.build({"ce": 1.0}))

    def validate(_):
        return Evaluation({"iou": score(), "loss": 0.0}, {}, {})

    return list(fit(state, step, Steps(value), validate, train, OptimConfig(warmup=0.0), world=member))


def test_one_process_agrees_with_itself():
    tensor = torch.ones(2)
    assert SINGLE.agreed({"a": 1}) == {"a": 1}
    assert SINGLE.any(True)
    assert not SINGLE.any(False)
    assert SINGLE.summed(tensor) is tensor
    assert SINGLE.gathered(tensor) == [tensor]
    assert SINGLE.shared(model := nn.Identity()) is model
    assert SINGLE.cause(error := ValueError()) is error


def test_two_members_agree():
    assert together(lambda member: member.agreed(member.rank + 7)) == [7, 7]
    assert together(lambda member: member.any(member.rank == 1)) == [True, True]
    assert together(lambda member: float(member.summed(torch.tensor(member.rank + 1.0)))) == [3.0, 3.0]


def test_the_budget_goes_by_one_clock(monkeypatch):
    """The second member's clock runs ten times as fast: by its own it would stop epochs before the first."""
    now = threading.local()

    def tick():
        now.time = getattr(now, "time", 0.0) + (0.1 if threading.current_thread().name.endswith("a") else 1.0)
        return now.time

    def work(member):
        threading.current_thread().name = f"member-{'ab'[member.rank]}"
        return training(member, TrainConfig(time_budget=8.0, batch_size=1, grad_accum=1))

    monkeypatch.setattr(loop.time, "perf_counter", tick)
    first, second = together(work)
    assert len(first) == len(second) > 1
    assert [epoch.metrics["lr"] for epoch in first] == [epoch.metrics["lr"] for epoch in second]
    assert first[-1].metrics["perf/seconds"] == second[-1].metrics["perf/seconds"]


def test_the_loss_is_the_mean_of_all(monkeypatch):
    train = TrainConfig(epochs=1, batch_size=1, grad_accum=1)
    alone = [training(SINGLE, train, value)[0].metrics["train/loss"] for value in (1.0, 3.0)]
    found = together(lambda member: training(member, train, (1.0, 3.0)[member.rank])[0].metrics["train/loss"])
    assert found == [pytest.approx(sum(alone) / 2)] * 2


def test_a_nan_in_one_ends_all():
    train = replace(TrainConfig(epochs=2, batch_size=1, grad_accum=1))
    found = together(lambda member: training(member, train, (1.0, math.nan)[member.rank]))
    assert [type(error) for error in found] == [NonFiniteError, NonFiniteError]


def test_the_best_epoch_is_one(monkeypatch):
    """One pixel of difference between two devices: by its own scores the second member would have no patience left."""
    train = TrainConfig(epochs=4, patience=1, batch_size=1, grad_accum=1)

    def work(member):
        scores = iter((0.5, 0.6, 0.7, 0.8) if member.rank == 0 else (0.5,) * 4)
        return [epoch.is_best for epoch in training(member, train, score=lambda: next(scores))]

    assert together(work) == [[True] * 4] * 2


def test_batchnorm_has_the_mean_of_all_statistics_where_it_trains():
    def work(member):
        model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)))
        state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), None, optim.Average(model, 0.9))
        state.model.train()
        state.model[1].eval()  # frozen
        for norm in (state.model[0], state.model[1][0], state.average.model[0]):
            norm.running_mean.fill_(member.rank + 1.0)
            norm.running_var.fill_(10.0 * (member.rank + 1.0))
        loop._average_statistics(state, member)
        norms = state.model[0], state.model[1][0], state.average.model[0]
        return [float(norm.running_mean[0]) for norm in norms], float(norms[0].running_var[1])

    first, second = together(work)
    assert first == ([1.5, 1.0, 1.5], 15.0)
    assert second == ([1.5, 2.0, 1.5], 15.0)


def test_members_score_what_one_alone_does():
    """Each scores whole batches of its own: metrics, loss and matrices are the same to the last digit."""
    indices = tuple(range(7))

    class Batches:
        sizes = 1

        def __init__(self, world):
            self.world, self.indices = world, indices

        def __len__(self):
            return 4

        def __iter__(self):
            parts = [indices[i : i + 2] for i in range(0, 7, 2)]
            for part in parts[self.world.rank :: self.world.size]:
                rng = torch.Generator().manual_seed(part[0])
                image = torch.rand(len(part), 3, 8, 8, generator=rng)
                mask = (torch.rand(len(part), 8, 8, generator=rng) > 0.5).long()
                canvas = Canvas((8, 8), "crop")
                placements = tuple(canvas.place((8, 8)) for _ in part)
                yield data.Batch(image, mask, part, placements, tuple(mask))

    torch.manual_seed(0)
    made = nn.Conv2d(3, 1, 1)

    def work(member):
        model = copy.deepcopy(made)
        loss = losses.build({"ce": 0.5, "dice": 0.5})
        return Scorer().evaluate(model, Batches(member), loss, ["background", "cell"], show=(3, 4))

    alone = work(SINGLE)
    first, second = together(work)
    assert first.metrics == second.metrics == alone.metrics
    assert list(first.matrices) == list(alone.matrices) == list(indices)
    assert all((first.matrices[i] == alone.matrices[i]).all() for i in indices)
    assert first.predictions.keys() == alone.predictions.keys() == {3, 4}
