import numpy as np
import pytest
import torch

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobError
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed
from atoll.models.networks import NETWORKS, CropFlip, network
from atoll.models.torch.adapter import TorchTrainer


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("logistic", 7_850),
        ("mlp", 159_010),
        ("lenet_niid", 44_426),
        ("cnn_thesis", 80_202),
        ("paper_cnn", 1_663_370),
    ],
)
def test_networks_have_the_published_size_and_take_images_in_any_shape(name, parameters):
    trainer = TorchTrainer(network(name))
    assert trainer.layout.size == parameters
    module = trainer.module_with(trainer.initial(Seed(0)))
    images = torch.rand(2, 28, 28)
    with torch.no_grad():
        outputs = [module(images.reshape(s)) for s in ((2, 28, 28), (2, 1, 28, 28), (2, 784))]
    assert outputs[0].shape == (2, 10)
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


def test_an_mlp_takes_its_widths():
    trainer = TorchTrainer(NETWORKS["mlp"], {"inputs": 3, "hidden": (5, 4), "classes": 2})
    assert [e.shape for e in trainer.layout.entries] == [(5, 3), (5,), (4, 5), (4,), (2, 4), (2,)]


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(JobError, match="cnn_thesis"):
        network("cnn_tesis")


def cut(batch, seed=0, **fields):
    return CropFlip(**fields)(batch, torch.Generator().manual_seed(seed))


def test_every_augmented_image_is_a_window_of_the_padded_one_or_its_mirror():
    images = torch.arange(1.0, 1 + 40 * 30).reshape(40, 6, 5)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-7.0)
    found = set()
    for image, wide, got in zip(images, padded, cut(images, padding=2, fill=-7.0), strict=True):
        assert got.shape == image.shape
        windows = {
            (y, x, turned): window.flip(1) if turned else window
            for y in range(5)
            for x in range(5)
            for turned in (False, True)
            for window in [wide[y : y + 6, x : x + 5]]
        }
        (match,) = [key for key, window in windows.items() if window.equal(got)]
        found.add(match)
    assert len(found) > 15
    assert {turned for _, _, turned in found} == {False, True}


def test_all_shapes_of_the_same_images_are_cut_alike():
    images = torch.rand(6, 28, 28)
    got = cut(images)
    assert cut(images.reshape(6, 784)).equal(got.reshape(6, 784))
    assert cut(images[:, None]).equal(got[:, None])
    colour = images[:, None].expand(6, 3, 28, 28)
    assert cut(colour).equal(got[:, None].expand(6, 3, 28, 28))


def test_the_same_generator_state_cuts_the_same_and_no_padding_no_flip_changes_nothing():
    images = torch.rand(6, 28, 28)
    assert cut(images, seed=1).equal(cut(images, seed=1))
    assert not cut(images, seed=1).equal(cut(images, seed=2))
    assert cut(images, padding=0, flip=False).equal(images)


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(DataError, match="no images of 28 x 28"):
        cut(torch.rand(2, 100))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_of_ours_is_replayed(name):
    """A network that falls back to the general way is right, and several times slower: nobody would notice."""
    shape = (784,) if name in ("mlp", "logistic") else (1, 28, 28)
    rng = np.random.default_rng(0)
    data = Examples(
        rng.normal(size=(3, *shape)).astype(np.float32), rng.integers(0, 10, 3).astype(np.int64)
    )
    trainer = TorchTrainer(network(name), path="compiled")
    assert trainer.explain(LocalWork(batch_size=2), data) == "compiled"
