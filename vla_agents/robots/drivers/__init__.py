"""Drivers: a `Robot` for each kind of arm, registered by name in `vla_agents.robots.ROBOTS`."""
