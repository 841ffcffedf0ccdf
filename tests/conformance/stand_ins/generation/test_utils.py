"""Stand-in: the suite only asks whether a tester inherits from this."""


class GenerationTesterMixin:
    pass
