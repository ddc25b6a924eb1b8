"""A model from a file: spec, the network it starts from, steps and their ledger, the run."""
