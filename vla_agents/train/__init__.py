"""Training: one Trainer that takes gradient steps, strategies that say what it trains on next."""
