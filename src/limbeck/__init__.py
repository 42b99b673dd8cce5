"""limbeck: train a small network to carry what a large one knows."""

import importlib
from typing import TYPE_CHECKING, Any

from limbeck.core import quiet as quiet  # before what takes seconds

# isort: split
# the core: torch alone
from limbeck import losses as losses
from limbeck.core.exhibits import Exhibit as Exhibit
from limbeck.core.finding import Finding as Finding
from limbeck.core.frozen import Frozen as Frozen
from limbeck.core.frozen import matched as matched
from limbeck.core.layers import Layer as Layer
from limbeck.core.layers import layers as layers
from limbeck.core.layers import pairs as pairs
from limbeck.core.method import Distill as Distill
from limbeck.core.method import Method as Method
from limbeck.core.method import NoEffectWarning as NoEffectWarning
from limbeck.core.method import Turn as Turn
from limbeck.core.method import add as add
from limbeck.core.method import optimizers as optimizers
from limbeck.core.method import play as play
from limbeck.core.objective import IDS as IDS
from limbeck.core.objective import Loss as Loss
from limbeck.core.objective import M as M
from limbeck.core.objective import Objective as Objective
from limbeck.core.objective import S as S
from limbeck.core.objective import Source as Source
from limbeck.core.objective import T as T
from limbeck.core.objective import X as X
from limbeck.core.objective import Y as Y
from limbeck.core.objective import on as on
from limbeck.core.stage import Stage as Stage
from limbeck.core.stage import linear as linear
from limbeck.core.task import Score as Score
from limbeck.core.task import Task as Task
from limbeck.core.trace import Trace as Trace
from limbeck.core.trace import record as record

# the methods: one paper, one file
from limbeck.methods import ab as ab
from limbeck.methods import adversarial as adversarial
from limbeck.methods import at as at
from limbeck.methods import ban as ban
from limbeck.methods import bounded as bounded
from limbeck.methods import byot as byot
from limbeck.methods import cc as cc
from limbeck.methods import crd as crd
from limbeck.methods import cwd as cwd
from limbeck.methods import dekd as dekd
from limbeck.methods import dist as dist
from limbeck.methods import dkd as dkd
from limbeck.methods import dml as dml
from limbeck.methods import embedding as embedding
from limbeck.methods import embedding_table as embedding_table
from limbeck.methods import fitnets as fitnets
from limbeck.methods import fsp as fsp
from limbeck.methods import ft as ft
from limbeck.methods import gradient as gradient
from limbeck.methods import jacobian as jacobian
from limbeck.methods import kd as kd
from limbeck.methods import kpn as kpn
from limbeck.methods import logits as logits
from limbeck.methods import ls as ls
from limbeck.methods import mgd as mgd
from limbeck.methods import mimic as mimic
from limbeck.methods import nst as nst
from limbeck.methods import ofd as ofd
from limbeck.methods import one as one
from limbeck.methods import pkt as pkt
from limbeck.methods import plain as plain
from limbeck.methods import rekd as rekd
from limbeck.methods import review as review
from limbeck.methods import rkd as rkd
from limbeck.methods import sp as sp
from limbeck.methods import takd as takd
from limbeck.methods import tfkd_reg as tfkd_reg
from limbeck.methods import tfkd_self as tfkd_self
from limbeck.methods import vid as vid
from limbeck.methods import weights as weights
from limbeck.methods import weights_outputs as weights_outputs
from limbeck.nets.ensemble import Ensemble as Ensemble
from limbeck.nets.estimator import SklearnTeacher as SklearnTeacher
from limbeck.nets.exits import EarlyExit as EarlyExit
from limbeck.nets.exits import with_exits as with_exits
from limbeck.nets.sections import sections as sections
from limbeck.tasks import classification as classification
from limbeck.tasks import multilabel as multilabel
from limbeck.tasks import regression as regression
from limbeck.tasks import segmentation as segmentation
from limbeck.verbs.initialize import Inheritance as Inheritance
from limbeck.verbs.initialize import Inherited as Inherited
from limbeck.verbs.initialize import initialize as initialize

if TYPE_CHECKING:  # the engine: needs limbeck[train], and is imported when it is first asked for
    from limbeck import data as data
    from limbeck import measure as measure
    from limbeck import zoo as zoo
    from limbeck.engine.fit import Result as Result
    from limbeck.engine.fit import fit as fit
    from limbeck.engine.learner import ChanceWarning as ChanceWarning
    from limbeck.measure.cost import Cost as Cost
    from limbeck.measure.cost import cost as cost
    from limbeck.measure.evaluate import evaluate as evaluate
    from limbeck.verbs.check import Checkup as Checkup
    from limbeck.verbs.check import check as check
    from limbeck.verbs.compare import Entry as Entry
    from limbeck.verbs.compare import compare as compare
    from limbeck.verbs.compare import grid as grid
    from limbeck.verbs.distill import distill as distill
    from limbeck.verbs.export import Exported as Exported
    from limbeck.verbs.export import ExportError as ExportError
    from limbeck.verbs.export import export as export
    from limbeck.verbs.tune import Range as Range
    from limbeck.verbs.tune import Tuning as Tuning
    from limbeck.verbs.tune import tune as tune

_ENGINE = {
    "data": "limbeck.data",
    "measure": "limbeck.measure",
    "zoo": "limbeck.zoo",
    "Checkup": "limbeck.verbs.check",
    "check": "limbeck.verbs.check",
    "Entry": "limbeck.verbs.compare",
    "compare": "limbeck.verbs.compare",
    "grid": "limbeck.verbs.compare",
    "distill": "limbeck.verbs.distill",
    "evaluate": "limbeck.measure.evaluate",
    "Result": "limbeck.engine.fit",
    "fit": "limbeck.engine.fit",
    "ChanceWarning": "limbeck.engine.learner",
    "Exported": "limbeck.verbs.export",
    "ExportError": "limbeck.verbs.export",
    "export": "limbeck.verbs.export",
    "Cost": "limbeck.measure.cost",
    "cost": "limbeck.measure.cost",
    "Range": "limbeck.verbs.tune",
    "Tuning": "limbeck.verbs.tune",
    "tune": "limbeck.verbs.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _ENGINE:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    module = importlib.import_module(_ENGINE[name])
    value = module if module.__name__ == f"limbeck.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ENGINE})
