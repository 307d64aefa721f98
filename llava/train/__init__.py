"""Training: LLaVA's two stages, from a command line to a checkpoint."""
