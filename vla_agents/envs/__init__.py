"""Simulated environments, each a `gymnasium.Env` with an `embodiment` and, where there is one, a scripted expert."""
