"""Recording episodes: the rollout of any agent in any env, with a listener that writes."""
