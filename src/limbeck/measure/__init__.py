from limbeck.measure.cost import Cost as Cost
from limbeck.measure.cost import cost as cost
from limbeck.measure.evidence import Judgement as Judgement
from limbeck.measure.evidence import Paired as Paired
from limbeck.measure.evidence import Summary as Summary
from limbeck.measure.evidence import judge as judge
from limbeck.measure.evidence import paired as paired
from limbeck.measure.evidence import summary as summary
