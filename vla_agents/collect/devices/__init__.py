"""The devices; `vla_agents.collect.teleop.DEVICES` names them, each is imported when it is first asked for."""
