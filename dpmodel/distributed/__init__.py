"""Training in several processes: one logical batch, one noise draw and one ledger, shared by all ranks."""
