"""The latency table: rows that were measured, under a header that says on what, with what, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import CorruptTable, InvalidInput, MissingLatency, TableMismatch, listing
from hwnas.latency.backend import LatencyBackend, Precision
from hwnas.latency.device import Device
from hwnas.latency.formula import default_formula
from hwnas.latency.header import UNNAMED_BACKEND, TableHeader
from hwnas.latency.intervals import Intervals
from hwnas.latency.levelling import levelled
from hwnas.latency.merging import merge_content
from hwnas.latency.networks import RecordedSpace, content_of_networks, solve_content
from hwnas.latency.packaged import table_file
from hwnas.latency.solve import NetworkTiming, Solution
from hwnas.latency.table_file import TableContent, checksum, read_content, rows_digest, write_content
from hwnas.latency.timing import Timing
from hwnas.latency.verification import Calibration, Verification
from hwnas.ops import OpKey

if TYPE_CHECKING:
    import pandas


class LatencyTable:
    """Op key → :class:`Timing`, with the header that the numbers are true under.

    Under the protocol ``"probe"`` the rows are solved; :attr:`networks` and :attr:`isolated` are what they
    were solved from.

    Args:
        header: what the rows were measured on and how.
        rows: the timings; the mapping is copied.
        path: where the table lies, for messages.
        isolated: ops timed alone, where the rows are not those.
        networks: whole networks that the rows were solved from.
        verification: what other whole networks said about the rows.

    Raises:
        InvalidInput: a key's batch size is not the header's.
    """

    def __init__(
        self,
        header: TableHeader,
        rows: Mapping[OpKey, Timing] | None = None,
        path: Path | None = None,
        *,
        isolated: Mapping[OpKey, Timing] | None = None,
        networks: Sequence[NetworkTiming] = (),
        verification: Verification | None = None,
    ) -> None:
        self.header = header
        self.rows: dict[OpKey, Timing] = dict(rows or {})
        self.isolated: dict[OpKey, Timing] = dict(isolated or {})
        self.networks: list[NetworkTiming] = list(networks)
        self.verification = verification
        self.path = path
        for key in (*self.rows, *self.isolated):
            check_batch(key, header.batch)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        """Whether ``key`` has a complete row."""
        timing = self.rows.get(key) if isinstance(key, OpKey) else None
        return timing is not None and timing.status == "ok"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyTable) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # rows may be added while a table is filled

    def __str__(self) -> str:
        name = f"{self.path}: " if self.path else ""
        return f"{name}{sum(key in self for key in self.rows)} rows ({self.header})"

    def _content(self) -> TableContent:
        return TableContent(
            header=self.header,
            rows=self.rows,
            isolated=self.isolated,
            networks=self.networks,
            verification=self.verification,
        )

    @property
    def checksum(self) -> str:
        """SHA-256 over all that the file holds, as it has it: ``"sha256:…"``."""
        return checksum(self._content())

    @property
    def rows_digest(self) -> str:
        """SHA-256 over keys and milliseconds alone: what a verification is about."""
        return rows_digest(self.rows)

    @property
    def current_verification(self) -> Verification | None:
        """The verification, if it is about the rows as they are now; None otherwise."""
        said = self.verification
        return said if said is not None and said.rows == self.rows_digest else None

    @property
    def calibration(self) -> Calibration:
        """What whole networks taught about the rows; changes nothing where they were never verified."""
        said = self.current_verification
        return Calibration() if said is None else said.calibration

    @property
    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas data frame (a copy): one line a row, with the conditions in every line."""
        import pandas  # 0.6 s: only where a frame is asked for

        return pandas.DataFrame(
            [
                {
                    "kind": key.spec.kind,
                    "attributes": ", ".join(f"{name}={value}" for name, value in key.spec.attributes),
                    "inputs": ", ".join("x".join(map(str, shape)) for shape in key.input_shapes),
                    "median_ms": timing.median_ms,
                    "spread_ms": timing.spread_ms,
                    "count": timing.count,
                    "rounds": timing.rounds,
                    "status": timing.status,
                    "device": self.header.device.name,
                    "backend": self.header.backend,
                    "precision": self.header.precision,
                    "batch": self.header.batch,
                }
                for key, timing in self.rows.items()
            ],
            columns=[
                *("kind", "attributes", "inputs", "median_ms", "spread_ms", "count", "rounds", "status"),
                *("device", "backend", "precision", "batch"),
            ],
        )

    def latency_ms(self, key: OpKey) -> float:
        """Milliseconds (:attr:`Timing.median_ms`) of one call of the op on its whole batch.

        Raises:
            MissingLatency: the row is absent, incomplete or failed.
        """
        if key not in self:
            self.require([key])
        return self.rows[key].median_ms

    def doubts(self) -> list[str]:
        """Why its predictions should not be relied on, in sentences; empty where it was verified well.

        A formula's table promises nothing, so there is nothing to doubt.
        """
        if self.header.device.kind == "fake":
            return []
        name = self.path or "the table"
        said = self.current_verification
        if said is None and self.header.backend == UNNAMED_BACKEND:
            return [
                f"{name} was made of somebody's networks and never tested on others, so how far it is off is "
                "not known: measure some that it was not made of, and compare them with its predictions"
            ]
        if said is None:
            return [
                f"{name} was never tested on whole networks, so how far it is off is not known: "
                f"hwnas verify {self.path or 'TABLE'}"
            ]
        if not said.is_good:
            return [
                f"{name} failed its verification ({said.calibrated}): do not rely on its predictions. "
                + _with_command(
                    "Delete it (what is complete is never measured again), measure anew on a quiet machine, "
                    "and verify that",
                    self.header,
                    self.path,
                )
            ]
        return []

    def predict_ms(self, counts: Mapping[OpKey, int]) -> float:
        """Milliseconds of a network that runs each op so often: the sum of its rows, calibrated.

        Raises:
            MissingLatency: an op has no row.
        """
        self.require(counts)
        total = sum(self.rows[key].median_ms * count for key, count in counts.items())
        return self.calibration(total, sum(counts.values()))

    def interval_ms(self, key: OpKey) -> tuple[float, float]:
        """The 95 % interval of a row: where a table built anew would find it; see :class:`Intervals`.

        Raises:
            MissingLatency: the row is absent, incomplete or failed.
        """
        self.require([key])
        return self.intervals().of(self.rows[key])

    def intervals(self) -> Intervals:
        """The uncertainty of the rows, pooled over the table."""
        return Intervals([timing for timing in self.rows.values() if timing.status == "ok"])

    def require(self, keys: Iterable[OpKey]) -> None:
        """Raise unless every key has a complete row.

        Raises:
            MissingLatency: some have none; the message lists them and the command that measures them.
        """
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if key not in self]
        if not missing:
            return
        where = self.path or "the table"
        raise MissingLatency(
            f"{len(missing)} of {len(wanted)} op keys have no row in {where} "
            f"({self.header.device.name}, {self.header.backend} {self.header.precision}):\n"
            + listing(f"{key}{self._why_missing(key)}" for key in missing)
            + "\n"
            + _with_command(
                "Measure them on that device (with the --preset and --set of your space, if any)",
                self.header,
                self.path,
            )
        )

    def _why_missing(self, key: OpKey) -> str:
        timing = self.rows.get(key)
        if timing is None:
            return ""
        if timing.status == "partial":
            return f"  (only {timing.rounds} rounds were measured before an interruption)"
        return f"  (failed: {timing.error})"

    def check(
        self,
        *,
        device: Device | str | None = None,
        backend: LatencyBackend | str | None = None,
        precision: Precision | None = None,
        batch: int | None = None,
        threads: int | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Raise unless the table was measured under these conditions. What is None is not compared.

        Args:
            device: a fingerprint, or an alias such as ``"titanxp"``.
            backend: its name; or a backend, which also stands for its device, precision, threads, versions
                and settings.
            precision: of weights and activations.
            batch: samples in a call.
            threads: of the CPU; not compared for a table of a GPU.
            input_shape: (C, H, W).

        Raises:
            TableMismatch: the message lists each difference.
        """
        header = self.header
        changes: dict[str, Any] = {}
        if isinstance(backend, LatencyBackend):
            changes = {
                "device": backend.device,
                "backend": backend.name,
                "precision": backend.precision,
                "threads": backend.threads,
                "versions": backend.versions(),
                "settings": backend.settings(),
            }
        elif backend is not None:
            changes["backend"] = backend
        given = {"precision": precision, "batch": batch, "threads": threads}
        changes |= {name: value for name, value in given.items() if value is not None}
        if input_shape is not None and tuple(input_shape) != header.input_shape:
            # Whose network that is, the caller alone knows: the command must not name the table's space.
            changes |= {"input_shape": tuple(input_shape), "space": {}}
        lines = []
        if isinstance(device, Device):
            changes["device"] = device
        elif device is not None and not header.device.answers_to(device):
            lines.append(f'device: {header.device.name} ({header.device.alias}) against "{device}"')
        asked = header.model_copy(update=changes)
        lines += header.differences(asked)
        if lines:
            alias = device if isinstance(device, str) else None
            if "settings" not in changes and any(line.startswith(("device", "backend")) for line in lines):
                # Switches of another backend or device may make no sense there.
                asked = asked.model_copy(update={"settings": {}})
            raise TableMismatch(
                f"{self.path or 'the table'} was measured under other conditions than those asked for "
                "(table against asked):\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\n"
                + _with_command(
                    "Use a table of these conditions, or measure one (with the --preset and --set of your "
                    "space, if any)",
                    asked,
                    device=alias,
                )
            )

    def with_rows(self, rows: Mapping[OpKey, Timing]) -> LatencyTable:
        """A copy with ``rows`` added; of two timings of one key the new one stays. Its verification goes.

        Raises:
            InvalidInput: a key's batch size is not the header's.
        """
        return LatencyTable(
            self.header, {**self.rows, **rows}, self.path, isolated=self.isolated, networks=self.networks
        )

    def as_isolated(self) -> LatencyTable:
        """The same measurement with the rows as they were timed alone; not verified.

        Raises:
            InvalidInput: no op was timed alone, as in a table made from somebody's whole networks.
        """
        if self.header.protocol == "isolated":
            return self
        if not self.isolated:
            raise InvalidInput(f"{self.path or 'the table'} has no ops that were timed alone.")
        header = self.header.model_copy(
            update={"protocol": "isolated", "residual_percent": None, "left_out_percent": None}
        )
        return LatencyTable(header, self.isolated)

    @classmethod
    def from_networks(
        cls,
        space: RecordedSpace,
        networks: Sequence[tuple[Any, float]],
        *,
        header: TableHeader | None = None,
        prior_ms: Mapping[OpKey, float] | None = None,
    ) -> LatencyTable:
        """A table from anybody's whole-network measurements; the header says how well it reproduces them.

        Args:
            space: that the networks are of.
            networks: genotypes with the milliseconds that they took, under the conditions of ``header``.
            header: on what and how they were measured; protocol and space are filled in. Where left out: this
                machine, and :data:`UNNAMED_BACKEND`.
            prior_ms: milliseconds of each op key, right in proportion; a formula of its size where left out.
                It decides what the networks leave open.

        Milliseconds are taken at their word where they do not contradict one another: few networks are met
        exactly, and ``left_out_percent`` in the header says what to expect of others.

        Raises:
            GenotypeError: a genotype of another space.
            InvalidInput: a prior without one of the keys.
            MeasurementFailed: there is no network, or the milliseconds of one are no latency: it is named.
        """
        content = content_of_networks(space, networks, header, prior_ms)
        table = cls(content.header, networks=content.networks)
        table.rows = content.rows
        return table

    def solve(self, keys: Sequence[OpKey], prior_ms: Mapping[OpKey, float] | None = None) -> Solution:
        """Replace the rows by those solved from :attr:`networks` (mutated, the header too).

        The verification of the rows before goes.

        Args:
            keys: the rows wanted.
            prior_ms: milliseconds right in proportion; the ops timed alone where left out.

        Raises:
            MeasurementFailed: no network was timed.
            InvalidInput: a key has no prior, or a network runs another op.
        """
        content, solution = solve_content(self._content(), keys, prior_ms)
        self.header, self.rows, self.verification = content.header, content.rows, content.verification
        return solution

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Both tables in one: timings of one op or network pool the rounds of both. Neither is changed.

        Measuring a table in several processes and merging shows and averages what differs from process to
        process (memory layout, chosen kernels). Rows that are solved are solved anew; a verification does not
        outlive the rows that it is about.

        Raises:
            TableMismatch: the headers differ in anything that decides a number.
            InvalidInput: both hold the same readings; or rows are to be solved, and neither table has a
                network that was measured to the end.
        """
        both = merge_content(self._content(), other._content())
        is_timed = any(network.timing.status == "ok" for network in both.networks)
        if both.header.protocol == "probe" and not is_timed:
            raise InvalidInput(
                "neither table has a network that was measured to the end, so there is nothing to solve rows "
                "from. Finish each, and merge them then:\n"
                + "\n".join(
                    "  " + _with_command(str(one.path or "the table"), one.header, one.path)
                    for one in (self, other)
                )
            )
        table = LatencyTable(both.header, both.rows, isolated=both.isolated, networks=both.networks)
        table.level()
        if table.networks:
            formula = None if table.isolated else {key: default_formula(key) for key in table.rows}
            table.solve(list(table.rows), formula)
        return table

    def level(self) -> None:
        """Bring all rounds of all that was measured to the speed of a quiet one (mutated).

        See :func:`hwnas.latency.levelling.levelled`. Solved rows stay: :meth:`solve` makes them anew.
        """
        found = levelled(
            {("row", key): timing for key, timing in self.rows.items()}
            | {("op", key): timing for key, timing in self.isolated.items()}
            | {("network", network.name): network.timing for network in self.networks}
        )
        self.rows = {key: found["row", key] for key in self.rows}
        self.isolated = {key: found["op", key] for key in self.isolated}
        self.networks = [
            network.model_copy(update={"timing": found["network", network.name]}) for network in self.networks
        ]

    def save(self, path: str | Path) -> None:
        """Write the table to ``path`` in one step: a reader finds the old file or the whole new one.

        ``path`` becomes the table's :attr:`path`.
        """
        self.save_copy(path)
        self.path = Path(path)

    def save_copy(self, path: str | Path) -> None:
        """Write the table to ``path`` in one step, as :meth:`save` does; its own :attr:`path` stays."""
        write_content(self._content(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read and verify a table.

        Args:
            path: its file; or, where there is no such file, the name of one that comes with hwnas
                (:func:`hwnas.latency.packaged.packaged_tables`). That one gets no :attr:`path`, so that
                nothing is written into the package.

        Raises:
            MissingTable: the file is not there.
            CorruptTable: it is truncated, altered after it was written, of a newer hwnas, or holds a row that
                cannot be a latency. The message says which.
        """
        path = Path(path)
        file = table_file(path)
        content = read_content(file)
        try:
            return cls(
                content.header,
                content.rows,
                path if file == path else None,
                isolated=content.isolated,
                networks=content.networks,
                verification=content.verification,
            )
        except InvalidInput as error:
            raise CorruptTable(f"{path}: {error}") from error


def _with_command(what: str, header: TableHeader, path: Path | None = None, device: str | None = None) -> str:
    """What is to be done, with the command that does it; or that there is none."""
    command = header.command(path, device=device)
    if command is None:
        return (
            "It was made of networks that were measured elsewhere, by no command of hwnas: measure there "
            "what is wanted, and make it anew (LatencyTable.from_networks)."
        )
    return f"{what}:  {command}"


def check_batch(key: OpKey, batch: int) -> None:
    """Raise unless the op's inputs have this batch size.

    Raises:
        InvalidInput: they have another, so that milliseconds per batch of different sizes would be added up.
    """
    found = {shape[0] for shape in key.input_shapes if shape}
    if found - {batch}:
        raise InvalidInput(
            f"the table is for batch {batch}, but {key} has batch {', '.join(map(str, sorted(found)))}. "
            "Latencies are per call on the whole batch; record the space with the batch size of the table."
        )
