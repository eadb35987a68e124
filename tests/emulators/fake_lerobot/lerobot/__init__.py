"""A stand-in with the calls of LeRobot that the adapter makes; the real one is tried where it is installed."""
