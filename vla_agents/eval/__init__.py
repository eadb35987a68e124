"""Closed-loop evaluation: the rollout of any agent in any env, with listeners that count and film."""
