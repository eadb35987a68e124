"""Windows of episodes for training: orders, mixtures, batches."""
