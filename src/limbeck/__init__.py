"""limbeck: train a small network to carry what a large one knows."""

# the core: torch alone
from limbeck import losses as losses
from limbeck.frozen import Frozen as Frozen
from limbeck.layers import Layer as Layer
from limbeck.layers import layers as layers
from limbeck.layers import pairs as pairs
from limbeck.method import Distill as Distill
from limbeck.method import Method as Method
from limbeck.method import Turn as Turn
from limbeck.method import optimizers as optimizers
from limbeck.method import play as play

# the methods: one paper, one file
from limbeck.methods import adversarial as adversarial
from limbeck.methods import at as at
from limbeck.methods import ban as ban
from limbeck.methods import dml as dml
from limbeck.methods import fitnets as fitnets
from limbeck.methods import kd as kd
from limbeck.methods import logits as logits
from limbeck.methods import ls as ls
from limbeck.methods import plain as plain
from limbeck.methods import rkd as rkd
from limbeck.nets.ensemble import Ensemble as Ensemble
from limbeck.objective import Loss as Loss
from limbeck.objective import Objective as Objective
from limbeck.objective import S as S
from limbeck.objective import Source as Source
from limbeck.objective import T as T
from limbeck.objective import X as X
from limbeck.objective import Y as Y
from limbeck.objective import on as on
from limbeck.stage import Stage as Stage
from limbeck.stage import linear as linear
from limbeck.task import Task as Task
from limbeck.task import classification as classification
from limbeck.trace import Trace as Trace
from limbeck.trace import record as record
