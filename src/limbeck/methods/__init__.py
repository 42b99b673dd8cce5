"""The methods: one paper, one file."""

from limbeck.methods.ab import ab
from limbeck.methods.adversarial import adversarial
from limbeck.methods.at import at
from limbeck.methods.ban import ban
from limbeck.methods.bounded import bounded
from limbeck.methods.byot import byot
from limbeck.methods.cc import cc
from limbeck.methods.crd import crd
from limbeck.methods.cwd import cwd
from limbeck.methods.dist import dist
from limbeck.methods.dkd import dkd
from limbeck.methods.dml import dml
from limbeck.methods.embedding import embedding, embedding_table
from limbeck.methods.fitnets import fitnets
from limbeck.methods.fsp import fsp
from limbeck.methods.ft import ft
from limbeck.methods.gradient import gradient
from limbeck.methods.jacobian import jacobian
from limbeck.methods.kd import kd
from limbeck.methods.kpn import kpn
from limbeck.methods.logits import logits
from limbeck.methods.ls import ls
from limbeck.methods.mgd import mgd
from limbeck.methods.mimic import mimic
from limbeck.methods.nst import nst
from limbeck.methods.ofd import ofd
from limbeck.methods.one import one
from limbeck.methods.pkt import pkt
from limbeck.methods.plain import plain
from limbeck.methods.review import review
from limbeck.methods.rkd import rkd
from limbeck.methods.sp import sp
from limbeck.methods.takd import takd
from limbeck.methods.tfkd import dekd, rekd, tfkd_reg, tfkd_self
from limbeck.methods.vid import vid
from limbeck.methods.weights import weights, weights_outputs

__all__ = [
    "ab",
    "adversarial",
    "at",
    "ban",
    "bounded",
    "byot",
    "cc",
    "crd",
    "cwd",
    "dekd",
    "dist",
    "dkd",
    "dml",
    "embedding",
    "embedding_table",
    "fitnets",
    "fsp",
    "ft",
    "gradient",
    "jacobian",
    "kd",
    "kpn",
    "logits",
    "ls",
    "mgd",
    "mimic",
    "nst",
    "ofd",
    "one",
    "pkt",
    "plain",
    "rekd",
    "review",
    "rkd",
    "sp",
    "takd",
    "tfkd_reg",
    "tfkd_self",
    "vid",
    "weights",
    "weights_outputs",
]
