"""Hypothesis without deadlines (a shared machine stutters) and without a database (nothing left behind)."""

from hypothesis import settings

settings.register_profile("suite", deadline=None, max_examples=40, database=None, print_blob=True)
settings.load_profile("suite")
