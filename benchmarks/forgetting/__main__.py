"""Measure forgetting on a stream of tasks, for Strata and every baseline.

    python -m benchmarks.forgetting --stream domain|capability|dataset [--scale small|full] [--seeds 3]
                                    [--method NAME ... | baselines | ablations | coming-back | all]
    python -m benchmarks.forgetting --data FOLDER      # a stream of your own, in LLaVA format

Every run of a method with a seed leaves a file under ``OUT/<stream>-<scale>/runs``; runs that are there are
not repeated, so an interrupted benchmark goes on where it was. The same command may be started several times
beside itself, which fills a GPU or many cores: each takes runs that no other works on. Tables are written
anew after every run, plots at the end. Strata's runs go through queue, worker and gate like any job; what the
gate says is recorded, and the stream goes on.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402

from adapter_store.errors import InputError  # noqa: E402
from benchmarks.forgetting.methods import ABLATIONS, BASELINES, COMING_BACK, METHODS, POINTLESS  # noqa: E402
from benchmarks.forgetting.plots import draw_all  # noqa: E402
from benchmarks.forgetting.records import (  # noqa: E402
    Setup,
    add_record,
    check_comparable,
    claimed,
    data_digest,
    others_under_way,
    path_of,
    read_records,
)
from benchmarks.forgetting.report import write_report  # noqa: E402
from benchmarks.forgetting.running import Plan, run  # noqa: E402
from benchmarks.forgetting.scoring import Scorer  # noqa: E402
from benchmarks.forgetting.site import Site  # noqa: E402
from benchmarks.forgetting.streams import (  # noqa: E402
    SMALL_BATCHES,
    STREAMS,
    StreamTask,
    build_stream,
    read_stream,
)
from benchmarks.program import NotMeasured, add_base, program_parser, run_program  # noqa: E402
from benchmarks.telling import Teller, console, told  # noqa: E402
from trainer_worker.workshop import Workshop  # noqa: E402


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is learned and measured: examples and test questions of each task, passes over them."""

    train: int
    test: int
    epochs: float


SCALES = {"small": Scale(200, 80, 10), "full": Scale(1000, 200, 6)}
GROUPS = {
    "baselines": BASELINES,
    "ablations": ABLATIONS,
    "coming-back": COMING_BACK,
    "all": (*BASELINES, *ABLATIONS),
}


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one seed is needed")
    return number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser("benchmarks.forgetting", "Measure forgetting.", figures=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--stream", choices=STREAMS, help="a stream from packaged pictures")
    source.add_argument(
        "--data", type=Path, metavar="FOLDER", help="a stream of your own: a folder for each task"
    )
    names = [*GROUPS, *METHODS]
    parser.add_argument("--method", nargs="+", choices=names, default=["baselines"], metavar="NAME",
                        help=f"any of: {', '.join(names)}")  # fmt: skip
    parser.add_argument(
        "--seeds", type=_at_least_one, default=3, help="runs of each method, with seeds 0, 1, ..."
    )
    parser.add_argument(
        "--seed", type=int, action="append", metavar="N", help="only this seed (may be repeated)"
    )
    parser.add_argument("--scale", choices=SCALES, default="small", help="small: two cores; full: one GPU")
    parser.add_argument(
        "--epochs", type=float, help="passes over each task's examples; 0: as many as the service plans"
    )
    add_base(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where results are kept")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the report."""
    arguments = parse_arguments(argv)
    kept = "interrupted; finished runs are kept, the same command goes on"
    return run_program(lambda _: _report(arguments), interrupted=kept)


def _report(arguments: argparse.Namespace) -> None:
    logging.getLogger("strata").setLevel(logging.ERROR)
    title = arguments.stream or f"data-{arguments.data.resolve().name}"
    folder = arguments.out / f"{title}-{arguments.scale}"
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        setup = _setup(arguments)
        setup.check(read_records(folder))
        _run_missing(arguments, setup, folder)
        table = write_report(folder)
        draw_all(folder, read_records(folder))
    except OSError as error:
        raise NotMeasured(f"{error.filename}: {error.strerror}") from error
    print((folder / "report.json").read_text() if arguments.json else table)


def chosen_methods(names: Sequence[str], stream: str | None = None) -> list[str]:
    """Return the methods that some names stand for, each once, in the order of the table.

    Raises:
        InputError: a method that is named itself means nothing on the stream.
    """
    pointless = POINTLESS.get(stream or "", ())
    refused = [name for name in names if name in pointless]
    if refused:
        raise InputError(
            f"{', '.join(refused)} means nothing on {stream}: its stages are not tasks of their own,"
            " or of very different size",
            param="method",
        )
    wanted = {method for name in names for method in GROUPS.get(name, (name,))}
    return [name for name in METHODS if name in wanted and name not in pointless]


def _setup(arguments: argparse.Namespace) -> Setup:
    scale = SCALES[arguments.scale]
    epochs = arguments.epochs
    if epochs is None:
        epochs = 0 if arguments.stream in SMALL_BATCHES else scale.epochs
    if arguments.data is not None:
        if not arguments.data.is_dir():
            raise InputError(f"{arguments.data} is no folder: --data takes a folder of task folders")
        return Setup(arguments.base, 0, 0, epochs, str(arguments.data.resolve()))
    return Setup(arguments.base, scale.train, scale.test, epochs)


def _run_missing(arguments: argparse.Namespace, setup: Setup, folder: Path) -> None:
    seeds = arguments.seed or range(arguments.seeds)
    methods = chosen_methods(arguments.method, arguments.stream)
    runs = [(seed, name) for seed in seeds for name in methods]
    runs = [(seed, name) for seed, name in runs if not path_of(folder, name, seed).exists()]
    if not runs:
        return
    settings = {"base": arguments.base, "device": arguments.device, "nice": 0}
    with TemporaryDirectory(prefix="home-", dir=folder) as home, Site.open(Path(home), settings) as site:
        bench = _Bench(arguments, setup, folder, site)
        with told(len(runs)) as teller:
            for seed, name in runs:
                with claimed(path_of(folder, name, seed)) as free:
                    if free:
                        bench.run(seed, name, partial(_tell, teller, f"{name}, seed {seed}"))
                teller.step()
    missing = [f"{name} (seed {seed})" for seed, name in runs if not path_of(folder, name, seed).exists()]
    if missing:
        console.print(f"other programs are still at {', '.join(missing)}: these tables lack them")


def _tell(teller: Teller, title: str, task: str) -> None:
    teller.at(f"{title}: {task}")


class _Bench:
    """Hold a seed's tasks, and their encoded questions, for all methods that run with it."""

    def __init__(self, arguments: argparse.Namespace, setup: Setup, folder: Path, site: Site) -> None:
        self._arguments, self._setup, self._folder, self._site = arguments, setup, folder, site
        self._seed: int | None = None
        self._targets: str | None = None

    def run(self, seed: int, name: str, told: Callable[[str], None]) -> None:
        """Run one method with one seed, and write its record."""
        method, folder = METHODS[name], self._folder
        if seed != self._seed:
            self._tasks = _tasks(self._arguments, self._site, self._setup, seed)
        targets = method.settings.get("targets")
        if seed != self._seed or targets != self._targets:  # lets go of the base that is loaded
            self._scorer = _scorers(self._tasks)
        self._seed, self._targets = seed, targets
        beside = others_under_way(folder, path_of(folder, name, seed))
        plan = Plan(self._site, self._tasks, self._scorer, {"epochs": self._setup.epochs}, seed, told)
        made = {"setup": asdict(self._setup), "data": data_digest(self._tasks), "beside": beside}
        lineage = f"{name}-{seed}"
        digest = self._site.shop(lineage, method.settings).base.digest
        check_comparable(folder, seed, made["data"], digest)
        measured = run(plan, method, lineage)
        add_record(folder, {**measured.to_dict(), **made})
        write_report(folder)


def _tasks(arguments: argparse.Namespace, site: Site, setup: Setup, seed: int) -> list[StreamTask]:
    if arguments.data is not None:
        return read_stream(arguments.data, site.datasets)
    return build_stream(arguments.stream, site.datasets, train=setup.train, test=setup.test, seed=seed)


def _scorers(tasks: Sequence[StreamTask]) -> Callable[[Workshop], Scorer]:
    """Return one scorer for each loaded base."""
    known: dict[int, Scorer] = {}

    def scorer(shop: Workshop) -> Scorer:
        key = id(shop.replicas)
        if key not in known:
            known.clear()
            known[key] = Scorer(shop, tasks)
        return known[key]

    return scorer


if __name__ == "__main__":
    sys.exit(main())
