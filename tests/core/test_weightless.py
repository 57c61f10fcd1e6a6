"""Networks without numbers: their shapes and buffers are those of the others, and rank 0 alone pays for weights."""

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tiny_runs import distillation, fit, mlp, teacher_training

from fdistill.core.meta_device import drop_weights, make_room, without_weights


@pytest.fixture
def second_rank(monkeypatch):
    """What a process with rank 1 would do."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)


def test_without_weights_shapes_and_buffers_are_the_same():
    with without_weights():
        bare = mlp(num_classes=2, frequencies=3)
    full = mlp(num_classes=2, frequencies=3)
    assert all(parameter.is_meta for parameter in bare.parameters())
    shapes = [{name: (p.shape, p.dtype) for name, p in net.named_parameters()} for net in (bare, full)]
    assert shapes[0] == shapes[1]
    assert all(map(torch.equal, bare.buffers(), full.buffers()))


def test_dropped_weights_get_room_where_they_were():
    network = mlp().requires_grad_(False)
    names = [name for name, _ in network.named_parameters()]
    drop_weights(network)
    assert all(parameter.is_meta for parameter in network.parameters())
    make_room(network, torch.device("cpu"))
    assert [name for name, p in network.named_parameters() if not p.is_meta and not p.requires_grad] == names
    kept = dict(network.named_parameters())
    make_room(network, torch.device("cpu"))
    assert all(parameter is kept[name] for name, parameter in network.named_parameters())


@pytest.mark.usefixtures("second_rank")
def test_a_second_rank_that_starts_at_rank_0_has_no_numbers():
    for module in (distillation(adversarial_weight=0.1, meta_start=True), teacher_training(meta_start=True)):
        assert all(parameter.is_meta for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())
    assert not any(parameter.is_meta for parameter in distillation().parameters())


@pytest.mark.usefixtures("second_rank")
def test_a_second_rank_checks_the_checkpoint_that_it_leaves_to_the_first(tmp_path):
    path = tmp_path / "teacher.ckpt"
    with pytest.MonkeyPatch.context() as first_rank:
        first_rank.setattr(rank_zero_only, "rank", 0)
        fit(teacher_training(), 1).save_checkpoint(path)
    module = distillation(str(path), student=str(path), meta_start=True)
    assert all(parameter.is_meta for parameter in module.parameters())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="truncated"):
        distillation(str(path), meta_start=True)
