"""limbeck: train a small network to carry what a large one knows."""

import importlib
from typing import TYPE_CHECKING, Any

# the core: torch alone
from limbeck import losses as losses
from limbeck.exhibits import Exhibit as Exhibit
from limbeck.finding import Finding as Finding
from limbeck.frozen import Frozen as Frozen
from limbeck.frozen import matched as matched
from limbeck.inherit import Inheritance as Inheritance
from limbeck.inherit import Inherited as Inherited
from limbeck.inherit import initialize as initialize
from limbeck.layers import Layer as Layer
from limbeck.layers import layers as layers
from limbeck.layers import pairs as pairs
from limbeck.method import Distill as Distill
from limbeck.method import Method as Method
from limbeck.method import Turn as Turn
from limbeck.method import add as add
from limbeck.method import optimizers as optimizers
from limbeck.method import play as play

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
from limbeck.objective import IDS as IDS
from limbeck.objective import Loss as Loss
from limbeck.objective import M as M
from limbeck.objective import Objective as Objective
from limbeck.objective import S as S
from limbeck.objective import Source as Source
from limbeck.objective import T as T
from limbeck.objective import X as X
from limbeck.objective import Y as Y
from limbeck.objective import on as on
from limbeck.stage import Stage as Stage
from limbeck.stage import linear as linear
from limbeck.task import Score as Score
from limbeck.task import Task as Task
from limbeck.tasks import classification as classification
from limbeck.tasks import multilabel as multilabel
from limbeck.tasks import regression as regression
from limbeck.tasks import segmentation as segmentation
from limbeck.trace import Trace as Trace
from limbeck.trace import record as record

if TYPE_CHECKING:  # the engine: needs limbeck[train], and is imported when it is first asked for
    from limbeck import data as data
    from limbeck import measure as measure
    from limbeck import zoo as zoo
    from limbeck.checkup import Checkup as Checkup
    from limbeck.checkup import check as check
    from limbeck.comparison import Entry as Entry
    from limbeck.comparison import compare as compare
    from limbeck.comparison import grid as grid
    from limbeck.distillation import distill as distill
    from limbeck.engine.evaluate import evaluate as evaluate
    from limbeck.engine.fit import Result as Result
    from limbeck.engine.fit import fit as fit
    from limbeck.engine.learner import ChanceWarning as ChanceWarning
    from limbeck.engine.learner import NoEffectWarning as NoEffectWarning
    from limbeck.exporting import Exported as Exported
    from limbeck.exporting import ExportError as ExportError
    from limbeck.exporting import export as export
    from limbeck.measure.cost import Cost as Cost
    from limbeck.measure.cost import cost as cost
    from limbeck.tuning import Range as Range
    from limbeck.tuning import Tuning as Tuning
    from limbeck.tuning import tune as tune

_ENGINE = {
    "data": "limbeck.data",
    "measure": "limbeck.measure",
    "zoo": "limbeck.zoo",
    "Checkup": "limbeck.checkup",
    "check": "limbeck.checkup",
    "Entry": "limbeck.comparison",
    "compare": "limbeck.comparison",
    "grid": "limbeck.comparison",
    "distill": "limbeck.distillation",
    "evaluate": "limbeck.engine.evaluate",
    "Result": "limbeck.engine.fit",
    "fit": "limbeck.engine.fit",
    "ChanceWarning": "limbeck.engine.learner",
    "NoEffectWarning": "limbeck.engine.learner",
    "Exported": "limbeck.exporting",
    "ExportError": "limbeck.exporting",
    "export": "limbeck.exporting",
    "Cost": "limbeck.measure.cost",
    "cost": "limbeck.measure.cost",
    "Range": "limbeck.tuning",
    "Tuning": "limbeck.tuning",
    "tune": "limbeck.tuning",
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
