"""The test suite: it mirrors the packages, and keeps its shared parts (strategies, oracles, conformance suites) at the top."""
