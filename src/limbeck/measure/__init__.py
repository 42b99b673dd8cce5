from limbeck.measure.cost import Cost as Cost
from limbeck.measure.cost import cost as cost
from limbeck.measure.evidence import Paired as Paired
from limbeck.measure.evidence import Summary as Summary
from limbeck.measure.evidence import paired as paired
from limbeck.measure.evidence import summary as summary
from limbeck.measure.evidence import verdict as verdict
