"""Training loop of a network: batches, recipes, checkpoints. It knows no database and no bundle."""
