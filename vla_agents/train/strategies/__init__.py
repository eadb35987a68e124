"""What comes next, one file per strategy; `vla_agents.train.strategy_config.STRATEGIES` names them."""
