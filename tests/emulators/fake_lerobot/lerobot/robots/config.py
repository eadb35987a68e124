import draccus


class RobotConfig(draccus.ChoiceRegistry):
    pass
