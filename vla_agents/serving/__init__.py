"""A policy on one machine, the robot on another: `vla-agents serve CKPT`, and `load_agent("ws://host:8000")`."""
