import numpy as np

from atoll.core.seeds import Seed
from atoll.data.synthetic import fcube, synthetic


def test_synthetic_has_the_published_shape():
    train, test = synthetic(1, 1, Seed(3))
    assert len(train) == len(test) == 30
    assert train.examples.features.shape[1] == 60
    assert train.examples.features.dtype == np.float32
    total = train.sizes + test.sizes
    assert total.min() >= 50
    np.testing.assert_array_equal(train.sizes, (0.9 * total).astype(int))
    assert set(np.unique(train.examples.targets)) <= set(range(10))


def test_synthetic_depends_on_its_seed_alone():
    one, two, other = (synthetic(0.5, 0.5, Seed(s))[0].examples.features for s in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_feature_variance_falls_as_j_to_the_minus_1_2():
    train, _ = synthetic(0, 0, Seed(1), iid=True)
    variance = train.examples.features.astype(float).var(axis=0)
    np.testing.assert_allclose(variance, np.arange(1, 61) ** -1.2, rtol=0.15)


def test_beta_moves_feature_means_between_devices_and_iid_does_not():
    def spread(partition):
        return np.std([own.features.mean() for own in partition.values()])

    assert spread(synthetic(0, 0, Seed(1), iid=True)[0]) < 0.05
    assert spread(synthetic(0, 5, Seed(1))[0]) > 1


def test_iid_devices_share_one_model():
    train, _ = synthetic(0, 0, Seed(2), iid=True)
    large = [own for own in train.values() if len(own) > 200]
    shares = np.array([np.bincount(o.targets, minlength=10) / len(o) for o in large])
    assert shares.std(axis=0).max() < 0.06


def test_fcube_gives_each_client_a_pair_of_opposite_octants():
    train, test = fcube(Seed(1))
    assert train.sizes.tolist() == [1000] * 4
    assert len(test) == 1000
    for own in train.values():
        octants = {tuple(row) for row in np.sign(own.features).astype(int)}
        assert len(octants) == 2
        assert octants == {tuple(-np.array(o)) for o in octants}
        assert 400 < own.targets.sum() < 600
    pairs = {
        tuple(np.sign(own.features[0] * np.sign(own.features[0, 0]))) for own in train.values()
    }
    assert len(pairs) == 4


def test_fcube_labels_are_the_sign_of_x1():
    for part in (fcube(Seed(1))[0].examples, fcube(Seed(1))[1]):
        np.testing.assert_array_equal(part.targets, part.features[:, 0] < 0)
        assert np.abs(part.features).max() <= 1
