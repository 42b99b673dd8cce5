# The methods, a line each: for type checkers, and for lazy_loader, which imports each when it is first asked for.

from .ab import ab as ab
from .adversarial import adversarial as adversarial
from .at import at as at
from .ban import ban as ban
from .bounded import bounded as bounded
from .byot import byot as byot
from .cc import cc as cc
from .crd import crd as crd
from .cwd import cwd as cwd
from .dist import dist as dist
from .dkd import dkd as dkd
from .dml import dml as dml
from .embedding import embedding as embedding
from .embedding import embedding_table as embedding_table
from .fitnets import fitnets as fitnets
from .fsp import fsp as fsp
from .ft import ft as ft
from .gradient import gradient as gradient
from .jacobian import jacobian as jacobian
from .kd import kd as kd
from .kpn import kpn as kpn
from .logits import logits as logits
from .ls import ls as ls
from .mgd import mgd as mgd
from .mimic import mimic as mimic
from .nst import nst as nst
from .ofd import ofd as ofd
from .one import one as one
from .pkt import pkt as pkt
from .plain import plain as plain
from .review import review as review
from .rkd import rkd as rkd
from .sp import sp as sp
from .takd import takd as takd
from .tfkd import dekd as dekd
from .tfkd import rekd as rekd
from .tfkd import tfkd_reg as tfkd_reg
from .tfkd import tfkd_self as tfkd_self
from .vid import vid as vid
from .weights import weights as weights
from .weights import weights_outputs as weights_outputs

__all__: list[str]
