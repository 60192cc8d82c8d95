"""Exchange with other implementations: official weights, golden fixtures."""

from ssl_zoo.interop import golden_data2vec, golden_dino, golden_ijepa, golden_mae, golden_simmim
from ssl_zoo.interop.golden import VERIFIERS, Finding, Fixture, FixtureError, Verifier, table, verify_file

VERIFIERS["ijepa"] = Verifier(golden_ijepa.recognises, golden_ijepa.verify)
VERIFIERS["data2vec"] = Verifier(golden_data2vec.recognises, golden_data2vec.verify)
VERIFIERS["mae"] = Verifier(golden_mae.recognises, golden_mae.verify)
VERIFIERS["simmim"] = Verifier(golden_simmim.recognises, golden_simmim.verify)
VERIFIERS["dino"] = Verifier(golden_dino.recognises_dino, golden_dino.verify)
VERIFIERS["ibot"] = Verifier(golden_dino.recognises_ibot, golden_dino.verify)

__all__ = ["VERIFIERS", "Finding", "Fixture", "FixtureError", "Verifier", "table", "verify_file"]
