"""A training from a configuration to its run folder, and the evaluation of that folder."""
