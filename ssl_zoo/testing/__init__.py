"""Test equipment that the tools run: golden verifiers, fault injection and benchmarks. Training imports none of it."""
