"""A small call of each operation, at a rank. The experts' is that of all of them, as stage 2 times it;
a query transformation's is its width."""

from petx.certify.cases.cp_reconstruct import reconstruct
from petx.certify.cases.expert_mixture import mixture
from petx.certify.cases.gated_adapter import site
from petx.certify.cases.mode_cores import cores
from petx.certify.cases.mode_update import modes
from petx.certify.cases.query_transformation import transformation

BATCH = (3, 5)
CALLS = {
    "cp_reconstruct": lambda rank, batch=BATCH: reconstruct("ranked", d_out=batch[0] * batch[1], rank=rank),
    "expert_mixture": lambda rank, batch=BATCH: mixture("ranked", batch, experts=4, rank=rank // 4, gate="token"),
    "gated_adapter": lambda rank, batch=BATCH: site("ranked", batch, r=rank),
    "mode_cores": lambda rank, batch=BATCH: cores("ranked", count=batch[0] * batch[1], rank=rank),
    "mode_update": lambda rank, batch=BATCH: modes("ranked", batch, rank=rank),
    "query_transformation": lambda rank, batch=BATCH: transformation("ranked", batch, d=rank),
}
