"""Two processes are one process with the batches of both: gradients, ratios, runs, checkpoints, callbacks."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import two_ranks
from tiny_runs import fit, ring, weights
from torch.testing import assert_close

from fdistill.log_ratio import unit_mean
from fdistill.modules import DistillationModule
from fdistill.modules.generation import Generated

SECONDS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes wrote down, and the folder they worked in."""
    folder, here = tmp_path_factory.mktemp("ranks"), Path(__file__).parent
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(two_ranks.RANKS),
        "LOCAL_WORLD_SIZE": str(two_ranks.RANKS),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
    }
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(two_ranks.RANKS)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(here / "two_ranks.py"), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        deadline = time.monotonic() + SECONDS
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break  # one has failed: the other would wait for it
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for log in logs:
        log.seek(0)
    tails = "\n".join(log.read()[-4000:] for log in logs)
    for log in logs:
        log.close()
    assert codes == [0] * two_ranks.RANKS, f"exit codes {codes} (None: still running after {SECONDS} s)\n{tails}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(two_ranks.RANKS)], folder


def both(ranks, part, key):
    return [results[part][key] for results in ranks[0]]


def halves():
    logit, sigma = zip(*map(two_ranks.half, range(two_ranks.RANKS)), strict=True)
    return torch.cat(logit), torch.cat(sigma)


def test_sums_and_means_are_over_both_ranks(ranks):
    assert both(ranks, "sums", "world_size") == [2, 2]
    for total, mean in zip(both(ranks, "sums", "sum"), both(ranks, "sums", "mean"), strict=True):
        assert total.tolist() == [2.0, 1.0]
        assert_close(mean, halves()[0].mean())


def test_the_ratio_is_normalised_over_the_concatenated_batch(ranks):
    alone, (logit, sigma) = two_ranks.estimator(), halves()
    log_ratio = alone.log_ratio(logit, sigma)
    assert_close(torch.cat(both(ranks, "sums", "log_ratio")), log_ratio)
    assert_close(torch.cat(both(ranks, "sums", "unit_mean")), unit_mean(log_ratio.exp()))
    for buffers in both(ranks, "sums", "ratio_buffers"):
        assert_close(buffers, dict(alone.named_buffers()))


def test_averaged_gradients_are_those_of_the_concatenated_batch(ranks):
    network = two_ranks.small_network()
    network[0].bias.requires_grad_(False)
    network(torch.cat([two_ranks.inputs(rank) for rank in range(2)])).square().mean().backward()
    for gradients in both(ranks, "sums", "gradients"):
        assert_close(gradients, [p.grad for p in network.parameters()])


def test_rows_are_gathered_in_the_order_of_the_ranks_also_when_they_are_unequal(ranks):
    for gathered in both(ranks, "sums", "gathered"):
        assert torch.equal(gathered, torch.cat([two_ranks.rows(rank) for rank in range(2)]))


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_ranks_hold_equal_networks_averages_and_ratios_after_twenty_turns(ranks, turn):
    first, second = both(ranks, turn, "weights")
    assert both(ranks, turn, "global_step") == [20, 20]
    assert first.keys() == second.keys()
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()


@pytest.mark.parametrize("name", two_ranks.OBJECTIVES)
def test_ranks_hold_equal_networks_whatever_the_objective_and_make_equally_many_steps(ranks, name):
    first, second = both(ranks, name, "weights")
    assert {part for part in first if not torch.equal(first[part], second[part])} == set()
    steps, others = both(ranks, name, "steps")
    assert steps == others
    assert len(set(steps)) == (3 if name == "several steps" else 1)


@pytest.mark.parametrize("turn", ["fused", "alternating"])
def test_every_rank_and_turn_has_noise_of_its_own(ranks, turn):
    noise = torch.stack(both(ranks, turn, "noise"))  # [rank, turn, B, 2]
    assert len({tuple(batch.flatten().tolist()) for rank in noise for batch in rank}) == 40


def test_the_students_update_is_that_of_one_process_with_both_batches(ranks, monkeypatch):
    draw = DistillationModule._generate

    def of_both_ranks(self, batch, generator, with_graph):
        parts = []
        for rank, x in enumerate(batch.x.chunk(2)):
            monkeypatch.setattr(DistillationModule, "global_rank", rank)
            parts.append(draw(self, batch._replace(x=x), self.noise_source(), with_graph))
        monkeypatch.setattr(DistillationModule, "global_rank", 0)
        x, noise, sigma = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
        return Generated(x, noise, sigma, None)

    monkeypatch.setattr(DistillationModule, "_generate", of_both_ranks)
    alone = two_ranks.comparable()
    before = weights(alone)
    fit(alone, 1, ring(batch_size=64))
    for results in ranks[0]:
        apart = results["one_turn"]
        for name, after in weights(alone).items():
            if name.startswith("student."):
                found, expected = apart["after"][name] - apart["before"][name], after - before[name]
                assert_close(found, expected, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert_close(apart["after"]["ratio.ratio_sum"], alone.ratio.ratio_sum)


def test_a_checkpoint_holds_the_random_state_of_each_rank_and_resumes_bit_for_bit(ranks):
    saved = torch.load(ranks[1] / "resume.ckpt", weights_only=True)["random_states"]
    assert len(saved) == 2
    assert not torch.equal(saved[0]["cpu"], saved[1]["cpu"])
    for state, own in zip(saved, both(ranks, "resume", "random_state"), strict=True):
        assert torch.equal(state["cpu"], own)
    for results in ranks[0]:
        resumed, uninterrupted = results["resume"]["resumed"], results["resume"]["uninterrupted"]
        assert {name for name in resumed if not torch.equal(resumed[name], uninterrupted[name])} == set()


def test_all_ranks_stop_where_one_has_a_nan_and_no_weight_moves(ranks):
    for message in both(ranks, "one_rank_fails", "error"):
        assert message.startswith("gradient of student became NaN or infinite in turn 0; no weight was changed")
    assert both(ranks, "one_rank_fails", "unchanged") == [True, True]


def test_callbacks_agree_on_all_ranks_and_write_once(ranks):
    first, second = both(ranks, "callbacks", "metrics")
    assert first.keys() == second.keys() >= {"metric/pixel_frechet_distance", "validation/pixel_frechet_distance"}
    shared = ["metric/pixel_frechet_distance", "validation/pixel_frechet_distance"]
    assert [first[name] for name in shared] == [second[name] for name in shared]
    assert len(set(both(ranks, "callbacks", "best"))) == 1
    folder = ranks[1] / "callbacks"
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert {file.name for file in (folder / "samples").iterdir()} == {"0000002.png", "0000004.png"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line["step"] for line in lines if "metric/pixel_frechet_distance" in line]
    assert measured == [2, 4]


def test_diversity_and_alarm_are_those_of_one_process(ranks):
    alone = two_ranks.measured_run()
    for results in ranks[0]:
        assert results["measured"]["values"] == pytest.approx(alone["values"], rel=1e-6, nan_ok=True)
        assert results["measured"]["margins"] == pytest.approx(alone["margins"], rel=1e-6)
        assert results["measured"]["alarm"] == alone["alarm"]
