"""Which options suit this case: a search that never sees the test data, and then one look at it."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from limbeck.core.batches import samples as samples_of
from limbeck.core.extras import needing
from limbeck.core.files import hold
from limbeck.core.heard import shown_once
from limbeck.core.method import Make
from limbeck.core.options import ranged
from limbeck.core.task import Task
from limbeck.data import Data, Epochs
from limbeck.data.epochs import known, seed_of
from limbeck.engine.assemble import GIVEN, parameters_of
from limbeck.engine.fit import Precision, task_of
from limbeck.engine.inputs import refuse_another
from limbeck.engine.learner import Schedule
from limbeck.engine.named import data_of, made_by_name
from limbeck.engine.precision import Teachers, TeacherType
from limbeck.engine.run import Run
from limbeck.report.tuning import COMPARED, State, Trial, best_of, write_tuning
from limbeck.report.tuning import Tuning as Tuning
from limbeck.verbs.compare import LOOK_EVERY, compare, progress_bar
from limbeck.verbs.runs import BASELINE, LOCK, NETWORKS, Entry, Runs

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

SEARCH_SEEDS = 10_000
"""Where the seeds of a search begin: those of the comparison after it, from 0 on, are fresh."""
JOURNAL, TRIALS = "study.journal", "trials"
REMEDY = f"remove {JOURNAL}: the search begins again and reads the trials that are trained"
LEAST_SAMPLES = 100
"""Validation samples below which a share says little: its standard error is 3 points at 90 %."""
UNPRUNED_TRIALS = 5
"""Trials that are trained to the end before any is stopped early; Optuna's default."""
UNPRUNED_SHARE = 1 / 3
"""Of a trial, in which it is not stopped: a high temperature or a large weight begins slowly. Ours."""
TOLD_TRIALS = 6
"""Complete trials below which importances are not told."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included; whole ones for an option that is an ``int``.

    Args:
        low: The least.
        high: The largest, above ``low``.
        log: Search evenly over orders of magnitude; right for temperatures and weights. ``low`` is then above 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs low < high, both finite, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range on a log scale needs low > 0, got {self.low}")


Search = Mapping[str, Range | Sequence[Any]]
"""Options by name: a range, or a list of choices."""


@ranged
@shown_once()
def tune(
    method: str,
    student: Callable[[], nn.Module] | str,
    teacher: nn.Module | str | None,
    data: Any,
    search: Search,
    *,
    task: Task | None = None,
    epochs: int,
    run_dir: str | os.PathLike[str],
    trials: int = 20,
    options: Mapping[str, Any] | None = None,
    seeds: int = 1,
    final_seeds: int = 3,
    seed: int = 0,
    at_once: int = 1,
    optimizer: Make | Mapping[str, Make] | None = None,
    schedule: Schedule | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    channels_last: bool = False,
    compile: bool = False,
    teachers: Teachers = "whole",
    teacher_dtype: TeacherType = "own",
    accumulate: int = 1,
    clip: float | None = None,
    progress: bool | None = None,
) -> Tuning:
    """Search a method's options on the validation data; then compare the best with the defaults on the test data, once.

    A trial trains the student with options that Optuna's TPE suggests (Bergstra et al. 2011; Optuna's defaults, seeded).
    The first trial has the method's defaults, if these are in the search. A search of choices alone, of no more
    combinations than trials, tries each once. A trial's score is that on the validation data *after the last epoch*, as
    that network is what a training leaves; the best epoch's would reward noise. All trials share their seeds, and so
    initial weights and order of the data. A trial whose best score so far is worse than the median of the others at that
    epoch is stopped, after the first 5 trials and the first third of its epochs; a method of stages is not, as its first
    ones show nothing yet. A trial that diverges has no score, and is not made again.

    Afterwards the best options are trained with fresh seeds, beside the defaults and the plain student, by
    `limbeck.compare`; only that touches the test data. Decide on the number of trials beforehand: who looks at the test
    and searches on has chosen by it, which the findings then say.

    The same call may be made by several processes at once, on machines that share the folder too: each makes the next trial
    that no other is at, and then a run of the comparison, and all return the same. A process that dies, however it dies,
    leaves its trial to the others, which go on with it. What is made side by side has to be suggested at once, and
    ``at_once`` says how much: the trials go in rounds of so many, and each is suggested, and stopped early, by the rounds
    before it and by nothing else. So a search comes to the same by any number of processes; more of them than ``at_once``
    make it no faster.

    ``run_dir`` holds ``study.journal`` (Optuna's; optuna-dashboard opens it), the trainings in ``trials/`` and
    ``comparison/``, ``tuning.json`` and ``report.html``. The same call goes on where a former one ended, however it ended,
    and comes to the same; with more trials it searches on.

    Args:
        method: Its name: ``limbeck list methods`` shows all; or a sum of several, ``"kd+at"``, see `limbeck.add`.
        student: As for `compare`.
        teacher: As for `compare`.
        data: As for `compare`; where scores are percentages, with at least 100 validation samples.
        search: A `Range` or a list of choices for each option: ``{"temperature": Range(1, 20, log=True),
            "alpha": Range(0.1, 1)}``. `limbeck.pairs` finds layers to choose among:
            ``{"layers": [[pair] for pair in pairs]}``.
        task: As for `compare`.
        epochs: Of each training, all its stages together, at least 1.
        run_dir: The folder of the search.
        trials: How many, in all, at least 1; 20 is ours, of which TPE draws the first 10 at random.
        options: Further keyword arguments of the method, the same for all trials.
        seeds: Trainings of a trial, whose mean is its score, at least 1.
        final_seeds: Trainings of the best options, of the defaults and of the plain student at the end, at least 1.
        seed: Of the search, at least 0.
        at_once: Trials of a round, at least 1. With 1, every trial learns from all before it; in a round of 8, none learns
            from the other 7.
        optimizer: As for `fit`.
        schedule: As for `fit`.
        precision: As for `fit`.
        accelerator: As for `fit`.
        channels_last: As for `fit`.
        compile: As for `fit`.
        teachers: As for `fit`.
        teacher_dtype: As for `fit`.
        accumulate: As for `fit`, at least 1.
        clip: As for `fit`, above 0.
        progress: Show a progress bar; by default where standard error is a terminal.

    Raises:
        ValueError: An option that the method does not have, a range or choices that make no sense or that it refuses, too
            few validation samples, or another search in ``run_dir``.
        TypeError: A search that is neither range nor list, a student that is no function, an argument of another type.
        FloatingPointError: Every trial diverged.
        ModuleNotFoundError: Optuna is not installed.
        KeyboardInterrupt: Ctrl-C, after a checkpoint: the same call goes on.
    """
    _check_search(method, search, options or {})
    data = data_of(data, seed=0)
    task = task or task_of(data)
    student, teacher = made_by_name(student, teacher, data, task)
    samples = _check_validation(data, task)
    folder = Path(run_dir)
    training: dict[str, Any] = {
        "optimizer": optimizer,
        "schedule": schedule,
        "precision": precision,
        "accelerator": accelerator,
        "channels_last": channels_last,
        "compile": compile,
        "teachers": teachers,
        "teacher_dtype": teacher_dtype,
        "accumulate": accumulate,
        "clip": clip,
    }
    alone = {**training, "devices": 1, "strategy": "auto"}
    runs = Runs(student, teacher, data, folder / TRIALS, alone, "val", task)
    with _quiet():
        under_way = _Search(runs, method, options or {}, search, epochs, seeds, seed, at_once, folder)
    runs.check([Entry(method, {**(options or {}), **corner}) for corner in _corners(search)])
    with _quiet():
        with under_way.alone():
            study = under_way.open()
        with progress_bar(progress) as bar:
            under_way.run(study, trials, bar)
        return _conclude(under_way, study, folder, data, training, samples, final_seeds, progress)


@dataclass
class _Search:
    """A search under way: what its trials share."""

    runs: Runs
    method: str
    options: Mapping[str, Any]
    search: Search
    epochs: int
    seeds: int
    seed: int
    at_once: int
    folder: Path

    def __post_init__(self) -> None:
        self.spaces = {name: _space(self.method, name, values) for name, values in self.search.items()}

    def alone(self) -> AbstractContextManager[bool]:
        """Keep other processes of the search waiting, for what takes a moment."""
        return hold(self.folder / LOCK, wait=True)

    def open(self) -> optuna.Study:
        """Open the study in the folder, or begin one.

        Raises:
            ValueError: There is another, or its journal is damaged, or says other scores than the trials' runs.
        """
        import optuna

        from limbeck.verbs.journal import Journal

        path = self.folder / JOURNAL
        study = optuna.create_study(
            study_name=f"limbeck tune {self.method}",
            storage=optuna.storages.JournalStorage(Journal(path)),
            direction=self._direction,
            load_if_exists=True,
        )
        mine, was = self._settings(), study.user_attrs.get("search")
        if was is None:
            study.set_user_attr("search", mine)
        elif "limbeck" not in was:
            raise ValueError(
                f"{path} does not say all that its search depends on, as those of an older limbeck do not: nobody can tell "
                "whether it is this one. Take another run_dir"
            )
        else:
            refuse_another(self.folder, was, mine)
        for trial in finished(study):
            self._see_scores(trial, path)
        return study

    def _see_scores(self, trial: optuna.trial.FrozenTrial, path: Path) -> None:
        """See that a finished trial has the scores that its runs have, and that these have their pages.

        Raises:
            ValueError: It has others.
        """
        entry, values = self._entry(self._values(trial.params)), trial.user_attrs.get("values", [])
        for seed, value in enumerate(values, SEARCH_SEEDS + self.seed):
            place = self.runs.place(entry, seed)
            if place is None or not Run(place).begun:  # taken away: the journal knows what it reached
                continue
            outcome = self.runs.outcome(
                entry, seed, self.epochs, lambda metrics, step: None
            )  # with what it lacks, a page
            if outcome is None or outcome.value != value:
                raise ValueError(
                    f"{path} says that trial {trial.number + 1} reached {value}, and its run in {place} reached "
                    f"{outcome and outcome.value}: one of the two was changed. If the run is right, {REMEDY}; if not, "
                    "remove its folder too"
                )
        if trial.state.name == "COMPLETE" and trial.value != fmean(values):
            raise ValueError(
                f"{path} says {trial.value} for trial {trial.number + 1}, whose runs reached {values}: {REMEDY}"
            )

    def run(self, study: optuna.Study, trials: int, bar: Progress) -> None:
        """Make the trials that are missing, or wait for the processes that do, until all are there."""
        first, exhaustive = self._plan(trials)
        total = len(first) if exhaustive else trials
        prunes = not self.runs.in_stages(self._entry(next(_corners(self.search))))
        each = self.seeds * self.epochs
        task = bar.add_task("trial 1", total=each * total)
        while True:
            with self.alone():
                earlier, left = self._round(study, first, total)
            if not left:
                return
            done = len(finished(study))
            bar.update(task, description=f"trial {done + 1}", completed=each * done)
            advance = partial(_advance, bar, task, each * done)
            if not any(self._made(study, trial, earlier, prunes, advance) for trial in left):
                bar.update(task, description="waiting for other processes")
                time.sleep(LOOK_EVERY)

    def trial(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        """Return a finished trial as the report has it."""
        stopped = frozen.state.name == "PRUNED"
        state: State = "stopped" if stopped else "diverged" if "diverged" in frozen.user_attrs else "complete"
        epochs = self.seeds * self.epochs if state == "complete" else max(frozen.intermediate_values, default=0)
        values = frozen.user_attrs.get("values") or frozen.user_attrs.get("accuracies", ())  # of an older search
        return Trial({**self.options, **self._values(frozen.params)}, state, tuple(values), epochs)

    def _plan(self, trials: int) -> tuple[list[dict[str, Any]], bool]:
        """Return what is tried first, the defaults, and whether that is all: every combination, if there are few."""
        default = self._default()
        first = [] if default is None else [default]
        labels = [
            [str(choice) for choice in values] for values in self.search.values() if not isinstance(values, Range)
        ]
        if len(labels) < len(self.search) or math.prod(map(len, labels)) > trials:
            return first, False
        every = [dict(zip(self.search, chosen, strict=True)) for chosen in itertools.product(*labels)]
        return sorted(every, key=lambda params: params not in first), True

    def _default(self) -> dict[str, Any] | None:
        """Return the method's defaults as Optuna's parameters, if all of them are in the search."""
        parameters = parameters_of(self.method)
        found: dict[str, Any] = {}
        for name, values in self.search.items():
            default = parameters[name].default
            if isinstance(values, Range):
                if not isinstance(default, (int, float)) or not values.low <= default <= values.high:
                    return None
                found[name] = default
            elif default in values:
                found[name] = str(default)
            else:
                return None
        return found

    def _round(
        self, study: optuna.Study, first: Sequence[Mapping[str, Any]], total: int
    ) -> tuple[list[optuna.trial.FrozenTrial], list[optuna.trial.FrozenTrial]]:
        """Return the trials of the rounds before the one that is open, and those of that one which are not finished.

        Those of the round that nobody has asked for yet are asked for, so this is for one process at a time.
        """
        while True:
            asked = self._asked(study)
            open_ = next((index for index, trial in enumerate(asked) if not _is_finished(trial)), len(asked))
            begin = open_ // self.at_once * self.at_once
            end = min(begin + self.at_once, total)
            if len(asked) >= end:
                return asked[:begin], [trial for trial in asked[open_:end] if not _is_finished(trial)]
            tried = [trial.params for trial in asked]
            planned = next((params for params in first if params not in tried), None)
            self._ask(study, planned or self._suggested(asked[:begin], len(asked)))

    def _asked(self, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count; one that was being asked for as its process was killed is no trial."""
        from optuna.trial import TrialState

        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if trial.params.keys() != self.spaces.keys():
                study.tell(trial.number, state=TrialState.FAIL)
        there = study.get_trials(deepcopy=False)
        return [trial for trial in there if trial.state == TrialState.RUNNING or _is_finished(trial)]

    def _ask(self, study: optuna.Study, params: Mapping[str, Any]) -> None:
        """Begin a trial with these parameters, or with those that a process had as it was killed over this."""
        from optuna.trial import TrialState

        if not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(dict(params))
        study.ask(self.spaces)

    def _suggested(self, earlier: Sequence[optuna.trial.FrozenTrial], index: int) -> dict[str, Any]:
        """Return what TPE suggests for a trial.

        The sampler is made anew for each, so that what it suggests depends on the seed and the trials of earlier rounds
        alone, and a search that goes on, or that several processes make, suggests what it would have.
        """
        import optuna

        study = self._of(earlier)
        study.sampler = optuna.samplers.TPESampler(seed=seed_of("tune", self.seed, index) % 2**32)
        return study.ask(self.spaces).params

    def _of(self, trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.Study:
        """Return a study of these trials and no others."""
        import optuna

        study = optuna.create_study(direction=self._direction)
        study.add_trials(trials)
        return study

    @property
    def _direction(self) -> Literal["maximize", "minimize"]:
        return "maximize" if self.runs.score.best == "highest" else "minimize"

    def _made(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        earlier: Sequence[optuna.trial.FrozenTrial],
        prunes: bool,
        advance: Callable[[float], None],
    ) -> bool:
        """Make a trial, or go on with one whose process died, unless another process is at it; whether it is made."""
        entry = self._entry(self._values(trial.params))
        with hold(self.folder / TRIALS / entry.folder / LOCK) as mine:  # trials alike are made one after the other
            if not mine:
                return False
            now = study.get_trials()[trial.number]
            return _is_finished(now) or self._try(study, now, entry, self._of(earlier) if prunes else None, advance)

    def _try(
        self,
        study: optuna.Study,
        now: optuna.trial.FrozenTrial,
        entry: Entry,
        others: optuna.Study | None,
        advance: Callable[[float], None],
    ) -> bool:
        """Train a trial's seeds, one after the other; return False where some other process trains there.

        Args:
            study: The search.
            now: The trial as it stands.
            entry: What it trains.
            others: Those by which it is stopped early, if it may be.
            advance: Is told how many epochs are trained.
        """
        import optuna

        trial, values = optuna.Trial(study, now._trial_id), list[float]()
        pruner = optuna.pruners.MedianPruner(UNPRUNED_TRIALS, math.ceil(UNPRUNED_SHARE * self.epochs))

        def report(metrics: Mapping[str, float], step: int) -> None:
            """Tell Optuna how good the seeds are so far."""
            ending = f"/{self.runs.score.name}"
            reached = next(of for name, of in metrics.items() if name.startswith("val/") and name.endswith(ending))
            epoch = len(values) * self.epochs + step // self.runs.batches
            advance(epoch)
            if epoch not in now.intermediate_values:  # again, where a process died between this line and its checkpoint
                trial.report(fmean([*values, reached]), epoch)
            if others is not None and pruner.prune(others, study.get_trials()[now.number]):
                raise optuna.TrialPruned(f"worse than the median of the others after {epoch} epochs")

        try:
            for seed in range(SEARCH_SEEDS + self.seed, SEARCH_SEEDS + self.seed + self.seeds):
                outcome = self.runs.outcome(entry, seed, self.epochs, report)
                if outcome is None:
                    return False
                values.append(outcome.value)
                trial.set_user_attr("values", values)
            study.tell(trial, fmean(values))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except FloatingPointError as error:
            trial.set_user_attr("diverged", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return True

    def _entry(self, values: Mapping[str, Any]) -> Entry:
        return Entry(self.method, {**self.options, **values})

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return Optuna's parameters as the method's arguments."""
        return {name: _value(params[name], values) for name, values in self.search.items()}

    def _settings(self) -> dict[str, Any]:
        """What tells this search from others; the number of trials does not."""
        ranges = {name: str(values) for name, values in self.search.items()}
        settings = self.runs.settings(self._entry({}), SEARCH_SEEDS + self.seed, self.epochs)
        return {**settings, "search": ranges, "seeds": self.seeds, "at_once": self.at_once}


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that need not be made again."""
    return [trial for trial in study.get_trials() if _is_finished(trial)]


def _is_finished(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial need not be made again: of those that failed, one that diverged."""
    return trial.state.is_finished() and (trial.state.name != "FAIL" or "diverged" in trial.user_attrs)


def _conclude(
    under_way: _Search,
    study: optuna.Study,
    folder: Path,
    data: Any,
    training: Mapping[str, Any],
    samples: int,
    final_seeds: int,
    progress: bool | None,
) -> Tuning:
    """Compare the best options with the defaults, on the test data."""
    trials = tuple(under_way.trial(frozen) for frozen in finished(study))
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        raise FloatingPointError(
            f"all {len(trials)} trials diverged: lower the learning rate, clip gradients, or search smaller weights"
        )
    best = best_of(complete, under_way.runs.score)
    with under_way.alone():
        looks = study.user_attrs.get("looks", [])
        if len(trials) not in looks:
            study.set_user_attr("looks", looks := [*looks, len(trials)])
    method, runs = under_way.method, under_way.runs
    entries = [Entry(method, under_way.options, name=f"{method}, defaults")]
    if not _is_default(method, best.options, under_way.search):
        entries.append(Entry(method, best.options))
    place = folder / COMPARED
    comparison = compare(
        entries,
        runs.student,
        runs.teacher,
        data,
        task=runs.task,
        epochs=under_way.epochs,
        seeds=final_seeds,
        check=False,
        run_dir=place,
        progress=progress,
        **training,
    )
    tuning = Tuning(
        method,
        tuple(under_way.search),
        trials,
        _importance(study, complete),
        samples,
        comparison,
        {
            entry.name: tuple(
                _validated(place / entry.folder / f"seed-{seed}", runs.score.name) for seed in range(final_seeds)
            )
            for entry in (Entry(BASELINE), *entries)
        },
        tuple(looks),
    )
    versions = {"torch": torch.__version__, "Python": sys.version.split()[0]}
    facts = {
        "Epochs": str(under_way.epochs),
        "Seed": str(under_way.seed),
        "Versions": ", ".join(map(" ".join, versions.items())),
    }
    with under_way.alone():
        write_tuning(tuning, folder, facts=facts)
    return tuning


def _importance(study: optuna.Study, complete: Sequence[Trial]) -> dict[str, float]:
    """Return how much each option matters, where there are trials enough to say anything."""
    if len(complete) < TOLD_TRIALS or len({trial.score for trial in complete}) == 1:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _validated(run: Path, score: str) -> float:
    """Read a finished run's score on the validation data."""
    networks = Run(run).result()["networks"]
    return float(next(iter(networks.values()))["val"][score])


def _check_search(method: str, search: Search, options: Mapping[str, Any]) -> None:
    """Raise an error for a search that cannot be, before the method is asked what it thinks of it."""
    own = [name for name in parameters_of(method) if name not in GIVEN]
    if not own:
        raise ValueError(f"{method} has no options to search")
    if not search:
        raise ValueError(f"there is nothing to search: name options of {method}, which has {', '.join(own)}")
    for name, values in search.items():
        if name in options:
            raise ValueError(f"{name} is fixed, at {options[name]!r}, and searched: it can be one of the two")
        if name in NETWORKS:
            raise ValueError(f"{name} are networks, without a default to stand beside: limbeck.compare compares them")
        if isinstance(values, Range):
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{name} needs a Range or a list of choices, got {values!r}")
        if len(values) < 2 or len(set(map(str, values))) < len(values):
            raise ValueError(f"{name} needs at least two choices, all different, got {list(values)}")


def _check_validation(data: Any, task: Task) -> int:
    """Return how many labelled validation samples there are.

    Raises:
        ValueError: There are none, or too few.
    """
    val = data.val if isinstance(data, Data) else data[1] if isinstance(data, tuple) and len(data) == 3 else None
    if val is None:
        raise ValueError(
            "a search is scored on validation data: pass a limbeck.data.Data, or loaders (train, val, test)"
        )
    held = val.targets if isinstance(val, Epochs) else None
    targets = map(task.target, val) if held is None else [held[val.ids.to(held.device)]]
    samples = sum(map(_labelled, targets))
    least = LEAST_SAMPLES if task.score.unit == "%" else 2
    if samples < least:
        raise ValueError(
            f"a search needs at least {least} validation samples to be more than luck, got {samples}: hold out "
            "more (val_share, --val-share)"
        )
    return samples


def _labelled(target: Any) -> int:
    """Return how many samples have a label, of pixels or several labels one at least."""
    return int(known(target).sum()) if isinstance(target, Tensor) else samples_of(target)


def _corners(search: Search) -> Iterator[dict[str, Any]]:
    """Yield options such that every bound and every choice is in one of them."""
    listed = {name: (of.low, of.high) if isinstance(of, Range) else of for name, of in search.items()}
    for index in range(max(map(len, listed.values()))):
        yield {name: values[min(index, len(values) - 1)] for name, values in listed.items()}


def _space(method: str, name: str, values: Range | Sequence[Any]) -> BaseDistribution:
    """Return what Optuna draws from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(
            [str(choice) for choice in values]
        )  # a choice may be a list, a study holds words
    if not _is_whole(method, name):
        return FloatDistribution(values.low, values.high, log=values.log)
    if values.low % 1 or values.high % 1:
        raise ValueError(f"{name} of {method} is a whole number, and so are the bounds of its range, got {values}")
    return IntDistribution(int(values.low), int(values.high), log=values.log)


def _is_whole(method: str, name: str) -> bool:
    """Whether an option is a whole number, by its annotation.

    Raises:
        ValueError: It is no number.
    """
    parameters = parameters_of(method)
    hint = parameters[name].annotation if name in parameters else float  # what it does not have, it says itself
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if float in kinds:
        return False
    if int not in kinds:
        raise ValueError(f"{name} of {method} is no number: list its choices, in place of a range")
    return True


def _value(drawn: Any, values: Range | Sequence[Any]) -> Any:
    """Return what was drawn as an option's value: of a real number the digits that matter, as people will copy it."""
    if not isinstance(values, Range):
        return next(choice for choice in values if str(choice) == drawn)
    if isinstance(drawn, int):
        return drawn
    step = (drawn if values.log else values.high - values.low) / 100
    return min(max(round(drawn, -math.floor(math.log10(step))), values.low), values.high)


def _is_default(method: str, options: Mapping[str, Any], search: Search) -> bool:
    parameters = parameters_of(method)
    return all(options[name] == parameters[name].default for name in search)


def _advance(bar: Progress, task: TaskID, before: int, epochs: float) -> None:
    bar.update(task, completed=before + epochs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling what it does."""
    with needing("tune", "a search"):
        from optuna import logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
