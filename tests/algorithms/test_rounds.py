"""Single rounds whose numbers can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists, tuples

from atoll.algorithms import (
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedSGD,
    FedYogi,
    QFedAvg,
    Scaffold,
)
from atoll.algorithms.reach import reach
from atoll.core.contracts import Examples, Weighting
from atoll.core.errors import JobConflict
from atoll.core.local import LocalWork, Optimizer
from atoll.core.values import Aggregate

BIT = 1e-15


@pytest.fixture
def sites(h):
    """Two sites whose own minima are .8 and 1.2, weighted .6 and .4; local training is exact."""

    def make(algorithm, given=(0.6, 0.4), **more):
        clients = {"a": h.Quadratic(1.0, 0.8), "b": h.Quadratic(1.0, 1.2)}
        weighting = Weighting("given", dict(zip(clients, given, strict=True)))
        trainer = h.QuadraticTrainer(h.vector_layout(2), exact=True)
        return h.Setting(algorithm, trainer, clients, h.sgd(0.1, 1), weighting, **more)

    return make


def change(*values, dtype=np.float64):
    """An aggregate whose mean ``delta`` is ``values``."""
    total = np.array(values, dtype)
    return Aggregate({"delta": 2.0 * total}, weight=2.0, scaled_weight=2.0, count=1, examples=2)


def served(algorithm, h, *deltas, start=0.0):
    """One parameter under a series of mean changes."""
    state = algorithm.init(np.array([start]), h.vector_layout(), 1)
    path = []
    for delta in deltas:
        state = algorithm.server(state, change(delta))
        path.append(state.parameters[0])
    return path


class TestFedAvg:
    def test_server_rate_moves_part_of_the_way_to_the_weighted_mean(self, sites):
        # 1 + .1 (.6 * -.2 + .4 * .2) = .996
        state, _ = sites(FedAvg(server_lr=0.1)).round(sites(FedAvg()).start(1.0))
        assert state.parameters == pytest.approx([0.996, 0.996], abs=BIT)

    def test_the_step_is_taken_in_float64_and_rounded_once(self, h):
        # 1 + 2^-24 lies halfway between two float32 values; the 2^-50 above it decides.
        layout = h.vector_layout(1, "float32")
        state = FedAvg().init(np.ones(1, np.float32), layout, 1)
        after = FedAvg().server(state, change(2.0**-24 + 2.0**-50))
        assert after.parameters == np.float32(1 + 2.0**-23)

    def test_only_ratios_of_weights_count(self, sites):
        one, _ = sites(FedAvg()).round(sites(FedAvg()).start(1.0))
        two, _ = sites(FedAvg(), given=(6.0, 4.0)).round(sites(FedAvg()).start(1.0))
        assert one.parameters == pytest.approx(two.parameters, abs=BIT)
        assert two.parameters == pytest.approx([0.96, 0.96], abs=BIT)

    @given(lists(tuples(floats(0.01, 100), floats(-50, 50)), min_size=1, max_size=6))
    def test_exact_local_minima_give_their_weighted_mean(self, h, pairs):
        clients = {str(i): h.Quadratic(1.0, b) for i, (_, b) in enumerate(pairs)}
        weights = Weighting("given", {str(i): w for i, (w, _) in enumerate(pairs)})
        trainer = h.QuadraticTrainer(h.vector_layout(), exact=True)
        s = h.Setting(FedAvg(), trainer, clients, h.sgd(0.1, 1), weights)
        mean = sum(w * b for w, b in pairs) / sum(w for w, _ in pairs)
        assert s.play(1, 3.0).parameters == pytest.approx([mean], abs=1e-11)

    def test_updates_carry_weight_rows_and_training_loss(self, sites):
        s = sites(FedAvg())
        sent, _ = s.updates(s.start(1.0), {}, "ab")
        assert sent["a"].weight == 0.6
        assert sent["a"].examples == 1
        assert sent["a"].metrics["train_loss"].value == 0.0  # at its own minimum


class TestFedSGD:
    @pytest.fixture
    def rows(self):
        rng = np.random.default_rng(3)
        return {
            name: Examples(rng.normal(size=(n, 3)), rng.normal(size=n))
            for name, n in {"a": 5, "b": 40, "c": 13}.items()
        }

    def test_rounds_are_central_gradient_steps(self, h, rows):
        trainer = h.LeastSquaresTrainer(h.vector_layout(3))
        s = h.Setting(FedSGD(), trainer, rows, LocalWork(optimizer=Optimizer(lr=0.1)))
        x = np.concatenate([r.features for r in rows.values()])
        y = np.concatenate([r.targets for r in rows.values()])
        state, memories, w = s.start(0.5), {}, np.full(3, 0.5)
        for _ in range(25):
            state, memories = s.round(state, memories)
            w = w - 0.1 * x.T @ (x @ w - y) / len(y)
            assert np.abs(state.parameters - w).max() <= 1e-12

    def test_it_is_fedavg_with_one_full_batch_step(self, h, rows):
        trainer = h.LeastSquaresTrainer(h.vector_layout(3))
        local = LocalWork(epochs=1, batch_size=0, optimizer=Optimizer(lr=0.1))
        ends = [h.Setting(a, trainer, rows, local).play(10, 0.5) for a in (FedSGD(), FedAvg())]
        assert ends[0].parameters == pytest.approx(ends[1].parameters, abs=1e-12)


class TestFedAvgM:
    def test_heavy_ball(self, h):
        # v = 1; then .5 * 1 + 1 = 1.5; then .5 * 1.5 - 2 = -1.25
        path = served(FedAvgM(momentum=0.5), h, 1.0, 1.0, -2.0)
        assert path == [1.0, 2.5, 1.25]

    def test_nesterov_looks_one_step_ahead(self, h):
        # steps: 1 + .5 * 1 = 1.5; 1 + .5 * 1.5 = 1.75; -2 + .5 * -1.25 = -2.625
        path = served(FedAvgM(momentum=0.5, nesterov=True), h, 1.0, 1.0, -2.0)
        assert path == [1.5, 3.25, 0.625]

    def test_server_rate_scales_the_step_and_not_the_momentum(self, h):
        assert served(FedAvgM(server_lr=2.0, momentum=0.5), h, 1.0, 1.0) == [2.0, 5.0]


class TestAdaptive:
    def test_fedadam_over_three_rounds_by_hand(self, h):
        adam = FedAdam(server_lr=0.5, beta1=0.5, beta2=0.75, tau=0.25, initial_v=0.0)
        # D = 1, 1, -2: m = .5, .75, -.625; v = .25, .75 * .25 + .25 = .4375, .75 * .4375 + 1.
        x1 = 0.5 * 0.5 / (0.5 + 0.25)
        x2 = x1 + 0.5 * 0.75 / (0.4375**0.5 + 0.25)
        x3 = x2 - 0.5 * 0.625 / (1.328125**0.5 + 0.25)
        assert served(adam, h, 1.0, 1.0, -2.0) == pytest.approx([x1, x2, x3], abs=BIT)
        assert [x1, x2, x3] == pytest.approx([0.333333, 0.744771, 0.521946], abs=1e-6)

    def test_v_starts_at_tau_squared_as_in_the_paper(self, h):
        state = FedAdam(tau=0.5).init(np.zeros(1), h.vector_layout(), 1)
        assert state.slots["v"] == [0.25]

    def test_bias_correction_by_t_makes_the_first_step_the_sign(self, h):
        # m / (1 - beta1) = D and v / (1 - beta2) = D^2, so the step is eta D / |D| (tau -> 0).
        options = {"server_lr": 0.1, "tau": 1e-12, "initial_v": 0.0, "bias_correction": "t"}
        for adaptive in (FedAdam(**options), FedYogi(**options)):
            assert served(adaptive, h, -3.0) == pytest.approx([-0.1], abs=1e-10)

    def test_bias_correction_by_t_plus_1_is_one_round_ahead(self, h):
        options = {"beta1": 0.5, "beta2": 0.75, "tau": 1e-12, "initial_v": 0.0, "server_lr": 1.0}
        # (1 - .5) D / sqrt((1 - .75) D^2) = 1, times sqrt(1 - .75^2) / (1 - .5^2)
        path = served(FedAdam(bias_correction="t+1", **options), h, 2.0)
        assert path == pytest.approx([0.4375**0.5 / 0.75], abs=1e-10)

    def test_fedyogi_shrinks_v_more_slowly_than_fedadam(self, h):
        options = {"beta1": 0.0, "beta2": 0.75, "initial_v": 4.0}
        states = [
            a.init(np.zeros(1), h.vector_layout(), 1)
            for a in (FedYogi(**options), FedAdam(**options))
        ]
        yogi, adam = (
            a.server(s, change(1.0)).slots["v"][0]
            for a, s in zip((FedYogi(**options), FedAdam(**options)), states, strict=True)
        )
        assert (yogi, adam) == (4.0 - 0.25 * 1.0, 0.75 * 4.0 + 0.25 * 1.0)

    def test_fedadagrad_is_fedyogi_of_another_rate_while_v_is_below_the_change(self, h):
        s, beta2, deltas = 0.3, 0.99, (1.0, -1.5, 2.0, 2.5)
        root = (1 - beta2) ** 0.5
        tau = 1e-3
        yogi = FedYogi(server_lr=s, beta1=0.0, beta2=beta2, tau=tau, initial_v=0.0)
        grad = FedAdagrad(server_lr=s / root, beta1=0.0, tau=tau / root, initial_v=0.0)
        assert served(grad, h, *deltas) == pytest.approx(served(yogi, h, *deltas), abs=1e-14)

    def test_fedadagrad_sums_squares(self, h):
        # 1 / sqrt(9) and then -4 / sqrt(25), tau -> 0
        path = served(FedAdagrad(server_lr=1.0, tau=1e-13, initial_v=0.0), h, 3.0, -4.0)
        assert path == pytest.approx([1.0, 0.2], abs=1e-12)


class TestScaffold:
    @pytest.mark.parametrize("option", [1, 2])
    def test_two_steps_by_hand(self, h, option):
        # f = (w - 1)^2 / 2 from 0, eta .5: gradients -1, -.5, so w = .5, .75.
        # Option 1: c_i = -1. Option 2: (0 - .75) / (2 * .5) = -.75.
        s = h.Setting(
            Scaffold(option),
            h.QuadraticTrainer(h.vector_layout()),
            {"a": h.Quadratic(1.0, 1.0), "b": h.Quadratic(1.0, 1.0)},
            h.sgd(0.5, 2),
        )
        state, memories = s.round(s.start(), {}, "a")
        c_i = {1: -1.0, 2: -0.75}[option]
        assert memories["a"]["control"] == [c_i]
        assert state.slots["control"] == [c_i / 2]  # |S| / N = 1/2
        assert state.parameters == [0.75]

    def test_with_momentum_option_2_is_a_mean_of_gradients(self, h):
        # Constant gradient 1 (to 1e-9): c_i must be 1 whatever the momentum.
        client = {"a": h.Quadratic(1e-9, -1e9)}
        for more in ({"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}):
            local = h.sgd(0.1, 7, **more)
            s = h.Setting(Scaffold(), h.QuadraticTrainer(h.vector_layout()), client, local)
            _, memories = s.round(s.start())
            assert memories["a"]["control"] == pytest.approx([1.0], abs=1e-7)

    def test_steps_of_no_length_leave_the_control_variate_as_it_was(self, h):
        """A schedule that had come to a rate of 0 divided by it, and every update was refused."""
        client = {"a": h.Quadratic(1.0, 1.0)}
        s = h.Setting(Scaffold(), h.QuadraticTrainer(h.vector_layout()), client, h.sgd(0.5, 2))
        state, memories = s.round(s.start())
        still = h.Setting(Scaffold(), h.QuadraticTrainer(h.vector_layout()), client, h.sgd(0.0, 2))
        after, kept = still.round(state, memories)
        assert kept["a"]["control"] == memories["a"]["control"] == [-0.75]
        assert after.slots["control"] == state.slots["control"]
        assert after.parameters == state.parameters

    @pytest.fixture
    def alone(self, h):
        """One client, a = b = 1, with two steps of rate .5."""

        def make(trainer=h.QuadraticTrainer):
            one = {"a": h.Quadratic(1.0, 1.0)}
            return h.Setting(Scaffold(), trainer(h.vector_layout()), one, h.sgd(0.5, 2))

        return make

    def test_a_control_variate_that_the_trainer_cannot_read_is_no_zero(self, alone):
        s = alone()
        with pytest.raises(JobConflict, match="cannot read the control variate") as caught:
            s.round(s.start(), {"a": {"control.rows": np.ones(3)}})
        assert "the trainer it was begun with" in caught.value.remedy

    def test_one_that_the_trainer_can_read_corrects_the_steps(self, h, alone):
        class Reader(h.QuadraticTrainer):
            def fit_controlled(self, parameters, lanes, plus, *, round):
                raise JobConflict("no groups")

            def dense(self, own, data):
                return own["rows"].sum(keepdims=True)

        # c - c_i = 2 - 2.5: the gradients -1 and then -.25 become -1.5 and -.75, so w = .75, 1.125.
        s = alone(Reader)
        start = replace(s.start(), slots={"control": np.array([2.0])})
        _, memories = s.round(start, {"a": {"control.rows": np.array([1.0, 1.5])}})
        # c_i - c + (x - y) / (K eta) = 2.5 - 2 - 1.125
        assert memories["a"] == {"control": [-0.625]}

    def test_a_group_that_cannot_be_trained_in_one_go_is_refused(self, alone):
        s = alone()
        broadcast = s.algorithm.broadcast(s.start())
        with pytest.raises(JobConflict, match="in terms of rows"):
            s.algorithm.cohort(broadcast, [(s.work("a", 0), 1.0, {})])


class TestFedNova:
    @given(tau=integers(1, 60), rho=floats(0.01, 0.99), pull=floats(0.001, 0.5))
    def test_worth_of_steps_has_the_papers_closed_forms(self, tau, rho, pull):
        momentum = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        assert reach(tau) == tau
        assert reach(tau, momentum=rho) == pytest.approx(momentum, rel=1e-9)
        assert reach(tau, pull=pull) == pytest.approx((1 - (1 - pull) ** tau) / pull, rel=1e-9)
        assert reach(tau, rho, nesterov=True) == pytest.approx(tau + rho * momentum, rel=1e-9)

    def test_no_steps_are_worth_nothing(self):
        assert reach(0) == reach(0, momentum=0.9) == 0.0

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_what_is_sent_does_not_depend_on_the_number_of_steps(self, h, momentum):
        # Under a constant gradient of 1 every client sends -eta per reference step.
        clients = {name: h.Quadratic(1e-9, -1e9) for name in "abc"}
        s = h.Setting(
            FedNova(reference_steps=2.0),
            h.QuadraticTrainer(h.vector_layout()),
            clients,
            h.sgd(0.1, 1, momentum=momentum),
            steps={"b": 4, "c": 9},
        )
        sent, _ = s.updates(s.start(), {}, "abc")
        for name, steps in {"a": 1, "b": 4, "c": 9}.items():
            vectors = sent[name].vectors
            assert vectors["delta"] == pytest.approx([-0.2], abs=1e-7)
            worth = reach(steps, momentum)
            assert vectors["extra_steps"] == pytest.approx([worth / 2.0 - 1.0], rel=1e-12)


class TestFedDyn:
    def test_two_rounds_by_hand(self, h):
        # f = (w - 1)^2 / 2, one client, alpha 1, exact: argmin f - g w + (w - t)^2 / 2 = (1 + g + t) / 2.
        s = h.Setting(
            FedDyn(alpha=1.0),
            h.QuadraticTrainer(h.vector_layout(), exact=True),
            {"a": h.Quadratic(1.0, 1.0)},
            h.sgd(0.1, 1),
            Weighting("uniform"),
        )
        # Round 1: w = .5, g = -.5, h = -.5, theta = .5 + .5 = 1. Round 2: w = .75, g = -.25,
        # h = -.25, theta = .75 + .25 = 1.
        state, memories = s.round(s.start())
        assert (state.parameters, state.slots["h"], memories["a"]["gradient"]) == (1.0, -0.5, -0.5)
        state, memories = s.round(state, memories)
        assert (state.parameters, state.slots["h"], memories["a"]["gradient"]) == (
            1.0,
            -0.25,
            -0.25,
        )

    def test_a_partial_cohort_moves_h_by_its_share_of_all_clients(self, h):
        # One of two clients: w = .5, h = -alpha * 1/2 * .5, theta = .5 + .25.
        s = h.Setting(
            FedDyn(alpha=1.0),
            h.QuadraticTrainer(h.vector_layout(), exact=True),
            {"a": h.Quadratic(1.0, 1.0), "b": h.Quadratic(1.0, 1.0)},
            h.sgd(0.1, 1),
            Weighting("uniform"),
        )
        state, _ = s.round(s.start(), {}, "a")
        assert (state.slots["h"], state.parameters) == (-0.25, 0.75)

    def test_the_memory_is_the_gradient_at_the_clients_own_model(self, h):
        clients = h.heterogeneous()
        trainer = h.QuadraticTrainer(h.vector_layout(), exact=True)
        s = h.Setting(FedDyn(0.5), trainer, clients, h.sgd(0.1, 1), Weighting("uniform"))
        state, memories = s.start(2.0), {}
        for _ in range(3):
            sent, kept = s.updates(state, memories, clients)
            for name, data in clients.items():
                theta_k = state.parameters + sent[name].vectors["delta"]
                gradient = data.a * (theta_k - data.b)
                assert kept[name]["gradient"] == pytest.approx(gradient, abs=1e-12)
            state, memories = s.step(state, sent), kept


class TestQFedAvg:
    @pytest.mark.parametrize(("q", "expected"), [(1.0, 2.25 / 5), (2.0, 4.125 / 12.75)])
    def test_one_round_by_hand(self, h, q, expected):
        # f = (w - b)^2 / 2 with b = 1 and 2 from 0: F = .5 and 2. One step of .5: delta = .5 and 1.
        # L = 2, h/L = F^q (1 + q L delta^2 / F). q = 1: h/L = 1 and 4, F delta = .25 and 2.
        # q = 2: h/L = .75 and 12, F^2 delta = .125 and 4.
        s = h.Setting(
            QFedAvg(q=q),
            h.QuadraticTrainer(h.vector_layout()),
            {"a": h.Quadratic(1.0, 1.0), "b": h.Quadratic(1.0, 2.0)},
            h.sgd(0.5, 1),
            Weighting("uniform"),
        )
        state, _ = s.round(s.start())
        assert state.parameters == pytest.approx([expected], abs=BIT)
        assert state.slots["scale"] == [1.25]

    def test_the_unit_of_losses_cancels(self, h):
        s = h.Setting(
            QFedAvg(q=3.0), h.QuadraticTrainer(h.vector_layout()), h.heterogeneous(), h.sgd(0.1, 2)
        )
        state = s.start(0.3)
        other = state.next(state.parameters, scale=np.array([7.0]))
        assert s.round(state)[0].parameters == pytest.approx(
            s.round(other)[0].parameters, abs=1e-14
        )

    def test_a_tiny_loss_under_a_high_power_still_moves_the_model(self, h):
        trainer = h.QuadraticTrainer(h.vector_layout(1, "float32"))
        clients = {"a": h.Quadratic(1.0, 1e-3), "b": h.Quadratic(1.0, 2e-3)}
        s = h.Setting(QFedAvg(q=5.0), trainer, clients, h.sgd(0.5, 1))
        start = s.start()
        state, _ = s.round(start.next(start.parameters, scale=np.array([1e-6])))
        assert 5e-5 < state.parameters[0] < 2e-3

    def test_a_perfect_client_is_no_division_by_zero(self, h):
        clients = {"a": h.Quadratic(1.0, 0.0), "b": h.Quadratic(1.0, 1.0)}
        s = h.Setting(QFedAvg(q=0.5), h.QuadraticTrainer(h.vector_layout()), clients, h.sgd(0.5, 1))
        assert 0 < s.play(3).parameters[0] < 1


class TestFedAsync:
    @pytest.mark.parametrize(
        ("options", "tau", "factor"),
        [
            ({"decay": "constant"}, 9, 1.0),
            ({"decay": "polynomial", "a": 0.5}, 3, 0.5),
            ({"decay": "polynomial", "a": 1.0}, 4, 0.2),
            ({"decay": "hinge", "a": 10.0, "b": 4.0}, 4, 1.0),
            ({"decay": "hinge", "a": 10.0, "b": 4.0}, 6, 1 / 21),
        ],
    )
    def test_one_stale_model_enters_with_alpha_times_s(self, sites, options, tau, factor):
        algorithm = FedAsync(alpha=0.6, **options)
        assert algorithm.staleness(tau) == factor
        s = sites(algorithm, scales={"b": algorithm.staleness(tau)})
        state, _ = s.round(s.start(1.0), {}, "b")
        expected = (1 - 0.6 * factor) * 1.0 + 0.6 * factor * 1.2
        assert state.parameters == pytest.approx([expected, expected], abs=1e-15)

    def test_the_age_of_the_start_counts_and_not_the_start_itself(self, sites):
        # The model itself is mixed: where the client started makes no difference to its share.
        s = sites(FedAsync(alpha=0.5))
        sent, _ = s.updates(s.start(-3.0), {}, "b")
        state = s.step(s.start(1.0), sent)
        assert state.parameters == pytest.approx([1.1, 1.1], abs=1e-15)

    def test_all_fresh_models_at_once_with_alpha_1_are_fedavg(self, sites):
        ends = [sites(a).round(sites(a).start(1.0))[0] for a in (FedAsync(alpha=1.0), FedAvg())]
        assert ends[0].parameters == pytest.approx(ends[1].parameters, abs=1e-15)


class TestFedBuff:
    def test_old_changes_make_a_shorter_step(self, sites):
        assert FedBuff().staleness(3) == 0.5
        s = sites(FedBuff(), scales={"b": 0.5})
        # 1 + (.6 * -.2 + .5 * .4 * .2) / (.6 + .4) = .92
        state, _ = s.round(s.start(1.0))
        assert state.parameters == pytest.approx([0.92, 0.92], abs=BIT)

    def test_exponent_zero_counts_every_change_fully(self):
        assert FedBuff(exponent=0.0).staleness(50) == 1.0
