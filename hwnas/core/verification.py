"""Verifying a table: whole networks drawn from the space, measured end to end, against the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from hwnas.core.genotype import Genotype
from hwnas.core.given import refuse_backend, refuse_space, refuse_table
from hwnas.core.probing import network_subjects, samples
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.measuring import ProfileSettings, measure_subjects
from hwnas.latency.measuring_process import OnVisit
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Timing
from hwnas.latency.verification import NetworkEvidence, Verification, verification, worst_kinds

CALIBRATION_NETWORKS = 10
"""How many networks a calibration is fitted on, beside those it is judged by."""


def verify(
    table: LatencyTable,
    space: SearchSpace,
    backend: LatencyBackend,
    *,
    samples: int = 50,
    calibrate: int = CALIBRATION_NETWORKS,
    seed: int = 1,
    settings: ProfileSettings | None = None,
    on_progress: OnVisit | None = None,
) -> Verification:
    """Measure networks that no fit has seen and say how well ``table`` predicts them; kept in the table.

    The networks are spread over the latency range and measured in interleaved rounds, in several processes. A
    calibration is fitted on ``calibrate`` of them and judged, like the bare table, by the ``samples`` others.
    The table (mutated) then predicts with it; if it has a file, that is written anew.

    Args:
        table: to be verified; must have every row of the space.
        space: whose networks.
        backend: what the table was measured with, on this machine.
        samples: how many networks to judge by, at least 2.
        calibrate: how many further networks to fit the calibration on; 0 for none.
        seed: of the draws of networks.
        settings: how much to read.
        on_progress: called with (visits done, visits in all, what was visited).

    Raises:
        TableMismatch: the table was measured under other conditions than the backend's, or for another size.
        SpaceError: the space computes outside of its ops.
        MissingLatency: the table lacks rows of the space.
        MeasurementFailed: a network gave no number, or the machine was not steady; the table is as it was.
        BackendUnavailable: the backend cannot run here.
        InvalidInput: an argument is a name or a path where an object is wanted; the space has too few
            networks.
    """
    refuse_table(table)
    refuse_space(space)
    refuse_backend(backend)
    settings = settings or ProfileSettings()
    table.check(backend=backend, input_shape=space.input_shape())
    recording = space.record(batch=table.header.batch)
    table.require(recording.keys())
    fitted, tested = drawn(table, space, samples=samples, calibrate=calibrate, seed=seed)
    subjects = network_subjects(space, [*fitted, *tested], batch=table.header.batch)
    measured = measure_subjects(
        {name: network.subject for name, network in subjects.items()},
        backend,
        settings,
        on_progress=on_progress,
    )
    failed = {name: timing.error for name, timing in measured.timings.items() if timing.status == "failed"}
    if failed:
        raise MeasurementFailed(
            f"{len(failed)} of {len(subjects)} networks could not be measured with {backend}:\n"
            + "\n".join(f"  {name}: {error}" for name, error in failed.items())
        )
    measured.require_quiet(settings, "The table was not verified.")
    found = judged(table, space, fitted, tested, measured.timings).model_copy(
        update={"remarks": (*measured.remarks, *measured.busy)}
    )
    table.verification = found
    if table.path is not None:
        table.save(table.path)
    return found


def drawn(
    table: LatencyTable, space: SearchSpace, *, samples: int, calibrate: int, seed: int = 1
) -> tuple[list[Genotype], list[Genotype]]:
    """Networks to fit a calibration on, and networks to judge by; none of them was used for the table.

    Raises:
        InvalidInput: the space has too few networks.
    """
    everything = _spread(table, space, samples + calibrate, seed)
    if len(everything) < calibrate + 2:
        raise InvalidInput(
            f"{space.name} has only {len(everything)} networks beside those that the table was solved from; "
            f"verifying takes {calibrate} to calibrate and 2 or more to judge by. Ask for fewer "
            "(--calibrate 0)."
        )
    # Spread over the range too: every so many-th in the order of predicted latency.
    places = {round((n + 0.5) * len(everything) / calibrate - 0.5) for n in range(calibrate)}
    fitted = [genotype for place, genotype in enumerate(everything) if place in places]
    tested = [genotype for place, genotype in enumerate(everything) if place not in places]
    return fitted, tested


def judged(
    table: LatencyTable,
    space: SearchSpace,
    fitted: Sequence[Genotype],
    tested: Sequence[Genotype],
    timings: dict[str, Timing],
) -> Verification:
    """What timings (by short id) of those networks say about ``table``."""
    recording = space.record(batch=table.header.batch)
    depths = [name for name, choice in space.choices().items() if choice.kind == "depth"]
    evidence, counters = [], []
    for genotype in (*fitted, *tested):
        counts = recording.count(space.assignment(genotype))
        timing = timings[genotype.short_id]
        counters.append(counts)
        evidence.append(
            NetworkEvidence(
                name=genotype.short_id,
                sum_ms=sum(table.latency_ms(key) * count for key, count in counts.items()),
                ops=sum(counts.values()),
                measured_ms=timing.median_ms,
                processes_ms=timing.process_medians_ms if timing.rounds_by_process else (),
                fitted=genotype in fitted,
                group=" ".join(f"{name}={genotype.choices.get(name, '-')}" for name in depths),
            )
        )
    kinds = worst_kinds(
        counters,
        {key: timing.median_ms for key, timing in table.rows.items()},
        [network.sum_ms for network in evidence],
        [network.measured_ms for network in evidence],
    )
    return verification(
        evidence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=table.rows_digest,
        kinds=kinds,
    )


def _spread(table: LatencyTable, space: SearchSpace, count: int, seed: int) -> list[Genotype]:
    recording = space.record(batch=table.header.batch)
    used = {network.name for network in table.networks}

    def predict_ms(assignment: dict[str, int]) -> float:
        return table.predict_ms(recording.count(assignment))

    return samples(space, predict_ms, count, seed=seed, without=used)
