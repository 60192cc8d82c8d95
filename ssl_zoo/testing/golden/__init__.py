"""Golden files: tensors that reference implementations recorded, recomputed by ours."""

from ssl_zoo.testing.golden import cae, data2vec, dino, ijepa, mae, msn, simclr, simmim
from ssl_zoo.testing.golden.fixture import VERIFIERS, Finding, Fixture, FixtureError, Verifier, table, verify_file

VERIFIERS["ijepa"] = Verifier(ijepa.recognises, ijepa.verify)
VERIFIERS["data2vec"] = Verifier(data2vec.recognises, data2vec.verify)
VERIFIERS["mae"] = Verifier(mae.recognises, mae.verify)
VERIFIERS["simmim"] = Verifier(simmim.recognises, simmim.verify)
VERIFIERS["cae"] = Verifier(cae.recognises, cae.verify)
VERIFIERS["dino"] = Verifier(dino.recognises_dino, dino.verify)
VERIFIERS["ibot"] = Verifier(dino.recognises_ibot, dino.verify)
VERIFIERS["simclr"] = Verifier(simclr.recognises, simclr.verify)
VERIFIERS["msn"] = Verifier(msn.recognises, msn.verify)

__all__ = ["VERIFIERS", "Finding", "Fixture", "FixtureError", "Verifier", "table", "verify_file"]
