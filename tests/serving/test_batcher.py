"""Batches: the same bytes in any company, room that comes back, work that nobody waits for, and how a worker ends."""

import random
import threading

import pytest
import torch
from services import SIZE

from fdistill.core.random import generator_for
from fdistill.models.condition import Condition
from fdistill.serving.batcher import Batcher, Job
from fdistill.serving.generators import Generator
from fdistill.serving.settings import How


def answers(batcher, jobs):
    """Submit all before the worker begins; their pictures in order."""
    for job in jobs:
        batcher.submit(job)
    batcher.start()
    found = [job.answer.result(timeout=60) for job in jobs]
    batcher.close()
    return found


def alone(generator, seed, label, n=1):
    return answers(Batcher(generator.size), [Job(generator, generator.condition(str(label)), seed, n)])[0]


def same_bytes(generator, seeds, mates):
    """Whether pictures of seeds are those that each has alone, among mates of random seeds, classes and numbers."""
    chance = random.Random(0)
    asked = [(seed, chance.randrange(10), 1) for seed in range(seeds)]
    company = [(chance.getrandbits(62), chance.randrange(10), chance.randint(1, 11)) for _ in range(mates)]
    mixed = chance.sample(asked + company, len(asked) + len(company))
    jobs = {each: Job(generator, generator.condition(str(each[1])), each[0], each[2]) for each in mixed}
    together = dict(zip(mixed, answers(Batcher(generator.size), list(jobs.values())), strict=True))
    return sum(torch.equal(alone(generator, *each), together[each]) for each in asked)


def test_a_seed_gives_the_same_bytes_whatever_the_batch_mates(generator):
    assert same_bytes(generator, seeds=60, mates=20) == 60


@pytest.mark.slow
def test_a_thousand_seeds_of_the_shipped_student_give_the_same_bytes_whatever_the_batch_mates():
    from fdistill.core.presets import checkpoint

    assert same_bytes(Generator("digits", checkpoint("digits-student"), How(64)), seeds=1000, mates=400) == 1000


def test_picture_i_is_a_function_of_seed_and_i(generator):
    few, many = alone(generator, 5, 3, n=3), alone(generator, 5, 3, n=2 * SIZE + 1)
    assert torch.equal(many[:3], few)
    assert len({picture.numpy().tobytes() for picture in many}) == 2 * SIZE + 1
    noise = generator.model.latents(1, generator_for(5, 2)).expand(SIZE, 1, 8, 8)
    assert torch.equal(generator.model.sample(noise, torch.tensor([3] * SIZE))[0], many[2])


class Stub:
    """Makes of noise the noise, and can be held, or made to fail."""

    def __init__(self, error=None):
        self.error, self.batches = error, []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def noise(self, generator):
        return torch.randn(1, 2, generator=generator)

    def make(self, noise, condition, wanted):
        self.begun.set()
        self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.batches.append((len(noise), wanted))
        return noise[:wanted]


def job(maker, n, seed=0, width=1):
    return Job(maker, Condition({"text": torch.zeros(1, width)}), seed, n)


def test_every_batch_has_one_shape_and_is_as_full_as_can_be():
    stub = Stub()
    answers(Batcher(4), [job(stub, n) for n in (3, 6, 1, 2)])
    assert stub.batches == [(4, 4), (4, 4), (4, 4)]


def test_conditions_of_two_shapes_and_two_makers_are_never_in_one_batch():
    stub, other = Stub(), Stub()
    answers(Batcher(4), [job(stub, 1), job(stub, 1, width=2), job(other, 1), job(stub, 2), job(other, 1)])
    assert (stub.batches, other.batches) == ([(4, 3), (4, 1)], [(4, 2)])


def test_pictures_that_nobody_waits_for_are_not_made():
    stub, batcher = Stub(), Batcher(4)
    stub.go.clear()
    batcher.start()
    first = batcher.submit(job(stub, 1))
    stub.begun.wait(60)  # it is being made when the others come and leave
    left = [batcher.submit(job(stub, 5)) for _ in range(3)]
    stays = batcher.submit(job(stub, 2))
    assert all(each.answer.cancel() for each in left)
    stub.go.set()
    assert (len(first.answer.result(60)), len(stays.answer.result(60))) == (1, 2)
    batcher.close()
    assert (stub.batches, batcher.dropped, batcher.made) == ([(4, 1), (4, 2)], 15, 3)


def test_what_is_queued_is_answered_before_the_end():
    stub, batcher = Stub(), Batcher(4)
    jobs = [batcher.submit(job(stub, 3, seed)) for seed in range(9)]
    batcher.start()
    batcher.close()
    assert [len(each.answer.result(0)) for each in jobs] == [3] * 9


def out_of_memory():
    """What torch raises where a CPU has not enough."""
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    return found.value


@pytest.mark.parametrize("error", [ValueError("too large"), torch.OutOfMemoryError("none left"), out_of_memory()])
def test_a_batch_that_fails_is_answered_and_the_next_is_made(error):
    broken, stub, batcher = Stub(error), Stub(), Batcher(4)
    batcher.start()
    bad, good = batcher.submit(job(broken, 6)), batcher.submit(job(stub, 2))
    assert bad.answer.exception(60) is error
    assert len(good.answer.result(60)) == 2
    batcher.close()


def test_numbers_that_are_not_finite_spoil_their_own_request_alone():
    class Broken(Stub):
        def noise(self, generator):
            drawn = super().noise(generator)
            return drawn * (float("nan") if generator.initial_seed() == generator_for(1, 0).initial_seed() else 1)

    stub, batcher = Broken(), Batcher(4)
    bad, good = batcher.submit(job(stub, 2, seed=1)), batcher.submit(job(stub, 2, seed=2))
    batcher.start()
    assert isinstance(bad.answer.exception(60), ValueError)
    assert good.answer.result(60).isfinite().all()
    batcher.close()


def test_another_error_ends_the_thread_and_is_told():
    died = threading.Event()
    stub, batcher = Stub(RuntimeError("device lost")), Batcher(4, died.set)
    batcher.submit(job(stub, 3))
    batcher.start()
    assert died.wait(60)
    batcher.close()
