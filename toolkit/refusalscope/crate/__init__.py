"""The provenance of a run as an RO-Crate: what ran, on what, with what, when, and what came of it; and its check."""
