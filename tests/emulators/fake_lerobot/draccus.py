"""The little of draccus that LeRobot's configurations need."""


class ChoiceRegistry:
    choices: dict = {}  # noqa: RUF012

    @classmethod
    def register_subclass(cls, name):
        def add(kind):
            cls.choices[name] = kind
            return kind

        return add


def decode(cls, raw):
    raw = dict(raw)
    kind = raw.pop("type")
    if kind not in cls.choices:
        raise ValueError(f"Couldn't find a choice class for '{kind}' in {sorted(cls.choices)}")
    return cls.choices[kind](**raw)
