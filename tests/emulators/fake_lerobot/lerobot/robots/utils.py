def make_robot_from_config(config):
    from lerobot.robots.toy import Toy

    return Toy(config)
