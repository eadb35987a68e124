"""Real robots as Gymnasium envs. Empty so far: drivers, safety and teleoperation come with a later version."""
