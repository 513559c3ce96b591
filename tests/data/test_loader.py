"""The order of images is a function of (seed, position in the stream), for any number of processes."""

from itertools import islice

import pytest
import torch

from dataset.loader import EndlessBatchSampler, epoch_batches, eval_loader


def first(sampler, count: int) -> list:
    return list(islice(sampler, count))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_the_single_process(world_size):
    whole = first(EndlessBatchSampler(10, 6, seed=3), 7)
    parts = [first(EndlessBatchSampler(10, 6, seed=3, rank=r, world_size=world_size), 7) for r in range(world_size)]
    assert [sum(batches, []) for batches in zip(*parts, strict=True)] == whole


def test_every_epoch_is_another_permutation():
    keys = sum(first(EndlessBatchSampler(10, 5, seed=0), 4), [])
    assert [position for _, position in keys] == list(range(20))
    epochs = [[index for index, _ in keys[:10]], [index for index, _ in keys[10:]]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert keys != sum(first(EndlessBatchSampler(10, 5, seed=1), 4), [])


def test_start_step_continues_where_another_run_stopped():
    assert first(EndlessBatchSampler(7, 4, seed=0, start_step=5), 3) == first(EndlessBatchSampler(7, 4, seed=0), 8)[5:]


def test_a_batch_larger_than_the_set_wraps_around():
    assert sorted(index for index, _ in first(EndlessBatchSampler(3, 6, seed=0), 1)[0]) == [0, 0, 1, 1, 2, 2]


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="train.batch_size or NPROC"):
        EndlessBatchSampler(10, 5, seed=0, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_hold_every_index_once(world_size):
    loaders = [eval_loader(range(11), num_workers=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    shards = [torch.cat(list(loader)).tolist() for loader in loaders]
    assert sorted(sum(shards, [])) == list(range(11))
    assert [len(loader) for loader in loaders] == [len(shard) for shard in shards]


@pytest.mark.parametrize("world_size", [1, 2])
def test_statistics_batches_hold_every_image_once_an_epoch_in_even_sizes(world_size):
    ranks = [epoch_batches(9, 4, epochs=2, seed=0, rank=r, world_size=world_size) for r in range(world_size)]
    keys = [key for batches in ranks for batch in batches for key in batch]
    assert sorted(position for _, position in keys) == list(range(18))
    assert sorted(index for index, _ in keys) == sorted(2 * list(range(9)))
    assert {sum(len(batches[i]) for batches in ranks) for i in range(len(ranks[0]))} == {3}
    with pytest.raises(ValueError, match="without images"):
        epoch_batches(9, 1, epochs=1, seed=0, world_size=2)
