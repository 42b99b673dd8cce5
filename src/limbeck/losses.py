"""Every pure loss, by name: student first, teacher second, then targets."""

from limbeck.methods.ab import activation_boundary as activation_boundary
from limbeck.methods.adversarial import absolute_error as absolute_error
from limbeck.methods.at import attention as attention
from limbeck.methods.cwd import channelwise as channelwise
from limbeck.methods.dist import dist_inter as dist_inter
from limbeck.methods.dist import dist_intra as dist_intra
from limbeck.methods.dist import relations as dist
from limbeck.methods.dkd import decoupled as dkd
from limbeck.methods.dkd import dkd_others as dkd_others
from limbeck.methods.dkd import dkd_target as dkd_target
from limbeck.methods.fitnets import hint as hint
from limbeck.methods.fsp import flow_distance as fsp
from limbeck.methods.ft import factor as factor
from limbeck.methods.kd import soft_cross_entropy as soft_cross_entropy
from limbeck.methods.kd import soft_target as soft_target
from limbeck.methods.logits import logit_regression as logit_regression
from limbeck.methods.ls import label_smoothing as label_smoothing
from limbeck.methods.nst import neuron_selectivity as neuron_selectivity
from limbeck.methods.ofd import margin_relu as margin_relu
from limbeck.methods.pkt import probability as probability
from limbeck.methods.review import hierarchical_context as review
from limbeck.methods.rkd import rkd_angle as rkd_angle
from limbeck.methods.rkd import rkd_distance as rkd_distance
from limbeck.methods.sp import similarity as similarity
from limbeck.task import cross_entropy as cross_entropy
