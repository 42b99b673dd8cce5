"""What a network costs, how it answers, how two of them differ, and what several seeds show."""

from limbeck.measure.cka import MinibatchCKA as MinibatchCKA
from limbeck.measure.cka import cka as cka
from limbeck.measure.cost import Cost as Cost
from limbeck.measure.cost import batch_latency_ms as batch_latency_ms
from limbeck.measure.cost import cost as cost
from limbeck.measure.early_exit import Operating as Operating
from limbeck.measure.early_exit import calibrate as calibrate
from limbeck.measure.early_exit import exit_curve as exit_curve
from limbeck.measure.evidence import Judgement as Judgement
from limbeck.measure.evidence import Paired as Paired
from limbeck.measure.evidence import Summary as Summary
from limbeck.measure.evidence import judge as judge
from limbeck.measure.evidence import paired as paired
from limbeck.measure.evidence import summary as summary
from limbeck.measure.logits import agreement as agreement
from limbeck.measure.logits import calibration as calibration
from limbeck.measure.logits import confusion as confusion
from limbeck.measure.logits import divergence as divergence
from limbeck.measure.logits import per_class as per_class
from limbeck.measure.networks import Outputs as Outputs
from limbeck.measure.networks import SideBySide as SideBySide
from limbeck.measure.networks import outputs as outputs
from limbeck.measure.networks import robustness as robustness
from limbeck.measure.networks import side_by_side as side_by_side
