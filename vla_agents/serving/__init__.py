"""A policy on one machine, the robot on another. Empty so far: server and remote agent come with a later version."""
