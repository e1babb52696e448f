"""The job's ``[privacy]`` section becomes the chain that every update passes.

:func:`chain_of` makes the links; :func:`declared_faults` and :func:`chain_faults` say what contradicts what,
all of it at once, with the ways out; :func:`lanes_of` gives the integers of one masked update, for whoever
writes the terms of a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from atoll.aggregation.gate import Gate
from atoll.core.chain import Chain, Link, Range, Setting
from atoll.core.contracts import Task, Weighting
from atoll.core.errors import Fault, JobConflict
from atoll.core.metrics import Metrics
from atoll.data.population import ids_of, rows_of
from atoll.job.declared import CORRELATED, ClientPrivacy, Privacy, RowPrivacy, declared_faults
from atoll.job.figures import figures_of
from atoll.job.record import record_account
from atoll.privacy.dp.buffers import tuned
from atoll.privacy.dp.calibration import calibrate
from atoll.privacy.dp.clipping import noise_for_vectors
from atoll.privacy.dp.events import Event, Gaussian, MatrixGaussian, Neighbouring
from atoll.privacy.links.account import RunAccount
from atoll.privacy.links.clip import BELOW, Clip
from atoll.privacy.links.encrypt import Encrypt
from atoll.privacy.links.mask import Mask
from atoll.privacy.links.noise import CentralNoise, CorrelatedNoise, LocalNoise, NoiseShares
from atoll.privacy.links.quantise import Quantise
from atoll.privacy.links.share import Share
from atoll.privacy.links.shares import Shares, Target
from atoll.privacy.secagg.terms import Lane
from atoll.runtime.client import Parts
from atoll.runtime.pattern import blank_of
from atoll.runtime.schedule import (
    Asynchronous,
    Schedule,
    Synchronous,
    Turns,
    turns_of,
)

__all__ = [
    "ClientPrivacy",
    "Privacy",
    "RowPrivacy",
    "chain_faults",
    "chain_of",
    "client_event",
    "declared_faults",
    "lanes_of",
    "with_chain",
]

_CAP = 1000


@dataclass(frozen=True, eq=False)
class _Sent:
    """What clients send before any chain."""

    shapes: Mapping[str, tuple[tuple[int, ...], str]]
    metrics: Metrics


def _sent(parts: Parts) -> _Sent:
    bare = replace(parts, chain=Chain())
    task = Task(next(iter(ids_of(parts.clients))), 0)
    blank = blank_of(bare, task, bare.broadcast(bare.start()))
    return _Sent(blank.shapes, blank.update.metrics)


def chain_of(
    privacy: Privacy,
    parts: Parts,
    schedule: Schedule,
    rounds: int,
    outside: Sequence[str] = (),
    *,
    site: bool = False,
) -> Chain:
    """The chain of a run.

    Args:
        privacy: the section, without faults of its own.
        parts: the run's, with all its clients; or with its own, at a site.
        schedule: of the rounds.
        rounds: planned ones.
        outside: what else the job releases, for the statement.
        site: whether this is a site of a deployment, where only client halves run: noise of the
            server and the account are the coordinator's.

    Raises:
        JobConflict: no noise keeps the target.
        MissingExtra: calibrating needs a library that is not installed.
    """
    if not len(parts.clients):
        return Chain()
    if not privacy:
        return Chain(account=None if site else _of_rows(privacy, parts, schedule, rounds, outside))
    sent, cohort = _sent(parts), cohort_of(schedule, len(parts.clients))
    model = int(parts.trainer.layout.shared.stop)
    vectors = {name: math.prod(shape) for name, (shape, _) in sorted(sent.shapes.items())}
    if privacy.clip and privacy.clip_by == "adaptive":
        vectors[BELOW] = 1
    links = list(_bounding(privacy, parts, schedule, model))
    client, account = privacy.client, None
    shares, reach = None, privacy.clip
    if client is not None and client.where == "server" and not site:
        released = sum(length for length in vectors.values() if length == model)
        noise, account = _central(privacy, client, schedule, rounds, released, cohort, outside)
        links.append(noise)
    elif client is not None and client.where == "sites":
        shares = _shares(privacy, client, schedule, rounds)
    elif client is not None and client.where == "client":
        own = LocalNoise(_multiplier(client, schedule, rounds), privacy.clip)
        links.append(own)
        reach = own.range
        if not site:
            account = _account(client, own.events()[0], schedule, rounds, outside)
    if privacy.integers:
        quantise = _quantise(privacy, parts, sent, vectors, reach, shares)
        links.append(quantise)
        if client is not None and shares is not None:
            added = NoiseShares(shares, quantise.bound, quantise.values, model, cohort)
            links.append(added)
            if not site:  # which does not know n
                account = _account(client, added.events()[0], schedule, rounds, outside)
    if privacy.aggregation == "masked":
        links.append(Mask(privacy.threshold, privacy.degree))
    elif privacy.aggregation == "encrypted":
        links.append(Encrypt())
    if not site:
        account = account or _of_rows(privacy, parts, schedule, rounds, outside)
    return Chain(tuple(links), cohort, account)


def _bounding(privacy: Privacy, parts: Parts, schedule: Schedule, model: int) -> Iterator[Link]:
    if privacy.clip:
        layout = parts.trainer.layout
        ends = [end for end in layout.offsets[1:] if end <= model]
        layers = tuple(b for a, b in zip([0, *ends], ends, strict=False) if b > a)
        yield Clip(
            privacy.clip, privacy.clip_by, model, layers, privacy.quantile, most=_most(privacy)
        )
    if privacy.client is not None:
        expected = 0.0
        if isinstance(schedule, Synchronous) and schedule.cohort.kind == "poisson":
            expected = schedule.cohort.rate * len(parts.clients)
        yield Share(_cap(privacy, parts.weighting), expected)


def _most(privacy: Privacy) -> float:
    """An adaptive bound may not rise above what a coordinate may be."""
    return max(privacy.bound, privacy.clip) if privacy.integers else 1e9


def _cap(privacy: Privacy, weighting: Weighting) -> float:
    if weighting.kind == "examples":
        return float(privacy.cap or _CAP)
    if weighting.kind == "given":
        return max([0.0, *weighting.given.values()]) or 1.0
    return 1.0


def _quantise(
    privacy: Privacy,
    parts: Parts,
    sent: _Sent,
    vectors: Mapping[str, int],
    reach: float,
    shares: Shares | None,
) -> Quantise:
    bound = reach or privacy.bound
    if privacy.clip_by == "adaptive" and privacy.clip:
        bound = _most(privacy)
    open_figures = privacy.client is None
    declared: Mapping[str, Range] = getattr(parts.algorithm, "ranges", {})
    return Quantise(
        bound=bound,
        model=int(parts.trainer.layout.shared.stop),
        vectors=vectors,
        cap=_cap(privacy, parts.weighting) if open_figures else 1.0,
        caps=parts.weighting.kind == "examples" or not open_figures,
        counts=parts.weighting.kind != "given",
        kinds=sent.metrics,
        ranges={BELOW: Range(1.0), **declared},
        figures=open_figures,
        shares=shares,
        bits=privacy.bits,
    )


def _sampling(client: ClientPrivacy, schedule: Schedule) -> float:
    if client.amplified and isinstance(schedule, Synchronous):
        return schedule.cohort.rate
    return 1.0


def _shares(privacy: Privacy, client: ClientPrivacy, schedule: Schedule, rounds: int) -> Shares:
    target = None
    if not client.noise_multiplier:
        target = Target(client.goal, turns_of(schedule, rounds).visits)
    kind = "skellam" if client.mechanism == "auto" else client.mechanism
    return Shares(
        client.noise_multiplier,
        target,
        "discrete_gaussian" if kind == "discrete_gaussian" else "skellam",
        privacy.threshold,
        client.colluders,
        _sampling(client, schedule),
    )


def _central(
    privacy: Privacy,
    client: ClientPrivacy,
    schedule: Schedule,
    rounds: int,
    values: int,
    cohort: int,
    outside: Sequence[str],
) -> tuple[Link, RunAccount]:
    grid = privacy.clip if privacy.integers else 0.0
    z = _multiplier(client, schedule, rounds)
    if client.mechanism in CORRELATED:
        spec = _correlated(client, turns_of(schedule, rounds), z)
        account = _account(client, spec, schedule, rounds, outside)
        return CorrelatedNoise(spec, values, grid), account
    event = Gaussian(z, _sampling(client, schedule))
    deviation = 0.0
    if privacy.clip_by == "adaptive":
        # A twentieth of the cohort is usual, but noise on the count alone must not cost it all.
        deviation = max(cohort / 20, 2.0 * z)
        noise_for_vectors(z, deviation)
        grid = _most(privacy) if privacy.integers else 0.0
    account = _account(client, event, schedule, rounds, outside)
    return CentralNoise(z, event, grid, deviation), account


def _correlated(client: ClientPrivacy, turns: Turns, z: float) -> MatrixGaussian:
    rounds, own, apart = turns.rounds, turns.visits, turns.separation
    if client.mechanism == "blt":
        decays, scales = tuned(rounds, own, apart, client.buffers)
        return MatrixGaussian("blt", z, rounds, 1, own, apart, 1, decays, scales)
    if client.mechanism == "tree":
        return MatrixGaussian("tree", z, rounds, 1, own, apart)
    return MatrixGaussian("banded", z, rounds, min(client.bands or apart, rounds), own, apart)


def _multiplier(client: ClientPrivacy, schedule: Schedule, rounds: int) -> float:
    """The multiplier z as it is given, or so that the target is met at the last planned round."""
    if client.noise_multiplier:
        return client.noise_multiplier
    return _calibrated(client, turns_of(schedule, rounds), _sampling(client, schedule))


@lru_cache(maxsize=32)
def _calibrated(client: ClientPrivacy, turns: Turns, q: float) -> float:
    if client.mechanism in CORRELATED:
        return calibrate(client.goal, turns.rounds, shape=lambda z: _correlated(client, turns, z))
    return calibrate(client.goal, turns.visits, q, neighbouring=_relation(client))


def _relation(client: ClientPrivacy) -> Neighbouring:
    """Who sees a single update knows whose it is: there another one would stand, not none."""
    return "replace" if client.where == "client" else "add_or_remove"


def _account(
    client: ClientPrivacy, event: Event, schedule: Schedule, rounds: int, outside: Sequence[str]
) -> RunAccount:
    more = ["federated evaluation"] if client.open_metrics else []
    planned = 0 if client.noise_multiplier else rounds
    apart = turns_of(schedule, rounds).separation
    return RunAccount(
        event,
        client.goal,
        "site",
        _relation(client),
        planned,
        (*outside, *more),
        # A client that sends its own noise has sent it; and rounds without a client are told by all rounds.
        attempts=client.where == "client" or apart > 1,
        separation=apart,
    )


def client_event(
    privacy: Privacy, schedule: Schedule, rounds: int, cohort: int = 0, values: int = 0
) -> Event | None:
    """What one round costs one client, for a site that keeps its own account; None without noise.

    Secret sampling counts for nothing here, whatever the job says of it: a site pays for the rounds that it is
    asked for, and whoever asks knows which these are, and may ask in each.

    Args:
        privacy: the section.
        schedule: of the rounds.
        rounds: planned ones.
        cohort: n that clients were told, where they add the noise.
        values: number of values of one update that are noised, where clients add the noise.

    Raises:
        JobConflict: no noise keeps the target.
        MissingExtra: calibrating needs a library that is not installed.
    """
    client = privacy.client
    if client is None:
        return None
    if client.where == "sites":
        shares = _shares(privacy, client, schedule, rounds)
        lattice = shares.lattice(cohort, privacy.clip or privacy.bound, values)
        return lattice.event()
    if client.where == "client":
        return Gaussian(_multiplier(client, schedule, rounds))
    z = _multiplier(client, schedule, rounds)
    if client.mechanism in CORRELATED:
        return _correlated(client, turns_of(schedule, rounds), z)
    return Gaussian(z)


def _of_rows(
    privacy: Privacy, parts: Parts, schedule: Schedule, rounds: int, outside: Sequence[str]
) -> RunAccount | None:
    if privacy.record is None:
        return None
    rows = [rows_of(parts.clients, client) for client in ids_of(parts.clients)]
    return record_account(privacy, rows, parts.local, turns_of(schedule, rounds), tuple(outside))


def cohort_of(schedule: Schedule, population: int) -> int:
    """n, the most clients that may be in one sum."""
    if isinstance(schedule, Asynchronous):
        return schedule.buffer
    if isinstance(schedule, Synchronous) and schedule.cohort.kind in ("uniform", "weighted"):
        return schedule.cohort.size
    return population


def chain_faults(chain: Chain, parts: Parts, schedule: Schedule) -> list[Fault]:
    """What the chain cannot do in this federation, and what its links lack, all at once."""
    if not chain.links:
        return []
    sent, population = _sent(parts), len(parts.clients)
    n, quorum, rate = cohort_of(schedule, population), 1, None
    if isinstance(schedule, Synchronous):
        quorum = schedule.least(n)
        rate = schedule.cohort.rate if schedule.cohort.kind == "poisson" else None
    setting = Setting(
        vectors=sent.shapes,
        metrics=sent.metrics,
        model=int(parts.trainer.layout.shared.stop),
        weighting=parts.weighting,
        cohort=n,
        quorum=quorum,
        population=population,
        rate=rate,
        forms_cohorts=not isinstance(schedule, Asynchronous) or schedule.buffer > 1,
        additive=bool(getattr(parts.algorithm, "additive", True)),
        changes=bool(getattr(parts.algorithm, "changes", True)),
    )
    return chain.faults(setting)


def with_chain(
    privacy: Privacy,
    parts: Parts,
    schedule: Schedule,
    rounds: int,
    faults: Sequence[Fault] = (),
    outside: Sequence[str] = (),
    *,
    site: bool = False,
) -> tuple[Parts, list[Fault]]:
    """The parts with their chain, and what is wrong with it.

    Args:
        privacy: the section.
        parts: the run's.
        schedule: of the rounds.
        rounds: planned ones.
        faults: what :func:`declared_faults` found; with any, only aggregation is looked at further.
        outside: see :func:`chain_of`.
        site: see :func:`chain_of`; nothing is checked there.
    """
    if faults:
        privacy = replace(privacy, client=None, record=None)
    try:
        chain = chain_of(privacy, parts, schedule, rounds, outside, site=site)
        found = [] if site else chain_faults(chain, parts, schedule)
    except JobConflict as error:
        return parts, [*error.faults] or [Fault("privacy", error.message, error.remedy)]
    if not site and privacy.client is not None and privacy.client.amplified:
        found += _empty_rounds(privacy.client, chain, schedule, rounds, len(parts.clients))
    if not (site or found) and isinstance(chain.account, RunAccount):
        found += _no_rounds(chain.account)
    parts = replace(parts, chain=chain, figures=figures_of(privacy))
    most = {} if found else {lane.name: round(lane.bound) for lane in lanes_of(parts)}
    return replace(parts, gate=Gate(privacy.max_norm, most)), found


def _no_rounds(account: RunAccount) -> Iterator[Fault]:
    """Noise that is given beside a goal, and so little that the first round would pass it."""
    if account.most:
        return
    cost = f"costs epsilon {account.epsilon(1):.3g}"
    if account.goal.found:
        cost = f"lets an attack find {100 * account.permitted(1):.3g} %"
    what = "the run" if isinstance(account.event, MatrixGaussian) else "one round"
    yield Fault(
        f"privacy.{'record' if account.unit == 'record' else 'client'}.noise_multiplier",
        f"with this noise {what} {cost}, and the job may cost {account.goal}: no round could begin",
        "remove it, and noise is made for the goal; or raise it, or the goal",
    )


_BESIDE_DELTA = 0.01
"""Part of delta that all rounds which are aborted for the luck of the draw may come to."""


def _empty_rounds(
    client: ClientPrivacy, chain: Chain, schedule: Schedule, rounds: int, population: int
) -> Iterator[Fault]:
    """Secret sampling in which too few are drawn: the round is aborted, and the model stands still.

    Who sees that knows about everybody that they were not drawn, and noise that was never added hides nothing
    of it. So it may hardly ever happen; a neighbouring federation has one client less.
    """
    if not isinstance(schedule, Synchronous) or schedule.cohort.kind != "poisson":
        return
    sizes = range(max(1, int(schedule.quorum)), population + 1)
    least = next((m for m in sizes if not chain.short(m, m)), population + 1)

    def chance(rate: float) -> float:
        return min(1.0, rounds * _fewer(least, population - 1, rate))

    rate, most = schedule.cohort.rate, _BESIDE_DELTA * client.delta
    if chance(rate) <= most:
        return
    enough = next((r / 100 for r in range(1, 100) if chance(r / 100) <= most), 1.0)
    reason = (
        f"rounds that draw {'nobody' if least == 1 else f'fewer than {least}'} of {population} clients are "
        f"aborted, which no noise hides: with rate {rate:g} the chance of one in {rounds} rounds is "
        f"{chance(rate):.2g}, and delta is {client.delta:g}"
    )
    more = f"set rounds.rate to {enough:g} or more, " if enough < 1 else "take more clients, "
    lower = "lower rounds.quorum, " if least > 1 else ""
    yield Fault("privacy.client.amplified", reason, f"{more}{lower}or set amplified = false")


def _fewer(least: int, size: int, rate: float) -> float:
    """The chance that fewer than ``least`` of ``size`` are drawn, each with probability ``rate``.

    >>> round(_fewer(1, 2, 0.5), 9), round(_fewer(2, 2, 0.5), 9), _fewer(1, 5, 1.0)
    (0.25, 0.75, 0.0)
    """
    if rate >= 1.0:
        return float(size < least)
    head = math.lgamma(size + 1)
    drawn, left = math.log(rate), math.log1p(-rate)
    terms = (
        head - math.lgamma(k + 1) - math.lgamma(size - k + 1) + k * drawn + (size - k) * left
        for k in range(min(least, size + 1))
    )
    return math.fsum(map(math.exp, terms))


def lanes_of(parts: Parts, cohort: int = 0) -> tuple[Lane, ...]:
    """The lanes of one masked update of this run: whole numbers, with the most a client may send.

    Args:
        parts: the run's, with its chain.
        cohort: n that clients were told; 0 for the chain's own.
    """
    quantise: Any = parts.chain.find("quantise")
    if quantise is None:
        return ()
    lanes: tuple[Lane, ...] = quantise.integer_lanes(cohort or parts.chain.cohort)
    return lanes
