"""The same drawn examples in every run; ``pytest --hypothesis-profile=default`` looks for new ones."""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
